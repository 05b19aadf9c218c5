"""Perturbation Tolerance and human alignment of models: Feng et al. (2025) as published, and ours.

`norm_tables` gives a table per source; the functions below it compute what Figures 4, 6 and 7 show.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from alignment_security.analysis.family_tests import rank_tests
from alignment_security.analysis.feng2025_own import own_norms
from alignment_security.analysis.feng2025_published import (
    ROBUST_NAME,
    published_norms,
)
from alignment_security.analysis.norm_table import (
    ALIGNMENT,
    PUBLISHED,
    TOLERANCE,
    TOLERANCES,
    NormTable,
)
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import (
    percentile_interval,
    rank_correlations,
    resample_counts,
)
from alignment_security.common.text import some_of
from alignment_security.models.families import lineage
from alignment_security.records.metrics import pareto_front

MEASURE_NAMES = {"pt": "Perturbation Tolerance", "alignment": "human alignment"}
MEASURES = {"pt": (TOLERANCE, 1), "alignment": (ALIGNMENT, 100)}  # column -> label, factor
LACKED = {"pt": "norm", "alignment": "human alignment", "accuracy": "accuracy"}  # in captions
NORM_NAMES = {"l2": "L2", "linf": "Linf"}  # in names of robust nets -> as threats name them
FEWEST = 5  # models below which nothing is fitted and no correlation is given
NOT_MINIMAL = "feng2025"  # the protocol whose norms are not minimal (docs/threats.md)


@lru_cache(maxsize=2)
def norm_tables(results: Results) -> list[NormTable]:
    """The public numbers if --published is given, then every L2 protocol of ours that has norms."""
    return [*published_norms(results), *own_norms(results, "L2")]


@lru_cache(maxsize=2)
def tables_of_every_norm(results: Results) -> list[NormTable]:
    """`norm_tables`, and tables of our Linf and L1 norms. Their pt are no L2 norms."""
    return [*norm_tables(results), *own_norms(results, "Linf"), *own_norms(results, "L1")]


def published_norm_table(results: Results) -> NormTable | None:
    """The public numbers of Feng 2025; None without --published."""
    return next((table for table in norm_tables(results) if table.name == PUBLISHED), None)


def tables_with(tables: list[NormTable], columns: list[str]) -> list[NormTable]:
    """The tables with a model that has values in all these columns.

    Their notes say over how many images the measures among these columns are, and name the models
    that lack one and that a figure of these columns has therefore not.
    """
    return [
        table._replace(
            note=table.note + measures_text(table, columns) + lacking_text(table, columns)
        )
        for table in tables
        if len(table.rows.dropna(subset=columns))
    ]


def measures_text(table: NormTable, columns: Sequence[str] = tuple(MEASURES)) -> str:
    """Over how many images the measures among some columns are, and over which ceiling."""
    counts = {"pt": "n_norm", "alignment": "n_alignment"}
    texts = [
        f"{MEASURE_NAMES[column]} over {count_range(table.rows[counts[column]])}"
        for column in columns
        if column in counts and table.rows[counts[column]].gt(0).any()
    ]
    text = ", ".join(texts)
    sentence = f" {text[:1].upper()}{text[1:]}." if texts else ""
    return sentence + (table.ceiling_note if "alignment" in columns else "")


def lacking_text(table: NormTable, columns: list[str]) -> str:
    """A sentence on the models of a table of ours that lack a value of a figure; "" for none.

    The note of the published numbers counts theirs.
    """
    if table.name == PUBLISHED:
        return ""
    lacking = {
        LACKED[column]: list(table.rows.loc[table.rows[column].isna(), "model"])
        for column in columns
    }
    texts = [f"{what}: {some_of(models)}" for what, models in lacking.items() if models]
    return f" Not drawn, without {'; without '.join(texts)}." if texts else ""


# ---- measures ------------------------------------------------------------------------------------


def count_range(counts: pd.Series) -> str:
    """`5 images` or `5 to 7 images`: what some counts above 0 are; `none` without."""
    if not counts.gt(0).any():
        return "none"
    low, high = counts[counts > 0].min(), counts.max()
    count = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    return f"{count} image{'s' if high > 1 else ''}"


def measure_label(table: NormTable, measure: str) -> str:
    """Axis label of a measure of a table."""
    return TOLERANCES[table.norm][0] if measure == "pt" else table.alignment_label


def in_drawn_units(table: NormTable) -> NormTable:
    """The table with its norms as axes have them (TOLERANCES): Linf in 255ths."""
    factor = TOLERANCES[table.norm][2]
    rows = table.rows
    return table._replace(rows=rows.assign(pt=factor * rows["pt"], pt_sem=factor * rows["pt_sem"]))


# ---- correlations --------------------------------------------------------------------------------


def correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """Spearman's `rho` of two columns, its 95 % bootstrap interval `low, high`, and `n`.

    Over the models with both values; all but n are nan below FEWEST of them.
    """
    pair = rows[[x, y]].dropna().to_numpy()
    n = len(pair)
    if n < FEWEST:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": n}
    resampled = rank_correlations(pair, resample_counts(n))[:, 0, 1]
    low, high = percentile_interval(resampled)
    return {"rho": rank_correlations(pair)[0, 0, 1], "low": low, "high": high, "n": n}


def correlation_tests(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """p of Spearman's correlation of two columns, as if models were independent and over families.

    rows   with `model`
    Returns p, families (their number) and family_p (`rank_tests`), over the models with both
    values; p are nan below FEWEST of them.
    """
    pair = rows[["model", x, y]].dropna()
    families = pair["model"].map(lineage).to_numpy()
    found = {"p": np.nan, "families": len(set(families)), "family_p": np.nan}
    if len(pair) >= FEWEST:
        ranked = pair[x].to_numpy(float), pair[[y]].to_numpy(float), families
        found["p"] = rank_tests(*ranked, independent=True).p[0]
        found["family_p"] = rank_tests(*ranked).p[0]
    return found


def rho_text(found: dict[str, float]) -> str:
    """A result of `correlation` as text: of the models alone where it is undefined."""
    if np.isnan(found["rho"]):
        return models_text(found["n"])
    return f"ρ = {found['rho']:z.2f}{interval_text(found)}, {models_text(found['n'])}"


def interval_text(found: dict[str, float], digits: int = 2) -> str:
    """The interval of a result of `correlation`, after a space; "" where it has none."""
    low, high = found["low"], found["high"]
    return "" if np.isnan(low) else f" [{low:z.{digits}f}, {high:z.{digits}f}]"


def models_text(n: float) -> str:
    """`n = 2 models`: in pictures whose captions give numbers of images too."""
    return f"n = {n:.0f} model{'s' if n > 1 else ''}"


# ---- Figures 2 and 3 -----------------------------------------------------------------------------


def quadratic_fit(standard: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The second-degree fit of a measure on accuracy in percent: coefficients, r2, n.

    standard   rows with values in both
    `coefficients` are of the square, the slope and the constant; empty below FEWEST accuracies.
    """
    accuracy, values = standard["accuracy"], standard[measure]
    if accuracy.nunique() < FEWEST:
        return {}
    coefficients = np.polyfit(accuracy, values, 2)
    residuals = values - np.polyval(coefficients, accuracy)
    r2 = 1 - residuals.var() / values.var()
    return {"coefficients": coefficients.tolist(), "r2": r2, "n": len(values)}


# ---- Figure 4 ------------------------------------------------------------------------------------


def mark_pareto_front(table: NormTable) -> NormTable:
    """The table with a column `front`, of the models that have both measures.

    True for standard models that no other standard model beats in both measures.
    """
    measures = ["pt", "alignment"]
    standard = table.standard.dropna(subset=measures)
    best = standard.index[pareto_front(standard[measures].to_numpy())]
    rows = table.rows.dropna(subset=measures)
    return table._replace(rows=rows.assign(front=rows.index.isin(best)))


def robust_series(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(net and norm, its rows by increasing training eps) of the adversarially trained nets.

    Of the group robust: another net of one's own may have such a name.
    """
    rows = rows[rows["group"] == "robust"]
    parts = rows["model"].str.extract(ROBUST_NAME)
    nets = rows.join(parts.astype({"eps": float})).dropna(subset=["net"]).sort_values("eps")
    return [
        (f"{net} {NORM_NAMES[norm]}", part) for (net, norm), part in nets.groupby(["net", "norm"])
    ]
