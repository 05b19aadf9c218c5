"""Regressions of accuracy under attack on Brain-Score: slopes, and the variance that is explained.

R2 is given in the sample, of unseen models and of unseen families of models.
"""

from __future__ import annotations

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
    BENCHMARK_GROUPS,
    COMPARABLE,
    MIN_FAMILIES,
    MIN_MODELS,
    Study,
)
from alignment_security.analysis.hoak2025_accuracies import CLEAN_OUTCOME
from alignment_security.analysis.statistics import (
    cross_validated_r2,
    cross_validation_folds,
    linear_regression,
)

MIN_MODELS_EXPLAINED = 2 * MIN_MODELS  # fewer: no variance explained
RIDGE_PENALTIES = np.logspace(-1, 5, 13)  # chosen from by generalised cross-validation


# ---- one benchmark -------------------------------------------------------------------------------


def alignment_fit(study: Study, column: str, eps: float) -> tuple[pd.DataFrame, dict]:
    """Models with a score and an accuracy (`eps, score, accuracy`), and their least squares line.

    The line is that of `statistics.linear_regression`, its p over families too.
    """
    pairs = pd.DataFrame({"score": study.scores[column], "accuracy": study.accuracy[eps]})
    known = pairs.notna().all(axis=1)
    pairs = pairs[known]
    fit = linear_regression(
        pairs["score"].to_numpy(), pairs["accuracy"].to_numpy(), study.families[known]
    )
    pairs.insert(0, "eps", eps)
    return pairs, fit


def regression_rows(study: Study) -> pd.DataFrame:
    """The regressions of accuracy at each eps on each kind of alignment.

    Without those that have fewer than MIN_MODELS models.
    """
    rows = []
    for column, group in BENCHMARK_GROUPS.items():
        for eps in study.radii if column in study.scores else []:
            pairs, fit = alignment_fit(study, column, eps)
            if fit["n"] < MIN_MODELS:
                continue
            families = study.families[study.scores.index.isin(pairs.index)]
            x, y = pairs["score"].to_numpy(), pairs["accuracy"].to_numpy()
            r2 = cross_validated(LinearRegression(), x[:, None], y[:, None], families)
            rows.append(
                {
                    "alignment": group,
                    "eps": study.radius(eps),
                    "n": fit["n"],
                    "slope": fit["slope"],
                    "R2": fit["r2"],
                    "R2, unseen models": r2["unseen_models"][0],
                    "R2, unseen families": r2["unseen_families"][0],
                    "p": fit["p"],
                    "p over families": fit["p_family"],
                }
            )
    return pd.DataFrame(rows)


# ---- variance explained --------------------------------------------------------------------------


def predictors(study: Study) -> dict[str, tuple[pd.DataFrame, BaseEstimator]]:
    """Name -> (table of features, regression) of what predicts accuracy under attack.

    Each average alone, clean accuracy alone, all benchmarks that enough models have, and these with
    clean accuracy. Features without any value are left out.
    """
    clean = study.accuracy[[CLEAN_OUTCOME]]
    found: dict[str, tuple[pd.DataFrame, BaseEstimator]] = {
        f"{group} alignment": (study.scores[[column]], LinearRegression())
        for column, group in BENCHMARK_GROUPS.items()
        if column in study.scores
    }
    found["clean accuracy"] = clean, LinearRegression()
    leaves = study.scores[leaf_benchmarks(study.scores.columns)]
    leaves = leaves.loc[:, leaves.notna().mean() >= COMPARABLE]
    count = leaves.shape[1]
    if count:
        ridge = make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True),
            StandardScaler(),
            RidgeCV(RIDGE_PENALTIES, alpha_per_target=True),
        )
        found[f"all {count} benchmarks"] = leaves, ridge
        found[f"all {count} benchmarks, clean"] = leaves.join(clean), ridge
    return {name: pair for name, pair in found.items() if pair[0].notna().any().all()}


def variance_table(study: Study) -> pd.DataFrame:
    """R2 in the sample, of unseen models and of unseen families: a row per predictor and eps.

    Over the models that have every average and every accuracy; empty if they are too few.
    """
    sets = predictors(study)
    single = [
        table for table, estimator in sets.values() if isinstance(estimator, LinearRegression)
    ]
    complete = pd.concat([*single, study.accuracy], axis=1).notna().all(axis=1).to_numpy()
    if complete.sum() < MIN_MODELS_EXPLAINED:
        return pd.DataFrame()
    families = study.families[complete]
    y = study.accuracy.loc[complete, study.radii].to_numpy()
    rows = []
    for name, (table, estimator) in sets.items():
        x = table[complete].to_numpy()
        r2 = {"in_sample": in_sample_r2(estimator, x, y)}
        r2 |= cross_validated(estimator, x, y, families)
        for i, eps in enumerate(study.radii):
            row = {
                "predictor": name,
                "features": x.shape[1],
                "eps": eps,
                "n": len(x),
                "families": len(np.unique(families)),
            }
            rows.append(row | {column: values[i] for column, values in r2.items()})
    return pd.DataFrame(rows)


def in_sample_r2(estimator: BaseEstimator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """R2 (outcomes,) on the models that were fitted; nan for a constant outcome."""
    predicted = estimator.fit(x, y).predict(x).reshape(y.shape)
    r2 = r2_score(y, predicted, multioutput="raw_values")
    return np.where(np.ptp(y, axis=0) > 0, r2, np.nan)


def cross_validated(
    estimator: BaseEstimator, x: np.ndarray, y: np.ndarray, families: np.ndarray
) -> dict[str, np.ndarray]:
    """R2 (outcomes,) of unseen models and of unseen families; nan if there are too few families."""
    models = cross_validation_folds(families, whole_families=False)
    found = {
        "unseen_families": np.full(y.shape[1], np.nan),
        "unseen_models": cross_validated_r2(estimator, x, y, models),
    }
    if len(np.unique(families)) >= MIN_FAMILIES:
        folds = cross_validation_folds(families, whole_families=True)
        found["unseen_families"] = cross_validated_r2(estimator, x, y, folds)
    return found
