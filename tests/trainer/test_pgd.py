"""PGD against closed forms, and as a step of training uses it."""

from __future__ import annotations

import pytest
import torch
from digits_training import make_recipe
from hypothesis import given
from hypothesis import strategies as st
from nets import DigitsWithMaps, Linear, digits, untrained_digits_net
from torch import nn

from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import fit
from alignment_security.trainer.pgd import PGD_NORMS, pgd, random_delta


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


SIZE = {"Linf": lambda d: d.abs().flatten(1).amax(1), "L2": lambda d: d.flatten(1).norm(dim=1)}


@given(
    st.sampled_from(PGD_NORMS),
    st.floats(0, 3),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_pgd_stays_in_its_ball_and_among_pixels(norm, eps, steps, random_start, seed):
    net = untrained_digits_net(seed % 3)
    x = rand(4, 1, 8, 8, seed=seed)
    x[0] = x[0].round()  # pixels on the rim
    point = pgd(net, x, torch.tensor([0, 1, 2, 3]), norm, eps, steps, random_start=random_start)
    assert point.min() >= 0 and point.max() <= 1 and not point.requires_grad
    assert (SIZE[norm](point - x) <= eps * (1 + 1e-5) + 1e-6).all()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("norm", PGD_NORMS)
def test_pgd_finds_the_worst_point_of_a_linear_net(norm):
    """Without clipping it is eps times the unit direction of the difference of the two rows.

    A step of the default length goes two thirds of that way.
    """
    weight = rand(2, 16) - 0.5
    x, uphill = torch.full((1, 1, 4, 4), 0.5), weight[1] - weight[0]
    direction = uphill.sign() if norm == "Linf" else uphill / uphill.norm()
    for steps, length in ((1, 0.2 / 3), (3, 0.1)):
        point = pgd(Linear(weight, torch.zeros(2)), x, torch.tensor([0]), norm, 0.1, steps)
        moved = (point - x).flatten()
        torch.testing.assert_close(moved, length * direction, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", PGD_NORMS)
def test_pgd_without_a_gradient_stays(norm):
    net, x = Linear(torch.zeros(3, 16), torch.arange(3.0)), torch.full((2, 1, 4, 4), 0.5)
    assert torch.equal(pgd(net.requires_grad_(), x.clone(), torch.tensor([0, 1]), norm, 0.3), x)


def test_random_delta_fills_the_ball():
    """Uniform points in d dimensions have P(r < eps t) = t^d: 1/4 within eps / 2 for two pixels."""
    torch.manual_seed(0)
    radius = SIZE["L2"](random_delta(torch.zeros(4000, 1, 1, 2), "L2", 2.0))
    assert radius.max() <= 2 and (radius < 1).float().mean().item() == pytest.approx(
        0.25, abs=0.025
    )  # 3.6 standard errors


@pytest.mark.parametrize("objective", ["adversarial", "both"])
def test_fit_attacks_without_changing_batch_statistics(objective):
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    options = "--norm Linf --eps 0.1 --attack_steps 5"
    if objective == "both":
        options += " --lambda_1 1"
    recipe = make_recipe(f"--objective {objective} --batch_size 4 --epochs 1 {options}")
    rows = digits()[:4]
    data = DigitsWithMaps(rows, rand(4, 8, 8))
    fit(recipe, make_learner(recipe, net, 1, torch.device("cpu")), data, data.ids)
    assert net[0].num_batches_tracked == 1 and net.training
