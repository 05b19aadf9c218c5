"""The objectives against closed forms, scipy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from digits_training import make_recipe
from nets import DigitsWithMaps, Linear, digits
from scipy import ndimage, stats
from torch import nn

from alignment_security.trainer.grouped_convolution import TwiceDifferentiableConvolutions
from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import fit, with_precision
from alignment_security.trainer.objectives import (
    FORMS,
    ObjectiveError,
    harmonizer_loss,
    mean_square_over_levels,
    norm_over_levels,
    pyramid,
    standardise,
)


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- pyramid and z-scores ------------------------------------------------------------------------


def scipy_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    found = [image]
    for _ in range(levels - 1):
        blurred = found[-1]
        for axis in (0, 1):
            blurred = ndimage.correlate1d(
                blurred, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="constant"
            )
        found.append(blurred[::2, ::2])
    return found


@pytest.mark.parametrize("size", [(32, 32), (7, 12), (1, 1)])
def test_pyramid_equals_scipy(size):
    maps = rand(3, *size)
    levels = pyramid(maps, 5)
    assert len(levels) == 5
    for i in range(3):
        for ours, theirs in zip(levels, scipy_pyramid(maps[i].numpy(), 5), strict=True):
            np.testing.assert_allclose(ours[i], theirs, atol=1e-12)


def test_standardise_equals_scipy_and_is_zero_for_a_flat_map():
    maps = rand(3, 9, 11) * 1e-7
    np.testing.assert_allclose(
        standardise(maps).flatten(1), stats.zscore(maps.flatten(1).numpy(), axis=1), rtol=1e-9
    )
    assert (standardise(torch.full((2, 4, 4), 0.3)) == 0).all()


def test_standardise_of_a_flat_map_has_a_finite_gradient():
    flat = torch.full((1, 4, 4), 0.25, requires_grad=True)
    standardise(flat).relu().sum().backward()
    assert torch.isfinite(flat.grad).all()


# ---- the harmonizer's loss -----------------------------------------------------------------------


def test_norm_over_levels_by_hand():
    """2 x 2: z of (3, 1, 1, 1) is (sqrt 3, -1/sqrt 3, ...), rectified (sqrt 3, 0, 0, 0).

    The map peaks at another pixel, so the distance is sqrt 3 sqrt 2. All other levels are one
    pixel, whose z is 0.
    """
    gradient = torch.tensor(
        [[[[-3.0, 1.0], [1.0, 1.0]], [[0.0, 0.5], [-1.0, 1.0]]]]
    )  # (1, 2, 2, 2): |largest| is 3 1 1 1
    maps = torch.tensor([[[0.0, 0.0], [0.0, 7.0]]])
    assert norm_over_levels(gradient, maps).item() == pytest.approx(6**0.5, rel=1e-6)


def test_norm_over_levels_equals_numpy():
    gradient, maps = rand(2, 3, 16, 12) - 0.5, rand(2, 16, 12, seed=1)
    for i, ours in enumerate(norm_over_levels(gradient, maps)):
        pairs = zip(
            scipy_pyramid(np.abs(gradient[i].numpy()).max(axis=0), 5),
            scipy_pyramid(maps[i].numpy(), 5),
        )
        by_hand = sum(
            np.linalg.norm(
                np.maximum(stats.zscore(g, axis=None), 0)
                - np.maximum(stats.zscore(m, axis=None), 0)
            )
            for g, m in pairs
            if g.size > 1
        )
        assert ours.item() == pytest.approx(by_hand, rel=1e-9)


def test_mean_square_over_levels_equals_numpy():
    gradient, maps = rand(1, 3, 16, 16) - 0.5, rand(1, 16, 16, seed=1)
    g, phi = (
        np.maximum(stats.zscore(a, axis=None), 0)
        for a in (gradient[0].numpy().mean(axis=0), maps[0].numpy())
    )
    pairs = zip(scipy_pyramid(g, 5), scipy_pyramid(phi * g.max() / phi.max(), 5))
    by_hand = np.mean([np.square(a - b).mean() for a, b in pairs])
    assert mean_square_over_levels(gradient, maps).item() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_zero_for_agreement_only(form):
    maps = rand(2, 16, 16)
    same = (maps * torch.tensor([3.0, 1e-4])[:, None, None])[:, None].expand(2, 3, 16, 16)
    assert FORMS[form](same, maps).numpy() == pytest.approx([0, 0], abs=1e-6)
    assert (FORMS[form](same.flip(2), maps) > 0.1).all()


def harmonizer_of(net, x, labels, maps) -> torch.Tensor:
    _, far = harmonizer_loss(net, x, labels, maps, torch.tensor([True, True, False]))
    assert far[2] == 0
    return far.sum()


@pytest.mark.parametrize("activation", [nn.Softplus, nn.ReLU], ids=["smooth", "relu"])
def test_harmonizer_loss_gradient_by_finite_differences(activation):
    """A second derivative of the net, for ReLUs by the weights along open paths.

    The form of the authors' code holds a maximum fixed and has no gradient in this sense.
    """
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        activation(),
        nn.Flatten(),
        nn.Linear(108, 8),
        activation(),
        nn.Linear(8, 4),
    ).double()
    x, labels, maps = rand(3, 1, 8, 8), torch.tensor([1, 3, 0]), rand(3, 8, 8, seed=2)
    harmonizer_of(net, x, labels, maps).backward()
    largest, h = 0.0, 1e-6
    for parameter in [net[0].weight, net[3].weight, net[5].weight]:
        for at in (0, parameter.numel() // 2, parameter.numel() - 1):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[at] += sign * h
                    values.append(harmonizer_of_value(net, x, labels, maps))
                    parameter.view(-1)[at] -= sign * h
            numerical = (values[0] - values[1]) / (2 * h)
            assert parameter.grad.view(-1)[at].item() == pytest.approx(
                numerical, rel=1e-4, abs=1e-6
            )
            largest = max(largest, abs(numerical))
    assert largest > 1e-3


def harmonizer_of_value(net, x, labels, maps) -> float:
    with torch.enable_grad():
        return harmonizer_of(net, x, labels, maps).item()


def test_harmonizer_loss_of_a_transformer_has_a_gradient():
    """Fused attention has no second derivative on any device; the plain formula replaces it."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=5)
    x, labels = rand(2, 3, 160, 160, dtype=torch.float32), torch.tensor([0, 1])
    _, far = harmonizer_loss(
        net, x, labels, rand(2, 160, 160, seed=1, dtype=torch.float32), torch.tensor([True, True])
    )
    far.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert net.blocks[0].attn.qkv.weight.grad.abs().max() > 0


OURS = TwiceDifferentiableConvolutions().conv2d


@pytest.mark.parametrize(
    "stride, padding, dilation, groups, size",
    [(1, 1, 1, 4, 5), (2, 1, 1, 4, 6), (2, 0, 1, 2, 8), ((1, 2), (2, 0), (2, 1), 2, 7)],
)
def test_twice_differentiable_conv2d_equals_torch(stride, padding, dilation, groups, size):
    """First derivatives are torch's, second ones those of finite differences."""
    x, weight, bias = rand(2, 4, size, size), rand(4, 4 // groups, 3, 3, seed=1), rand(4, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    how = (stride, padding, dilation, groups)
    ours, theirs = OURS(*inputs, *how), torch.nn.functional.conv2d(*inputs, *how)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(theirs.square().sum(), inputs),
    ):
        torch.testing.assert_close(a, b)
    if size == 5:
        assert torch.autograd.gradgradcheck(lambda *values: OURS(*values, *how), inputs)
    gradients = []
    for convolve in (OURS, torch.nn.functional.conv2d):
        (gradient,) = torch.autograd.grad(
            convolve(*inputs, *how).pow(3).sum(), x, create_graph=True
        )
        gradients.append(torch.autograd.grad(gradient.square().sum(), inputs))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_harmonizer_loss_needs_no_convolution_per_group(precision):
    """torch's double backward gives the same gradient, with a separate convolution per group."""
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", num_classes=5).eval()
    x, labels, maps, known = (
        rand(2, 3, 64, 64).float(),
        torch.tensor([0, 1]),
        rand(2, 64, 64, seed=1).float(),
        torch.ones(2).bool(),
    )
    with torch.profiler.profile(acc_events=True) as profile:
        model = with_precision(net, precision)
        harmonizer_loss(model, x, labels, maps, known)[1].sum().backward()
    groups = max(module.groups for module in net.modules() if isinstance(module, nn.Conv2d))
    layers = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    convolutions = sum(
        event.count for event in profile.key_averages() if event.key == "aten::_convolution"
    )
    assert groups > 50 and 0 < convolutions < 8 * layers
    if precision == "float32":
        ours = [
            parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None
        ]
        net.zero_grad(set_to_none=True)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            net(leaf).gather(1, labels[:, None]).sum(), leaf, create_graph=True
        )
        norm_over_levels(gradient, maps).sum().backward()
        theirs = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-6)


class OnlyOnce(torch.autograd.Function):
    """An operation with a first derivative only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Squared(nn.Module):
    def forward(self, x):
        return OnlyOnce.apply(x)


@pytest.mark.parametrize(
    "net, message",
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 9), Squared(), nn.Linear(9, 10)),
            "without a second derivative",
        ),
        (
            nn.Sequential(
                nn.Flatten(), Linear(torch.rand(10, 64), torch.zeros(10)), nn.LayerNorm(10)
            ),
            "nothing to harmonize|cannot",
        ),
    ],
    ids=["once differentiable", "constant gradient"],
)
def test_fit_rejects_a_net_that_cannot_be_harmonized(net, message):
    rows = digits()[:4]
    recipe = make_recipe("--objective harmonizer --lambda_1 1 --batch_size 4")
    learner = make_learner(recipe, net, 1, torch.device("cpu"))
    maps = rand(4, 8, 8, dtype=torch.float32)
    if "nothing" in message:
        net[2] = nn.Identity()
    with pytest.raises(ObjectiveError, match=message):
        fit(recipe, learner, DigitsWithMaps(rows, maps), tuple(r[0] for r in rows))
