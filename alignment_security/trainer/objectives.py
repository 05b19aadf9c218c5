"""The neural harmonizer's loss (Fel et al. 2022; Feng et al. 2025), as functions of tensors.

The loss is a function of the input gradient, so that its own gradient is a second derivative. The
gates of ReLUs have none (it is zero almost everywhere). What trains a network of ReLUs is the
product of the weights along its open paths, which is all of its input gradient. Smooth activations
(GELU, SiLU) contribute their second derivative too.

Not every network is twice differentiable: fused attention and some custom kernels are not.
Attention is computed here by its plain formula; any other such operation raises ObjectiveError.

Adversarial examples, the other part of an objective, are in pgd.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignment_security.common.files import UserError
from alignment_security.trainer.grouped_convolution import TwiceDifferentiableConvolutions

OBJECTIVES = ("plain", "harmonizer", "adversarial", "both")
PYRAMID_LEVELS = 5  # Fel et al. 2022
BINOMIAL_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
# A map whose standard deviation is a smaller share of its peak is flat up to rounding: its z is 0.
FLAT_DEVIATION = 1e-5


class ObjectiveError(UserError):
    """An objective that cannot be computed for a network. The message says why."""


# ---- maps ----------------------------------------------------------------------------------------


def pyramid(maps: Tensor, levels: int = PYRAMID_LEVELS) -> list[Tensor]:
    """Gaussian pyramid (Burt & Adelson 1983): blur with 1 4 6 4 1, keep every second pixel, repeat.

    maps   (B, H, W); padded with zeros, as in serre-lab/Harmonization
    Returns `levels` tensors (B, ceil(H / 2^i), ceil(W / 2^i)); the first is `maps` itself.
    """
    line = maps.new_tensor(BINOMIAL_KERNEL)
    kernel = torch.outer(line, line)[None, None]
    found = [maps]
    for _ in range(levels - 1):
        halved = functional.conv2d(found[-1][:, None], kernel, stride=2, padding=2)
        found.append(halved[:, 0])
    return found


def standardise(maps: Tensor) -> Tensor:
    """z-scores per map (B, H, W), by the population standard deviation; zeros for a flat map."""
    peak = maps.detach().abs().amax((1, 2), keepdim=True)
    maps = maps / peak.clamp_min(torch.finfo(maps.dtype).tiny)  # no square underflows
    centred = maps - maps.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2), keepdim=True)
    flat = variance <= FLAT_DEVIATION**2
    return centred / variance.masked_fill(flat, 1).sqrt() * ~flat


def norm_over_levels(gradient: Tensor, maps: Tensor) -> Tensor:
    """Feng et al. 2025, equation 1: sum over levels i of || z(P_i(g))+ - z(P_i(phi))+ ||_2.

    gradient   (B, C, H, W) of the true class's logit; g is its largest absolute value over
               channels, as in the measure of alignment
    maps       (B, H, W) human maps phi, of any scale
    Returns (B,); zero where g is the map up to a positive scale.
    """
    distances = []
    for g, phi in zip(pyramid(gradient.abs().amax(1)), pyramid(maps)):
        difference = standardise(g).relu() - standardise(phi).relu()
        distances.append(torch.linalg.vector_norm(difference, dim=(1, 2)))
    return torch.stack(distances).sum(0)


def mean_square_over_levels(gradient: Tensor, maps: Tensor) -> Tensor:
    """The loss of its authors' code, serre-lab/Harmonization, harmonization/training/loss.py.

    It differs from the equation: g is the mean over channels; z comes before the pyramid; the human
    map is scaled to the maximum of the model's; squared differences are averaged over pixels and
    levels. lambda_1 is 1 there. Shapes as in norm_over_levels.
    """
    g, phi = standardise(gradient.mean(1)).relu(), standardise(maps).relu()
    g_peak = g.amax((1, 2), keepdim=True).detach()
    phi_peak = phi.amax((1, 2), keepdim=True).clamp_min(FLAT_DEVIATION)
    phi = phi * (g_peak / phi_peak)
    squares = [(a - b).square().mean((1, 2)) for a, b in zip(pyramid(g), pyramid(phi))]
    return torch.stack(squares).mean(0)


FORMS = {"equation": norm_over_levels, "code": mean_square_over_levels}


# ---- the loss ------------------------------------------------------------------------------------


def harmonizer_loss(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    maps: Tensor,
    has_map: Tensor,
    form: str = "equation",
) -> tuple[Tensor, Tensor]:
    """Logits (B, K) and the loss (B,), zero for images without a map; one forward pass.

    x         (B, C, H, W) in [0, 1]; labels (B,); maps (B, H, W); has_map (B,) bool
    In train mode batch normalisation couples the images of a batch: an image's gradient then
    contains a little of the other images' logits, as in the authors' code.
    Raises ObjectiveError for a network whose input gradient does not depend on its weights.
    """
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), TwiceDifferentiableConvolutions() as convolutions:
        logits = model(x)
    loss = logits.new_zeros(len(x))
    if not has_map.any():
        return logits, loss
    true_logits = logits.gather(1, labels[:, None])[:, 0]
    convolutions.weight_gradients = False
    (gradient,) = torch.autograd.grad(true_logits[has_map].sum(), x, create_graph=True)
    convolutions.weight_gradients = True
    if not gradient.requires_grad:
        raise ObjectiveError(
            "the input gradient does not depend on the weights, so that there is nothing to "
            "harmonize"
        )
    return logits, loss.index_put((has_map,), FORMS[form](gradient[has_map], maps[has_map]))


def differentiate(loss: Tensor) -> None:
    """loss.backward(). Raises ObjectiveError for a network without a second derivative."""
    try:
        loss.backward()
    except RuntimeError as error:
        message = str(error)
        if "derivative for" in message or "differentiate twice" in message:
            reason = message.splitlines()[0][:120]
            raise ObjectiveError(
                "this net cannot be harmonized, it has an operation without a second derivative "
                f"({reason})"
            ) from None
        raise
