"""Robust accuracy with an interval: `--budget screened`."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.screen import SCREEN, run_screen, screening_walk
from alignment_security.common.eps import format_eps
from alignment_security.common.verdicts import STANDARD_NAME
from alignment_security.evaluation.threats.autoattack import AutoAttack
from alignment_security.evaluation.threats.threat import Cost, Execution, RecordRows, Threat
from alignment_security.images.image_sets import ImageSet
from alignment_security.models.heads import Model
from alignment_security.records.record import SCREENED_KIND
from alignment_security.records.screened import (
    MOST_SHARE,
    SCREENED,
    TOP_SHARE,
    WIDTH,
    choose,
    robust_estimates,
)

WIDE = 10  # percentage points of an interval


@dataclass(frozen=True)
class Screened(AutoAttack):
    """Robust accuracy of a budget, estimated for a quarter of its passes or less.

    This first phase gives every image a row of stage SCREENED, the second (`ChosenImages`) some of
    them a row of the full budget.

    budget   of the second phase
    """

    kind: ClassVar[str] = SCREENED_KIND
    grows: ClassVar[bool] = False
    has_next_phase: ClassVar[bool] = True
    survivors: ClassVar[str] = "standing"

    def __post_init__(self):
        super().__post_init__()
        if self.eps[0] == 0:
            raise AttackError("--budget screened: eps 0 is the clean accuracy; leave it out")

    @property
    def name(self) -> str:
        return f"{self.norm}-screened"

    def settings(self, head: str) -> dict:
        walk = screening_walk(self.norm)
        screen = f"{SCREEN.listed} + {walk.name}({walk.steps})"
        return super().settings(head) | {
            "protocol": "screened",
            "attack": f"screened: {screen}, then {self.budget.listed} on a sample",
            "screen": [*SCREEN.attacks, walk.name],
            "screen_steps": [SCREEN.steps, walk.steps],
            "walks": walk.walks,
            "sampling": {"top": TOP_SHARE, "most": MOST_SHARE, "width": WIDTH},
        }

    def check(self, model: Model, images: ImageSet) -> None:
        """Its second phase takes no other --attacks and --targets: another budget does."""
        self.budget.check(model.n_outputs, "--budget standard ")

    def cost(self) -> tuple[Cost, Cost]:
        """The most is the mean over images that nothing fools, of which a part is chosen."""
        walk = screening_walk(self.norm)
        forwards, backwards = SCREEN.cost_of(*SCREEN.attacks)
        times = min(len(self.eps), 2)  # the smallest and the largest eps
        least, full = super().cost()
        return least, (
            times * forwards + walk.steps + 3 + math.ceil(MOST_SHARE * full[0]),
            times * backwards + walk.steps + math.ceil(MOST_SHARE * full[1]),
        )

    def own_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["stage"] == SCREENED]

    def next_phase(self, rows: pd.DataFrame) -> Threat | None:
        screened = self.own_rows(rows)
        norms = screened.set_index("image_id")["screen_norm"].to_dict()
        chosen: dict[str, dict[float, str]] = {}
        for (image_id, eps), stage in choose(screened, self.seed).items():
            chosen.setdefault(image_id, {})[eps] = stage
        if not chosen:
            return None
        return ChosenImages(
            self.norm, self.eps, self.budget, seed=self.seed, chosen=chosen, norms=norms
        )

    def notes_on(self, rows: pd.DataFrame) -> list[str]:
        """Whether the widest interval is wide: a sample of few images leaves much open."""
        found = robust_estimates(rows)
        eps = (found["robust_high"] - found["robust_low"]).idxmax()
        at = found.loc[eps]
        points = round(100 * (at["robust_high"] - at["robust_low"]))
        if points <= WIDE:
            return []
        return [
            f"the interval at eps {format_eps(eps, self.norm, self.eps)} is {points} points wide, "
            f"since {at['n_top'] + at['n_sample']:g} of the {at['n_standing']:g} images that stood "
            "got the full budget: `--budget standard` gives them all, and the exact accuracy"
        ]

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        attacked, known = self.attacked_model(model, execution), execution.known_rows
        for rows in run_screen(attacked, images, self.norm, self.eps, known):
            yield [row | {"stage": SCREENED} for row in rows]

    @classmethod
    def from_args(cls, args: Namespace) -> Screened:
        """Raises AttackError for options of another budget."""
        if args.attacks or Budget(steps=args.steps, targets=args.targets, queries=args.queries) != (
            Budget()
        ):
            raise AttackError(
                f"--budget screened: its second phase is {STANDARD_NAME}; leave out --attacks, "
                "--steps, --targets and --queries"
            )
        return cls(args.threat, args.eps, seed=args.seed)


@dataclass(frozen=True)
class ChosenImages(AutoAttack):
    """The second phase of `Screened`: the full budget for the chosen images, at some of the eps.

    chosen   image id -> {eps: stage}
    norms    image id -> screen_norm of its screened rows
    """

    chosen: dict[str, dict[float, str]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    phase: ClassVar[str] = "second phase, the full budget"

    @property
    def name(self) -> str:
        return f"{self.norm}-screened"

    def own_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["stage"] != SCREENED]

    def rows_of(self, image_id: str) -> int:
        return len(self.chosen.get(image_id, ()))

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        wanted = {image_id: sorted(stages) for image_id, stages in self.chosen.items()}
        attacked, known = self.attacked_model(model, execution), execution.known_rows
        for rows in run_autoattack(
            attacked, images, self.norm, self.eps, self.budget, known, wanted
        ):
            yield [row | self._columns(row) for row in rows]

    def _columns(self, row: dict) -> dict:
        image_id = row["image_id"]
        stage = self.chosen[image_id][row["eps"]]
        return {"screen_norm": self.norms[image_id], "stage": stage}
