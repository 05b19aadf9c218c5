"""Random networks: verdicts of a majority of draws, against known shares and the reference."""

import logging

import pandas as pd
import pytest
import torch
from nets import NoisyPixels, attack_rows, digits, share_wrong_at, two_class
from scipy.stats import binom, binomtest
from torch import nn

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.rand import (
    CONFIRMATIONS,
    FALSE_SUCCESS,
    ExpectedAPGD,
    RandomBudget,
    run_rand,
    wrong_classes,
)

IMAGES = digits()[1200:1240]
SMALL = RandomBudget(steps=10, targets=1)


class Dropping(nn.Module):
    """A net of layers with dropout after its convolutions."""

    def __init__(self, net, p):
        super().__init__()
        self.net, self.p = net, p

    def forward(self, x):
        return self.net[5:](nn.functional.dropout(self.net[:5](x), self.p, training=True))


class Guessing(nn.Module):
    """Gives class 1 in a share of the draws, else class 0, whatever the image."""

    def __init__(self, share, together=True):
        super().__init__()
        self.share, self.together = share, together
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        draws = torch.rand(len(x) if self.together else 1)
        wrong = (draws < self.share).float().expand(len(x))
        other = torch.zeros_like(wrong)
        return torch.stack([1 - wrong, wrong, other - 1, other - 2], 1) + 0 * x.flatten(1)[:, :4]


def random_nets(net) -> dict[str, nn.Module]:
    return {"noise": NoisyPixels(net, 0.1), "dropout": Dropping(net, 0.3)}


def verdicts(net, images, eps=(0.1,), budget=SMALL, **options) -> pd.DataFrame:
    rows = attack_rows(run_rand, net, images, "Linf", list(eps), budget, **options)
    return rows.set_index(["image_id", "eps"]).sort_index()


# ---- one lucky draw proves nothing ---------------------------------------------------------------


def chance_of_success(share: float, level: float) -> float:
    """That a point of a known share of wrong draws is confirmed: exact, by its binomials."""
    alive, drawn, success = {0: 1.0}, 0, 0.0
    for total in CONFIRMATIONS:
        new: dict[int, float] = {}
        for wrong, p in alive.items():
            for more in range(total - drawn + 1):
                chance = p * float(binom.pmf(more, total - drawn, share))
                new[wrong + more] = new.get(wrong + more, 0.0) + chance
        drawn, alive = total, {}
        for wrong, p in new.items():
            if binom.sf(wrong - 1, drawn, 0.5) <= level / len(CONFIRMATIONS):
                success += p
            elif 2 * wrong > drawn:
                alive[wrong] = p
    return success


def test_the_bound_on_false_success_holds_for_any_number_of_looks():
    """At a share of one half, all looks of the standard budget together; and it has power."""
    looks = RandomBudget().looks
    level = FALSE_SUCCESS / looks
    assert looks == 101
    assert looks * chance_of_success(0.5, level) <= FALSE_SUCCESS
    assert chance_of_success(0.7, level) > 0.9 and chance_of_success(0.9, level) > 0.999


@pytest.mark.parametrize("draws", range(2, 8))
def test_looks_bounds_the_candidates_of_a_run(draws):
    """One more draw is wrong at each point, so that the share rises as often as it can."""
    attack = ExpectedAPGD("Linf", 1, targeted=False)
    state = {"y": torch.zeros(1, dtype=torch.long), "most_wrong": torch.zeros(1)}
    state["zero_gradient"] = torch.zeros(1, dtype=torch.bool)
    candidates = 0
    for wrong in range(draws + 1):
        logits = nn.functional.one_hot((torch.arange(draws) < wrong).long(), 2)[None].float()
        candidates += int(attack.look(state, logits)[0])
    assert RandomBudget(("apgd-ce",), draws=draws).looks == candidates + 1


def test_wrong_classes_asks_until_it_is_sure():
    asked: list[int] = []

    def answers(share):
        def ask(draws):
            asked.append(draws)
            return [1] * round(share * draws) + [0] * (draws - round(share * draws))

        return ask

    assert wrong_classes(answers(1.0), 0, 1e-4) == ([1] * 20, 20) and asked == [20]
    assert wrong_classes(answers(0.5), 0, 1e-4) is None and asked[1:] == [20]
    wrong, draws = wrong_classes(answers(0.65), 0, 1e-4) or ([], 0)
    assert (len(wrong), draws) == (208, 320) and asked[2:] == [20, 60, 240]


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("together", [True, False])
def test_an_image_that_half_of_the_draws_get_right_is_robust(share, together):
    """Whatever single draws say; also where the net draws once for a whole batch."""
    images = [(f"i{k}", torch.full((1, 8, 8), 0.5), 0) for k in range(30)]
    net, budget = Guessing(share, together), RandomBudget(steps=4, targets=1)
    rows = attack_rows(run_rand, net, images, "Linf", [0.1], budget, n_outputs=4)
    assert rows.robust.tolist() == [1] * 30
    assert together or set(net.sizes[1:]) == {1}


def test_an_image_that_most_draws_get_wrong_is_misclassified():
    images = [(f"i{k}", torch.full((1, 8, 8), 0.5), 0) for k in range(8)]
    rows = attack_rows(run_rand, Guessing(0.8), images, "Linf", [0.0, 0.1], SMALL, n_outputs=4)
    assert set(rows.broken_by) == {"clean"} and (rows.clean_pred == 1).all()
    assert (rows.clean_correct == 0).all() and rows.wrong_share.between(0.6, 1).all()


# ---- against the reference -----------------------------------------------------------------------


def by_the_reference(net, eps, steps) -> tuple[int, int]:
    """How many IMAGES survive pyautoattack's `rand`, by its one draw and by most of 1000 draws."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    x, y = torch.stack([x for _, x, _ in IMAGES]), torch.tensor([y for _, _, y in IMAGES])
    reference = AutoAttack(net, norm="Linf", eps=eps, version="rand", seed=0)
    reference.apgd.n_iter = steps
    points, predictions = reference.run_standard_evaluation(x, y, batch_size=len(IMAGES))
    shares = [share_wrong_at(net, point, label) for (_, image, label), point in zip(IMAGES, points)]
    return int((predictions == y).sum()), sum(share <= 0.5 for share in shares)


@pytest.mark.parametrize("kind", ["noise", "dropout"])
def test_run_rand_is_within_the_references_interval(robust_digits, kind):
    """And no point is a false success, as some of the reference's are: its verdict is one draw."""
    net, eps, steps = random_nets(robust_digits)[kind], 0.15, 20
    rows = verdicts(net, IMAGES, eps=[eps], budget=RandomBudget(steps=steps, targets=1))
    by_one, by_most = by_the_reference(net, eps, steps)
    assert 0.1 < rows.robust.mean() < 0.9 and by_one <= by_most
    interval = binomtest(by_most, len(IMAGES)).proportion_ci(0.95, method="wilson")
    assert interval.low <= rows.robust.mean() <= interval.high
    for name, image, label in IMAGES:
        row = rows.loc[(name, eps)]
        if row.robust == 0 and row.broken_by != "clean":
            assert share_wrong_at(net, image + row.perturbation, label) > 0.5
            assert 0.5 < row.wrong_low < row.wrong_share <= row.wrong_high and row.draws >= 20
            assert row.linf <= eps + 1e-6 and row.adv_pred != label


def test_run_rand_gives_the_references_verdicts_where_draws_agree(robust_digits):
    """At little noise a draw decides as most draws do: the reference's own robust accuracy."""
    net, eps, steps = NoisyPixels(robust_digits, 0.02), 0.15, 20
    rows = verdicts(net, IMAGES, eps=[eps], budget=RandomBudget(steps=steps, targets=1))
    by_one, _ = by_the_reference(net, eps, steps)
    interval = binomtest(by_one, len(IMAGES)).proportion_ci(0.95, method="wilson")
    assert interval.low <= rows.robust.mean() <= interval.high


def test_a_deterministic_net_has_the_verdicts_of_apgd(robust_digits):
    """The mean of equal draws is a draw, so that the points are APGD's."""
    one = Budget(("apgd-ce", "apgd-t"), SMALL.steps, SMALL.targets)
    want = attack_rows(run_autoattack, robust_digits, IMAGES, "Linf", [0.1], one)
    want = want.set_index(["image_id", "eps"]).sort_index()
    got = verdicts(robust_digits, IMAGES)
    assert got.robust.equals(want.robust) and got.broken_by.equals(want.broken_by)
    broken = want.robust == 0
    torch.testing.assert_close(
        torch.tensor(got.l2[broken].to_numpy()),
        torch.tensor(want.l2[broken].to_numpy()),
        rtol=1e-4,
        atol=0,
        equal_nan=True,
    )


# ---- seeds and passes ----------------------------------------------------------------------------


def test_the_rows_of_a_random_net_depend_on_the_seed_alone(robust_digits):
    """Not on the order, the company, an interruption, nor on draws made before."""
    net, eps = NoisyPixels(robust_digits, 0.1), [0.05, 0.15]
    whole = verdicts(net, IMAGES[:8], eps)
    torch.rand(7)
    turned = verdicts(net, IMAGES[7::-1], eps)
    columns = [name for name in whole if name != "perturbation"]
    pd.testing.assert_frame_equal(turned[columns], whole[columns])
    state = torch.get_rng_state()
    begun = {IMAGES[0][0]: [{"eps": 0.05, "robust": 1}]}
    rest = verdicts(net, IMAGES[:4], eps, begun=begun)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's draws go on as before
    assert (IMAGES[0][0], 0.05) not in rest.index and len(rest) == 7
    pd.testing.assert_frame_equal(rest[columns], whole.loc[rest.index, columns])
    other = verdicts(net, IMAGES[:8], eps, seed=1)
    assert not other[columns].equals(whole[columns])


def test_every_draw_of_a_random_net_is_counted(robust_digits):
    net = NoisyPixels(robust_digits, 0.1)
    passes = []
    net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    rows = verdicts(net, IMAGES[:6])
    assert rows.forwards.sum() == sum(passes[1:])  # the first asks whether copies differ
    assert (rows.backwards % SMALL.draws == 0).all() and rows.backwards.sum() > 0


# ---- budgets -------------------------------------------------------------------------------------


def test_a_random_budget_is_never_called_autoattack():
    assert RandomBudget().name == "rand: apgd-ce(100) + apgd-t(9x100) of 20 draws"
    assert "AutoAttack" not in RandomBudget(("apgd-ce",), 50).name
    with pytest.raises(AttackError, match="square: --budget rand has apgd-ce and apgd-t"):
        RandomBudget(("apgd-ce", "square"))
    net, image = two_class(0.1, "Linf")
    with pytest.raises(AttackError, match="at least 4 classes"):
        list(run_rand(AttackedModel(net, 2), [("a", image, 0)], "Linf", [0.1], SMALL))
