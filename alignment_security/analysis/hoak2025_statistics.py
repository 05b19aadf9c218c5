"""Spearman's correlations of Brain-Score benchmarks with accuracy, and which of them survive.

`correlation_table` has each benchmark with each accuracy: p and q as if models were independent, p
and q with families of models (`family_tests`), intervals over models and over families, the range
with each family left out, and the same correlation given clean accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import leaf_benchmarks
from alignment_security.analysis.family_tests import rank_tests
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
    expanded_interval,
    family_counts,
    partial_correlation,
    percentile_interval,
    rank_correlations,
    resample_counts,
    without_each,
)

TEST_COLUMNS = ["p", "q", "family_p", "family_q"]
CORRELATION_COLUMNS = [
    "benchmark",
    "group",
    "leaf",
    "accuracy",
    "n",
    "families",
    "empty",
    "rho",
    *TEST_COLUMNS,
    "icc",
    "low",
    "high",
    "family_low",
    "family_high",
    "expanded_low",
    "expanded_high",
    "left_low",
    "left_high",
    "left_family",
    "partial_n",
    "partial_rho",
    *(f"partial_{name}" for name in TEST_COLUMNS),
    "partial_low",
    "partial_high",
]
MAX_RANKED = 45  # benchmarks of a forest plot
MAX_RANKED_OTHERWISE = 10  # benchmarks of one in which none survives
SURVIVES = (
    f"q over families <= {ALPHA} over the whole grid of `robust_only_correlation`, one sign "
    f"whichever family is left out, and partial q over families <= {ALPHA} given clean accuracy"
)


# ---- correlations --------------------------------------------------------------------------------


def correlate(score: np.ndarray, accuracy: np.ndarray, families: np.ndarray) -> list[dict]:
    """Spearman's correlation of one benchmark with each accuracy, and how far to trust it.

    score      (n,) floats; nan: no score
    accuracy   (n, k) floats, clean accuracy first; nan: not evaluated
    families   (n,) names
    Returns k dicts with
    - n, families: numbers of models that have both values, and of their families
    - rho, and its p as if models were independent
    - family_p, icc: p with a random intercept per family (`rank_tests`), and the intraclass
      correlation of the accuracy
    - bootstrap intervals over models (low, high) and over families: percentiles (family_low,
      family_high), and expanded ones for few families (expanded_low, expanded_high)
    - left_low, left_high, left_family: range of rho with each family left out, and the family that
      changes it most
    - partial_n, partial_rho, partial_p, partial_family_p, partial_low, partial_high: the same given
      clean accuracy, over the models that have it too
    - empty: why there is no correlation
    """
    known = ~np.isnan(accuracy) & ~np.isnan(score)[:, None]
    cells: list[dict] = [{} for _ in known.T]
    for models, outcomes in complete_sets(known):
        found = correlate_complete(score[models], accuracy[models][:, outcomes], families[models])
        for j, cell in zip(outcomes, found):
            cells[j] |= cell
    known &= ~np.isnan(accuracy[:, :1])
    known[:, 0] = False  # clean accuracy is not correlated given itself
    for models, outcomes in complete_sets(known):
        found = correlate_given_clean(
            score[models], accuracy[models][:, [0, *outcomes]], families[models]
        )
        for j, cell in zip(outcomes, found):
            cells[j] |= {f"partial_{name}": value for name, value in cell.items()}
    return cells


def complete_sets(known: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Accuracies that are known of the same models share their resamples.

    known   (n, k) bool
    Yields the models (n,) bool and the columns that have values of exactly these.
    """
    for models in np.unique(known, axis=1).T:
        yield models, np.flatnonzero((known == models[:, None]).all(axis=0))


def correlate_complete(
    score: np.ndarray, accuracy: np.ndarray, families: np.ndarray
) -> Iterator[dict]:
    """`correlate` for models that all have the score (n,) and the accuracies (n, m)."""
    n = len(score)
    names, left_out = without_each(families)
    counts: dict = {"n": n, "families": len(names)}
    empty = why_empty(score)
    if empty:
        yield from [counts | {"empty": empty}] * accuracy.shape[1]
        return
    # all models, each family left out, models drawn, families drawn: one pass over all resamples
    models_drawn = resample_counts(n)
    weights = np.concatenate([np.ones((1, n)), left_out, models_drawn, family_counts(families)])
    parts = np.cumsum([1, len(names), len(models_drawn)])
    r = rank_correlations(np.column_stack([score, accuracy]), weights)[:, 0, 1:]
    enough_left = left_out.sum(axis=1) >= MIN_MODELS
    tests = correlation_tests(score, accuracy, families)
    for j, test in enumerate(tests):
        (rho,), without, resampled, clustered = np.split(r[:, j], parts)
        low, high = percentile_interval(resampled)
        cell = counts | {"rho": rho, "low": low, "high": high} | test
        if np.isnan(rho):
            cell["empty"] = "constant accuracy"
        elif len(names) >= MIN_FAMILIES:
            cell["family_low"], cell["family_high"] = percentile_interval(clustered)
            cell["expanded_low"], cell["expanded_high"] = expanded_interval(clustered, len(names))
            cell |= range_without(rho, np.where(enough_left, without, np.nan), names)
        yield cell


def correlate_given_clean(
    score: np.ndarray, accuracy: np.ndarray, families: np.ndarray
) -> Iterator[dict]:
    """Partial correlations of the score (n,) with accuracies (n, 1 + m), given the first of them.

    Yields m dicts: n, rho, p, family_p, icc, low and high; nothing where there is no correlation.
    """
    n = len(score)
    if why_empty(score):
        return
    weights = np.concatenate([np.ones((1, n)), resample_counts(n)])
    r = rank_correlations(np.column_stack([score, accuracy]), weights)
    tests = correlation_tests(score, accuracy[:, 1:], families, given=accuracy[:, 0])
    for y, test in enumerate(tests, start=2):
        rho, *resampled = partial_correlation(r[:, 0, y], r[:, 0, 1], r[:, 1, y])
        low, high = percentile_interval(np.array(resampled))
        yield {"n": n, "rho": rho, "low": low, "high": high} | test


def why_empty(score: np.ndarray) -> str:
    """Why the scores (n,) of a benchmark have no correlation with anything; "" if they have."""
    if len(score) < MIN_MODELS:
        return f"fewer than {MIN_MODELS} models"
    return "constant score" if np.ptp(score) == 0 else ""


def correlation_tests(
    score: np.ndarray,
    accuracy: np.ndarray,
    families: np.ndarray,
    given: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """p, family_p and icc of the (partial) rank correlation of a score with accuracies (n, m)."""
    alone = rank_tests(score, accuracy, families, given, independent=True)
    within = rank_tests(score, accuracy, families, given)
    return [
        {"p": p, "family_p": family_p, "icc": icc}
        for p, family_p, icc in zip(alone.p, within.p, within.icc)
    ]


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
    """`correlate` of every benchmark with every accuracy: CORRELATION_COLUMNS and `survival`.

    Each q (Benjamini & Hochberg 1995) is over all cells of the table.
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
    for kind in ("", "family_", "partial_", "partial_family_"):
        table[f"{kind}q"] = benjamini_hochberg(table[f"{kind}p"].to_numpy(float))
    return table.join(survival(table))


# ---- survivors -----------------------------------------------------------------------------------


def survival(table: pd.DataFrame) -> pd.DataFrame:
    """Whether each correlation of a table survives: 0 or 1 in `survives` and `through_clean`.

    A benchmark (no average) survives at an eps if its q over families is at most ALPHA, its sign is
    the same whichever family is left out, and its partial q over families given clean accuracy is
    at most ALPHA. through_clean: all but the last, so nothing is shown beyond clean accuracy. Where
    that is not known, the last condition is left out.
    """
    stands = (
        (table["leaf"] == 1)
        & (table["accuracy"] != CLEAN_OUTCOME)
        & (table["family_q"] <= ALPHA)
        & (table["left_low"] * table["left_high"] > 0)
    )
    through_clean = stands & table["partial_family_q"].gt(ALPHA)
    flags = {"survives": stands & ~through_clean, "through_clean": through_clean}
    return pd.DataFrame(flags).astype(int)


def robust_correlations(study: Study) -> pd.DataFrame:
    """Rows of `correlation_table` of benchmarks (no averages) with accuracy under attack."""
    table = correlation_table(study)
    robust = (table["leaf"] == 1) & (table["accuracy"] != CLEAN_OUTCOME)
    return table[robust & table["rho"].notna()]


def ranked_benchmarks(study: Study) -> tuple[pd.DataFrame, str]:
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
    strongest = chosen.abs().nlargest(MAX_RANKED).index
    chosen = chosen.reindex(strongest).sort_values(ascending=False)

    counted = f"{len(alive)} of {len(strength)} benchmarks survive ({SURVIVES})"
    counted += clean_sentence(table, set(alive))
    if len(chosen) != len(alive):
        counted += f"; shown: the {len(chosen)} strongest at {study.label(largest)}"
    rank = {name: i for i, name in enumerate(chosen.index)}
    rows = table[table["benchmark"].isin(rank)].assign(row=table["benchmark"].map(rank))
    return rows.sort_values(["row", "accuracy"]).astype({"row": int}), f"{counted}."


def clean_sentence(table: pd.DataFrame, alive: set[str]) -> str:
    """How many benchmarks fail given clean accuracy alone, for a sentence."""
    if table["partial_rho"].isna().all():
        return "; clean accuracy is not known, so none is left out for working through it"
    through = set(table.loc[table["through_clean"] == 1, "benchmark"]) - alive
    return f"; {len(through)} more meet all but the last" if through else ""


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
