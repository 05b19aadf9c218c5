"""Minimum-norm attacks as rows of a struct of arrays: the smallest perturbation of an image that fools the model.

FMN        Fast Minimum-Norm (Pintor et al. 2021), the authors' algorithm with a projection that only shrinks
Crossing   our own: the next radius is where the model, linearised along the perturbation, crosses the boundary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from alignment_security.attacks.attack import AttackedImage, State
from alignment_security.attacks.clean import (
    ImageStream,
    clean_columns,
    clean_pass,
    confirm_in_float32,
)
from alignment_security.attacks.engine import run_stages
from alignment_security.attacks.geometry import per_row
from alignment_security.models.forward import Forward

# ---- minimal norms ---------------------------------------------------------------------------------------------

NUDGES = [
    1e-5 * 4**k for k in range(8)
]  # a point on the boundary that rounding puts back is moved out by these


class MinimumNorm:
    """Every correctly classified image through one minimum-norm attack; one row per image."""

    def __init__(self, norm: str, seed: int, n_outputs: int, passes: Forward, confirm: Callable):
        self.norm, self.seed, self.n_outputs, self.passes, self.confirm = (
            norm,
            seed,
            n_outputs,
            passes,
            confirm,
        )

    def admit(self, batch: list) -> tuple[list[dict], list[AttackedImage]]:
        x, logits = clean_pass(self.passes, batch, self.n_outputs)
        rows, jobs = [], []
        for (name, _, label), image, z in zip(batch, x, logits):
            clean = clean_columns(name, label, z)
            job = AttackedImage(
                name,
                image.clone(),
                label,
                z,
                seed=self.seed,
                eps=math.inf,
                forwards=1,
                known={"clean": clean},
            )
            if clean["clean_correct"]:
                jobs.append(job)
            else:
                rows.append(clean | {"forwards": 1, "backwards": 0})
        return rows, jobs

    def found(self, job: AttackedImage, finding: dict) -> tuple[list[dict], None]:
        return [self._row(job, success=1, **finding)], None

    def survived(self, job: AttackedImage, stage: int) -> tuple[list[dict], None]:
        """Nothing found, or a best point that float32 denies: then the nearest one further out that it confirms."""
        best = job.known["best"]
        for nudge in NUDGES if best is not None else []:
            point = (job.x + (best - job.x) * (1 + nudge)).clamp(0, 1)
            if finding := self.confirm([job], point[None])[0]:
                return self.found(job, finding)
        return [self._row(job, success=0)], None

    def _row(self, job: AttackedImage, **outcome) -> dict:
        return job.known["clean"] | outcome | {"forwards": job.forwards, "backwards": job.backwards}


def run_minimum_norm(
    module: nn.Module,
    source: ImageStream,
    attack,
    n_outputs: int,
    seed: int = 0,
    batch_size: int = 8,
    exact: nn.Module | None = None,
    log: Callable[[str], None] = lambda m: None,
) -> Iterator[list[dict]]:
    """The smallest perturbation that `attack` (FMN, ...) finds for each image. Yields `minimum_norm` record rows.

    A misclassified image gets a row without a norm. Every reported point is misclassified by the float32 model
    `exact` and lies in [0, 1]; l2 and linf are measured on it. Raises AttackError for bad images, labels or logits.
    """
    passes = Forward(module, batch_size, log)
    confirm = confirm_in_float32(Forward(exact or module, batch_size, log), attack.norm)
    run = MinimumNorm(attack.norm, seed, n_outputs, passes, confirm)
    yield from run_stages(source, [attack], passes, confirm, run.admit, run.survived, run.found)


def keep_smaller(s: State, points: Tensor, adversarial: Tensor, size: Tensor) -> None:
    """Keep a point that fools and is not larger than the best."""
    better = adversarial & (size < s["size"])
    s["best"] = torch.where(per_row(better), points, s["best"])
    s["size"] = torch.where(better, size, s["size"])


class BestSoFar:
    """What minimum-norm attacks share: `steps` points with a gradient, one more to look at, then the best is handed in."""

    runs, steps = 1, 0

    def wants_gradient(self, s: State) -> Tensor:
        return s["it"] < self.steps

    def hand_in(self, s: State, device: torch.device) -> Tensor:
        """Rows at their end put their best point, if there is one, into x_adv and claim it: (B,) bool."""
        ended = (s["it"] >= self.steps).to(device)
        s["x_adv"] = torch.where(per_row(ended), s["best"], s["x_adv"])
        return ended & torch.isfinite(s["size"])

    def leave(self, s: State, row: int, job: AttackedImage) -> None:
        job.known["best"] = s["best"][row] if torch.isfinite(s["size"][row]) else None
