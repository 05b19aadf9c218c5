"""APGD: Auto-PGD (Croce & Hein 2020, Algorithm 1), untargeted and targeted, in Linf and L2.

From the same start point, the iterates of an image are those of the reference implementation
(fra31/auto-attack) to float rounding, until the image is fooled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_security.attacks.attack import (
    AttackedImage,
    EpsProgress,
    Rows,
    State,
    initial_state,
    target_classes,
    to_device,
)
from alignment_security.attacks.geometry import (
    ORDER,
    TINY,
    normalize,
    per_row,
    project_onto_ball,
)

MOMENTUM = 0.75  # alpha of the paper: weight of the new step
FIRST_STEP_SIZE = 2  # in eps
RHO = 0.75  # share of a period's steps in which the loss has to increase (Condition 1)
# periods between two checkpoints, in shares of the steps: the first, by how much each is shorter
# than the one before, and the shortest
FIRST_PERIOD, PERIOD_DECREASE, SHORTEST_PERIOD = 0.22, 0.03, 0.06


def checkpoint_periods(steps: int) -> Tensor:
    """Length of the period that ends at each iteration, 0 if none does: (steps + 2,) int64."""
    periods = torch.zeros(steps + 2, dtype=torch.long)
    shortest = max(int(SHORTEST_PERIOD * steps), 1)
    decrease = max(int(PERIOD_DECREASE * steps), 1)
    period, checkpoint = max(int(FIRST_PERIOD * steps), 1), 0
    while checkpoint + period <= steps:
        checkpoint += period
        periods[checkpoint] = period
        period = max(period - decrease, shortest)
    return periods


class APGD:
    """Auto-PGD: gradient steps with momentum, whose size is halved at checkpoints.

    norm       "Linf" or "L2"
    steps      gradients per run; one more point, the last iterate, is evaluated
    targeted   False: cross-entropy, one run. True: the targeted DLR loss (equation 9), one run for
               each of `runs` target classes
    """

    def __init__(self, norm: str, steps: int, targeted: bool, runs: int = 1):
        self.norm, self.steps, self.targeted, self.runs = norm, steps, targeted, runs
        self.name = "apgd-t" if targeted else "apgd-ce"
        self.periods = checkpoint_periods(steps)

    def start(self, images: list[AttackedImage[EpsProgress]]) -> State:
        """Rows at a random point of norm eps around each image. Keys besides `initial_state`'s:

        x_adv, x_previous, x_best, grad_best    (B, C, H, W)
        loss_best, loss_previous    (B,)
        loss_best_at_check          (B,) best loss at the last checkpoint
        increases                   (B,) steps since the last checkpoint that increased the loss
        reduced_at_check            (B,) bool: the step size was halved at the last checkpoint
        step_size                   (B,)
        zero_gradient               (B,) bool: the gradient at the start point is zero
        seen_zero_gradient          (B,) bool, CPU: the same, as of the last look
        target                      (B,) int64 (targeted only)
        """
        state = initial_state(images)
        zeros = torch.zeros_like(state["eps"])
        x_adv = self._random_points(images, state)
        state |= {
            "x_adv": x_adv,
            "x_previous": x_adv.clone(),
            "x_best": torch.empty_like(x_adv),
            "grad_best": torch.empty_like(x_adv),
            "loss_best": zeros - torch.inf,
            "loss_best_at_check": zeros.clone(),
            "loss_previous": zeros.clone(),
            "increases": zeros.clone(),
            "reduced_at_check": torch.ones_like(zeros, dtype=torch.bool),
            "step_size": FIRST_STEP_SIZE * state["eps"],
            "zero_gradient": torch.zeros_like(zeros, dtype=torch.bool),
            "seen_zero_gradient": torch.zeros(len(images), dtype=torch.bool),
        }
        if self.targeted:
            state["target"] = target_classes(images)
        return state

    def _random_points(self, images: list[AttackedImage], state: State) -> Tensor:
        """Uniform (Linf) or Gaussian (L2) noise, scaled to norm eps and clipped: (B, C, H, W)."""
        draw = torch.rand if self.norm == "Linf" else torch.randn
        draws = [draw(image.x.shape, generator=image.generator(self.name)) for image in images]
        noise = to_device(torch.stack(draws), state["x"].device)
        if self.norm == "Linf":
            noise = 2 * noise - 1
        delta = per_row(state["eps"]) * normalize(noise, ORDER[self.norm])
        return (state["x"] + delta).clamp_(0, 1)

    def wants_gradient(self, state: State) -> Tensor:
        return state["iteration"] < self.steps  # the gradient at the last iterate is not used

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        """Cross-entropy, or the targeted DLR loss: (b,)."""
        y = state["y"][rows]
        if not self.targeted:
            return F.cross_entropy(logits, y, reduction="none")
        target = state["target"][rows]
        largest = logits.topk(4, dim=1)[0]
        gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        return gap / (largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + TINY)

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        """Points that are misclassified, and rows that started at a zero gradient."""
        return [logits.argmax(1) != state["y"], state["zero_gradient"]]

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """An iteration of Algorithm 1: keep the best point, check the step size, take a step."""
        (state["seen_zero_gradient"],) = looked
        finished = state["iteration"] >= self.steps
        if grad is None:
            return finished
        first = state["iteration"] == 0
        loss = self.loss(state, logits, slice(None))
        on_device = to_device(first, loss.device)
        self._keep_best(state, loss, grad, on_device)
        if first.any():
            vanishes = grad.flatten(1).abs().amax(1) == 0
            state["zero_gradient"] |= on_device & vanishes
        self._halve_step_size(state, grad)
        weight = torch.where(on_device, 0.0, 1 - MOMENTUM)
        momentum = (state["x_adv"] - state["x_previous"]).mul_(per_row(weight))
        x_next = self._step(state, grad, momentum, on_device)
        state["x_previous"], state["x_adv"] = state["x_adv"], x_next
        state["iteration"] += 1
        return finished

    def _keep_best(self, state: State, loss: Tensor, grad: Tensor, first: Tensor) -> None:
        """Keep the point of largest loss, and count increases of the loss.

        Like the reference, the second point is compared with a loss of 0, not with the first's.
        """
        better = loss > state["loss_best"]
        state["x_best"] = torch.where(per_row(better), state["x_adv"], state["x_best"])
        state["grad_best"] = torch.where(per_row(better), grad, state["grad_best"])
        state["loss_best"] = torch.where(better, loss, state["loss_best"])
        state["loss_best_at_check"] = torch.where(first, loss, state["loss_best_at_check"])
        state["increases"] += ((loss > state["loss_previous"]) & ~first).float()
        state["loss_previous"] = torch.where(first, 0.0, loss)

    def _halve_step_size(self, state: State, grad: Tensor) -> None:
        """At a checkpoint, halve the step size under a condition, and restart from the best point.

        Condition 1: the loss increased in too few steps of the period. Condition 2: the step size
        was not halved at the last checkpoint, and the best loss has not improved since.
        """
        period = self.periods[state["iteration"]]
        rows = period.nonzero().squeeze(1)
        if not len(rows):
            return
        length, rows = to_device(period[rows], grad.device), to_device(rows, grad.device)
        condition_1 = state["increases"][rows] <= length * RHO
        not_improved = state["loss_best_at_check"][rows] >= state["loss_best"][rows]
        condition_2 = ~state["reduced_at_check"][rows] & not_improved
        halve = condition_1 | condition_2
        state["reduced_at_check"][rows] = halve
        state["loss_best_at_check"][rows] = state["loss_best"][rows]
        state["increases"][rows] = 0.0
        state["step_size"][rows] *= torch.where(halve, 0.5, 1.0)
        for values, best in ((state["x_adv"], state["x_best"]), (grad, state["grad_best"])):
            values[rows] = torch.where(per_row(halve), best[rows], values[rows])

    def _step(self, state: State, grad: Tensor, momentum: Tensor, first: Tensor) -> Tensor:
        """z = P(x_adv + step_size direction), next = P(x_adv + 0.75 (z - x_adv) + momentum).

        The first step has no momentum. Overwrites `grad` in Linf.
        """
        x, x_adv, eps = state["x"], state["x_adv"], state["eps"]
        direction = grad.sign_() if self.norm == "Linf" else normalize(grad, 2)
        step = direction.mul_(per_row(state["step_size"]))
        z = project_onto_ball(step.add_(x_adv), x, eps, self.norm)
        weight = per_row(torch.where(first, 1.0, MOMENTUM))
        weighted = z.sub_(x_adv).mul_(weight).add_(x_adv)
        return project_onto_ball(weighted.add_(momentum), x, eps, self.norm)

    def on_done(
        self, state: State, rows: list[int], images: list[AttackedImage[EpsProgress]]
    ) -> None:
        flags = state["seen_zero_gradient"].tolist()
        for row, image in zip(rows, images):
            image.progress.zero_gradient |= flags[row]
