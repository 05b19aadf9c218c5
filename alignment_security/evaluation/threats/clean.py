"""Threats without an attack: accuracy on images as they are, and on corrupted ones."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment_security.attacks.clean import ImageStream, run_clean
from alignment_security.common.files import UserError, sha256_file
from alignment_security.evaluation.threats.threat import Cost, Execution, RecordRows, Threat
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.labels import read_multilabels
from alignment_security.models.heads import Model


@dataclass(frozen=True)
class Clean(Threat):
    """Predictions on the images as they are.

    multilabel   human_accuracy_v3.0.0.json: every class that people accept for an image
    """

    multilabel: Path | None = None
    kind: ClassVar[str] = "clean"
    options: ClassVar[frozenset[str]] = frozenset({"multilabel"})

    @property
    def name(self) -> str:
        return "clean"

    def settings(self, head: str) -> dict:
        settings = {"attack": "none", "protocol": "clean"}
        if self.multilabel and self.accepted_labels(head):
            settings["multilabel_sha256"] = sha256_file(self.multilabel)
        return settings

    def cost(self) -> tuple[Cost, Cost]:
        return (1, 0), (1, 0)

    def run(self, model: Model, images: ImageStream, execution: Execution) -> RecordRows:
        return run_clean(self.attacked_model(model, execution), images)

    def accepted_labels(self, head: str) -> dict[str, frozenset[int]]:
        """File name -> accepted classes; empty without a file, and for a head of two classes."""
        return read_multilabels(self.multilabel) if self.multilabel and head == "none" else {}

    @classmethod
    def from_args(cls, args: Namespace) -> Clean:
        return cls(args.multilabel)


@dataclass(frozen=True)
class Corruptions(Clean):
    """Predictions on images under one corruption of ImageNet-C.

    type, severity   as in the paper: `fog`, 1 to 5; the image set has to hold them
    """

    type: str = ""
    severity: int = 0
    options: ClassVar[frozenset[str]] = Clean.options | {"corruption_type", "corruption_severity"}

    @property
    def name(self) -> str:
        return f"corruptions-{self.type}-{self.severity}"

    def check(self, model: Model, images: ImageSet) -> None:
        held = images.corruption and (images.corruption.type, images.corruption.severity)
        if held != (self.type, self.severity):
            raise UserError(
                f"{images.name}: its images are not under {self.type} {self.severity}; load them "
                f"with load_image_set(..., corruption=({self.type!r}, {self.severity}))"
            )

    @classmethod
    def from_args(cls, args: Namespace) -> Corruptions:
        return cls(args.multilabel, args.corruption_type, args.corruption_severity)
