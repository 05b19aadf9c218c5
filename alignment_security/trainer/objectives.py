"""What training minimises: the neural harmonizer's loss and adversarial examples, alone or together, as functions of tensors.

The harmonizer's loss is a function of the input gradient, so that its own gradient is a second derivative. In a net of
ReLUs the gates have none (it is zero almost everywhere); what trains it then is the product of weights along the open
paths, which is all of the input gradient. Smooth activations (GELU, SiLU) contribute theirs too. Operations without a
second derivative (fused attention, some custom kernels) cannot be harmonized: attention is computed by its plain formula
here, everything else raises ObjectiveError.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from alignment_security.common.files import UserError

LEVELS = 5  # of the pyramid (Fel et al. 2022)
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
FLAT = 1e-5  # a map whose standard deviation is less of its peak is rounding: its z is 0
PGD_STEPS, PGD_STEP_SHARE = (
    3,
    2 / 3,
)  # PGD: steps, and their length over eps (microsoft/robust-models-transfer)
PGD_NORMS = ("Linf", "L2")
OBJECTIVES = ("plain", "harmonizer", "adversarial", "both")


class ObjectiveError(UserError):
    """A net that an objective cannot be computed for; the message says why."""


# ---- maps ------------------------------------------------------------------------------------------------------


def pyramid(maps: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """Gaussian pyramid (Burt & Adelson 1983): each level blurs the last with 1 4 6 4 1 in x and y and keeps every second pixel.

    maps   (B, H, W); outside of them are zeros, as in serre-lab/Harmonization
    Returns `levels` tensors (B, ceil(H / 2^i), ceil(W / 2^i)); the first is `maps` itself.
    """
    line = maps.new_tensor(BINOMIAL)
    found = [maps]
    for _ in range(levels - 1):
        found.append(
            functional.conv2d(
                found[-1][:, None], torch.outer(line, line)[None, None], stride=2, padding=2
            )[:, 0]
        )
    return found


def standardise(maps: Tensor) -> Tensor:
    """Zero mean and unit standard deviation (of the population) per map (B, H, W); zeros where a map is flat."""
    maps = maps / maps.detach().abs().amax((1, 2), keepdim=True).clamp_min(
        torch.finfo(maps.dtype).tiny
    )  # no square underflows
    centred = maps - maps.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2), keepdim=True)
    flat = variance <= FLAT**2
    return centred / variance.masked_fill(flat, 1).sqrt() * ~flat


def norm_over_levels(gradient: Tensor, maps: Tensor) -> Tensor:
    """Feng et al. 2025, equation 1: sum over levels of || z(P_i(g))+ - z(P_i(phi))+ ||_2, per image.

    gradient   (B, C, H, W) of the true class's logit; g is its largest absolute value over channels, as agreement is measured
    maps       (B, H, W) human maps phi, any scale
    Returns (B,), zero where g is the map up to a positive scale.
    """
    pairs = zip(pyramid(gradient.abs().amax(1)), pyramid(maps))
    return torch.stack(
        [
            torch.linalg.vector_norm(standardise(g).relu() - standardise(phi).relu(), dim=(1, 2))
            for g, phi in pairs
        ]
    ).sum(0)


def mean_square_over_levels(gradient: Tensor, maps: Tensor) -> Tensor:
    """The loss as its authors' code has it (serre-lab/Harmonization, harmonization/training/loss.py), with lambda_1 = 1 there.

    It differs from the equation: g is the mean over channels; z comes before the pyramid; the human map is scaled to the
    maximum of the model's; differences are averaged as squares over pixels and levels. Shapes as above.
    """
    g, phi = standardise(gradient.mean(1)).relu(), standardise(maps).relu()
    phi = phi * (
        g.amax((1, 2), keepdim=True).detach() / phi.amax((1, 2), keepdim=True).clamp_min(FLAT)
    )
    return torch.stack(
        [(a - b).square().mean((1, 2)) for a, b in zip(pyramid(g), pyramid(phi))]
    ).mean(0)


FORMS = {"equation": norm_over_levels, "code": mean_square_over_levels}


class GroupedConv2d(torch.autograd.Function):
    """Grouped convolution whose gradient is itself a convolution with an ordinary gradient.

    torch's second derivative of a grouped convolution goes group by group: 9,000 small convolutions a step in
    EfficientNet-Lite0, and a step 7 times as long as the plain one.
    """

    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation, groups, owner):
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.owner = (stride, padding, dilation, groups), owner
        return functional.conv2d(x, weight, None, *ctx.how)

    @staticmethod
    def backward(ctx, gradient):
        (x, weight), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.how
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            rest = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, m, s, p, d, k in zip(
                    x.shape[2:], gradient.shape[2:], stride, padding, dilation, weight.shape[2:]
                )
            ]  # pixels that no stride reached
            of_x = functional.conv_transpose2d(
                gradient, weight, None, stride, padding, rest, groups, dilation
            )
        if ctx.needs_input_grad[1] and ctx.owner.of_weights:
            of_weight = torch.nn.grad.conv2d_weight(
                x, weight.shape, gradient, stride, padding, dilation, groups
            )
        return of_x, of_weight, None, None, None, None, None


class OwnConvolutions(TorchFunctionMode):
    """Within it, functional.conv2d with groups is GroupedConv2d. `of_weights`: whether a gradient is to reach the weights."""

    of_weights = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (self.conv2d if func is functional.conv2d else func)(*args, **(kwargs or {}))

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
    ):
        if groups == 1 or isinstance(padding, str):
            return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = (
                x.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
            )
        pairs = ((n, n) if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation))
        out = GroupedConv2d.apply(x, weight, *pairs, groups, self)
        return out if bias is None else out + bias[:, None, None]


def harmonizer_loss(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    maps: Tensor,
    has_map: Tensor,
    form: str = "equation",
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the harmonizer's loss (B,), zero for images without a map; one forward pass.

    x         (B, C, H, W) in [0, 1]; labels (B,); maps (B, H, W); has_map (B,) bool
    In train mode batch normalisation ties the images of a batch together, and an image's gradient holds a little of
    the others' logits, as in the authors' code.
    Raises ObjectiveError where the net has an operation without a second derivative.
    """
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), OwnConvolutions() as convolutions:
        logits = forward_logits(model, x, precision)
    found = logits.new_zeros(len(x))
    if not has_map.any():
        return logits, found
    own = logits.gather(1, labels[:, None])[:, 0]
    convolutions.of_weights = False
    (gradient,) = torch.autograd.grad(own[has_map].sum(), x, create_graph=True)
    convolutions.of_weights = True
    if not gradient.requires_grad:
        raise ObjectiveError(
            "the input gradient does not depend on the weights, so that there is nothing to harmonize"
        )
    return logits, found.index_put((has_map,), FORMS[form](gradient[has_map], maps[has_map]))


def forward_logits(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits (B, K); bf16 runs the net under autocast, and its logits and input gradients are float32 again."""
    if precision != "bf16":
        return model(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x).float()


# ---- adversarial examples --------------------------------------------------------------------------------------


def row_lengths(delta: Tensor) -> Tensor:
    """L2 norm of each image's perturbation, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(delta.flatten(1), dim=1).view(-1, 1, 1, 1)


def ascent_direction(gradient: Tensor, norm: str) -> Tensor:
    """The direction of unit norm in which the loss grows fastest; zero where the gradient is."""
    return (
        gradient.sign()
        if norm == "Linf"
        else gradient / row_lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    )


def into_ball(delta: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "Linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / row_lengths(delta).clamp_min(max(eps, torch.finfo(delta.dtype).tiny)))


def random_point(x: Tensor, norm: str, eps: float) -> Tensor:
    """A perturbation drawn uniformly from the ball."""
    if norm == "Linf":
        return torch.empty_like(x).uniform_(-eps, eps)
    size = torch.rand(len(x), 1, 1, 1, device=x.device) ** (1 / math.prod(x.shape[1:]))
    return ascent_direction(torch.randn_like(x), norm) * size * eps


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    norm: str,
    eps: float,
    steps: int = PGD_STEPS,
    step: float | None = None,
    random_start: bool = False,
    precision: str = "float32",
) -> Tensor:
    """x moved inside its ball and [0, 1] to where cross-entropy is large (Madry et al. 2018; Feng et al. 2025, equation 5).

    x       (B, C, H, W) in [0, 1]; eps and step in pixel units of [0, 1]; step is 2/3 eps by default
    model   in eval mode, as in the robustness package: the attack must not move the statistics of batch normalisation
    Returns points (B, C, H, W) without a graph. Clipping to [0, 1] moves a point towards x, so that it stays in the ball.
    """
    step = PGD_STEP_SHARE * eps if step is None else step
    point = (x + random_point(x, norm, eps)).clamp(0, 1) if random_start else x
    for _ in range(steps):
        point = point.detach().requires_grad_()
        loss = functional.cross_entropy(
            forward_logits(model, point, precision), labels, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, point)
        point = (
            x + into_ball(point.detach() - x + step * ascent_direction(gradient, norm), norm, eps)
        ).clamp(0, 1)
    return point.detach()
