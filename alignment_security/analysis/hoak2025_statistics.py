"""Spearman's correlations of Brain-Score benchmarks with accuracy, and which of them survive.

`correlation_table` has each benchmark with each accuracy: p, q, intervals over models and over
families of models, the range with each family left out, and the correlation given clean accuracy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import leaf_benchmarks
from alignment_security.analysis.hoak2025 import (
    ALPHA,
    MIN_FAMILIES,
    MIN_MODELS,
    Study,
    benchmark_groups,
)
from alignment_security.analysis.hoak2025_accuracies import CLEAN_OUTCOME
from alignment_security.analysis.statistics import (
    benjamini_hochberg,
    correlation_p,
    family_counts,
    partial_correlation,
    percentile_interval,
    rank_correlations,
    resample_counts,
    without_each,
)

CORRELATION_COLUMNS = [
    "benchmark",
    "group",
    "leaf",
    "accuracy",
    "n",
    "families",
    "empty",
    "rho",
    "p",
    "q",
    "low",
    "high",
    "family_low",
    "family_high",
    "left_low",
    "left_high",
    "left_family",
    "partial_rho",
    "partial_p",
    "partial_q",
    "partial_low",
    "partial_high",
]
MAX_RANKED = 45  # benchmarks of a forest plot
MAX_RANKED_OTHERWISE = 10  # benchmarks of one in which none survives
SURVIVES = (
    f"q <= {ALPHA} over the whole grid of `robust_only_correlation`, an interval over families of "
    "models without 0, and one sign whichever family is left out"
)


# ---- correlations --------------------------------------------------------------------------------


def correlate(score: np.ndarray, accuracy: np.ndarray, families: np.ndarray) -> list[dict]:
    """Spearman's correlation of one benchmark with each accuracy, and how far to trust it.

    score      (n,) floats; nan: no score
    accuracy   (n, k) floats, clean accuracy first; nan: not evaluated
    families   (n,) names
    Returns k dicts with
    - n, families: numbers of models that have both values, and of their families
    - rho, p, and the bootstrap intervals over models (low, high) and over families (family_low,
      family_high)
    - left_low, left_high, left_family: range of rho with each family left out, and the family that
      changes it most
    - partial_rho, partial_p, partial_low, partial_high: the same given clean accuracy
    - empty: why there is no correlation
    """
    known = ~np.isnan(accuracy) & ~np.isnan(score)[:, None]
    found: dict[int, dict] = {}
    # accuracies that are known of the same models share their resamples
    for models in np.unique(known, axis=1).T:
        outcomes = np.flatnonzero((known == models[:, None]).all(axis=0))
        cells = correlate_complete(score[models], accuracy[models], outcomes, families[models])
        found |= zip(outcomes, cells)
    return [found[j] for j in range(accuracy.shape[1])]


def correlate_complete(
    score: np.ndarray, accuracy: np.ndarray, outcomes: np.ndarray, families: np.ndarray
) -> list[dict]:
    """`correlate` for models that all have the score and some accuracies.

    score, accuracy, families   as in `correlate`, of these models
    outcomes                    (m,) columns of `accuracy` without nan
    """
    n = len(score)
    names, left_out = without_each(families)
    counts: dict = {"n": n, "families": len(names)}
    if n < MIN_MODELS:
        return [counts | {"empty": f"fewer than {MIN_MODELS} models"}] * len(outcomes)
    if np.ptp(score) == 0:
        return [counts | {"empty": "constant score"}] * len(outcomes)

    # all models, each family left out, models drawn, families drawn: one pass over all resamples
    models_drawn = resample_counts(n)
    weights = np.concatenate([np.ones((1, n)), left_out, models_drawn, family_counts(families)])
    parts = np.cumsum([1, len(names), len(models_drawn)])
    used = list(dict.fromkeys([0, *outcomes]))  # clean accuracy too, for the partial correlation
    columns = np.column_stack([score, np.nan_to_num(accuracy[:, used])])
    r = rank_correlations(columns, weights)  # (resamples, columns, columns)
    enough_left = left_out.sum(axis=1) >= MIN_MODELS
    clean_known = not np.isnan(accuracy[:, 0]).any()

    cells = []
    for j in outcomes:
        y = 1 + used.index(j)
        (rho,), without, resampled, clustered = np.split(r[:, 0, y], parts)
        cell = counts | correlation_estimate(rho, resampled, n)
        if np.isnan(rho):
            cell["empty"] = "constant accuracy"
        elif len(names) >= MIN_FAMILIES:
            cell["family_low"], cell["family_high"] = percentile_interval(clustered)
            cell |= range_without(rho, np.where(enough_left, without, np.nan), names)
        if j != 0 and clean_known:
            partial = partial_correlation(r[:, 0, y], r[:, 0, 1], r[:, 1, y])
            (rho,), _, resampled, _ = np.split(partial, parts)
            estimate = correlation_estimate(rho, resampled, n, given=1)
            cell |= {f"partial_{name}": value for name, value in estimate.items()}
        cells.append(cell)
    return cells


def correlation_estimate(
    rho: float, resampled: np.ndarray, n: int, given: int = 0
) -> dict[str, float]:
    """A correlation, its p given some more variables, and its bootstrap interval."""
    low, high = percentile_interval(resampled)
    return {"rho": rho, "p": correlation_p(rho, n, given), "low": low, "high": high}


def range_without(rho: float, without: np.ndarray, names: np.ndarray) -> dict:
    """The range of a correlation with each family left out, and the family that changes it most."""
    if np.isnan(without).all():
        return {}
    return {
        "left_low": np.nanmin(without),
        "left_high": np.nanmax(without),
        "left_family": names[np.nanargmax(np.abs(without - rho))],
    }


@lru_cache(maxsize=8)
def correlation_table(study: Study) -> pd.DataFrame:
    """`correlate` of every benchmark with every accuracy: CORRELATION_COLUMNS and `survives`.

    q (Benjamini & Hochberg 1995) is over all cells of the table, partial_q too.
    """
    groups, leaves = benchmark_groups(list(study.scores)), set(leaf_benchmarks(study.scores))
    accuracy = study.accuracy.to_numpy()
    rows = []
    for benchmark, scores in study.scores.items():
        names = {
            "benchmark": benchmark,
            "group": groups[benchmark],
            "leaf": int(benchmark in leaves),
        }
        cells = correlate(scores.to_numpy(), accuracy, study.families)
        for outcome, cell in zip(study.accuracy, cells):
            rows.append(names | {"accuracy": outcome} | cell)
    table = pd.DataFrame(rows, columns=CORRELATION_COLUMNS).fillna({"empty": "", "left_family": ""})
    table["q"] = benjamini_hochberg(table["p"].to_numpy(float))
    table["partial_q"] = benjamini_hochberg(table["partial_p"].to_numpy(float))
    return table.assign(survives=survives(table).astype(int))


# ---- survivors -----------------------------------------------------------------------------------


def survives(table: pd.DataFrame) -> pd.Series:
    """Whether each correlation of a table survives.

    A benchmark (no average) survives at an eps if q <= ALPHA, its interval over families does not
    contain 0, and its sign is the same whichever family is left out.
    """
    return (
        (table["leaf"] == 1)
        & (table["accuracy"] != CLEAN_OUTCOME)
        & (table["q"] <= ALPHA)
        & (table["family_low"] * table["family_high"] > 0)
        & (table["left_low"] * table["left_high"] > 0)
    )


def robust_correlations(study: Study) -> pd.DataFrame:
    """Rows of `correlation_table` of benchmarks (no averages) with accuracy under attack."""
    table = correlation_table(study)
    robust = (table["leaf"] == 1) & (table["accuracy"] != CLEAN_OUTCOME)
    return table[robust & table["rho"].notna()]


def ranked_benchmarks(study: Study, most: int = MAX_RANKED) -> tuple[pd.DataFrame, str]:
    """Rows of the benchmarks that survive at any eps, and a sentence that counts them.

    Ordered (column `row`) by the correlation at the largest eps at which accuracies differ. If none
    survives, or too many for a page, the strongest.
    """
    table = robust_correlations(study)
    largest = table["accuracy"].max()
    strength = table[table["accuracy"] == largest].set_index("benchmark")["rho"]
    alive = strength.index.intersection(table.loc[table["survives"] == 1, "benchmark"])
    if len(alive):
        chosen = strength[alive]
    else:
        chosen = strength.reindex(strength.abs().nlargest(MAX_RANKED_OTHERWISE).index)
    strongest = chosen.abs().nlargest(most).index
    chosen = chosen.reindex(strongest).sort_values(ascending=False)

    counted = f"{len(alive)} of {len(strength)} benchmarks survive ({SURVIVES})"
    if len(chosen) != len(alive):
        counted += f"; shown: the {len(chosen)} strongest at {study.label(largest)}"
    rank = {name: i for i, name in enumerate(chosen.index)}
    rows = table[table["benchmark"].isin(rank)].assign(row=table["benchmark"].map(rank))
    return rows.sort_values(["row", "accuracy"]).astype({"row": int}), f"{counted}."


def correlations_without_families(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Correlations of `ranked_benchmarks` with each family left out: `left_out, rho_without`."""
    parts = [correlation_without_families(study, row) for row in rows.to_dict("records")]
    return pd.concat(parts, ignore_index=True)


def correlation_without_families(study: Study, row: dict) -> pd.DataFrame:
    """The correlation of one row of `ranked_benchmarks` with each family left out."""
    columns = np.column_stack([study.scores[row["benchmark"]], study.accuracy[row["accuracy"]]])
    known = ~np.isnan(columns).any(axis=1)
    names, weights = without_each(study.families[known])
    rho = rank_correlations(columns[known], weights)[:, 0, 1]
    table = pd.DataFrame(
        {"left_out": names, "models_left": weights.sum(axis=1), "rho_without": rho}
    )
    return table.assign(**{name: row[name] for name in ("row", "benchmark", "accuracy", "rho")})
