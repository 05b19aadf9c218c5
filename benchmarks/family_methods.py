"""Ways to test a rank correlation between models of families, to compare with the one in use.

Each takes ranks of a score x (n,), ranks of outcomes y (n, r) and families (n,), and returns p
(r,), but for the two that resample: these take the whole grid and return p adjusted for all its
cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from alignment_security.analysis.family_tests import (
    decorrelate,
    intraclass_correlations,
    membership,
    orthonormal,
    residual,
    slope_t,
    slope_tests,
)

RESAMPLES = 499
WEBB = np.array([-np.sqrt(1.5), -1, -np.sqrt(0.5), np.sqrt(0.5), 1, np.sqrt(1.5)])


def t_p(t: np.ndarray, df: float | np.ndarray) -> np.ndarray:
    return 2 * stats.t.sf(np.abs(t), df)


# ---- p of one benchmark --------------------------------------------------------------------------


def independent(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Spearman's p: least squares of independent models."""
    return slope_tests(x, y, families, independent=True).p


def random_intercept(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """The one in use."""
    return slope_tests(x, y, families).p


def cluster_robust(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """CR1 (Liang & Zeger 1986), t on families - 1 degrees of freedom."""
    members, n = membership(families), len(x)
    x, y = x - x.mean(), y - y.mean(axis=0)
    slope = x @ y / (x @ x)
    scores = members @ (x[:, None] * (y - np.outer(x, slope)))
    count = len(members)
    variance = np.square(scores).sum(axis=0) * count / (count - 1) * (n - 1) / (n - 2)
    return t_p(slope * (x @ x) / np.sqrt(variance), count - 1)


def cluster_jackknife(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """CR3: the slope with each family left out, t on families - 1 degrees of freedom."""
    members = membership(families)
    x, y = x - x.mean(), y - y.mean(axis=0)
    left = (len(x) - members.sum(axis=1))[:, None]
    sum_x, sum_y = (members @ x)[:, None], members @ y
    xx = x @ x - (members @ x**2)[:, None] - sum_x**2 / left
    xy = x @ y - members @ (x[:, None] * y) - sum_x * sum_y / left
    slope = x @ y / (x @ x)
    variance = (1 - 1 / len(members)) * np.square(xy / xx - slope).sum(axis=0)
    return t_p(slope / np.sqrt(variance), len(members) - 1)


def cluster_satterthwaite(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """CR2 with degrees of freedom of Bell & McCaffrey (2002)."""
    design = np.column_stack([np.ones(len(x)), x])
    inverse = np.linalg.pinv(design)
    left = np.eye(len(x)) - design @ inverse
    coefficient, residuals = inverse[1], left @ y
    scores, spread = [], []
    for name in np.unique(families):
        i = np.flatnonzero(families == name)
        values, vectors = np.linalg.eigh(left[np.ix_(i, i)])
        root = np.where(values > 1e-8, 1 / np.sqrt(np.maximum(values, 1e-8)), 0)
        weights = (vectors * root) @ (vectors.T @ coefficient[i])
        scores.append(weights @ residuals[i])
        spread.append(left[:, i] @ weights)
    products = np.array(spread) @ np.array(spread).T
    df = np.trace(products) ** 2 / np.square(products).sum()
    return t_p(coefficient @ y / np.sqrt(np.square(scores).sum(axis=0)), df)


def within_families(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    """An intercept of each family: what lies between families is not used."""
    members = membership(families)
    sizes = members.sum(axis=1)[:, None]
    x = x - members.T @ (members @ x[:, None] / sizes)[:, 0]
    y = y - members.T @ (members @ y / sizes)
    df = len(x) - len(members) - 1
    if df < 1 or x @ x < 1e-9:
        return np.ones(y.shape[1])
    r = x @ y / np.sqrt((x @ x) * np.square(y).sum(axis=0))
    return t_p(r * np.sqrt(df / (1 - r**2)), df)


def one_variance(
    x: np.ndarray, y: np.ndarray, families: np.ndarray, with_x: bool = False
) -> np.ndarray:
    """Random intercept, one variance of decorrelated models, t on n - 2 degrees of freedom.

    with_x   the usual mixed model: intraclass correlation estimated together with the slope
    """
    members, one = membership(families), np.ones((len(x), 1))
    icc = intraclass_correlations(y, [one, x[:, None]] if with_x else [one], members)
    columns = (decorrelate(column, icc, members) for column in (one, x[:, None], y))
    intercept, score, outcome = columns
    basis = orthonormal([intercept])
    t, df = slope_t(residual(score, basis), residual(outcome, basis), basis, None)
    return t_p(t, df)


def joint_estimate(x: np.ndarray, y: np.ndarray, families: np.ndarray) -> np.ndarray:
    return one_variance(x, y, families, with_x=True)


CELLWISE: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "independent models": independent,
    "random intercept, two variances (in use)": random_intercept,
    "random intercept, one variance": one_variance,
    "random intercept, one variance, icc with x": joint_estimate,
    "within families": within_families,
    "CR1": cluster_robust,
    "CR2, Bell-McCaffrey": cluster_satterthwaite,
    "CR3, jackknife": cluster_jackknife,
}


# ---- p of a whole grid, by resampling ------------------------------------------------------------


def max_p(observed: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """p of each cell adjusted for all of them, single step (Westfall & Young 1993).

    observed    (cells,) statistics
    resampled   (resamples, cells)
    """
    largest = np.abs(resampled).max(axis=1)
    larger = (largest[:, None] >= np.abs(observed)).sum(axis=0)
    return (1 + larger) / (1 + len(largest))


def wild_bootstrap(
    x: np.ndarray, y: np.ndarray, families: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Score wild cluster bootstrap, the null imposed (Kline & Santos 2012), Webb's weights.

    x   (n, benchmarks) ranks less their mean, 0 where there is no score
    y   (n, outcomes) ranks less their mean
    Returns adjusted p (benchmarks, outcomes).
    """
    members = membership(families)
    known = x != 0
    means = (known.T.astype(float) @ y) / known.sum(axis=0)[:, None]
    scores = np.einsum("fn,nb,nk->fbk", members, x, y) - np.einsum(
        "fn,nb,bk->fbk", members, x, means
    )
    scores = scores.reshape(len(members), -1)
    weights = rng.choice(WEBB, (RESAMPLES, len(members)))
    spread = np.sqrt(np.square(weights) @ np.square(scores))
    observed = scores.sum(axis=0) / np.sqrt(np.square(scores).sum(axis=0))
    return max_p(observed, weights @ scores / spread).reshape(x.shape[1], y.shape[1])


def permuted_within(
    x: np.ndarray, y: np.ndarray, families: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Outcomes permuted within families; statistics in units of their spread over permutations.

    Arguments and result as in `wild_bootstrap`.
    """
    n, place = len(x), np.unique(families, return_inverse=True)[1]
    by_family = np.argsort(place, kind="stable")
    keys = place[by_family] + rng.random((RESAMPLES, n))  # sorts within families
    order = np.empty((RESAMPLES, n), dtype=int)
    order[:, by_family] = by_family[np.argsort(keys, axis=1)]
    products = np.einsum("nb,rnk->rbk", x, y[order], optimize=True).reshape(RESAMPLES, -1)
    centre, spread = products.mean(axis=0), products.std(axis=0)
    rounding = 1e-9 * np.abs(x).sum(axis=0)[:, None] * np.abs(y).max(axis=0)
    spread = np.where(spread > rounding.ravel(), spread, np.inf)  # the same in every order
    observed = ((x.T @ y).ravel() - centre) / spread
    return max_p(observed, (products - centre) / spread).reshape(x.shape[1], y.shape[1])


GRIDWISE = {
    "wild cluster bootstrap, max-T": wild_bootstrap,
    "permutation within families, max-T": permuted_within,
}
