"""FMN: Fast Minimum-Norm attack (Pintor et al. 2021, Algorithm 1), in L1, L2 and Linf."""

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
    shrink_onto_ball,
)
from alignment_security.attacks.minimum_norm import BestSoFar

STEP_SIZE, FINAL_STEP_SIZE = 1.0, 1e-5  # of the authors, in pixels
STEP_UNITS = ("distance", "pixels")
# L2 length of the first step at least, in pixel units: where the margin is 0, so is the distance
SMALLEST_FIRST_STEP = 1e-3
LAST_GAMMA = 0.001  # where the cosine schedule of gamma ends, in the authors' code


class FMN(BestSoFar):
    """Gradient steps inside a ball that shrinks at adversarial points and grows at others.

    The projection only shrinks perturbations; it never enlarges one.

    norm              "L1", "L2" or "Linf"
    steps             points with a gradient; one more point, the last update, is evaluated
    step_size         L2 length of the first gradient step
    final_step_size   L2 length of the last one (cosine schedule)
    step_unit         of both: "distance", the L2 distance of the image from the linearised
                      boundary, |margin| / ||g||, or "pixels", as the authors
    gamma             relative change of eps in the first step, cosine to LAST_GAMMA; in (0, 1), or
                      eps (1 - gamma) turns negative
    Raises ValueError for settings outside these ranges.
    """

    def __init__(
        self,
        norm: str,
        steps: int,
        step_size: float = STEP_SIZE,
        final_step_size: float = FINAL_STEP_SIZE,
        gamma: float = 0.05,
        step_unit: str = STEP_UNITS[0],
    ):
        if steps < 1 or not 0 <= final_step_size <= step_size or step_size <= 0:
            raise ValueError(
                f"FMN: steps {steps}, step_size {step_size}, final_step_size {final_step_size}: "
                "steps has to be at least 1, and step_size above 0 and at least final_step_size"
            )
        if not 0 < gamma < 1:
            raise ValueError(
                f"gamma {gamma}: has to be in (0, 1); from 1 on, eps (1 - gamma) turns negative "
                "and the projection flips the perturbation's sign"
            )
        self.norm, self.p, self.dual_p = norm, ORDER[norm], DUAL_ORDER[norm]
        self.name, self.steps, self.gamma = f"fmn-{norm}", steps, gamma
        if step_unit not in STEP_UNITS:
            raise ValueError(f"FMN: step_unit {step_unit!r}, one of {', '.join(STEP_UNITS)}")
        self.step_size, self.final_step_size = step_size, final_step_size
        self.step_unit = step_unit

    def start(self, images: list[AttackedImage[MinimumNormProgress]]) -> State:
        """Rows at their images. Keys besides `initial_state`'s and `BestSoFar`'s:

        x_adv   (B, C, H, W)
        eps     (B,) radius of the ball, infinite at first
        unit    (B,) unit of the step sizes in pixel units, known from the first gradient on
        """
        state = initial_state(images)
        infinite = torch.full_like(state["eps"], torch.inf)
        unit = torch.ones_like(infinite)
        return state | self.first_points(state, images) | {"eps": infinite, "unit": unit}

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        return -margin(logits, state["y"][rows])

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """An iteration of Algorithm 1: update eps, take a gradient step, project onto the ball."""
        finished = state["iteration"] >= self.steps
        if grad is None:
            return finished
        iteration = to_device(state["iteration"], grad.device)
        delta = state["x_adv"] - state["x"]
        state["eps"] = self._next_eps(state, logits, grad, delta, iteration)
        if self.step_unit == "distance":
            unit = self._first_distance(state, logits, grad, delta)
            state["unit"] = torch.where(iteration == 0, unit, state["unit"])
        length = cosine_schedule(iteration, self.steps, self.step_size, self.final_step_size)
        step = grad * per_row(state["unit"] * length / (lp_norm(grad, 2) + TINY))
        delta = shrink_onto_ball(delta + step, state["eps"], self.norm)
        state["x_adv"] = (state["x"] + delta).clamp_(0, 1)
        state["iteration"] += 1
        return finished

    def _first_distance(self, state: State, logits: Tensor, grad: Tensor, delta: Tensor) -> Tensor:
        """L2 distance of the linearised boundary, (B,); of a second attempt, of its start."""
        distance = margin(logits, state["y"]).abs() / (lp_norm(grad, 2) + TINY)
        largest = lp_norm(torch.maximum(state["x"], 1 - state["x"]), 2)
        return (
            torch.maximum(distance, lp_norm(delta, 2))
            .clamp(min=SMALLEST_FIRST_STEP)
            .minimum(largest)
        )

    def _next_eps(
        self, state: State, logits: Tensor, grad: Tensor, delta: Tensor, iteration: Tensor
    ) -> Tensor:
        """The next radius, (B,); at most the norm of the largest perturbation in the box.

        At an adversarial point: shrink, to at most the best norm. Elsewhere: grow, or go to the
        linearised boundary while no adversarial point is known.
        """
        adversarial = logits.argmax(1) != state["y"]
        found = torch.isfinite(state["norm_best"])
        gamma = cosine_schedule(iteration, self.steps, self.gamma, LAST_GAMMA)
        distance = margin(logits, state["y"]).abs() / (lp_norm(grad, self.dual_p) + TINY)
        to_boundary = (1 + LAST_GAMMA) * (lp_norm(delta, self.p) + distance)
        grown = torch.where(found, state["eps"] * (1 + gamma), to_boundary)
        shrunk = torch.minimum(state["eps"] * (1 - gamma), state["norm_best"])
        eps = torch.where(adversarial, shrunk, grown)
        largest = lp_norm(torch.maximum(state["x"], 1 - state["x"]), self.p)
        return torch.minimum(eps, largest)
