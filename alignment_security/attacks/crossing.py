"""BoundaryCrossing (protocol `crossing`): minimal L2 and Linf norms in few passes.

This project's own attack. docs/threats.md has it as pseudo-code, under the names used here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment_security.attacks.attack import (
    AttackedImage,
    MinimumNormProgress,
    Rows,
    State,
    initial_state,
    to_device,
)
from alignment_security.attacks.geometry import (
    DUAL_ORDER,
    ORDER,
    TINY,
    cosine_schedule,
    lp_norm,
    margin,
    per_row,
    project_onto_hyperplane,
    row_sum,
)
from alignment_security.attacks.minimum_norm import BestSoFar

# a predicted crossing is overstepped by this share, or the point would be on the boundary, where
# rounding decides the class; OFFSET does the same where the share is of zero
OVERSHOOT = 1e-3
OFFSET = 1e-9
# least increase of the loss to ask for, in ||g||* ||delta||: where the linear model crosses at the
# image already, d0 would vanish or point backwards
RISE_FLOOR = 0.05
# least slope along delta, in slopes along d0: where delta is nearly orthogonal to the gradient, or
# points away from the boundary, its own slope is useless
SLOPE_FLOOR = 0.2
# change of the radius in one step: one wrong linearisation cannot undo the walk
LARGEST_DECREASE, LARGEST_INCREASE = 0.7, 1.3
# a step stays below the best norm of its walk by this share: a point as large proves nothing
UNDERCUT = 2e-4
SMOOTH_SHARE = 0.3  # of the first walk's steps: with log-sum-exp instead of the maximum
# share of d0 in the next direction, from first to last step: early steps turn towards the nearest
# boundary, late ones refine the length; a walk that continues from the best point turns less
FRESH_SHARE, CONTINUED_SHARE, LAST_SHARE = 1.0, 0.5, 0.03
# Linf only: in the second half of a walk the mixture is made larger than the radius by this factor,
# and its pixels are cut back to the radius: at a nearest point of the boundary every pixel has the
# full length, but those without a gradient
SATURATION, SATURATE_FROM = 1.2, 0.5
RESCALINGS = 3  # what clipping takes from some pixels is given to the free ones, approximately
# A walk has converged after STEPS_PER_WALK; but two shorter walks find smaller norms than one.
STEPS_PER_WALK, LEAST_STEPS_PER_WALK = 50, 20


def default_walks(steps: int) -> int:
    """Two walks, or one for each STEPS_PER_WALK; one if two would be very short."""
    return max(min(2, steps // LEAST_STEPS_PER_WALK), steps // STEPS_PER_WALK, 1)


class BoundaryCrossing(BestSoFar):
    """A walk on spheres around the image, whose radius is where the linearised model crosses.

    Each step linearises the model at x + delta, finds the smallest step d0 from the image to the
    linear boundary inside the box (`_crossing_point`), predicts the radius at which the model
    crosses along delta (`_radius`), mixes the directions of delta and d0 (`_mix`), and
    rescales the mixture to the radius (`_rescale`), in Linf after lengthening its short pixels
    (`_saturate`).

    One walk converges to the basin that it meets first, a worse one for some images in ten. So the
    steps are shared by several walks. The first starts at the image with a smooth loss that sees
    every class nearby; the second starts there too, with the maximum of the other logits. Walks
    that would repeat these continue from the best point so far: all further ones, and on two
    classes the second.

    norm         "L2" or "Linf"
    steps        points with a gradient; one more point, the last update, is evaluated
    walks        default: `default_walks(steps)`
    saturation   factor of `_saturate`; 1: none
    Raises ValueError for another norm and for steps below 1.
    """

    def __init__(
        self,
        norm: str,
        steps: int,
        walks: int | None = None,
        saturation: float = SATURATION,
    ):
        if steps < 1 or norm not in ("L2", "Linf"):
            raise ValueError(f"crossing: {steps} steps in {norm}; at least 1, in L2 or Linf")
        self.norm, self.p, self.dual_p = norm, ORDER[norm], DUAL_ORDER[norm]
        self.name, self.steps = f"crossing-{norm}", steps
        self.walks = walks or default_walks(steps)
        self.saturation = saturation if norm == "Linf" else 1.0
        # iteration at which each walk begins, and the end of the last one
        self.begins = torch.tensor([round(k * steps / self.walks) for k in range(self.walks + 1)])

    def start(self, images: list[AttackedImage[MinimumNormProgress]]) -> State:
        """Rows at their images. Keys besides `initial_state`'s and `BestSoFar`'s:

        x_adv       (B, C, H, W)
        walk_norm   (B,) smallest norm of an adversarial point of this walk, infinite at first
        """
        state = initial_state(images)
        points = self.first_points(state, images)
        return state | points | {"walk_norm": points["norm_best"].clone()}

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        """Minus the margin (b,); at first, log-sum-exp of the other logits minus the true one."""
        y = state["y"][rows]
        walk, done = self._position(state["iteration"])
        smooth = (walk == 0) & (done < SMOOTH_SHARE)
        hard = -margin(logits, y)
        if not smooth.any():
            return hard
        smooth = to_device(smooth, logits.device)[rows]
        others = logits.scatter(1, y[:, None], -torch.inf)
        soft = others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)
        return torch.where(smooth, soft, hard)

    def keep_best(self, state: State, adversarial: Tensor, norm: Tensor) -> None:
        super().keep_best(state, adversarial, norm)
        smallest = torch.minimum(state["walk_norm"], norm)
        state["walk_norm"] = torch.where(adversarial, smallest, state["walk_norm"])

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """One step of the walk, and the start of the next walk in rows whose walk is over."""
        finished = state["iteration"] >= self.steps
        if grad is None:
            return finished
        x, gap = state["x"], margin(logits, state["y"])
        fresh_walks = 2 if logits.shape[1] > 2 else 1  # walks that start at the image
        delta = state["x_adv"] - x
        size = lp_norm(delta, self.p)
        gained = row_sum(grad * delta)  # g.delta
        rise, d0 = self._crossing_point(x, size, gained, gap, grad)
        radius = self._radius(size, gained, gap, rise, d0, state["walk_norm"])
        mixed = self._mix(delta, d0, state["iteration"], fresh_walks)
        if self.saturation > 1:
            mixed = self._saturate(mixed, radius, state["iteration"])
        state["x_adv"] = x + self._rescale(x, mixed, radius)
        state["iteration"] += 1
        self._begin_walks(state, fresh_walks)
        return finished

    def _crossing_point(
        self, x: Tensor, size: Tensor, gained: Tensor, gap: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """rise (B,), and the smallest d0 (B, C, H, W) in the box with g.d0 = rise.

        The linear model crosses the boundary at every d with g.d = g.delta + margin.
        """
        floor = RISE_FLOOR * lp_norm(grad, self.dual_p) * size
        rise = torch.maximum(gained + gap, floor) * (1 + OVERSHOOT) + OFFSET
        d0 = project_onto_hyperplane(x.flatten(1), grad.flatten(1), -rise, self.norm)
        return rise, d0.view_as(x)

    def _radius(
        self,
        size: Tensor,
        gained: Tensor,
        gap: Tensor,
        rise: Tensor,
        d0: Tensor,
        walk_norm: Tensor,
    ) -> Tensor:
        """Norm at which the model should cross along delta, just below the walk's best: (B,)."""
        shortest = lp_norm(d0, self.p) + TINY
        slope = torch.maximum(gained / (size + TINY), SLOPE_FLOOR * rise / shortest) + TINY
        predicted = size + gap / slope + OVERSHOOT * size
        radius = predicted.clamp(LARGEST_DECREASE * size, LARGEST_INCREASE * size)
        radius = torch.where(size > 0, radius, shortest)  # the first step has no direction yet
        return radius.minimum(walk_norm * (1 - UNDERCUT))

    def _mix(self, delta: Tensor, d0: Tensor, iteration: Tensor, fresh_walks: int) -> Tensor:
        """A point between delta and d0, closer to delta with each step of a walk: (B, C, H, W)."""
        walk, done = self._position(iteration)
        first = torch.where(walk < fresh_walks, FRESH_SHARE, CONTINUED_SHARE)
        share = to_device(cosine_schedule(done, 1, first, LAST_SHARE), delta.device)
        return delta + per_row(share) * (d0 - delta)

    def _saturate(self, delta: Tensor, radius: Tensor, iteration: Tensor) -> Tensor:
        """delta (B, C, H, W), late in a walk enlarged beyond the radius (B,) and cut back to it."""
        late = to_device(self._position(iteration)[1] >= SATURATE_FROM, delta.device)
        radius = per_row(radius)
        longer = delta * (self.saturation * radius / per_row(lp_norm(delta, self.p) + TINY))
        return torch.where(per_row(late), longer.clamp(-radius, radius), delta)

    def _rescale(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """delta rescaled to the radius (B,) inside the box, approximately: (B, C, H, W)."""
        for _ in range(RESCALINGS):
            factor = per_row(radius / (lp_norm(delta, self.p) + TINY))
            delta = (x + delta * factor).clamp_(0, 1).sub_(x)
        return delta

    def _position(self, iteration: Tensor) -> tuple[Tensor, Tensor]:
        """Index of each row's walk, and the share of the walk that is done: (B,) -> (B,), (B,)."""
        walk = (torch.searchsorted(self.begins, iteration, right=True) - 1).clamp(
            max=self.walks - 1
        )
        first, last = self.begins[walk], self.begins[walk + 1]
        return walk, (iteration - first) / (last - first)

    def _begin_walks(self, state: State, fresh_walks: int) -> None:
        """Rows whose walk is over begin the next, at the image (fresh) or at their best point."""
        device = state["x"].device
        begins = torch.isin(state["iteration"], self.begins[1:-1])
        if not begins.any():
            return
        continued = self._position(state["iteration"])[0] >= fresh_walks
        at_image, at_best = (to_device(begins & c, device) for c in (~continued, continued))
        x_adv = torch.where(per_row(at_best), state["x_best"], state["x_adv"])
        state["x_adv"] = torch.where(per_row(at_image), state["x"], x_adv)
        walk_norm = torch.where(at_best, state["norm_best"], state["walk_norm"])
        state["walk_norm"] = torch.where(at_image, torch.inf, walk_norm)
