"""Evaluate a model under a threat from a notebook; docs/notebook.md shows how."""

from alignment_security.evaluation.run import evaluate
from alignment_security.evaluation.threats import (
    AutoAttack,
    Clean,
    Corruptions,
    Crossing,
    FastMinimumNorm,
    Foolbox,
)

__all__ = [
    "AutoAttack",
    "Clean",
    "Corruptions",
    "Crossing",
    "FastMinimumNorm",
    "Foolbox",
    "evaluate",
]
