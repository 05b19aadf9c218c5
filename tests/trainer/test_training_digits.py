"""What training achieves on digits with synthetic maps, and properties of a step."""

from __future__ import annotations

import pytest
import torch
from digits_training import (
    ADVERSARIAL,
    HELD_OUT,
    accuracies,
    accuracy,
    agreement,
    make_recipe,
    trained,
)
from nets import DigitsWithMaps, digits, ink_maps, untrained_digits_net

from alignment_security.attacks.autoattack import Budget
from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import fit, train_step

# ---- results of training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return trained()


def test_adversarial_training_makes_digits_robust(plain):
    """A reduced budget, which can only overrate robustness; the slow test has the standard one."""
    budget = Budget(("apgd-ce", "apgd-t"), 20, 3, 100)
    (clean, robust), (clean_adv, robust_adv) = (
        accuracies(net, budget, HELD_OUT) for net in (plain, trained(ADVERSARIAL))
    )
    assert abs(clean - clean_adv) <= 5 and robust_adv >= robust + 20


@pytest.mark.slow
def test_adversarial_training_makes_digits_robust_by_autoattack(plain):
    rows, both = HELD_OUT[:60], (plain, trained(ADVERSARIAL))
    (clean, robust), (clean_adv, robust_adv) = (accuracies(net, Budget(), rows) for net in both)
    assert abs(clean - clean_adv) <= 5 and robust_adv >= robust + 20


@pytest.mark.parametrize(
    "options, more",
    [("--lambda_1 0.1", 0.15), ("--lambda_1 0.5 --form code", 0.03)],
    ids=["equation", "code"],
)
def test_harmonizer_aligns_gradients_with_maps(plain, options, more):
    harmonized = trained(f"--objective harmonizer {options}", maps=True)
    assert (
        agreement(harmonized) > agreement(plain) + more
        and accuracy(harmonized) > accuracy(plain) - 0.05
    )


def test_both_objectives_together(plain):
    budget = Budget(("apgd-ce",), 20)
    both = trained("--objective both --norm Linf --eps 0.12 --lambda_1 0.005", maps=True)
    assert agreement(both) > agreement(plain) + 0.1
    assert (
        accuracies(both, budget, HELD_OUT)[1] > accuracies(plain, budget, HELD_OUT)[1] + 20
        and accuracy(both) > 0.88
    )


# ---- the step ------------------------------------------------------------------------------------


def after(options: str, rows, activation=torch.nn.Softplus):
    recipe = make_recipe(f"--optimizer momentum --epochs 1 {options}")
    net = untrained_digits_net(activation=activation)
    learner = make_learner(recipe, net, 2, torch.device("cpu"))
    data = DigitsWithMaps(rows, ink_maps(rows))
    fit(recipe, learner, data, data.ids)
    return learner.net.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--objective harmonizer --lambda_1 0.1",
        "--objective both --norm L2 --eps 1 --lambda_1 0.1",
    ],
)
def test_step_in_parts_equals_the_whole_step(options):
    whole, parts = (
        after(f"--batch_size 12 {options} {size}", digits()[:24]) for size in ("", "--pass_size 5")
    )
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_harmonizer_without_maps_is_cross_entropy():
    rows = digits()[:24]
    found = []
    for objective in ("", "--objective harmonizer --lambda_1 9"):
        recipe = make_recipe(f"--epochs 1 --batch_size 12 {objective}")
        learner = make_learner(recipe, untrained_digits_net(), 2, torch.device("cpu"))
        data = DigitsWithMaps(rows)
        fit(recipe, learner, data, data.ids)
        found.append(learner.net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_learner_trained_is_the_average_of_weights(monkeypatch):
    rows = digits()[:60]
    recipe = make_recipe("--epochs 3 --batch_size 12 --ema 0.9")
    learner = make_learner(recipe, untrained_digits_net(), 5, torch.device("cpu"))
    seen = []
    step = train_step

    def watched(*a, **k):
        found = step(*a, **k)
        seen.append(learner.net[0].bias.detach().clone())
        return found

    monkeypatch.setattr("alignment_security.trainer.loop.train_step", watched)
    data = DigitsWithMaps(rows)
    fit(recipe, learner, data, data.ids)
    average = seen[0]  # timm: the first update copies, then decay min(1 - (1 + k)^(-2/3), 0.9)
    for k, bias in enumerate(seen[1:], start=1):
        decay = min(1 - (1 + k) ** (-2 / 3), 0.9)
        average = decay * average + (1 - decay) * bias
    torch.testing.assert_close(learner.trained[0].bias, average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(learner.trained[0].bias, learner.net[0].bias)
