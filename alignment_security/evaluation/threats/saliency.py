"""Saliency: does the input gradient point to where people look? (Fel et al. 2022)"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import ClassVar

from alignment_security.attacks.clean import ImageStream
from alignment_security.attacks.saliency import run_saliency
from alignment_security.common.files import UserError
from alignment_security.evaluation.threats.threat import (
    MAP_OPTIONS,
    Cost,
    Execution,
    RecordRows,
    Threat,
)
from alignment_security.images.human_maps import map_source
from alignment_security.images.image_sets import ImageSet
from alignment_security.models.heads import Model
from alignment_security.records.record import SALIENCY_KIND


@dataclass(frozen=True)
class Saliency(Threat):
    """Rank correlation of the input gradient with each image's human map.

    The gradient is that of the label's logit with respect to pixels in [0, 1], as in the loss of
    trainer.objectives. Fel et al. 2022 differentiate with respect to normalised pixels, which
    weights the channels by their std.

    map_reduce   max or l2: gradient -> map over channels; max is the paper's
    """

    map_reduce: str = "max"
    kind: ClassVar[str] = SALIENCY_KIND
    options: ClassVar[frozenset[str]] = MAP_OPTIONS

    @property
    def name(self) -> str:
        return "saliency"

    def settings(self, head: str) -> dict:
        return {"attack": "input gradient", "protocol": "saliency"}

    def cost(self) -> tuple[Cost, Cost]:
        return (2, 1), (2, 1)

    def check(self, model: Model, images: ImageSet) -> None:
        if images.maps is None and map_source(images) is None:
            raise UserError(
                f"{images.name}: has no human maps, which saliency compares with; give "
                "--map_dir, or --dataset clickme or sample"
            )

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        return run_saliency(self.attacked_model(model, execution), images)

    @classmethod
    def from_args(cls, args: Namespace) -> Saliency:
        return cls(args.map_reduce)
