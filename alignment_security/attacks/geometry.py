"""alignment_security.attacks.geometry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-12
CACHED_FLOATS = (
    2**14
)  # floats; a row above it is worth its own loop on a CPU (2.7 times faster at 3 x 224 x 224)
# a float32 sum x + eps is off by at most half a unit in the last place of 1.0
ROUNDING = 1e-7


def per_row(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)


def row_norm(delta: Tensor, norm: str) -> Tensor:
    """(B, C, H, W) -> (B,)"""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def unit_norm(delta: Tensor, norm: str) -> Tensor:
    """Each row over its norm; a zero row stays zero."""
    return delta / per_row(row_norm(delta, norm) + TINY)


def project_onto_ball(z: Tensor, x: Tensor, eps: Tensor, norm: str) -> Tensor:
    """z projected on the ball of radius eps (B,) around x, then on [0, 1]; changes z."""
    if norm == "Linf":
        return z.clamp_((x - per_row(eps)).clamp_(min=0), (x + per_row(eps)).clamp_(max=1))
    delta = z.sub_(x)
    length = row_norm(delta, "L2")
    return delta.mul_(per_row(torch.minimum(eps, length) / (length + TINY))).add_(x).clamp_(0, 1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True-class logit minus the largest other one (B,); negative where misclassified."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None]).squeeze(1) - others


# ---- FAB -------------------------------------------------------------------------------------------------------


def project_onto_hyperplane(t: Tensor, w: Tensor, c: Tensor, norm: str) -> Tensor:
    """The smallest d with w.(t + d) = w.t - c and t + d in [0, 1]; all the way to the faces where there is none.

    t, w (B, D), c (B,). What a pixel gives at multiplier lambda grows as `give` until lambda reaches its `limit` (the box),
    so the sum is concave and piecewise linear: Newton from 0 climbs it from the left and ends exactly, without a sort.
    """
    if (
        t.device.type == "cpu" and len(t) > 1 and t.shape[1] > CACHED_FLOATS
    ):  # row by row what is read ten times stays in cache
        return torch.cat(
            [project_onto_hyperplane(*row, norm) for row in zip(t.split(1), w.split(1), c.split(1))]
        )
    v = w * torch.where(c >= 0, -1.0, 1.0)[:, None]
    size, room = v.abs(), torch.where(v > 0, 1 - t, t)
    give, limit = (
        (size, room) if norm == "Linf" else (size.square(), room.div_(size.clamp(min=1e-30)))
    )
    goal, lam = c.abs(), torch.zeros_like(c)
    for _ in range(64):
        gap = goal - torch.einsum("ij,ij->i", give, torch.minimum(limit, lam[:, None]))
        slope = torch.einsum("ij,ij->i", give, (limit > lam[:, None]).to(give))
        step = torch.where(
            gap > 0, gap / slope, 0.0
        )  # no slope left: inf, all the way to the faces
        lam += step
        if not ((step > 1e-6 * lam) & (slope > 0)).any():
            break
    return torch.minimum(limit, lam[:, None], out=limit).mul_(v.sign_() if norm == "Linf" else v)


DUAL_ORDER = {"L1": torch.inf, "L2": 2, "Linf": 1}
ORDER = {"L1": 1, "L2": 2, "Linf": torch.inf}


def lp_norm(delta: Tensor, p: float) -> Tensor:
    """(B, C, H, W) -> (B,)"""
    return torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)


def cosine_schedule(it: Tensor, steps: int, first: float | Tensor, last: float) -> Tensor:
    """From `first` at 0 to `last` at `steps`, (B,)."""
    return last + (first - last) * (1 + torch.cos(math.pi * it / steps)) / 2


def shrink_onto_ball(delta: Tensor, eps: Tensor, norm: str) -> Tensor:
    """delta projected onto the ball of radius eps (B,); what lies inside stays where it is. Changes delta."""
    if norm == "Linf":
        return delta.clamp_(-per_row(eps), per_row(eps))
    if norm == "L2":
        return delta.mul_(per_row((eps / (lp_norm(delta, 2) + TINY)).clamp(max=1)))
    return delta.sign() * (delta.abs() - per_row(soft_threshold(delta, eps))).clamp_(min=0)


def soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """theta (B,) >= 0 with sum(max(|delta| - theta, 0)) = eps, 0 where delta lies inside the L1 ball.

    The sum is convex and falling in theta: Newton from 0 climbs to it from the left and ends exactly.
    """
    size, theta = delta.abs().flatten(1), torch.zeros_like(eps)
    for _ in range(64):
        rest = (size - theta[:, None]).clamp(min=0)
        step = ((rest.sum(1) - eps) / (rest > 0).sum(1).clamp(min=1)).clamp(min=0)
        theta += step
        if not (step > 1e-7 * theta).any():
            break
    return theta
