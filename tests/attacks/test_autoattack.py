"""AutoAttack against closed forms, the reference implementation, and counted passes."""

import math
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from nets import (
    RowCounter,
    attack_rows,
    cifar_photographs,
    cifar_resnet18,
    digits,
    two_class,
)
from scipy.optimize import linprog
from torch import nn

from alignment_security.attacks import autoattack
from alignment_security.attacks.apgd import APGD
from alignment_security.attacks.attack import (
    AttackedImage,
    AttackError,
    EpsProgress,
    FabMemory,
)
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, masked_gradient_warnings, run_autoattack
from alignment_security.attacks.engine import run_stages
from alignment_security.attacks.eps_search import EpsSearch, first_decided_by, next_index
from alignment_security.attacks.fab import FAB
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.geometry import (
    exact_norm,
    margin,
    normalize,
    project_onto_hyperplane,
    shrink_onto_ball,
)
from alignment_security.attacks.libraries import (
    CountedModule,
    reference_attack,
    run_pyautoattack,
)
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.attacks.square import (
    Square,
    bump,
    propose_l2,
    square_fraction,
    square_sides,
)
from alignment_security.common.verdicts import inside_ball
from alignment_security.models.forward import Forward

SMALL = Budget(steps=20, targets=3, queries=60)


def verdicts(net, images, norm, eps, budget=SMALL, run=run_autoattack, **options) -> pd.DataFrame:
    """The rows of ten classes, by image and, of several eps, by eps."""
    rows = attack_rows(run, net, images, norm, eps, budget, **options)
    return rows.set_index(["image_id", "eps"] if len(eps) > 1 else "image_id").sort_index()


@pytest.fixture(scope="session")
def resnet():
    return cifar_resnet18()


# ---- AutoAttack: parity with the reference ------------------------------------------------------


class Recorder(nn.Module):
    """Keeps the points at which a net is evaluated."""

    def __init__(self, net):
        super().__init__()
        self.net, self.points = net, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.net(x)


def attacked_image(net, row, eps) -> AttackedImage:
    """An image (name, x, label) as the engine gives it to an attack of one eps."""
    name, x, label = row
    progress = EpsProgress(broken_index=1)
    return AttackedImage(name, x, label, net(x[None])[0], progress, eps=eps)


def our_iterates(net, attack, image, steps):
    """The points at which one image is evaluated, until it is fooled or the run is finished."""
    state, seen, forward = attack.start([image]), [], Forward(net, 1)
    for _ in range(steps):
        seen.append(state["x_adv"].clone())
        logits, grad = forward.gradient(state["x_adv"], lambda z, rows: attack.loss(state, z, rows))
        fooled, *looked = attack.look(state, logits)
        if bool(fooled) or bool(attack.update(state, logits, grad, looked)):
            break
    return seen


@pytest.mark.parametrize(
    ("norm", "targeted", "digit"),
    [
        *(("Linf", False, 1206), ("L2", False, 1218), ("Linf", True, 1204), ("L2", True, 1204)),
        ("Linf", True, 1209),
    ],
)
def test_apgd_iterates_equal_the_references(robust_digits, norm, targeted, digit):
    """Of digits that stand. On each, either condition halves a step size alone; on the last, it
    matters that the second loss is compared with 0."""
    _, x, label = digits()[digit]
    eps = 0.05 if norm == "Linf" else 0.3
    image = attacked_image(robust_digits, digits()[digit], eps)
    attack = APGD(norm, 100, targeted, runs=9 if targeted else 1)
    ours = our_iterates(robust_digits, attack, image, 200)
    recorder = Recorder(robust_digits)
    oracle = reference_attack(
        "apgd-t" if targeted else "apgd-ce", recorder, norm, eps, Budget(), seed=0
    )
    oracle.init_hyperparam(x[None])
    oracle.y_target = image.logits.sort()[1][-2:-1]
    oracle.attack_single_run(x[None], torch.tensor([label]), x_init=ours[0])
    assert len(ours) == 101
    for k, (mine, theirs) in enumerate(zip(ours, recorder.points)):
        atol = 2e-5 if norm == "Linf" or k < 30 else 1e-3  # rounding grows along an L2 walk
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_iterates_equal_the_references(robust_digits, norm):
    """The reference evaluates every new point twice; without the repeats the iterates are equal.

    Of a digit on which alpha reaches its largest value.
    """
    _, x, label = digits()[1222]
    image = attacked_image(robust_digits, digits()[1222], 1e-6)
    ours = our_iterates(robust_digits, FAB(norm, 30, runs=9), image, 200)
    recorder = Recorder(robust_digits)
    oracle = reference_attack("fab-t", recorder, norm, 1e-6, Budget(steps=30), seed=0)
    oracle.target_class, oracle.device = 2, torch.device("cpu")
    oracle.attack_single_run(x[None], torch.tensor([label]), is_targeted=True)
    mine, theirs = (
        [p for i, p in enumerate(points) if i == 0 or not torch.equal(p, points[i - 1])]
        for points in (ours, recorder.points)
    )
    assert abs(len(mine) - len(theirs)) <= 1 and len(mine) > 30
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


class GradientAlways(FAB):
    """FAB that computes the gradient of every new point, without predicting its class."""

    def wants_gradient(self, state):
        return ~state["is_new"] | (state["iteration"] < self.steps - 1)


class GradientLater(FAB):
    """FAB that evaluates every new point without a gradient first."""

    def wants_gradient(self, state):
        return ~state["is_new"]


def fab_passes(fab, net, images, monkeypatch):
    monkeypatch.setattr("alignment_security.attacks.autoattack.FAB", fab)
    counter, budget = CountedModule(net), Budget(attacks=("fab-t",), steps=30, targets=1)
    verdicts(counter, images, "Linf", [1e-6], budget, batch_size=len(images))
    return counter.forwards + counter.backwards


def test_fab_predicts_which_points_need_no_gradient(robust_digits, resnet, monkeypatch):
    """A prediction costs little on a regular path, and beats fixed rules on an irregular one."""
    guess, always, later = (
        fab_passes(fab, robust_digits, digits()[1200:1240], monkeypatch)
        for fab in (FAB, GradientAlways, GradientLater)
    )
    assert guess < 0.8 * always and guess < 1.03 * later
    guess, always, later = (
        fab_passes(fab, resnet, cifar_photographs()[:1], monkeypatch)
        for fab in (FAB, GradientAlways, GradientLater)
    )
    assert guess < min(always, later)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
def test_run_autoattack_gives_the_references_verdicts(robust_digits, norm, eps):
    """Small budget, 40 digits: the same robust images but for one, since Square's draws differ."""
    ours, theirs = (
        verdicts(robust_digits, digits()[1200:1240], norm, [eps], run=engine, batch_size=40)
        for engine in (run_autoattack, run_pyautoattack)
    )
    assert (ours.robust != theirs.robust).sum() <= 1
    assert 0.1 < ours.robust.mean() < 0.95


@pytest.mark.slow
def test_run_autoattack_gives_the_references_verdicts_on_every_digit(robust_digits):
    """The standard budget on all 1797 digits: the random draws may move half a point."""
    ours, theirs = (
        verdicts(robust_digits, digits(), "Linf", [0.12], Budget(), engine, batch_size=256).robust
        for engine in (run_autoattack, run_pyautoattack)
    )
    assert len(ours) == 1797 and 0.1 < ours.mean() < 0.95
    assert (ours == theirs).mean() >= 0.995 and abs(ours.mean() - theirs.mean()) <= 0.005


def test_run_autoattack_gives_the_references_verdicts_on_photographs(resnet):
    images = cifar_photographs(resnet)[:6]
    budget = Budget(attacks=("apgd-ce",), steps=20)
    ours, theirs = (
        verdicts(resnet, images, "Linf", [2 / 255], budget, engine, batch_size=6)
        for engine in (run_autoattack, run_pyautoattack)
    )
    assert ours.robust.to_dict() == theirs.robust.to_dict()
    ours, theirs = ((rows.forwards + rows.backwards).sum() for rows in (ours, theirs))
    assert ours < theirs / 2


# ---- AutoAttack: what holds for any model -------------------------------------------------------


def test_run_autoattack_does_not_depend_on_the_batch(robust_digits):
    images = digits()[1200:1216]
    whole, sevens, ones = (
        verdicts(robust_digits, order, "Linf", [0.08, 0.12], batch_size=size)
        for order, size in ((images, 16), (images[::-1], 7), (images, 1))
    )
    for other in (sevens, ones):
        columns = ["robust", "broken_by", "forwards", "backwards"]
        pd.testing.assert_frame_equal(other[columns], whole[columns])
        np.testing.assert_allclose(other.linf.astype(float), whole.linf.astype(float), atol=1e-5)


def test_the_seed_moves_the_start_points(robust_digits):
    """The same seed gives the same perturbations, another seed other ones of the same images."""
    first, again, other = (
        verdicts(robust_digits, digits()[1200:1208], "Linf", [0.2], seed=seed) for seed in (5, 5, 6)
    )
    attacked = first.index[first.broken_by.str.startswith("apgd")]
    assert len(attacked) > 2 and set(other.index) == set(first.index)
    assert (again.l2[attacked] == first.l2[attacked]).all()
    assert (other.l2[attacked] != first.l2[attacked]).all()


def test_eps_search_is_monotone_inside_its_balls_and_counts_every_pass(robust_digits):
    net, eps = RowCounter(robust_digits), [0.0, 0.05, 0.1, 0.2]
    rows = verdicts(net, digits()[1200:1220], "Linf", eps, batch_size=8).reset_index()
    curve = rows.groupby("eps").robust.mean()
    clean = rows[rows.eps == 0].set_index("image_id")
    assert (clean.robust == clean.clean_correct).all()
    assert curve.is_monotonic_decreasing and curve.iloc[-1] < curve.iloc[0]
    assert (rows.groupby("image_id").robust.apply(lambda r: r.is_monotonic_decreasing)).all()
    # gradients that no row asked for come with those of other rows where that is cheaper
    assert rows.forwards.sum() == net.forwards
    assert 0.8 * net.backwards < rows.backwards.sum() <= net.backwards
    attacked = rows[(rows.robust == 0) & (rows.broken_by != "clean")]
    assert (attacked.linf <= attacked.eps + 1e-7).all()
    assert (attacked.adv_pred != attacked.label).all()
    images = {name: x for name, x, _ in digits()}
    for row in attacked.dropna(subset="perturbation").itertuples():
        point = images[row.image_id] + row.perturbation
        assert point.min() >= -1e-6 and point.max() <= 1 + 1e-6
        assert float(row.perturbation.abs().max()) == pytest.approx(row.linf)


def test_fab_memory_decides_larger_balls(robust_digits):
    """FAB alone: the verdicts of one run per eps, and gradients at the first eps only."""
    budget, images = Budget(attacks=("fab-t",), steps=30, targets=3), digits()[1200:1220]
    together = verdicts(robust_digits, images, "Linf", [0.05, 0.1, 0.15], budget)
    for eps in (0.05, 0.1, 0.15):
        alone = verdicts(robust_digits, images, "Linf", [eps], budget)
        assert (together.xs(eps, level="eps").robust == alone.robust).all()
    later = together[together.index.get_level_values("eps") > 0.06]
    assert later.backwards.sum() == 0
    assert later.robust.mean() < together.xs(0.05, level="eps").robust.mean()


def test_an_estimate_orders_the_eps_and_changes_no_verdict(robust_digits, monkeypatch):
    """Against the eps in ascending order, for which no estimate is made."""
    eps, images = [0.02, 0.05, 0.08, 0.12, 0.16, 0.2], digits()[1200:1216]
    budget = Budget(steps=30, targets=9, queries=300)
    with_estimate = verdicts(robust_digits, images, "Linf", eps, budget, batch_size=16)
    monkeypatch.setattr(autoattack, "LEAST_WALKS", float("inf"))
    ascending = verdicts(robust_digits, images, "Linf", eps, budget, batch_size=16)
    assert (with_estimate.robust == ascending.robust).all()
    levels = with_estimate.index.get_level_values("eps")
    inferred = with_estimate[with_estimate.from_eps > levels + 1e-12]
    assert (inferred.robust == 1).any() and not (inferred.broken_by == "crossing-Linf").any()
    broken = with_estimate[(with_estimate.robust == 0) & (with_estimate.broken_by != "clean")]
    assert set(broken.broken_by) <= set(Budget().attacks)
    assert with_estimate.forwards.sum() < 0.5 * ascending.forwards.sum()


@pytest.mark.parametrize("truth", range(7))
@pytest.mark.parametrize("estimate", range(-1, 7))
def test_the_next_eps_is_as_near_to_the_estimate_as_undecided_ones_are(truth, estimate):
    """Six eps, of which `truth` are survived: at most two attacks where the estimate is right."""
    progress = EpsProgress(broken_index=6, estimate_index=estimate)
    attacked = []
    while not progress.decided:
        index = next_index(progress)
        attacked.append(index)
        if index < truth:
            progress.survived_index = index
        else:
            progress.broken_index = index
    assert progress.survived_index == truth - 1 and len(set(attacked)) == len(attacked)
    if estimate == -1:
        assert attacked == list(range(min(truth + 1, 6)))
    if estimate == truth - 1 >= 0:
        assert attacked == [truth - 1, truth][: 6 - estimate]


def test_a_small_perturbation_decides_smaller_eps():
    """A point with a norm of 0.1 also decides eps 0.15 and 0.1."""
    progress = EpsProgress(eps=[0.05, 0.1, 0.15, 0.2, 0.25], broken_index=5)
    assert [first_decided_by(norm, progress, 3) for norm in (0.21, 0.18, 0.1, 0.01)] == [3, 3, 1, 0]
    progress.survived_index = 1
    assert first_decided_by(0.01, progress, 3) == 2
    progress.broken_index = 2
    assert progress.decided


@pytest.mark.parametrize("norm", [0.4, 0.8, 1.9])
def test_rows_of_earlier_sessions_decide_the_same_in_any_order(norm):
    """Robust at 1, broken at 2, perhaps by a point that is nearer than 1: 0.7 is robust, 4 not."""
    earlier = [
        {"eps": eps, "robust": eps < 2, "adv_pred": 0, "broken_by": "", "from_eps": eps}
        | {"linf": norm, "l2": norm}
        for eps in (0.5, 1, 2)
    ]
    net, pixels = two_class(0.5, "L2")
    for rows in permutations(earlier):
        image = attacked_image(net, ("a", pixels, 0), 0)
        image.clean = {"clean_correct": 1}
        eps, begun = [0.5, 0.7, 1, 2, 4], {"a": list(rows)}
        search = EpsSearch(["apgd-ce"], eps, "L2", lambda *_: [], lambda batch: batch, begun)
        found, images = search.on_images([image])
        assert not images and {row["eps"]: row["robust"] for row in found} == {0.7: 1, 4: 0}


def test_fab_memory_keeps_the_nearest_point():
    memory = FabMemory()
    for distance, eps in ((0.3, 0.1), (0.2, 0.15), (0.4, 0.2)):
        memory.remember(torch.full((1,), distance), distance, eps)
    assert memory.nearest is not None and float(memory.nearest) == pytest.approx(0.2)
    assert (memory.distance, memory.found_at) == (0.2, 0.15)


def test_eps_search_resumes_after_begun_rows(robust_digits):
    images, eps = digits()[1200:1212], [0.05, 0.1, 0.15]
    whole = verdicts(robust_digits, images, "Linf", eps)
    begun = {
        name: rows.reset_index().sort_values("eps").iloc[:1].to_dict("records")
        for name, rows in whole.groupby("image_id")
    }
    rest = verdicts(robust_digits, images, "Linf", eps, begun=begun)
    assert len(rest) == 2 * len(images)
    pd.testing.assert_series_equal(rest.robust, whole.robust.loc[rest.index], check_dtype=False)


def test_square_breaks_a_net_that_masks_its_gradients():
    """A staircase has no gradient: only random search succeeds, and a warning reports it."""

    class Staircase(nn.Module):
        def forward(self, x):
            steps = (x.flatten(1).sum(1) * 4).floor() / 4
            others = torch.tensor([0.0, -5, -6]).expand(len(x), 3)
            return torch.cat([9 - steps[:, None], others], 1) + 0 * x.flatten(1)[:, :4]

    images = [(f"i{k}", torch.full((1, 8, 8), 0.1), 0) for k in range(4)]
    said = []
    budget = Budget(steps=10, targets=3, queries=300)
    rows = attack_rows(
        run_autoattack, Staircase(), images, "Linf", [0.1], budget, n_outputs=4, log=said.append
    )
    assert set(rows.broken_by) == {"square"}
    assert "4 image(s) had a zero gradient" in said[0]
    assert "masked" in masked_gradient_warnings(rows)[0]


@pytest.mark.parametrize("distance", [0.02, 0.1, 0.3])
def test_fab_finds_linf_distances_of_a_linear_model(distance):
    net, image = two_class(distance, "Linf")
    attacked = attacked_image(net, ("a", image, 0), 1e-9)
    stages = run_stages(
        [0],
        [FAB("Linf", 60, runs=1)],
        Forward(net, 1),
        SimpleNamespace(
            confirm=lambda images, points, broken_by: [None] * len(images),
            on_images=lambda batch: ([], [attacked]),
            on_fooled=lambda image, finding: ([], None),
            on_exhausted=lambda image, stage: ([], None),
        ),
    )
    assert not any(stages)
    assert attacked.progress.fab.distance == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection_on_hyperplane_and_box_is_optimal(norm):
    """Against scipy's linear / quadratic solvers."""
    from scipy.optimize import minimize

    generator = torch.Generator().manual_seed(1)
    t, w = torch.rand(4, 12, generator=generator), torch.randn(4, 12, generator=generator)
    c = torch.tensor([0.3, -0.8, 2.0, -0.05])
    d = project_onto_hyperplane(t, w, c, norm).double().numpy()
    for i in range(4):
        ti, wi, goal = t[i].double().numpy(), w[i].double().numpy(), -float(c[i])
        assert d[i] @ wi == pytest.approx(goal, abs=1e-5)
        assert (ti + d[i]).min() >= -1e-6 and (ti + d[i]).max() <= 1 + 1e-6
        if norm == "Linf":
            n = len(ti)
            best = linprog(
                [*[0] * n, 1],
                A_ub=np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]]),
                b_ub=np.zeros(2 * n),
                A_eq=[[*wi, 0]],
                b_eq=[goal],
                bounds=[*zip(-ti, 1 - ti), (0, None)],
            ).fun
            assert np.abs(d[i]).max() == pytest.approx(best, abs=1e-5)
        else:
            best = minimize(
                lambda z: z @ z,
                np.zeros(len(ti)),
                jac=lambda z: 2 * z,
                bounds=list(zip(-ti, 1 - ti)),
                constraints={"type": "eq", "fun": lambda z, w=wi, g=goal: z @ w - g},
            ).fun
            assert d[i] @ d[i] == pytest.approx(best, abs=1e-4)


def test_bump_and_square_fraction_equal_the_references():
    """Bumps of every size, and the schedule at its corners."""
    oracle = reference_attack("square", None, "L2", 1.0, Budget(), 0)
    oracle.device = torch.device("cpu")
    torch.manual_seed(0)
    for size in (3, 5, 8, 11):
        theirs = oracle.eta(size)
        assert any(torch.allclose(bump(size, t), theirs, atol=1e-6) for t in (False, True))
    for query in (0, 10, 11, 50, 51, 200, 201, 500, 1000, 2001, 4999):
        ours = float(square_fraction(torch.tensor(query)))
        assert ours == pytest.approx(oracle.p_selection(query))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_square_keeps_the_best_point_and_never_leaves_its_ball(robust_digits, norm):
    attack, seen, margins = Square(norm, 40), [], []
    images = [attacked_image(robust_digits, row, eps=0.3) for row in digits()[1200:1204]]
    state, forward = attack.start(images), Forward(robust_digits, 4)
    for _ in range(40):
        seen.append(state["x_adv"].clone())
        logits = forward.logits(state["x_adv"])
        margins.append(margin(logits, state["y"]))
        attack.update(state, logits, None, logits.argmax(1) != state["y"])
    at_best = margin(forward.logits(state["x_best"]), state["y"])
    assert torch.equal(torch.stack(margins).amin(0), state["margin_best"])
    torch.testing.assert_close(at_best, state["margin_best"])
    delta = (torch.stack(seen) - state["x"]).flatten(2)
    size = delta.abs().amax(2) if norm == "Linf" else delta.norm(dim=2)
    assert size.max() <= 0.3 + 1e-5 and len({float(s.sum()) for s in seen}) > 20


def test_a_linf_proposal_changes_one_square(robust_digits):
    """In each channel to +eps or -eps; its side is that of the schedule."""
    attack, eps = Square("Linf", 40), 0.1
    images = [attacked_image(robust_digits, ("a", torch.full((1, 8, 8), 0.5), 0), eps)]
    state = attack.start(images)
    attack.update(state, robust_digits(state["x_adv"]), None, [])
    side = int(square_sides("Linf", 8, 8, 40)[0])
    delta, kept = (state[name][0, 0] - 0.5 for name in ("x_adv", "x_best"))
    rows, columns = (torch.nonzero((delta != kept).any(d)).flatten() for d in (1, 0))
    assert all(0 < len(at) <= side and at.max() - at.min() < side for at in (rows, columns))
    inside = delta[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert float(inside.amax() - inside.amin()) < 1e-6 and side < 8
    torch.testing.assert_close(inside.abs(), torch.full_like(inside, eps))


def test_an_l2_proposal_moves_the_budget_of_one_window_to_a_bump_in_another():
    """What the ball leaves unused goes there too; outside of both windows nothing changes."""
    generator = torch.Generator().manual_seed(0)
    x, side = torch.full((1, 3, 20, 20), 0.5), 5
    delta = 0.2 * normalize(torch.randn(1, 3, 20, 20, generator=generator), 2)
    delta[:, :, 1:6, 1:6] = 0
    # the first window begins at (1, 1), the second at (12, 9)
    placed = torch.tensor([1.5 / 15, 1.5 / 15, 12.5 / 15, 9.5 / 15, 0.1])
    found = []
    for signs in ([0.9, 0.9, 0.1], [0.1, 0.9, 0.1]):
        draw = torch.cat([placed, torch.tensor(signs)])[None]
        new = propose_l2(x, x + delta, torch.tensor([0.25]), side, draw) - x
        found.append(new[0, :, 1:6, 1:6].clone())
        assert float(new.norm()) == pytest.approx(0.25, rel=1e-5)
        assert not new[:, :, 12:17, 9:14].any()
        new[:, :, 1:6, 1:6], new[:, :, 12:17, 9:14] = 0, delta[:, :, 12:17, 9:14]
        torch.testing.assert_close(new, delta, atol=1e-6, rtol=0)
    lengths = [float(channel.norm()) for channel in found[0]]
    unused = (0.25**2 - float(delta.norm()) ** 2) / 3
    wanted = [math.sqrt(unused + float(c.norm()) ** 2) for c in delta[0, :, 12:17, 9:14]]
    assert lengths == pytest.approx(wanted, rel=1e-4)
    first, second = found
    torch.testing.assert_close(first[0], -second[0])
    torch.testing.assert_close(first[1:], second[1:])
    torch.testing.assert_close(first[1] / first[1].norm(), bump(side, False), atol=1e-5, rtol=0)


# ---- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label", "says"),
    [
        (torch.full((1, 8, 8), 1.5), 0, "pixels are not all in"),
        (torch.full((1, 8, 8), torch.nan), 0, "pixels are not all in"),
        (torch.full((1, 8, 8), -0.1), 0, "pixels are not all in"),
        (torch.full((1, 8, 8), 0.5), 7, "label 7 is outside 0..1"),
    ],
)
def test_bad_images_are_named(image, label, says):
    (net, _), images = two_class(0.1, "L2"), [("photo.jpg", image, label)]
    model = AttackedModel(net, 2)
    for run in (
        run_minimum_norm(model, images, FMN("L2", 3)),
        run_autoattack(model, images, "Linf", [0.1], Budget(attacks=("apgd-ce",))),
    ):
        with pytest.raises(AttackError, match=f"photo.jpg: .*{says}"):
            list(run)


def test_budgets_below_the_standard_are_not_called_autoattack():
    assert Budget().name == "AutoAttack standard"
    for less in ({"steps": 99}, {"queries": 4999}, {"targets": 8}, {"attacks": ("apgd-ce",)}):
        name = Budget(**less).name
        assert "AutoAttack" not in name and name.startswith("reduced")


def test_targeted_attacks_need_classes():
    """DLR needs four classes, and nine targets need ten."""
    with pytest.raises(AttackError, match="at least 4 classes"):
        Budget().check(2)
    with pytest.raises(AttackError, match="9 targets"):
        Budget().check(5)
    Budget(attacks=("apgd-ce", "square")).check(2)


def test_out_of_memory_halves_the_batch_and_changes_no_verdict(robust_digits):
    class Greedy(nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise torch.OutOfMemoryError("device is full")
            return robust_digits(x)

    images, said = digits()[1200:1212], []
    roomy = verdicts(robust_digits, images, "Linf", [0.1], batch_size=12)
    tight = verdicts(Greedy(), images, "Linf", [0.1], batch_size=12, log=said.append)
    assert tight.robust.equals(roomy.robust) and "batch size is now" in said[0]


def test_other_errors_are_not_taken_for_memory(robust_digits):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Forward(Broken(), 4).logits(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("eps", [0.2, 3.0])
def test_norms_that_are_recorded_are_those_of_float64(eps):
    """Of 224 pixels and values alike, of which torch's own float32 sum is 2e-5 too small; a point
    on the L2 ball is on it in float64 too."""
    delta = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).sign()
    radius = torch.tensor([eps, 2 * eps])
    on_ball = shrink_onto_ball(delta.clone(), radius, "L2")
    for points in (on_ball, radius[0] * normalize(delta, 2), delta / 1020):
        wanted = points.double().square().sum(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(exact_norm(points, 2).double(), wanted, rtol=5e-7, atol=0)
    assert inside_ball(on_ball.double().flatten(1).norm(dim=1), radius.double()).all()
