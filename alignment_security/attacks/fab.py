"""FAB: Fast Adaptive Boundary attack (Croce & Hein 2020b), targeted, in Linf and L2.

From the same start point, the iterates of an image are those of the reference implementation
(fra31/auto-attack) to float rounding, until the image is fooled.
"""

from __future__ import annotations

import torch
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
    exact_norm,
    lp_norm,
    per_row,
    project_onto_hyperplane,
    row_sum,
)

ALPHA_MAX = 0.1  # largest weight of the step that starts from the image
ETA = 1.05  # overshoot beyond the linearised boundary
BETA = 0.9  # share of its perturbation that an adversarial point keeps (backward step)


class FAB:
    """Steps to the linearised decision boundary, biased to the image (their Algorithm 1).

    A point that crossed the boundary is moved back towards the image. FAB does not know eps: what
    it finds outside the present ball is kept in `FabMemory` for larger eps.

    norm    "Linf" or "L2"
    steps   new points per run
    runs    target classes

    The gradient at a point that proves adversarial is not used, since the point is moved back. So
    points that are expected to be adversarial are evaluated without a gradient. We predict from the
    previous iterate whether the next is adversarial: on most nets adversarial points alternate with
    others, on robust ones nearly all are adversarial.
    """

    name = "fab-t"

    def __init__(self, norm: str, steps: int, runs: int):
        self.norm, self.p, self.steps, self.runs = norm, ORDER[norm], steps, runs

    def start(self, images: list[AttackedImage[EpsProgress]]) -> State:
        """Rows at their images. Keys besides `initial_state`'s:

        x_adv               (B, C, H, W)
        target              (B,) int64
        nearest, distance   (B, C, H, W), (B,): nearest adversarial point of the run, infinite if
                            there is none
        is_new              (B,) bool, CPU: the class at x_adv is not yet known
        was_adversarial     (B,) bool, CPU: the last new point was adversarial
        next_adversarial    (B, 2) bool, CPU: whether the last point that followed one that was not
                            adversarial (0) and one that was (1) was adversarial
        """
        state = initial_state(images)
        return state | {
            "x_adv": state["x"].clone(),
            "target": target_classes(images),
            "nearest": state["x"].clone(),
            "distance": torch.full_like(state["eps"], torch.inf),
            "is_new": torch.zeros(len(images), dtype=torch.bool),
            "was_adversarial": torch.zeros(len(images), dtype=torch.bool),
            "next_adversarial": torch.zeros(len(images), 2, dtype=torch.bool),
        }

    def wants_gradient(self, state: State) -> Tensor:
        previous = state["was_adversarial"].long()[:, None]
        expected = state["next_adversarial"].gather(1, previous).squeeze(1)
        last = state["iteration"] >= self.steps - 1  # no step follows the last point
        return ~state["is_new"] | ~(expected | last)

    def loss(self, state: State, logits: Tensor, rows: Rows) -> Tensor:
        """Target logit minus true logit: (b,)."""
        target, y = state["target"][rows], state["y"][rows]
        return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        """Points that are misclassified inside the ball, and all that are misclassified."""
        misclassified = logits.argmax(1) != state["y"]
        inside = exact_norm(state["x_adv"] - state["x"], self.p) <= state["eps"]
        return [misclassified & inside, misclassified]

    def update(
        self, state: State, logits: Tensor, grad: Tensor | None, looked: list[Tensor]
    ) -> Tensor:
        """One of three things happens to a row.

        A new point that is adversarial is moved back, and its gradient is asked for next.
        A point that is not, or that was moved back, takes a step if its gradient is known.
        If its gradient is not known, it stays and asks for it.
        """
        device, had_gradient = logits.device, self.wants_gradient(state)
        crossed = looked[0] & state["is_new"]
        if crossed.any():
            self._keep_nearest(state, to_device(crossed, device))
        self._learn_pattern(state, crossed)
        state["iteration"] += state["is_new"].long()
        finished = state["iteration"] >= self.steps
        stepping = had_gradient & ~crossed & ~finished
        if stepping.any() and grad is not None:
            rows = to_device(stepping.nonzero().squeeze(1), device)
            gap = self.loss(state, logits, slice(None))[rows]
            state["x_adv"][rows] = self._step(state, rows, gap, grad[rows])
        state["is_new"] = stepping
        return finished

    def _keep_nearest(self, state: State, crossed: Tensor) -> None:
        """Keep new points where they are the nearest of the run, and move them back."""
        distance = lp_norm(state["x_adv"] - state["x"], self.p)
        nearer = crossed & (distance < state["distance"])
        state["nearest"] = torch.where(per_row(nearer), state["x_adv"], state["nearest"])
        state["distance"] = torch.where(nearer, distance, state["distance"])
        moved_back = state["x"] + (state["x_adv"] - state["x"]) * BETA
        state["x_adv"] = torch.where(per_row(crossed), moved_back, state["x_adv"])

    def _learn_pattern(self, state: State, crossed: Tensor) -> None:
        """Store which kind of point followed which, for `wants_gradient`."""
        rows = state["is_new"].nonzero().squeeze(1)
        state["next_adversarial"][rows, state["was_adversarial"][rows].long()] = crossed[rows]
        state["was_adversarial"][rows] = crossed[rows]

    def _step(self, state: State, rows: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
        """FAB's step for the b rows `rows`, from the point x1 of the image x0: (b, C, H, W).

        The hyperplane is gap + grad.(z - x1) = 0. d1 leads to it from x1, d0 from x0. They are
        mixed by alpha = min(|d1| / (|d1| + |d0|), ALPHA_MAX).
        """
        x0, x1, w = state["x"][rows], state["x_adv"][rows], grad.flatten(1)
        gap_at_x0 = gap + row_sum((x0 - x1) * grad)
        d1, d0 = project_onto_hyperplane(
            torch.cat([x1, x0]).flatten(1),
            torch.cat([w, w]),
            torch.cat([gap, gap_at_x0]),
            self.norm,
        ).view(2, *x0.shape)
        length_1, length_0 = (lp_norm(d, self.p).clamp(min=1e-8) for d in (d1, d0))
        alpha = per_row((length_1 / (length_1 + length_0)).clamp(0, ALPHA_MAX))
        from_x1, from_x0 = x1 + ETA * d1, x0 + ETA * d0
        return (from_x1 * (1 - alpha) + from_x0 * alpha).clamp_(0, 1)

    def on_done(
        self, state: State, rows: list[int], images: list[AttackedImage[EpsProgress]]
    ) -> None:
        if all(len(image.progress.eps) == 1 for image in images):
            return  # no other eps to remember a point for, so the host need not wait
        distances = state["distance"].tolist()
        for row, image in zip(rows, images):
            image.progress.fab.remember(state["nearest"][row], distances[row], image.eps)
