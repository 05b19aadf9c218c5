"""Norms, projections and margins of batches, one row per image.

`norm` is a name ("L1", "L2", "Linf"), `p` the order of a norm (ORDER[norm]).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-12  # keeps divisions by a norm finite
ORDER = {"L1": 1, "L2": 2, "Linf": torch.inf}
DUAL_ORDER = {"L1": torch.inf, "L2": 2, "Linf": 1}

MAX_NEWTON_STEPS = 64  # never reached: 2 or 3 steps are enough on photographs
# Newton steps on other devices than the CPU, where looking whether the method has converged would
# make the host wait. Onto a hyperplane, 3 were enough on photographs and 5 on digits. Where nearly
# all of the box lies before the hyperplane they are not, and a few per cent of the way are missing.
HYPERPLANE_STEPS, L1_STEPS = 6, 12
# On a CPU, rows of more floats than this are projected one by one, so that what is read in every
# Newton step stays in the cache (2.7 times faster at 3 x 224 x 224)
CACHED_FLOATS = 2**14


# ---- norms -------------------------------------------------------------------------------------


def per_row(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to broadcast over images."""
    return values.view(-1, 1, 1, 1)


def lp_norm(delta: Tensor, p: float) -> Tensor:
    """p-norm of each row: (B, C, H, W) -> (B,)."""
    flat = delta.flatten(1)
    if p == torch.inf:
        return flat.abs().amax(1)  # the same value as vector_norm's, 20 times faster on a CPU
    if p == 1:
        return row_sum(delta.abs())
    return torch.linalg.vector_norm(flat, ord=p, dim=1)


def exact_norm(delta: Tensor, p: float) -> Tensor:
    """As `lp_norm`, for what is recorded or put onto a ball: to a few units of rounding.

    torch's L2 norm of a long row adds up in float32, and is 2e-5 too small on a CPU where all
    values are alike.
    """
    return row_sum(delta.square()).sqrt() if p == 2 else lp_norm(delta, p)


def row_sum(values: Tensor) -> Tensor:
    """Sum of each row: (B, C, H, W) -> (B,).

    By channels, because the sum of one long row is shared among threads and rounded differently
    from that of the same row among others.
    """
    return values.sum(dim=(2, 3)).sum(1)


def normalize(delta: Tensor, p: float) -> Tensor:
    """Each row (B, C, H, W) divided by its p-norm; a zero row stays zero."""
    return delta / per_row(exact_norm(delta, p) + TINY)


# ---- balls -------------------------------------------------------------------------------------


def shrink_onto_ball(delta: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Project perturbations (B, C, H, W) onto the ball of radius eps (B,) around zero.

    Rows inside the ball are unchanged. Overwrites `delta`, except in L1.
    """
    if norm == "Linf":
        return delta.clamp_(-per_row(eps), per_row(eps))
    if norm == "L2":
        return delta.mul_(per_row((eps / (exact_norm(delta, 2) + TINY)).clamp(max=1)))
    return delta.sign() * (delta.abs() - per_row(soft_threshold(delta, eps))).clamp_(min=0)


def project_onto_ball(points: Tensor, x: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Project points (B, C, H, W) onto the "Linf" or "L2" ball of radius eps (B,) around x.

    Then clip them to [0, 1]. Overwrites `points`.
    """
    if norm == "Linf":
        return points.clamp_((x - per_row(eps)).clamp_(min=0), (x + per_row(eps)).clamp_(max=1))
    return shrink_onto_ball(points.sub_(x), eps, norm).add_(x).clamp_(0, 1)


def soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """theta (B,) >= 0 such that sum(max(|delta| - theta, 0)) = eps; 0 for rows inside the L1 ball.

    The sum is convex and decreasing in theta, so Newton's method from 0 approaches the solution
    from the left and ends exactly.
    """
    size, theta = delta.abs(), torch.zeros_like(eps)
    active = torch.ones_like(eps, dtype=torch.bool)
    for _ in newton_steps(delta.device, L1_STEPS):
        rest = (size - per_row(theta)).clamp(min=0)
        free = (rest > 0).flatten(1).sum(1).clamp(min=1)
        step = torch.where(active, ((row_sum(rest) - eps) / free).clamp(min=0), 0.0)
        theta += step
        active &= step > 1e-7 * theta
        if has_converged(active):
            break
    return theta


def newton_steps(device: torch.device, elsewhere: int) -> range:
    """The steps of Newton's method: on a CPU until it has converged, `elsewhere` on a GPU."""
    return range(MAX_NEWTON_STEPS if device.type == "cpu" else elsewhere)


def has_converged(active: Tensor) -> bool:
    """Whether no row is active any more; False on a GPU, for which the host does not wait."""
    return active.device.type == "cpu" and not active.any()


# ---- the boundary ------------------------------------------------------------------------------


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True logit minus the largest other logit, (B, K), (B,) -> (B,); negative if misclassified."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None]).squeeze(1) - others


def project_onto_hyperplane(x: Tensor, w: Tensor, c: Tensor, norm: str) -> Tensor:
    """Smallest d (B, D) in "L2" or "Linf" with w.d = -c and x + d in [0, 1] (FAB's projection).

    x, w (B, D); c (B,). If the box does not reach the hyperplane, every pixel that helps goes to
    its face.

    Each pixel's share of w.d grows linearly with a multiplier, up to the multiplier at which the
    pixel reaches the box. Their sum is concave and piecewise linear, so Newton's method from 0
    approaches the solution from the left and ends exactly, without sorting.
    """
    if x.device.type == "cpu" and len(x) > 1 and x.shape[1] > CACHED_FLOATS:
        rows = zip(x.split(1), w.split(1), c.split(1))
        return torch.cat([project_onto_hyperplane(*row, norm) for row in rows])
    direction = w * torch.where(c >= 0, -1.0, 1.0)[:, None]
    size, room = direction.abs(), torch.where(direction > 0, 1 - x, x)
    if norm == "Linf":
        rate, limit = size, room
    else:
        rate, limit = size.square(), room.div_(size.clamp(min=1e-30))
    goal, multiplier = c.abs(), torch.zeros_like(c)
    active = torch.ones_like(c, dtype=torch.bool)  # a row that has converged stays as it is
    for _ in newton_steps(x.device, HYPERPLANE_STEPS):
        gained = torch.linalg.vecdot(rate, torch.minimum(limit, multiplier[:, None]))
        gap = goal - gained
        slope = torch.where(limit > multiplier[:, None], rate, 0.0).sum(1)
        # where every pixel has reached the box the slope is 0, and the step infinite
        step = torch.where(active & (gap > 0), gap / slope, 0.0)
        multiplier += step
        active &= (step > 1e-6 * multiplier) & (slope > 0)
        if has_converged(active):
            break
    length = torch.minimum(limit, multiplier[:, None], out=limit)
    return length.mul_(direction.sign_() if norm == "Linf" else direction)


# ---- schedules ---------------------------------------------------------------------------------


def cosine_schedule(iteration: Tensor, steps: int, first: float | Tensor, last: float) -> Tensor:
    """Cosine from `first` at iteration 0 to `last` at iteration `steps`: (B,) -> (B,)."""
    return last + (first - last) * (1 + torch.cos(math.pi * iteration / steps)) / 2
