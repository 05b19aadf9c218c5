"""eps as text: `8/255` on the command line, in tables and in figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction

ROUNDING = 1e-6  # relative: eps of published tables have six digits
# exact fractions take long for long numbers: at most 1e999, and 20 digits on each side of the point
NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,3})?", re.IGNORECASE)


def parse_eps(text: str) -> float:
    """`8/255` or `0.031` as a float in pixel units of [0, 1].

    Raises ValueError for a value above 1: 8 could mean 8/255, but no unit is guessed.
    """
    value = parse_radius(text)
    if value > 1:
        raise ValueError(
            f"eps {text} is above 1; pixels are in [0, 1], so write {text}/255 if you mean {text} "
            "of 255 levels"
        )
    return value


def parse_radius(text: str) -> float:
    """A radius in any norm, as a fraction or a float, in pixel units of [0, 1].

    In L1 and L2 it may exceed 1. Raises ValueError for a negative radius or no number.
    """
    try:
        value = _parse_fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"eps {text!r} is not a number; write a fraction (8/255) or a float (0.031)"
        )
    if value < 0:
        raise ValueError(f"eps {text} is negative; it is a distance in pixel units of [0, 1]")
    return value


def _parse_fraction(text: str) -> float:
    """`A` or `A/B` as a float. Raises ValueError, ZeroDivisionError or OverflowError."""
    numerator, slash, denominator = text.strip().partition("/")
    for number in [numerator, denominator] if slash else [numerator]:
        if not NUMBER.fullmatch(number.strip()):
            raise ValueError(f"{number!r} is no number")
    return float(Fraction(numerator) / Fraction(denominator if slash else 1))


def format_eps(eps: float, norm: str = "Linf", beside: Iterable[float] = ()) -> str:
    """eps as papers write it: `8/255`, `0.25/255` in L-infinity, a number in the other norms.

    norm     or the name of a threat, which begins with its norm
    beside   the eps of the same axis, legend or table, which have one unit
    A value that is no multiple of 1/255000 up to rounding (0.00392157 is) stays a plain float, and
    so do those beside it.
    """
    if eps and norm.startswith("Linf") and all(map(is_of_255, (eps, *beside))):
        return f"{round(255 * eps, 3):.10g}/255"
    return f"{eps:g}"


def without_eps(radii: dict[str, set[float]], norm: str) -> str:
    """A sentence, after a space, on the models that lack an eps that others have; "" for none.

    radii   model -> its eps
    norm    as for `format_eps`
    """
    every = sorted(set().union(*radii.values()))
    lacking = {eps: [model for model, has in radii.items() if eps not in has] for eps in every}
    texts = [
        f"{format_eps(eps, norm, every)} ({', '.join(models)})"
        for eps, models in lacking.items()
        if models
    ]
    return f" Not evaluated at ε = {'; '.join(texts)}." if texts else ""


def is_of_255(eps: float) -> bool:
    """Whether eps is a multiple of 1/255000, up to rounding."""
    levels = round(255 * eps, 3)
    return abs(255 * eps - levels) <= ROUNDING * levels
