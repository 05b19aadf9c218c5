"""Minimal norms per image: accuracy against eps without another attack, and ranks of models.

A minimal norm above eps means that the image is robust at eps, as far as the attack found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignment_security.analysis.feng2025 import (
    FEWEST,
    NOT_MINIMAL,
    norm_tables,
    tables_with,
)
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import (
    Results,
    group_finished,
    read_finished_rows,
    run_columns,
    runs_of,
)
from alignment_security.models.families import family
from alignment_security.records.comparable import comparable_settings
from alignment_security.records.metrics import accuracy_interval, spearman
from alignment_security.records.norm_summary import NORM_COLUMNS, minimised_norm
from alignment_security.records.summary_rows import attacked_size, size_text

POINTS = 100  # of a curve
MAX_COMPARED = 24  # models whose norms are compared image by image; rank_change names as many


# ---- accuracy against eps ------------------------------------------------------------------------


def norm_groups(results: Results) -> list[list[dict]]:
    """The finished runs of each panel of norms.

    L1 records of earlier versions, which have no L1 norm, are left out.
    """
    runs = [
        run
        for run in results.runs
        if run["status"] != "done"
        or minimised_norm(run["threat"]) != "L1"
        or "l1" in read_finished_rows(run)
    ]
    return group_finished(runs, ("minimum_norm",), comparable_settings)


def image_norms(run: dict) -> pd.Series:
    """Minimal norm by image_id: -inf for a misclassified image, inf if the attack found nothing."""
    rows = read_finished_rows(run).set_index("image_id")
    norms = rows[NORM_COLUMNS[minimised_norm(run["threat"])]].astype(float)
    norms = norms.where(rows["success"] == 1, np.inf)
    return norms.where(rows["clean_correct"] == 1, -np.inf)


def accuracy_curve(run: dict) -> pd.DataFrame:
    """Share of all images whose minimal norm exceeds eps, and its 95 % Wilson interval.

    A row per eps: 0 and the norms found, at which the share falls, or POINTS quantiles of these if
    there are more. Misclassified images count as wrong at every eps.
    """
    norms = image_norms(run).to_numpy()
    n = len(norms)
    radii = np.unique(np.append(norms[np.isfinite(norms)], 0.0))
    if len(radii) > POINTS:
        radii = np.quantile(radii, np.linspace(0, 1, POINTS), method="nearest")
    correct = (norms[None] > radii[:, None]).sum(axis=1)
    intervals = [accuracy_interval(count, n) for count in correct.tolist()]
    low, high = np.transpose(intervals)
    return pd.DataFrame(
        {
            **run_columns(run),
            "size": size_text(attacked_size(run)),
            "eps": radii,
            "correct": correct,
            "n": n,
            "accuracy": correct / n,
            "low": low,
            "high": high,
        }
    )


# ---- ranks under two protocols -------------------------------------------------------------------


class ProtocolPair(NamedTuple):
    """Norms under Feng 2025's protocol and under another, and the models that have both."""

    feng2025: NormTable
    other: NormTable
    models: pd.DataFrame  # model, pt_*, rank_*, family, rho_images; a row per model


def protocol_pairs(results: Results) -> Iterator[ProtocolPair]:
    """Every pair of norms under Feng 2025's protocol and under another with two models in common.

    Ours are paired only on the same images and of the same head; the published ones with all of
    ours.
    """
    tables = tables_with(norm_tables(results), ["pt"])
    theirs = [table for table in tables if is_feng2025(table)]
    others = [table for table in tables if not is_feng2025(table)]
    for feng2025, other in product(theirs, others):
        alike = (feng2025.image_set, feng2025.head) == (other.image_set, other.head)
        if feng2025.name != PUBLISHED and not alike:
            continue
        models = rank_models(feng2025, other)
        if len(models) < 2:
            continue
        rho_images = [np.nan] * len(models)
        if len(models) <= MAX_COMPARED:
            rho_images = [
                image_correlation(results, model, feng2025, other) for model in models["model"]
            ]
        yield ProtocolPair(feng2025, other, models.assign(rho_images=rho_images))


def is_feng2025(table: NormTable) -> bool:
    """Whether norms are published ones, or ours under the same protocol."""
    return table.name == PUBLISHED or table.threat == f"L2-{NOT_MINIMAL}"


def rank_models(feng2025: NormTable, other: NormTable) -> pd.DataFrame:
    """The models of two tables with both norms and ranks by them, the most tolerant model first.

    A published norm is paired with the norm of the public net; a net of one's own has none. Ours
    are paired by name and list of images.
    """
    key = ["public"] if feng2025.name == PUBLISHED else ["model", "list_sha256"]
    names = list(dict.fromkeys(["model", *key]))
    theirs = feng2025.rows.loc[feng2025.rows[key[0]] != "", [*key, "pt"]]
    both = theirs.merge(other.rows[[*names, "pt"]], on=key, suffixes=("_feng2025", "_other"))
    return both.assign(
        rank_feng2025=both["pt_feng2025"].rank(ascending=False),
        rank_other=both["pt_other"].rank(ascending=False),
        feng2025=feng2025.source,
        other=other.source,
        family=both["model"].map(family),
    )


def image_correlation(results: Results, model: str, feng2025: NormTable, other: NormTable) -> float:
    """Spearman of a model's norms over the images that have one under both protocols.

    nan unless both records are there and have FEWEST such images.
    """
    runs = [runs_of(results, table.key).get(model) for table in (feng2025, other)]
    if not all(runs):
        return np.nan
    norms = pd.concat([image_norms(run) for run in runs if run], axis=1, join="inner").to_numpy()
    norms = norms[np.isfinite(norms).all(axis=1)]
    return spearman(*norms.T) if len(norms) >= FEWEST else np.nan
