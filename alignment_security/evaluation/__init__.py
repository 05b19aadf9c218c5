"""Evaluate a model under a threat from a notebook; docs/notebook.md shows how."""

from alignment_security.evaluation.run import Stopped, evaluate
from alignment_security.evaluation.threats.autoattack import AutoAttack, ReferenceAutoAttack
from alignment_security.evaluation.threats.clean import Clean, Corruptions
from alignment_security.evaluation.threats.foolbox import Foolbox
from alignment_security.evaluation.threats.minimum_norm import Crossing, FastMinimumNorm
from alignment_security.evaluation.threats.rand import RandomAutoAttack
from alignment_security.evaluation.threats.saliency import Saliency
from alignment_security.evaluation.threats.screened import Screened
from alignment_security.records.screened import robust_estimates

__all__ = [
    "AutoAttack",
    "Clean",
    "Corruptions",
    "Crossing",
    "FastMinimumNorm",
    "Foolbox",
    "RandomAutoAttack",
    "ReferenceAutoAttack",
    "Saliency",
    "Screened",
    "Stopped",
    "evaluate",
    "robust_estimates",
]
