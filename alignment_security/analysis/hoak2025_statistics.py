"""alignment_security.analysis.hoak2025_statistics."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alignment_security.analysis.brainscore_leaderboard import leaf_benchmarks
from alignment_security.analysis.hoak2025 import (
    ALPHA,
    BENCHMARK_GROUPS,
    CLEAN_OUTCOME,
    COMPARABLE,
    MIN_FAMILIES,
    MIN_MODELS,
    Study,
    benchmark_groups,
    outcome_label,
)
from alignment_security.analysis.statistics import (
    benjamini_hochberg,
    correlation_p,
    cross_validated_r2,
    cross_validation_folds,
    family_counts,
    linear_regression,
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


# ---- correlations ----------------------------------------------------------------------------------------------


def correlate(score: np.ndarray, accuracy: np.ndarray, families: np.ndarray) -> list[dict]:
    """Spearman's correlation of one benchmark with each accuracy, and all that tells how far to trust it.

    score (n,), accuracy (n, k), the first of them clean; floats, nan: none; families (n,) names. Returns k dicts: n, families,
    rho, its p, its bootstrap interval over models (low, high) and over families (family_low, family_high), its range with each
    family left out (left_low, left_high, and left_family, which moves it most), the same given clean accuracy (partial_rho,
    partial_p, partial_low, partial_high), and `empty`: why there is none.
    """
    known, found = ~np.isnan(accuracy) & ~np.isnan(score)[:, None], dict[int, dict]()
    for whole in np.unique(known, axis=1).T:  # accuracies of the same models share their resamples
        alike = np.flatnonzero((known == whole[:, None]).all(axis=0))
        found |= zip(alike, correlate_whole(score[whole], accuracy[whole], alike, families[whole]))
    return [found[j] for j in range(accuracy.shape[1])]


def correlate_whole(
    score: np.ndarray, accuracy: np.ndarray, outcomes: np.ndarray, families: np.ndarray
) -> list[dict]:
    """`correlate` with some outcomes (columns of accuracy), for models that have them and the score."""
    n, (names, left) = len(score), without_each(families)
    found: dict = {"n": n, "families": len(names)}
    if n < MIN_MODELS or np.ptp(score) == 0:
        return [
            found
            | {"empty": f"fewer than {MIN_MODELS} models" if n < MIN_MODELS else "constant score"}
        ] * len(outcomes)
    drawn = resample_counts(n)
    weights = np.concatenate([np.ones((1, n)), left, drawn, family_counts(families)])
    parts = np.cumsum(
        [1, len(names), len(drawn)]
    )  # as they are, a family left out, models drawn, families drawn
    used = list(dict.fromkeys([0, *outcomes]))
    r = rank_correlations(np.column_stack([score, np.nan_to_num(accuracy[:, used])]), weights)
    cells = []
    for j in outcomes:
        y = 1 + used.index(j)
        rho, without, resampled, clustered = np.split(r[:, 0, y], parts)
        cell = found | correlation_estimate(rho[0], resampled, n)
        if np.isnan(rho[0]):
            cell["empty"] = "constant accuracy"
        elif len(names) >= MIN_FAMILIES:
            cell |= zip(["family_low", "family_high"], percentile_interval(clustered))
            cell |= range_without(
                rho[0], np.where(left.sum(axis=1) >= MIN_MODELS, without, np.nan), names
            )
        if j != 0 and not np.isnan(accuracy[:, 0]).any():
            rho, _, resampled, _ = np.split(
                partial_correlation(r[:, 0, y], r[:, 0, 1], r[:, 1, y]), parts
            )
            cell |= {
                f"partial_{name}": value
                for name, value in correlation_estimate(rho[0], resampled, n, given=1).items()
            }
        cells.append(cell)
    return cells


def correlation_estimate(
    rho: float, resampled: np.ndarray, n: int, given: int = 0
) -> dict[str, float]:
    """A correlation, its p and its bootstrap interval."""
    return {
        "rho": rho,
        "p": correlation_p(rho, n, given),
        **dict(zip(["low", "high"], percentile_interval(resampled))),
    }


def range_without(rho: float, without: np.ndarray, names: np.ndarray) -> dict:
    """The range of a correlation with each family left out, and the family that moves it most."""
    if np.isnan(without).all():
        return {}
    return {
        "left_low": np.nanmin(without),
        "left_high": np.nanmax(without),
        "left_family": names[np.nanargmax(np.abs(without - rho))],
    }


@lru_cache(maxsize=8)
def correlation_table(study: Study) -> pd.DataFrame:
    """`correlate` of every benchmark with every accuracy, a row each, with q over the whole grid and whether it survives."""
    group, leaves = benchmark_groups(list(study.scores)), set(leaf_benchmarks(study.scores))
    accuracy, families, rows = study.accuracy.to_numpy(), study.families, []
    for benchmark, scores in study.scores.items():
        names = {
            "benchmark": benchmark,
            "group": group[benchmark],
            "leaf": int(benchmark in leaves),
        }
        cells = correlate(scores.to_numpy(), accuracy, families)
        rows += [
            names | {"accuracy": outcome} | cell for outcome, cell in zip(study.accuracy, cells)
        ]
    table = pd.DataFrame(rows, columns=CORRELATION_COLUMNS).fillna({"empty": "", "left_family": ""})
    for p, q in (("p", "q"), ("partial_p", "partial_q")):
        table[q] = benjamini_hochberg(table[p].to_numpy(float))
    return table.assign(survives=survives(table).astype(int))


def survives(table: pd.DataFrame) -> pd.Series:
    """Benchmarks (no averages) whose correlation with robust accuracy has q <= ALPHA, an interval over families without 0,
    and one sign whichever family is left out."""
    return (
        (table["leaf"] == 1)
        & (table["accuracy"] != CLEAN_OUTCOME)
        & (table["q"] <= ALPHA)
        & (table["family_low"] * table["family_high"] > 0)
        & (table["left_low"] * table["left_high"] > 0)
    )


MOST_RANKED, IF_NONE, LISTED = (
    45,
    10,
    10,
)  # rows of a forest plot; of one where none survives; of each sign in the table
RIDGE_PENALTIES = np.logspace(
    -1, 5, 13
)  # penalties that ridge regression chooses from by generalised cross-validation
SURVIVES = (
    f"q <= {ALPHA} over the whole grid of `robust_only_correlation`, an interval over families of models without 0, and "
    "one sign whichever family is left out"
)


# ---- survivors -------------------------------------------------------------------------------------------------


def ranked_benchmarks(study: Study, most: int = MOST_RANKED) -> tuple[pd.DataFrame, str]:
    """Rows of the benchmarks that survive at any eps, by their correlation at the largest, and a sentence that counts them.

    The strongest ones where none survives, and where they are too many for a page.
    """
    table = correlation_table(study)
    table = table[
        (table["leaf"] == 1) & (table["accuracy"] != CLEAN_OUTCOME) & table["rho"].notna()
    ]
    largest = table["accuracy"].max()  # at which accuracies differ: all may be 0 at larger ones
    strength = table[table["accuracy"] == largest].set_index("benchmark")["rho"]
    alive = strength.index.intersection(table.loc[table["survives"] == 1, "benchmark"])
    chosen = (
        strength[alive] if len(alive) else strength.reindex(strength.abs().nlargest(IF_NONE).index)
    )
    chosen = chosen.reindex(chosen.abs().nlargest(most).index).sort_values(ascending=False)
    counted = f"{len(alive)} of {len(strength)} benchmarks survive ({SURVIVES})"
    shown = (
        ""
        if len(chosen) == len(alive)
        else f"; shown: the {len(chosen)} strongest at {outcome_label(largest)}"
    )
    rank = {name: i for i, name in enumerate(chosen.index)}
    rows = table[table["benchmark"].isin(rank)].assign(row=table["benchmark"].map(rank))
    return rows.sort_values(["row", "accuracy"]).astype({"row": int}), f"{counted}{shown}."


def without_families(study: Study, row: dict) -> pd.DataFrame:
    """The correlation of one row of `ranked` with each family left out."""
    columns = np.column_stack([study.scores[row["benchmark"]], study.accuracy[row["accuracy"]]])
    whole = ~np.isnan(columns).any(axis=1)
    names, weights = without_each(study.families[whole])
    rho = rank_correlations(columns[whole], weights)[:, 0, 1]
    cell = {name: row[name] for name in ("row", "benchmark", "accuracy", "rho")}
    return pd.DataFrame(
        {"left_out": names, "models_left": weights.sum(axis=1), "rho_without": rho}
    ).assign(**cell)


# ---- variance explained ----------------------------------------------------------------------------------------


def predictors(study: Study) -> dict[str, tuple[pd.DataFrame, BaseEstimator]]:
    """What accuracy under attack is predicted from, and by which regression."""
    leaves = study.scores[leaf_benchmarks(study.scores.columns)]
    leaves = leaves.loc[:, leaves.notna().mean() >= COMPARABLE]
    ridge = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        RidgeCV(RIDGE_PENALTIES, alpha_per_target=True),
    )
    found: dict = {
        f"{group} alignment": (study.scores[[column]], LinearRegression())
        for column, group in BENCHMARK_GROUPS.items()
        if column in study.scores
    }
    found["clean accuracy"] = study.accuracy[[CLEAN_OUTCOME]], LinearRegression()
    if count := leaves.shape[1]:
        found[f"all {count} benchmarks"] = leaves, ridge
        found[f"all {count} benchmarks, clean"] = (
            leaves.join(study.accuracy[[CLEAN_OUTCOME]]),
            ridge,
        )
    return {
        name: (table, estimator)
        for name, (table, estimator) in found.items()
        if table.notna().any().all()
    }


def variance_table(study: Study) -> pd.DataFrame:
    """R2 in the sample, of unseen models and of unseen families: a row per predictor and eps, over the same models."""
    sets = predictors(study)
    single = [
        table for table, estimator in sets.values() if isinstance(estimator, LinearRegression)
    ]
    whole = pd.concat([*single, study.accuracy], axis=1).notna().all(axis=1).to_numpy()
    families, y = study.families[whole], study.accuracy.loc[whole, study.radii].to_numpy()
    if whole.sum() < 2 * MIN_MODELS:
        return pd.DataFrame()
    rows = []
    for name, (table, estimator) in sets.items():
        x = table[whole].to_numpy()
        guess = estimator.fit(x, y).predict(x).reshape(y.shape)
        in_sample = np.where(
            np.ptp(y, axis=0) > 0, r2_score(y, guess, multioutput="raw_values"), np.nan
        )
        cells = {"in_sample": in_sample} | cross_validated(estimator, x, y, families)
        rows += [
            {
                "predictor": name,
                "features": x.shape[1],
                "eps": eps,
                "n": len(x),
                "families": len(np.unique(families)),
            }
            | {column: values[i] for column, values in cells.items()}
            for i, eps in enumerate(study.radii)
        ]
    return pd.DataFrame(rows)


def cross_validated(
    estimator: BaseEstimator, x: np.ndarray, y: np.ndarray, families: np.ndarray
) -> dict[str, np.ndarray]:
    """R2 (outcomes,) of unseen models and of unseen families; nan where there are too few families."""
    splits = {"unseen_models": cross_validation_folds(families, whole_families=False)}
    if len(np.unique(families)) >= MIN_FAMILIES:
        splits["unseen_families"] = cross_validation_folds(families, whole_families=True)
    found = {name: cross_validated_r2(estimator, x, y, parts) for name, parts in splits.items()}
    return {"unseen_families": np.full(y.shape[1], np.nan)} | found


def regression_row(study: Study, column: str, eps: float, names: dict) -> dict:
    """One regression; empty where fewer than MIN_MODELS have both values."""
    part = pd.DataFrame(
        {"x": study.scores[column], "y": study.accuracy[eps], "family": study.families}
    ).dropna()
    if len(part) < MIN_MODELS:
        return {}
    x, y, families = (part[name].to_numpy() for name in part)
    fit, r2 = (
        linear_regression(x, y, families),
        cross_validated(LinearRegression(), x[:, None], y[:, None], families),
    )
    return names | {
        "eps": outcome_label(eps).removeprefix("ε = "),
        "n": fit["n"],
        "slope": fit["slope"],
        "R2": fit["r2"],
        "R2, unseen models": r2["unseen_models"][0],
        "R2, unseen families": r2["unseen_families"][0],
        "p": fit["p"],
        "p over families": fit["p_family"],
    }
