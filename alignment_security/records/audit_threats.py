"""Checks across the threats of one model: an adversarial point that one found bounds another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pandas as pd

from alignment_security.common.verdicts import STANDARD_NAME, inside_ball
from alignment_security.records.audit_record import Record
from alignment_security.records.record import network_of

FEWEST_IMAGES = 5  # that both records have
MOST_REFUTED = 0.05  # share of robust verdicts: no attack finds every point
FAR_ABOVE = 1.1  # times the norm of a known point, in the median image
NOT_MINIMAL = ("feng2025",)  # protocols whose norms are known not to be


def check_threats(records: list[Record]) -> Iterator[str]:
    """Minimal norms are at most those of bounded attacks, whose verdicts hold against their points.

    Of the same network, preprocessing, head and images. Single images may differ: neither attack
    finds every point.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(_network_and_images(record), []).append(record)
    for group in groups.values():
        bounded = [record for record in group if record.run["kind"] == "ball"]
        minimal = [record for record in group if record.run["kind"] == "minimum_norm"]
        for ball, norms in product(bounded, minimal):
            yield from check_verdicts(ball, norms)
            yield from check_minimal(norms, ball)


def _network_and_images(record: Record) -> tuple:
    settings, model = record.settings, record.model
    return (
        network_of(model),
        str(model.get("preprocessing")),
        record.run["image_set"],
        *(str(settings.get(name)) for name in ("head", "geometry", "corruption", "pixels")),
    )


def check_verdicts(ball: Record, norms: Record) -> Iterator[str]:
    """Few images that AutoAttack calls robust have a point within eps in the record of norms."""
    if ball.settings.get("attack") != STANDARD_NAME:  # a smaller budget is called reduced
        return
    column = ball.norm.lower()
    points = norms.rows.set_index("image_id")[column]
    robust = ball.rows[ball.rows["robust"] == 1]
    known = robust["image_id"].map(points).astype(float)
    refuted = robust[inside_ball(known, robust["eps"])]
    compared = int(known.notna().sum())
    if compared >= FEWEST_IMAGES and len(refuted) > max(1, MOST_REFUTED * compared):
        first = refuted.iloc[0]
        example = f"{first['image_id']} at eps {first['eps']:.6g}"
        yield (
            f"{ball.path}: {len(refuted)} of {compared} robust verdicts are refuted by points of "
            f"{norms.path}, e.g. {example} by one of {column} {known[refuted.index[0]]:.6g}; give "
            "the attack a larger budget, or evaluate both again"
        )


def check_minimal(norms: Record, ball: Record) -> Iterator[str]:
    """In the median image, the minimal norm is not above that of a point of the bounded attack."""
    if norms.settings.get("protocol") in NOT_MINIMAL:
        return
    column = norms.norm.lower()
    if column not in norms.rows or column not in ball.rows:  # l1 is of L1 records alone
        return
    known = ball.rows[ball.rows["l2"] > 0].groupby("image_id")[column].min()
    found = norms.rows.set_index("image_id")[column]
    ratio = pd.concat([found, known], axis=1, join="inner", keys=["found", "known"]).dropna()
    median = (ratio["found"] / ratio["known"]).median()
    if len(ratio) >= FEWEST_IMAGES and median > FAR_ABOVE:
        yield (
            f"{norms.path}: its minimal {column} norms are {median:.3g} times (median of "
            f"{len(ratio)} images) those of points that {ball.path} has; give it more --steps, or "
            "evaluate both again"
        )
