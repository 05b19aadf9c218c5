"""An adversarial point that one threat found bounds the verdicts and norms of another."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from alignment_security.common.verdicts import STANDARD_NAME
from alignment_security.records.audit_record import Record
from alignment_security.records.audit_threats import check_threats

NAMES = [f"{k}.jpg" for k in range(8)]
EPS = 2 / 255


def record(kind: str, rows: list[dict], norm: str = "Linf", **settings) -> Record:
    weights = settings.pop("weights_sha256", "w")
    whole = {
        "run": {"norm": norm, "head": "none", **settings},
        "model": {"weights_sha256": weights, "weights": "file:net.pth"},
    }
    run = {"kind": kind, "image_set": "mine", "threat": norm, "model": "net", "settings": whole}
    return Record(Path(f"{norm}-{kind}.csv"), run, pd.DataFrame(rows))


def ball(broken: int, attack: str = STANDARD_NAME) -> Record:
    """Of eight images, the first `broken` break within EPS."""
    point: dict = {"robust": 0, "linf": EPS, "l2": 0.9}
    stands: dict = {"robust": 1, "linf": None, "l2": None}
    rows = [point] * broken + [stands] * (len(NAMES) - broken)
    named = [{"image_id": name, "eps": EPS} | row for name, row in zip(NAMES, rows)]
    return record("ball", named, attack=attack)


def norms(linf: float, of: int = len(NAMES), norm: str = "Linf", **settings) -> Record:
    """Points at this distance of the last `of` images, and farther ones of the others."""
    near = len(NAMES) - of
    rows = [
        {"image_id": name, "linf": linf if k >= near else 0.5, "l2": 200 * linf}
        for k, name in enumerate(NAMES)
    ]
    return record("minimum_norm", rows, norm, **settings)


@pytest.mark.parametrize(
    "records, says",
    [
        ([ball(0), norms(1.5 * EPS)], []),
        ([ball(8), norms(0.5 * EPS)], []),
        ([ball(0), norms(0.5 * EPS, of=1)], []),  # one image: no attack finds every point
        ([ball(0), norms(0.5 * EPS, of=2)], ["2 of 8 robust verdicts are refuted by points of"]),
        ([ball(0), norms(0.5 * EPS, norm="L2")], ["8 of 8 robust verdicts .* one of linf 0.0039"]),
        ([ball(0, "reduced: apgd-ce(5)"), norms(0.5 * EPS)], []),  # which promises little
        ([ball(8), norms(2 * EPS)], ["minimal linf norms are 2 times .median of 8 images. those"]),
        ([ball(4), norms(2 * EPS)], []),  # too few images that both have
        ([ball(8), norms(2 * EPS, protocol="feng2025")], []),  # not minimal, and never called so
        ([ball(8), norms(2 * EPS, weights_sha256="v")], []),
        ([ball(8), norms(2 * EPS, head="animate")], []),
    ],
)
def test_points_of_one_threat_bound_another(records, says):
    found = list(check_threats(records))
    assert len(found) == len(says), found
    for sentence, message in zip(found, says):
        assert re.search(message, sentence)
