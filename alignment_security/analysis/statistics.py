"""Statistics over models: tests, intervals, rank correlations and regressions, and how far they hang on families of models.

Arrays in, numbers out. A model is a sampling unit; models of a family resemble each other, so a second interval resamples
whole families (Field & Welsh 2007), and every correlation is looked at with each family left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, RepeatedKFold
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import fdrcorrection
from statsmodels.tools import add_constant

RESAMPLES = 1000
BLOCK = 256  # resamples at a time: what fits a processor's cache


# ---- tests and intervals ---------------------------------------------------------------------------------------


def welch_test(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Welch's t-test of two samples of unequal variance (Welch 1947; scipy).

    a, b   (n,), (m,) floats; nan is left out
    Returns (t, df, p): t > 0 where a has the larger mean, df of Welch and Satterthwaite in full, p two-sided; nan where a
    sample has fewer than two values, or neither varies.
    """
    samples = [without_nan(np.asarray(sample, dtype=np.float64)) for sample in (a, b)]
    if min(map(len, samples)) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return np.nan, np.nan, np.nan
    result = stats.ttest_ind(*samples, equal_var=False)
    return float(result.statistic), float(result.df), float(result.pvalue)


def bootstrap_interval(
    *samples: np.ndarray,
    statistic: Callable = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "BCa",
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of one or more samples whose values belong together (Efron 1987; scipy).

    samples     (n,) each, resampled together (scipy's paired=True); a place where any is nan is left out of all
    statistic   f(*samples), with `axis` as numpy means it or without (for rank correlation: metrics.spearman)
    Returns (low, high); nan where fewer than two places are left or a sample is constant.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    whole = np.all(np.isfinite(arrays), axis=0)
    arrays = [array[whole] for array in arrays]
    if whole.sum() < 2 or any(np.ptp(array) == 0 for array in arrays):
        return np.nan, np.nan
    interval = stats.bootstrap(
        arrays,
        statistic,
        paired=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method=method,
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def without_nan(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q values of any shape (Benjamini & Hochberg 1995; statsmodels), over all p that are not nan; nan stays nan."""
    p = np.asarray(p, dtype=np.float64)
    q, tested = np.full(p.shape, np.nan), ~np.isnan(p)
    if tested.any():
        q[tested] = fdrcorrection(p[tested])[1]
    return q


# ---- rank correlations of many resamples -----------------------------------------------------------------------


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of resampled values, less their mean: value i occurs weights[i, r] times in resample r; ties share ranks.

    values (n,), weights (n, r) counts -> (n, r). One sort serves all resamples: the rest is a cumulative sum.
    """
    _, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(weights[np.argsort(place, kind="stable")], axis=0)[
        np.cumsum(repeats) - 1
    ]  # (distinct, r), itself too
    middle = below - below[-1]
    middle[1:] += below[:-1]
    return middle[place] / 2


def rank_correlations(columns: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Spearman's correlations among columns, in every resample.

    columns (n, c) without nan, weights (r, n) counts (None: each once) -> (r, c, c); nan where a resample is constant.
    """
    n, c = columns.shape
    weights = np.ones((1, n)) if weights is None else weights
    if len(weights) > BLOCK:
        return np.concatenate(
            [
                rank_correlations(columns, weights[i : i + BLOCK])
                for i in range(0, len(weights), BLOCK)
            ]
        )
    counts = np.ascontiguousarray(weights.T, dtype=np.float64)
    ranks = [weighted_ranks(column, counts) for column in columns.T]
    products = np.empty((counts.shape[1], c, c))
    for i in range(c):
        counted = ranks[i] * counts
        for j in range(i, c):
            products[:, i, j] = products[:, j, i] = np.einsum("nr,nr->r", counted, ranks[j])
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    scale = norms[:, :, None] * norms[:, None, :]
    return np.clip(
        np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 1e-9), -1, 1
    )


def partial_correlation(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """Correlation of x and y given z, from the three between them (Yule 1907); nan where z tells all of x or of y."""
    rest = np.sqrt((1 - np.square(xz)) * (1 - np.square(yz)))
    return np.divide(xy - xz * yz, rest, out=np.full_like(rest, np.nan), where=rest > 1e-6)


def correlation_p(rho: float, n: int, given: int = 0) -> float:
    """Two-sided p of a (rank) correlation of n models given some more variables: t on n - 2 - given degrees of freedom."""
    df = n - 2 - given
    if df < 1 or np.isnan(rho):
        return np.nan
    t = abs(rho) * np.sqrt(df / max(1 - rho**2, 1e-300))
    return float(2 * stats.t.sf(t, df))


# ---- resamples as counts ---------------------------------------------------------------------------------------


def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, n): how often each of n units is drawn when n are drawn with replacement."""
    drawn = (
        np.random.default_rng(seed).integers(0, n, (resamples, n))
        + n * np.arange(resamples)[:, None]
    )
    return np.bincount(drawn.ravel(), minlength=n * resamples).reshape(resamples, n)


def family_counts(families: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, n): whole families are drawn with replacement, as many as there are; (n,) names of any kind."""
    names, place = np.unique(families, return_inverse=True)
    return resample_counts(len(names), resamples, seed)[:, place]


def without_each(families: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct families (f,), and weights (f, n) that leave out one of them each."""
    names = np.unique(families)
    return names, (names[:, None] != families[None, :]).astype(int)


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values; nan unless nine in ten of them exist."""
    values, all_of_them = without_nan(values), len(values)
    if len(values) < 0.9 * all_of_them or not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---- regression ------------------------------------------------------------------------------------------------


def linear_regression(
    x: np.ndarray, y: np.ndarray, families: np.ndarray | None = None
) -> dict[str, float]:
    """Least squares line of y (n,) on x (n,): slope, intercept, r2, p of the slope, n (statsmodels).

    With families (n,): p_family too, its covariance summed over families (Liang & Zeger 1986), on families - 1 degrees
    of freedom. nan where fewer than three models or a constant x leave nothing to fit.
    """
    n, none = len(x), dict.fromkeys(["slope", "intercept", "r2", "p", "p_family"], np.nan)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return none | {"n": n}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a perfect fit, whose p is 0
        fit, p_family = OLS(y, add_constant(x)).fit(), np.nan
        if families is not None and len(labels := np.unique(families)) > 2:
            groups = np.searchsorted(labels, families)
            p_family = fit.get_robustcov_results("cluster", groups=groups, use_t=True).pvalues[1]
        return {
            "slope": fit.params[1],
            "intercept": fit.params[0],
            "r2": fit.rsquared,
            "p": fit.pvalues[1],
            "p_family": p_family,
            "n": n,
        }


def cross_validation_folds(
    families: np.ndarray, whole_families: bool, splits: int = 10, repeats: int = 5, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) indices: folds of models drawn at random, several times over, or folds of whole families, once."""
    if whole_families:
        splitter = GroupKFold(n_splits=min(splits, len(np.unique(families))))
        return splitter.split(families, groups=families)
    return RepeatedKFold(
        n_splits=min(splits, len(families)), n_repeats=repeats, random_state=seed
    ).split(families)


def cross_validated_r2(
    estimator, x: np.ndarray, y: np.ndarray, splits: Iterable[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Variance of unseen models explained: 1 - squared errors / squared distances from the mean of the models seen.

    estimator   of scikit-learn, fitted anew on each training part
    x, y        (n, features), (n, outcomes)
    Returns (outcomes,); 0 is no better than that mean, and it may be negative.
    """
    errors, spread = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for train, test in splits:
        guess = clone(estimator).fit(x[train], y[train]).predict(x[test]).reshape(y[test].shape)
        errors += np.square(y[test] - guess).sum(axis=0)
        spread += np.square(y[test] - y[train].mean(axis=0)).sum(axis=0)
    return 1 - np.divide(errors, spread, out=np.full_like(errors, np.nan), where=spread > 1e-20)
