"""What a verdict means: AutoAttack's standard budget, and when a float32 point is within eps.

The attacks decide by these numbers, and `records.audit` checks records by the same ones.
"""

from __future__ import annotations

from typing import Any

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")  # in the order in which they run
RAND_ATTACKS = AUTOATTACK[:2]  # of `--budget rand`, for random networks

STANDARD_NAME = "AutoAttack standard"  # of that budget, and of no other, in tables and run files
# Croce & Hein 2020, version "standard" of fra31/auto-attack, in the types of a run file (JSON)
STANDARD_BUDGET: dict[str, Any] = {
    "attacks": list(AUTOATTACK),
    "steps": 100,
    "targets": 9,
    "queries": 5000,
}

# x + delta is rounded to float32, so the norm of a point on the ball's surface can exceed eps:
# each pixel by at most half a unit in the last place of 1.0, the norm by a relative rounding error
EPS_RTOL = 1e-5
EPS_ATOL = 1e-7


def inside_ball(norm: Any, eps: Any) -> Any:
    """Whether a perturbation of this norm is within `eps`, up to float32 rounding.

    Takes numbers, arrays or pandas Series, and returns a bool or an array of bool.
    """
    return norm <= eps * (1 + EPS_RTOL) + EPS_ATOL
