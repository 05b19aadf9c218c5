"""Adversarial examples for training: projected gradient descent (PGD) in Linf and L2.

Norms come from attacks/geometry.py. Its `normalize` and `shrink_onto_ball` are not used, since they
would change the curves of recorded trainings: `normalize` adds 1e-12 to a norm, which shortens the
steps of gradients below about 1e-5, and `shrink_onto_ball` rounds differently in L2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignment_security.attacks.geometry import lp_norm, per_row

PGD_NORMS = ("Linf", "L2")
# steps, and their length over eps (microsoft/robust-models-transfer)
PGD_STEPS = 3
PGD_STEP_SHARE = 2 / 3


def l2_norms(delta: Tensor) -> Tensor:
    """L2 norm of each row of (B, C, H, W), as (B, 1, 1, 1)."""
    return per_row(lp_norm(delta, 2))


def ascent_direction(gradient: Tensor, norm: str) -> Tensor:
    """Direction of unit norm in which the loss grows fastest; zero where the gradient is zero."""
    if norm == "Linf":
        return gradient.sign()
    return gradient / l2_norms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def project_delta(delta: Tensor, norm: str, eps: float) -> Tensor:
    """Perturbations (B, C, H, W) projected onto the ball of radius eps around zero."""
    if norm == "Linf":
        return delta.clamp(-eps, eps)
    smallest = max(eps, torch.finfo(delta.dtype).tiny)
    return delta * (eps / l2_norms(delta).clamp_min(smallest))


def random_delta(x: Tensor, norm: str, eps: float) -> Tensor:
    """A perturbation of x (B, C, H, W) drawn uniformly from the ball of radius eps."""
    if norm == "Linf":
        return torch.empty_like(x).uniform_(-eps, eps)
    pixels = math.prod(x.shape[1:])
    radius = torch.rand(len(x), 1, 1, 1, device=x.device) ** (1 / pixels)
    return ascent_direction(torch.randn_like(x), norm) * radius * eps


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    norm: str,
    eps: float,
    steps: int = PGD_STEPS,
    step_size: float | None = None,
    random_start: bool = False,
) -> Tensor:
    """Maximise cross-entropy in the ball around x (Madry et al. 2018; Feng et al. 2025, eq. 5).

    model   in eval mode, as in the robustness package: an attack in train mode would update the
            statistics of batch normalisation
    x       (B, C, H, W) in [0, 1]; labels (B,)
    eps     radius, and `step_size` (2/3 eps by default), in pixel units of [0, 1]
    Returns points (B, C, H, W) without a graph. Clipping to [0, 1] moves a point towards x, so that
    it stays in the ball.
    """
    step_size = PGD_STEP_SHARE * eps if step_size is None else step_size
    point = (x + random_delta(x, norm, eps)).clamp(0, 1) if random_start else x
    for _ in range(steps):
        point = point.detach().requires_grad_()
        loss = functional.cross_entropy(model(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        moved = point.detach() - x + step_size * ascent_direction(gradient, norm)
        point = (x + project_delta(moved, norm, eps)).clamp(0, 1)
    return point.detach()
