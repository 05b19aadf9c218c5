"""Minimum-norm attacks: the smallest perturbation of each image that fools the model.

`run_minimum_norm` runs one attack (`FMN`, `BoundaryCrossing`) on every correctly classified image.
`BestSoFar` is what these attacks share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from alignment_security.attacks.attack import (
    Attack,
    AttackedImage,
    Finding,
    MinimumNormProgress,
    State,
    to_device,
)
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import ImageStream, images_to_attack
from alignment_security.attacks.confirmation import confirm_in_float32
from alignment_security.attacks.engine import Confirm, run_stages
from alignment_security.attacks.geometry import ORDER, exact_norm, lp_norm, per_row
from alignment_security.attacks.line_search import adversarial_point

# shares of its length by which a best point is moved outwards if float32 rejects it
NUDGES = [1e-5 * 4**k for k in range(8)]


class MinimumNormAttack(Attack[MinimumNormProgress], Protocol):
    """An attack that `run_minimum_norm` can run."""

    norm: str  # "L1", "L2" or "Linf"


def run_minimum_norm(
    model: AttackedModel, source: ImageStream, attack: MinimumNormAttack
) -> Iterator[list[dict]]:
    """The smallest perturbation that `attack` finds. Yields lists of `minimum_norm` record rows.

    The row of a misclassified image has no norm. Every reported point is in [0, 1] and is
    misclassified by `model.exact`; l2 and linf (of an L1 attack also l1) are measured on it. Raises
    AttackError for bad images, labels or logits.
    """
    yield from run_stages(source, [attack], model.forward(), MinimumNormSearch(model, attack))


class MinimumNormSearch:
    """The `Search` of a minimum-norm attack: one row per image."""

    def __init__(self, model: AttackedModel, attack: MinimumNormAttack):
        self.model, self.attack, self.exact = model, attack, model.exact_forward()
        self.confirm = confirm_in_float32(self.exact, attack.norm)

    def on_images(self, batch: list) -> tuple[list[dict], list[AttackedImage[MinimumNormProgress]]]:
        """Rows of misclassified images, and the other images, to be attacked."""
        rows, images = [], []
        attacked = images_to_attack(self.model, self.exact, batch, MinimumNormProgress, math.inf)
        for image in attacked:
            if image.clean["clean_correct"]:
                images.append(image)
            else:
                rows.append(minimum_norm_row(image))
        return rows, images

    def on_fooled(
        self, image: AttackedImage[MinimumNormProgress], finding: Finding
    ) -> tuple[list[dict], None]:
        row = minimum_norm_row(image, finding)
        if self.attack.norm == "L1":
            row["l1"] = float(exact_norm(finding.perturbation[None], ORDER["L1"]))
        return [row], None

    def on_exhausted(
        self, image: AttackedImage[MinimumNormProgress], stage: int
    ) -> tuple[list[dict], int | None]:
        """An image without a norm is attacked once more, from a point of `adversarial_point`."""
        finding = confirmed_best(image, self.confirm, self.attack.name)
        if finding is not None:
            return self.on_fooled(image, finding)
        if image.progress.start is None:
            image.progress.start = adversarial_point(image, self.exact, ORDER[self.attack.norm])
            if image.progress.start is not None:
                return [], stage
        return [minimum_norm_row(image)], None


def confirmed_best(image: AttackedImage, confirm: Confirm, name: str) -> Finding | None:
    """The walk's best point, which float32 rejected, or the next larger one that it accepts.

    name   of the attack
    None without such a point (NUDGES).
    """
    x_best = image.progress.x_best
    for nudge in NUDGES if x_best is not None else []:
        point = (image.x + (x_best - image.x) * (1 + nudge)).clamp(0, 1)
        (finding,) = confirm([image], point[None], name)
        if finding is not None:
            return finding
    return None


def minimum_norm_row(image: AttackedImage, finding: Finding | None = None) -> dict:
    """The record row of an image; a misclassified one was not attacked, so it has no success."""
    row = dict(image.clean)
    if image.clean["clean_correct"]:
        row["success"] = int(finding is not None)
    if finding is not None:
        row |= finding.columns() | {"perturbation": finding.perturbation}
    return row | {"forwards": image.forwards, "backwards": image.backwards}


class BestSoFar:
    """Base of minimum-norm attacks: `steps` points with a gradient, one more, then the best counts.

    State keys, besides those of `initial_state` and x_adv:
        x_best      (B, C, H, W) the smallest adversarial point so far
        norm_best   (B,) norm of its perturbation, infinite if there is none
    """

    runs = 1
    steps: int
    p: float  # order of the norm

    def first_points(self, state: State, images: list[AttackedImage[MinimumNormProgress]]) -> State:
        """x_adv, x_best and norm_best of new rows: at the image, or where a second attempt starts.

        state   of `initial_state`
        """
        starts = [image.progress.start for image in images]
        x_adv = torch.stack(
            [image.x if start is None else start for image, start in zip(images, starts)]
        )
        known = to_device(torch.tensor([start is not None for start in starts]), x_adv.device)
        norm = torch.where(known, lp_norm(x_adv - state["x"], self.p), torch.inf)
        return {"x_adv": x_adv, "x_best": x_adv.clone(), "norm_best": norm}

    def wants_gradient(self, state: State) -> Tensor:
        return state["iteration"] < self.steps

    def look(self, state: State, logits: Tensor) -> list[Tensor]:
        """Keep x_adv if it is the best point; rows without steps left propose their best point.

        The host waits for the device at no other step.
        """
        adversarial = logits.argmax(1) != state["y"]
        self.keep_best(state, adversarial, lp_norm(state["x_adv"] - state["x"], self.p))
        ended = state["iteration"] >= self.steps
        return [self.take_best(state, to_device(ended, logits.device))] if ended.any() else []

    def keep_best(self, state: State, adversarial: Tensor, norm: Tensor) -> None:
        """Keep x_adv where it is adversarial (B,) and its norm (B,) is below the best norm."""
        better = adversarial & (norm < state["norm_best"])
        state["x_best"] = torch.where(per_row(better), state["x_adv"], state["x_best"])
        state["norm_best"] = torch.where(better, norm, state["norm_best"])

    def take_best(self, state: State, ended: Tensor) -> Tensor:
        """Put the best point into x_adv in rows that ended (B,). (B,) bool: those with one."""
        state["x_adv"] = torch.where(per_row(ended), state["x_best"], state["x_adv"])
        return ended & torch.isfinite(state["norm_best"])

    def on_done(
        self, state: State, rows: list[int], images: list[AttackedImage[MinimumNormProgress]]
    ) -> None:
        norms = state["norm_best"].tolist()
        for row, image in zip(rows, images):
            if norms[row] < math.inf:
                image.progress.x_best = state["x_best"][row].clone()  # the row is used again
