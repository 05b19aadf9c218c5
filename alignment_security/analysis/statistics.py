"""Statistics over models: tests, intervals, rank correlations, regressions; arrays in, numbers out.

The sampling unit is a model. Models of a family resemble each other, so a second interval resamples
whole families (Field & Welsh 2007), every correlation is recomputed with each family left out, and
`family_tests` has a second p.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GroupKFold, RepeatedKFold
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import fdrcorrection
from statsmodels.tools import add_constant

from alignment_security.analysis.family_tests import slope_tests

RESAMPLES = 1000
BLOCK = 256  # resamples at a time, so that they fit a processor's cache
MOSTLY_DEFINED = 0.9  # share of resamples that have to have a value for an interval
MIN_FIT = 3  # models for a regression


# ---- tests and intervals -------------------------------------------------------------------------


def welch_test(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Welch's t-test of two samples of unequal variance (Welch 1947; scipy).

    a, b   (n,), (m,) floats; nan is left out
    Returns (t, df, p): t > 0 if a has the larger mean, df of Welch and Satterthwaite as a float, p
    two-sided; nan if a sample has fewer than two values, or if neither varies.
    """
    samples = [without_nan(np.asarray(sample, dtype=np.float64)) for sample in (a, b)]
    if min(map(len, samples)) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return np.nan, np.nan, np.nan
    result = stats.ttest_ind(*samples, equal_var=False)
    return float(result.statistic), float(result.df), float(result.pvalue)


def without_nan(values: np.ndarray) -> np.ndarray:
    """The values that are not nan, (n,) -> (m,)."""
    return values[~np.isnan(values)]


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values (n,); nan unless MOSTLY_DEFINED of them exist."""
    defined = without_nan(values)
    if not len(defined) or len(defined) < MOSTLY_DEFINED * len(values):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def expanded_interval(values: np.ndarray, units: int) -> tuple[float, float]:
    """95 % percentile interval of values resampled by few units, expanded (Hesterberg 2015).

    A percentile interval is too short by sqrt((units - 1) / units), and by the normal quantile for
    that of t on units - 1 degrees of freedom; this takes percentiles further out.
    """
    t = stats.t.ppf(0.975, units - 1) * np.sqrt(units / (units - 1))
    return percentile_interval(values, 2 * stats.norm.cdf(t) - 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q values of any shape (Benjamini & Hochberg 1995; statsmodels).

    Over all p that are not nan; a nan stays nan.
    """
    p = np.asarray(p, dtype=np.float64)
    q, tested = np.full(p.shape, np.nan), ~np.isnan(p)
    if tested.any():
        q[tested] = fdrcorrection(p[tested])[1]
    return q


# ---- rank correlations of many resamples ---------------------------------------------------------


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of resampled values less their mean, ties averaged.

    values    (n,)
    weights   (n, r) counts: value i occurs weights[i, r] times in resample r
    Returns (n, r). One sort serves all resamples; the rest is a cumulative sum.
    """
    _, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    counted = np.cumsum(weights[np.argsort(place, kind="stable")], axis=0)
    up_to = counted[np.cumsum(repeats) - 1]  # (distinct, r): how many are at most that value
    # twice the rank less its mean: the count below, plus the count up to it, less the count of all
    twice_rank = up_to - up_to[-1]
    twice_rank[1:] += up_to[:-1]
    return twice_rank[place] / 2


def rank_correlations(columns: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Spearman's correlations among columns, in every resample.

    columns   (n, c) without nan
    weights   (r, n) counts; None: one resample with each row once
    Returns (r, c, c); nan where a column is constant in a resample.
    """
    n, c = columns.shape
    weights = np.ones((1, n)) if weights is None else weights
    if len(weights) > BLOCK:
        blocks = [weights[i : i + BLOCK] for i in range(0, len(weights), BLOCK)]
        return np.concatenate([rank_correlations(columns, block) for block in blocks])
    counts = np.ascontiguousarray(weights.T, dtype=np.float64)
    ranks = [weighted_ranks(column, counts) for column in columns.T]
    products = np.empty((counts.shape[1], c, c))
    for i in range(c):
        counted = ranks[i] * counts
        for j in range(i, c):
            products[:, i, j] = products[:, j, i] = np.einsum("nr,nr->r", counted, ranks[j])
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    scale = norms[:, :, None] * norms[:, None, :]
    r = np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 1e-9)
    return np.clip(r, -1, 1)


def partial_correlation(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """Correlation of x and y given z, from the three pairwise ones (Yule 1907).

    nan if z determines x or y.
    """
    rest = np.sqrt((1 - np.square(xz)) * (1 - np.square(yz)))
    return np.divide(xy - xz * yz, rest, out=np.full_like(rest, np.nan), where=rest > 1e-6)


# ---- resamples as counts -------------------------------------------------------------------------


def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, n): how often each of n units is drawn if n are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    drawn += n * np.arange(resamples)[:, None]  # so that one bincount counts all resamples
    return np.bincount(drawn.ravel(), minlength=n * resamples).reshape(resamples, n)


def family_counts(families: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, n): how often each model is drawn if whole families are, with replacement.

    families   (n,) names; as many families are drawn as there are
    """
    names, place = np.unique(families, return_inverse=True)
    return resample_counts(len(names), resamples, seed)[:, place]


def without_each(families: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct families (f,), and weights (f, n) that leave one of them out each."""
    names = np.unique(families)
    return names, (names[:, None] != families[None, :]).astype(int)


# ---- regression ----------------------------------------------------------------------------------


def linear_regression(
    x: np.ndarray, y: np.ndarray, families: np.ndarray | None = None
) -> dict[str, float]:
    """Least squares line of y on x (statsmodels).

    x, y       (n,)
    families   (n,) names, or None
    Returns slope, intercept, r2, p of the slope, n, and with families p_family, with a random
    intercept per family (`slope_tests`). nan if fewer than MIN_FIT models, or a constant x or y,
    leave nothing to fit.
    """
    n = len(x)
    if n < MIN_FIT or np.ptp(x) == 0 or np.ptp(y) == 0:
        undefined = dict.fromkeys(["slope", "intercept", "r2", "p", "p_family"], np.nan)
        return undefined | {"n": n}
    p_family = np.nan if families is None else slope_tests(x, y[:, None], families).p[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a perfect fit, whose p is 0
        fit = OLS(y, add_constant(x)).fit()
        return {
            "slope": fit.params[1],
            "intercept": fit.params[0],
            "r2": fit.rsquared,
            "p": fit.pvalues[1],
            "p_family": p_family,
            "n": n,
        }


def cross_validation_folds(
    families: np.ndarray, whole_families: bool, repeats: int = 5
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) indices of tenfold cross-validation, of fewer folds where there are few units.

    families         (n,) names
    whole_families   True: folds of whole families, once; False: folds of models drawn at random,
                     `repeats` times
    """
    if whole_families:
        splitter = GroupKFold(n_splits=min(10, len(np.unique(families))))
        return splitter.split(families, groups=families)
    splitter = RepeatedKFold(n_splits=min(10, len(families)), n_repeats=repeats, random_state=0)
    return splitter.split(families)


def cross_validated_r2(
    estimator: BaseEstimator,
    x: np.ndarray,
    y: np.ndarray,
    splits: Iterable[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Variance of unseen models explained.

    estimator   of scikit-learn, fitted anew on each training part
    x, y        (n, features), (n, outcomes)
    splits      (train, test) indices
    Returns (outcomes,): 1 - squared errors / squared distances from the mean of the training part.
    0 is no better than that mean; negative is worse.
    """
    errors, spread = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for train, test in splits:
        fitted = clone(estimator).fit(x[train], y[train])
        predicted = fitted.predict(x[test]).reshape(y[test].shape)
        errors += np.square(y[test] - predicted).sum(axis=0)
        spread += np.square(y[test] - y[train].mean(axis=0)).sum(axis=0)
    return 1 - np.divide(errors, spread, out=np.full_like(errors, np.nan), where=spread > 1e-20)
