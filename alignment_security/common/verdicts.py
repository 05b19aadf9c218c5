"""Constants that decide whether an image is robust: AutoAttack's standard budget, tolerance of eps.

The attacks apply these numbers and `records.audit` checks records against them, so both read them
from here.
"""

from __future__ import annotations

from typing import Any

# Croce & Hein 2020, "Reliable evaluation of adversarial robustness ...": version "standard" of
# fra31/auto-attack; keys are those of a run's settings
AUTOATTACK_ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
STANDARD_BUDGET: dict[str, Any] = {
    "attacks": AUTOATTACK_ATTACKS,
    "steps": 100,
    "targets": 9,
    "queries": 5000,
}

# a perturbation is inside its ball when norm <= eps * (1 + EPS_RTOL) + EPS_ATOL:
# a float32 sum x + eps is off by at most half a unit in the last place of 1.0
EPS_RTOL = 1e-5
EPS_ATOL = 1e-7
