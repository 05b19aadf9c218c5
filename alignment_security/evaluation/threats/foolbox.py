"""Minimal L2 norms by foolbox's attack classes, for comparison with other papers."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd

from alignment_security.attacks.attack import AttackError
from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.libraries import FOOLBOX, run_foolbox
from alignment_security.evaluation.threats.feng2025 import GEOMETRY, on_published_images
from alignment_security.evaluation.threats.threat import (
    MAP_OPTIONS,
    Cost,
    Execution,
    RecordRows,
    Threat,
)
from alignment_security.models.heads import Model
from alignment_security.records.norm_summary import floor_warnings, norm_floor

# A batch is written when all of it is attacked; a signal loses at most so many images.
LARGEST_BATCH = 32
NEGLIGIBLE_FLOOR = 1e-3  # an L2 norm


@dataclass(frozen=True)
class Foolbox(Threat):
    """Minimal L2 norms by an attack class of foolbox, for comparison with other papers.

    protocol     ddn, cw, deepfool, or feng2025: foolbox's FMN with the settings, pixels and map of
                 Feng 2025, whose norms are not minimal
    steps        0 takes the protocol's own
    map_reduce   max or l2; feng2025 always takes the published map
    """

    protocol: str
    steps: int = 0
    map_reduce: str = "max"
    seed: int = 0
    kind: ClassVar[str] = "minimum_norm"
    options: ClassVar[frozenset[str]] = MAP_OPTIONS | {"protocol", "steps", "examples"}

    def __post_init__(self):
        if self.protocol not in FOOLBOX:
            raise AttackError(f"{self.protocol}: foolbox's protocols are {', '.join(FOOLBOX)}")
        if not self.steps:
            object.__setattr__(self, "steps", FOOLBOX[self.protocol][1]["steps"])
        if self.protocol == "feng2025":
            object.__setattr__(self, "map_reduce", "feng2025")

    @property
    def name(self) -> str:
        return f"L2-{self.protocol}"

    def settings(self, head: str) -> dict:
        class_name, class_settings = FOOLBOX[self.protocol]
        settings = {
            "protocol": self.protocol,
            "norm": "L2",
            "seed": self.seed,
            "attack": f"foolbox {class_name} {self.steps} steps",
            **class_settings,
            "steps": self.steps,
        }
        if self.protocol == "feng2025":
            settings |= {"pixels": "stretched to [0, 1]", "geometry": GEOMETRY}
        return settings

    def input_model(self, model: Model, settings: dict) -> Model:
        """feng2025: the study's images; a run begun before they were taken goes on without."""
        return on_published_images(model) if settings.get("geometry") else model

    @property
    def notes(self) -> tuple[str, ...]:
        """The floor of DDN's norms, where it is not negligible."""
        floor = norm_floor(self.settings("none"))
        if floor < NEGLIGIBLE_FLOOR:
            return ()
        return (
            f"ddn with {self.steps} steps finds no L2 norm below {floor:.2g}, however near the "
            "boundary is: more --steps, or --protocol crossing",
        )

    def notes_on(self, rows: pd.DataFrame) -> list[str]:
        return floor_warnings(rows, self.settings("none"))

    def cost(self) -> tuple[Cost, Cost]:
        settings = FOOLBOX[self.protocol][1]
        if self.protocol == "deepfool":
            # a backward pass for each candidate class; it ends with the first point that fools
            candidates = settings["candidates"]
            most = (self.steps * candidates + 3, self.steps * candidates)
            return (candidates, candidates - 1), most
        steps = self.steps * settings.get("binary_search_steps", 1)
        always = (steps + 3, steps)
        return always, always

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        execution = replace(execution, batch_size=min(execution.batch_size, LARGEST_BATCH))
        attacked = self.attacked_model(model, execution)
        return run_foolbox(attacked, images, self.protocol, self.steps)

    @classmethod
    def from_args(cls, args: Namespace) -> Foolbox:
        return cls(args.protocol, args.steps, args.map_reduce, args.seed)
