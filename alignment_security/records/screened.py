"""Screened records (`--budget screened`): which images get the full budget, and what follows.

Two-phase sampling for stratification (Neyman 1938; Cochran 1977, chapter 12). A cheap screen breaks
some images and leaves others standing. Of those that stand at an eps, the ones most likely to fall
and a random sample of the rest get the full budget. How many of the rest it would break is
hypergeometric, so the interval is exact for the images of the record.

While it is written, a record has a row of stage SCREENED for every image and eps, and a second one
of stage TOP or SAMPLE for the chosen ones. A finished record has the later of both (`settled`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache
from typing import Any

import pandas as pd

from alignment_security.common.seeds import seed_from_text

SCREENED, TOP, SAMPLE = "screened", "standard-top", "standard-sample"  # stages of a row
CONFIDENCE = 0.95
# Shares of the images that stand: TOP, and at most both together. The sample is smaller where that
# is enough for an interval of WIDTH of all images when none of it breaks.
TOP_SHARE, MOST_SHARE, WIDTH = 0.03, 0.20, 0.02


# ---- the choice ----------------------------------------------------------------------------------


def choose(screened: pd.DataFrame, seed: int) -> dict[tuple[str, float], str]:
    """(image id, eps) -> TOP or SAMPLE, of those that get the full budget.

    screened   the rows of stage SCREENED of all images, in any order
    The order of the rest is random and the same at every eps: by a hash of seed and image id.
    """
    n = screened["image_id"].nunique()
    chosen: dict[tuple[str, float], str] = {}

    def by_chance(image_id: str) -> tuple[int, str]:
        return seed_from_text(f"{seed}|{image_id}|sample"), image_id

    for eps, rows in screened[screened["robust"] == 1].groupby("eps"):
        ids = rows.sort_values(["screen_norm", "image_id"])["image_id"].tolist()
        top, sampled = sizes(len(ids), n)
        rest = sorted(ids[top:], key=by_chance)
        chosen |= {(image_id, eps): TOP for image_id in ids[:top]}
        chosen |= {(image_id, eps): SAMPLE for image_id in rest[:sampled]}
    return chosen


def sizes(standing: int, n: int) -> tuple[int, int]:
    """How many of the images that stand, of n, are TOP and how many SAMPLE: see MOST_SHARE."""
    top = math.ceil(TOP_SHARE * standing)
    rest = standing - top
    least = min(1, rest)
    most = max(least, int(MOST_SHARE * standing) - top)

    def is_enough(sampled: int) -> bool:
        return broken_interval(rest, sampled, 0)[1] <= WIDTH * n

    return top, bisect_left(range(most), True, lo=least, key=is_enough)


@cache
def broken_interval(rest: int, sampled: int, broken: int) -> tuple[int, int]:
    """How many of `rest` images the full budget breaks, if it broke so many of a random sample.

    The exact interval of a hypergeometric distribution at CONFIDENCE, as Clopper & Pearson 1934:
    each end leaves out what would give such a sample with a chance of at most half of the error.
    """
    # an access point of a cluster has no scipy, and needs no interval
    from scipy.stats import hypergeom

    if sampled == rest:
        return broken, broken
    least, most = broken, rest - (sampled - broken)
    counts, error = range(least, most + 1), (1 - CONFIDENCE) / 2
    low = bisect_left(
        counts, True, key=lambda count: hypergeom.sf(broken - 1, rest, count, sampled) > error
    )
    high = bisect_left(
        counts, True, key=lambda count: hypergeom.cdf(broken, rest, count, sampled) <= error
    )
    return least + low, least + high - 1


# ---- one verdict for each image and eps ----------------------------------------------------------


def settled(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each image and eps: that of the full budget in the place of the screened one.

    Its passes are those of both.
    """
    key, passes = ["image_id", "eps"], ["forwards", "backwards"]
    rows = rows.sort_values("stage", key=lambda stages: stages != SCREENED, kind="stable")
    rows[passes] = rows.groupby(key)[passes].transform("sum")
    return rows[~rows.duplicated(key, keep="last")]


def stands(rows: pd.DataFrame) -> pd.Series:
    """Of settled rows: whether the screen left the image standing."""
    return (rows["robust"] == 1) | (rows["stage"] != SCREENED)


def choice_of(rows: pd.DataFrame, seed: int) -> dict[tuple[str, float], str]:
    """The choice that the settled rows of a record imply."""
    return choose(rows.assign(robust=stands(rows).astype(int)), seed)


# ---- the estimate --------------------------------------------------------------------------------


def robust_estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """Robust accuracy of the full budget and its interval at each eps, from settled rows.

    Indexed by eps, ascending: robust_estimate, robust_low, robust_high (shares of all images), and
    the numbers n_standing, n_top, n_sample. None rises with eps: where neighbours disagree the
    estimate is the smaller one, and the interval holds both.
    """
    found = {eps: _at_eps(part) for eps, part in rows.groupby("eps")}
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis("eps")
    for column in ("robust_estimate", "robust_low"):
        table[column] = table[column].cummin()
    table["robust_high"] = table["robust_high"][::-1].cummax()[::-1]
    return table


def interval_text(found: Any) -> str:
    """`41.2 % (40.1 to 42.0)`: the estimate of a row of `robust_estimates`, and its interval."""
    names = ("robust_estimate", "robust_low", "robust_high")
    estimate, low, high = (f"{100 * found[name]:.1f}" for name in names)
    return f"{estimate} % ({low} to {high})"


def _at_eps(rows: pd.DataFrame) -> dict[str, Any]:
    n, standing = len(rows), int(stands(rows).sum())
    top, sample = (rows.loc[rows["stage"] == stage, "robust"] for stage in (TOP, SAMPLE))
    left = standing - int((top == 0).sum())
    rest, broken = standing - len(top), int((sample == 0).sum())
    least, most = broken_interval(rest, len(sample), broken)
    return {
        "robust_estimate": (left - (rest * broken / len(sample) if broken else 0)) / n,
        "robust_low": (left - most) / n,
        "robust_high": (left - least) / n,
        "n_standing": standing,
        "n_top": len(top),
        "n_sample": len(sample),
    }
