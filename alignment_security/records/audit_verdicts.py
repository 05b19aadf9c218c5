"""Checks of the verdicts and norms of one finished record."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.common.verdicts import (
    EPS_ATOL,
    EPS_RTOL,
    STANDARD_BUDGET,
    inside_ball,
)
from alignment_security.records.audit_record import EVALUATE_AGAIN, Record, wrong_rows
from alignment_security.records.ceiling import check_ceiling
from alignment_security.records.norm_summary import floor_warnings
from alignment_security.records.screened import SAMPLE, SCREENED, TOP, choice_of
from alignment_security.records.summary_rows import attacked_size

CHANNELS = 3
L2_RTOL = 1e-3  # examples and norms may be rounded differently
ALIGNMENT_TOLERANCE = 1e-9  # of human_alignment against human_alignment_raw / ceiling
FAB = "fab-t"  # it keeps a point from outside a smaller ball, and that ball's eps


def check_ball(record: Record) -> Iterator[str]:
    """Consistent verdicts, norms within eps, accuracy that falls with eps."""
    rows, settings = record.rows, record.settings
    norm = record.norm
    attacks = [*settings.get("attacks", STANDARD_BUDGET["attacks"]), *settings.get("screen", [])]
    broken_by = rows["broken_by"].fillna("")
    robust, correct = rows["robust"] == 1, rows["clean_correct"] == 1
    broken = correct & (rows["robust"] == 0) & (rows["eps"] > 0)
    # `~(a <= b)` and `~(a != b)` are true for a missing value too
    other_norm = "l2" if norm == "Linf" else "linf"
    outside = ~inside_ball(rows[norm.lower()], rows["eps"])
    # a point with a small norm also decides smaller eps, unless these came first
    from_larger = settings.get("ladder") == "ascending"
    from_larger &= rows["from_eps"] > rows["eps"] * (1 + EPS_RTOL)
    from_smaller = rows["from_eps"] < rows["eps"] * (1 - EPS_RTOL)
    checks = [
        (
            ~rows["robust"].isin([0, 1]) | (robust & ~correct),
            "a misclassified image counts as robust",
        ),
        (robust & (broken_by != ""), "a robust image was broken by something"),
        (broken & ~broken_by.isin(attacks), "no attack of the budget broke the image"),
        (broken & (rows["adv_pred"] == rows["label"]), "the adversarial class is the label"),
        (broken & rows["adv_pred"].isna(), "the adversarial class is missing"),
        (broken & outside, f"the {norm} norm is not within eps"),
        (broken & rows[other_norm].isna(), "a norm of a broken image is missing"),
        (~broken & rows["linf"].notna(), "an image that was not broken has a norm"),
        (rows["from_eps"].isna(), "the eps that decided the verdict is missing"),
        (broken & from_larger, "an image breaks at eps for having broken at a larger one"),
        (robust & from_smaller, "an image is robust at eps for being so at a smaller one"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)
    yield from impossible_norms(record)
    yield from check_deciding_eps(record, broken & ~outside)
    ordered = rows.sort_values(["image_id", "eps"])
    same_image = ordered["image_id"] == ordered["image_id"].shift()
    rises = same_image & (ordered["robust"].diff() > 0)
    if "stage" in ordered:  # the full budget may break an image at a smaller eps alone
        rises &= ordered["stage"] != SCREENED
    yield from wrong_rows(rises, ordered, "an image is robust that is broken at a smaller eps")


def check_deciding_eps(record: Record, broken: pd.Series) -> Iterator[str]:
    """from_eps is an eps of the run, whose ball holds the point; rows of one point are alike.

    broken   rows that an attack broke, with a norm within eps
    """
    rows, norm = record.rows, record.norm
    from_eps, by_fab = rows["from_eps"], rows["broken_by"] == FAB
    attacked = np.isclose(
        from_eps.to_numpy()[:, None], [0.0, *record.settings["eps"]], rtol=EPS_RTOL, atol=0
    ).any(axis=1)
    for_nothing = broken & (from_eps == 0)
    yield from wrong_rows(
        (from_eps.notna() & ~attacked) | for_nothing, rows, "the deciding eps was not attacked"
    )
    beyond = broken & ~by_fab & ~for_nothing & ~inside_ball(rows[norm.lower()], from_eps)
    yield from wrong_rows(beyond, rows, f"the {norm} norm is above the eps that broke the image")
    if record.run["kind"] == "ball":
        points = rows[broken & ~by_fab]
        of_one = points.groupby(["image_id", "from_eps", "broken_by"], dropna=False)
        first = of_one[["linf", "l2", "adv_pred"]].transform("first")
        differs = (points[first.columns].notna() & (points[first.columns] != first)).any(axis=1)
        yield from wrong_rows(differs, points, "two rows of one point differ in it")


def check_shares(rows: pd.DataFrame) -> Iterator[str]:
    """Of a random network: broken only where more than half of the draws are wrong."""
    broken = (rows["robust"] == 0) & ((rows["eps"] > 0) | (rows["clean_correct"] == 0))
    inside = rows["wrong_share"].between(rows["wrong_low"], rows["wrong_high"])
    checks = [
        (broken & ~(rows["wrong_low"] > 0.5), "broken, though half of the draws may be right"),
        (broken & ~inside, "the share of wrong draws is outside its interval"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)


def check_sample(record: Record) -> Iterator[str]:
    """Of a screened record: the full budget went to the images that its rows imply, and no other.

    Its seed, the verdicts of the screen and the norms of the walks decide which these are.
    """
    rows = record.rows
    known = rows["stage"].isin([SCREENED, TOP, SAMPLE])
    yield from wrong_rows(~known, rows, "the stage is none of a screened record")
    chosen = choice_of(rows, record.settings.get("seed") or 0)
    keys = zip(rows["image_id"], rows["eps"])
    implied = pd.Series([chosen.get(key, SCREENED) for key in keys], rows.index)
    yield from wrong_rows(
        rows["stage"] != implied, rows, "another image was sampled than the rows imply"
    )
    lies = (rows["stage"] == SCREENED) & (rows["robust"] == 1)
    lies &= rows["screen_norm"] <= rows["eps"]
    yield from wrong_rows(lies, rows, "an image stands whose walk broke it")


def check_norms(record: Record) -> Iterator[str]:
    """Norms exactly for the correctly classified images that were fooled; valid alignments."""
    rows = record.rows
    success, correct = rows["success"] == 1, rows["clean_correct"] == 1
    checks = [
        (success & ~correct, "a misclassified image has a minimal norm"),
        (success & ~(rows["l2"] > 0), "an image was fooled by no perturbation"),
        (success & (rows["adv_pred"] == rows["label"]), "the adversarial class is the label"),
        (success & correct & rows["adv_pred"].isna(), "the adversarial class is missing"),
        (~success & rows["l2"].notna(), "an image that was not fooled has a norm"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)
    yield from wrong_rows(
        correct & ~success,
        rows,
        "no norm was found for a correctly classified image, so that the mean leaves out the "
        "hardest",
        "give it more --steps, or report the success rate",
    )
    yield from floor_warnings(rows, record.settings)
    yield from impossible_norms(record)
    yield from check_ceiling(record.settings)
    raw, ceiling = rows["human_alignment_raw"], record.settings.get("human_ceiling")
    if ceiling:
        wrong_ratio = (raw / ceiling - rows["human_alignment"]).abs() > ALIGNMENT_TOLERANCE
    else:
        wrong_ratio = raw.notna()
    yield from wrong_rows(
        (raw.abs() > 1) | wrong_ratio, rows, "the alignment is no correlation over its ceiling"
    )


def impossible_norms(record: Record) -> Iterator[str]:
    """No pixel changes by more than 1; Linf <= L2 <= Linf sqrt(values of an image), L2 <= L1."""
    rows, size = record.rows, attacked_size(record.run)
    values = CHANNELS * size[0] * size[1] if size else math.inf
    above_1 = rows["linf"] > 1 + EPS_ATOL
    above_l2 = rows["linf"] > rows["l2"] * (1 + EPS_RTOL) + EPS_ATOL
    yield from wrong_rows(above_1 | above_l2, rows, "linf is above 1 or above l2")
    both = rows.loc[rows["linf"] > 0, ["linf", "l2"]]
    is_copied = len(both) > 1 and np.allclose(both["l2"], both["linf"], rtol=EPS_RTOL, atol=0)
    if is_copied and not record.run["threat"].startswith("L1"):  # whose points may be one value
        yield f"l2 is linf in each of {len(both)} rows, as if one value changed; {EVALUATE_AGAIN}"
    too_long = rows["l2"] > rows["linf"] * math.sqrt(values) * (1 + L2_RTOL) + EPS_ATOL
    yield from wrong_rows(too_long, rows, "l2 is larger than linf in every value of the image")
    if "l1" in rows:
        l1, l2 = rows["l1"], rows["l2"]
        below = (l1.isna() != l2.isna()) | (l1 < l2 * (1 - L2_RTOL) - EPS_ATOL)
        above = l1 > l2 * math.sqrt(values) * (1 + L2_RTOL) + EPS_ATOL
        yield from wrong_rows(below | above, rows, "l1 is below l2 or above l2 in every value")
