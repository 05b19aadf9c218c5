"""Tests of a slope or a rank correlation between models that resemble each other within families.

Assumed: outcome = intercept + slope * x + family effect + error, where the effects of families and
the errors are independent and each of one variance (a random intercept). `slope_tests` estimates
the intraclass correlation of the outcome, decorrelates the models of a family, and tests the slope
on decorrelated models. `group_test` compares two groups so, and allows errors of two variances.
benchmarks/survivors.py measures how often they are wrong, and compares other methods.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np
from scipy import stats

# intraclass correlations that are tried; the last one leaves next to nothing of the family means
ICCS = np.append(0, np.linspace(0.02, 0.98, 33))
MIN_FAMILIES_ICC = 5  # fewer: models are compared within families only
FEW_MODELS = 30  # fewer: p is from permutations instead of the t distribution
PERMUTATIONS = 19_999  # p of at least 5e-5: below 0.05 / 520, a grid of 130 benchmarks
MAX_ENUMERATED = factorial(8)  # permutations that are enumerated instead of drawn
NOTHING = 1e-9  # share of a variance that is rounding


class SlopeTests(NamedTuple):
    """A two-sided test of each of r outcomes."""

    t: np.ndarray  # (r,) of the slope; nan where there is nothing to test
    df: np.ndarray  # (r,)
    p: np.ndarray  # (r,)
    icc: np.ndarray  # (r,) estimated intraclass correlation of the outcome


def slope_tests(
    x: np.ndarray,
    outcomes: np.ndarray,
    families: np.ndarray,
    given: np.ndarray | None = None,
    independent: bool = False,
) -> SlopeTests:
    """Test the slope of each outcome on x, given another variable, with a random intercept.

    x             (n,) floats
    outcomes      (n, r) floats
    families      (n,) names
    given         (n,) or (n, r) floats that are held constant, or None
    independent   treat models as independent: least squares
    The intraclass correlation is that of ICCS with the largest restricted likelihood (Patterson &
    Thompson 1971) of the model without x, so that the slope is tested under its null hypothesis.
    Below FEW_MODELS models p is from permutations of decorrelated residuals (Freedman & Lane 1983),
    or from t if that is larger; as independent, always from permutations.
    """
    further = [] if given is None else [given.reshape(len(x), -1)]
    x, outcomes, held, icc = decorrelated(x[:, None], outcomes, families, further, independent)
    basis = orthonormal(held)
    left_x, left_y = residual(x, basis), residual(outcomes, basis)
    r = cosine(left_x, left_y, np.square(x).sum(axis=0), np.square(outcomes).sum(axis=0))
    one_variance = independent or bool(np.isnan(icc).any())
    t, df = slope_t(left_x, left_y, basis, None if one_variance else membership(families))
    t = np.where(np.isnan(r), np.nan, t)
    p = 2 * stats.t.sf(np.abs(t), df)
    if len(x) < FEW_MODELS:
        shuffled = permutation_p(left_x, left_y, basis, r)
        p = np.where(np.isnan(t), np.nan, shuffled if independent else np.maximum(p, shuffled))
    return SlopeTests(t, df, p, icc)


def slope_t(
    x: np.ndarray, y: np.ndarray, basis: list[np.ndarray], members: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """t and degrees of freedom (r,) of the slope of y on x, decorrelated residuals (n, r).

    basis     of `orthonormal`: what x and y have been regressed on
    members   of `membership`: the variances between and within families are estimated apart; None:
              one variance
    nan without a degree of freedom.
    """
    n, k = len(x), len(basis) + 1
    df = np.full(y.shape[1], n - k, dtype=float)
    if n <= k:
        return np.full_like(df, np.nan), df
    with np.errstate(divide="ignore", invalid="ignore"):
        length = np.sqrt(np.square(x).sum(axis=0))
        x = x / length
        along = (x * y).sum(axis=0)
        errors = y - x * along
        variance = np.square(errors).sum(axis=0) / df
        if members is not None:
            variance, df = two_variances(x, errors, basis, members, variance, df)
        return along / np.sqrt(variance), df


def two_variances(
    x: np.ndarray,
    errors: np.ndarray,
    basis: list[np.ndarray],
    members: np.ndarray,
    variance: np.ndarray,
    df: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the slope on x of length 1, and its degrees of freedom (r,).

    The variance of families' means and that of models around them, each times the share of x there;
    degrees of freedom of Satterthwaite (1946). `variance, df`, of all models, where either has no
    degree of freedom. So a test of x that only varies between families is one of their means, even
    if its models hardly differ.
    """
    n, k, count = len(x), len(basis) + 1, len(members)
    used = sum(between(column, members) for column in [*basis, x])  # of k coefficients
    df_between, df_within = count - used, n - count - (k - used)
    x_between, errors_between = between(x, members), between(errors, members)
    errors_within = np.maximum(np.square(errors).sum(axis=0) - errors_between, 0)
    a = x_between * errors_between / df_between
    b = (1 - x_between) * errors_within / df_within
    both = (df_between >= 1) & (df_within >= 1)
    combined = (a + b) ** 2 / (a**2 / df_between + b**2 / df_within)
    return np.where(both, a + b, variance), np.where(both, combined, df)


def between(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sum of squares (r,) of values (n, r) that their families' means have."""
    return (np.square(members @ values) / members.sum(axis=1)[:, None]).sum(axis=0)


def group_test(in_first: np.ndarray, values: np.ndarray, families: np.ndarray) -> float:
    """Two-sided p of the difference between two groups of models, with a random intercept.

    in_first   (n,) bool
    values     (n,) floats
    families   (n,) names
    The larger p of two tests: `slope_tests`, and `welch_test_decorrelated`, which does not assume
    that the errors of both groups have one variance. nan if a group is empty.
    """
    first = in_first.astype(float)
    one_variance = slope_tests(first, values[:, None], families).p[0]
    x, y, held, _ = decorrelated(first[:, None], values[:, None], families, [], independent=False)
    return float(np.maximum(one_variance, welch_test_decorrelated(np.hstack([*held, x]), y)[2]))


def welch_test_decorrelated(design: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """t, degrees of freedom and two-sided p of the last coefficient of a regression.

    design   (n, k) decorrelated columns, the indicator of a group last
    y        (n, 1)
    The variance of each model is estimated from its residual (HC2; MacKinnon & White 1985), and the
    degrees of freedom are those of Bell & McCaffrey (2002). Of independent models, t is Welch's.
    nan if the other columns determine the last.
    """
    n, k = design.shape
    if np.linalg.matrix_rank(design) < k or k >= n:
        return np.nan, np.nan, np.nan
    coefficient = np.linalg.pinv(design)[-1]  # of the values, for the difference
    left = np.eye(n) - design @ np.linalg.pinv(design)  # makes residuals of values
    share = np.diag(left)  # of a model's variance in its residual
    weights = np.where(share > NOTHING, coefficient / np.sqrt(np.maximum(share, NOTHING)), 0)
    products = (weights[:, None] * left) @ (weights[:, None] * left).T
    df = np.trace(products) ** 2 / np.square(products).sum()
    t = (coefficient @ y).item() / np.sqrt(np.square(weights[:, None] * (left @ y)).sum())
    return t, df, 2 * stats.t.sf(abs(t), df)


def rank_tests(
    x: np.ndarray,
    outcomes: np.ndarray,
    families: np.ndarray,
    given: np.ndarray | None = None,
    independent: bool = False,
) -> SlopeTests:
    """`slope_tests` of ranks: with `independent`, the test of Spearman's (partial) correlation."""
    if given is not None:
        given = stats.rankdata(given, axis=0)
    ranks = stats.rankdata(x), stats.rankdata(outcomes, axis=0)
    return slope_tests(*ranks, families, given, independent)


# ---- intraclass correlation ----------------------------------------------------------------------


def membership(families: np.ndarray) -> np.ndarray:
    """(families, n), 1 where a model belongs to a family."""
    return (np.unique(families)[:, None] == families).astype(float)


def decorrelated(
    x: np.ndarray,
    outcomes: np.ndarray,
    families: np.ndarray,
    further: list[np.ndarray],
    independent: bool,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """x and outcomes, what is held constant (intercept and `further`), all decorrelated, and icc.

    x, outcomes, further   (n, 1) or (n, r)
    With fewer than MIN_FAMILIES_ICC families, an intercept of each is held constant (icc nan).
    """
    members = membership(families)
    held = [np.ones((len(x), 1)), *further]
    if independent:
        return x, outcomes, held, np.zeros(outcomes.shape[1])
    if len(members) < MIN_FAMILIES_ICC:
        return x, outcomes, [*members[:, :, None], *further], np.full(outcomes.shape[1], np.nan)
    icc = intraclass_correlations(outcomes, held, members)
    x, outcomes, *held = (decorrelate(column, icc, members) for column in (x, outcomes, *held))
    return x, outcomes, held, icc


def intraclass_correlations(
    outcomes: np.ndarray, held: list[np.ndarray], members: np.ndarray
) -> np.ndarray:
    """The intraclass correlation (r,) of each outcome (n, r), of restricted maximum likelihood.

    held      columns (n, 1) or (n, r) of the regression, the intercept first
    members   (families, n), 1 where a model belongs to a family
    """
    sizes = members.sum(axis=1)
    ratio = ICCS / (1 - ICCS)  # variance of families over that of errors
    inflation = 1 + np.outer(ratio, sizes)  # of the variance of a family's mean
    shrink = ratio[:, None] / inflation
    log_volume = np.log(inflation).sum(axis=1)[:, None]
    columns = [*held, outcomes]
    sums = [members @ column for column in columns]
    # products (iccs, r) of any two columns under the inverse covariance
    product = {
        (i, j): (columns[i] * columns[j]).sum(axis=0) - shrink @ (sums[i] * sums[j])
        for i in range(len(columns))
        for j in range(i, len(columns))
    }
    size = [product[k, k] for k in range(len(held))]
    free = len(outcomes)
    for k in range(len(held)):  # take out one held column after the other
        # a column that those before it explain, such as a constant, has nothing more to take out
        is_new = product[k, k] > NOTHING * size[k]
        pivot = np.where(is_new, product[k, k], 1)
        log_volume, free = log_volume + np.log(pivot), free - is_new
        for i in range(k + 1, len(columns)):
            for j in range(i, len(columns)):
                taken = np.where(is_new, product[k, i] * product[k, j] / pivot, 0)
                product[i, j] = product[i, j] - taken
    left = np.maximum(product[len(held), len(held)], 1e-300)
    likelihood = -(free * np.log(left) + log_volume) / 2
    return ICCS[likelihood.argmax(axis=0)]


def decorrelate(values: np.ndarray, icc: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Values (n, 1) or (n, r) less the share of their family's mean that makes models uncorrelated.

    icc       (r,)
    members   (families, n)
    """
    sizes = members.sum(axis=1)[:, None]
    share = 1 - np.sqrt((1 - icc) / (1 - icc + icc * sizes))  # (families, r)
    return values - members.T @ (share * (members @ values / sizes))


# ---- regression of every outcome on its own columns ----------------------------------------------


def orthonormal(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Columns (n, r) made orthogonal and of length 1 in turn; 0 where nothing is left of one."""
    basis: list[np.ndarray] = []
    for column in columns:
        left = residual(column, basis)
        length = np.sqrt(np.square(left).sum(axis=0))
        enough = length > NOTHING * np.sqrt(np.square(column).sum(axis=0))
        basis.append(np.where(enough, left / np.where(enough, length, 1), 0))
    return basis


def residual(column: np.ndarray, basis: list[np.ndarray]) -> np.ndarray:
    """What is left of a column (n, r) after regression on a basis of `orthonormal`."""
    for b in basis:
        column = column - b * (b * column).sum(axis=0)
    return column


def cosine(x: np.ndarray, y: np.ndarray, x_before: np.ndarray, y_before: np.ndarray) -> np.ndarray:
    """Correlations (r,) of residuals x (n, r) and y (n, r); nan if nothing is left of one.

    x_before, y_before   (r,) sums of squares before the regression
    """
    xx, yy = np.square(x).sum(axis=0), np.square(y).sum(axis=0)
    enough = (xx > NOTHING * x_before) & (yy > NOTHING * y_before)
    scale = np.sqrt(np.where(enough, xx * yy, 1))
    return np.where(enough, np.clip((x * y).sum(axis=0) / scale, -1, 1), np.nan)


# ---- few models ----------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def shuffles(n: int) -> np.ndarray:
    """Orders (m, n) of n units: all of them up to MAX_ENUMERATED, else PERMUTATIONS drawn ones.

    The first is the order as it is, so that a share of all orders is a valid p.
    """
    if factorial(n) <= MAX_ENUMERATED:
        return np.array(list(permutations(range(n))))
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
    return np.concatenate([np.arange(n)[None], drawn])


def permutation_p(
    x: np.ndarray, y: np.ndarray, basis: list[np.ndarray], r: np.ndarray
) -> np.ndarray:
    """Share (r,) of the orders of y's residuals whose correlation with x is as large as r.

    x       (n, r) residuals of the regression on `basis`
    y       (n, r) residuals; each order of them is regressed on `basis` again
    """
    orders = shuffles(len(x))
    x, *basis = (np.broadcast_to(column, y.shape) for column in (x, *basis))
    p = np.empty(len(r))
    for j, outcome in enumerate(y.T):
        shuffled = outcome[orders]  # (orders, n)
        along = np.abs(shuffled @ x[:, j])
        explained = sum(np.square(shuffled @ b[:, j]) for b in basis)
        rest = np.maximum(np.square(outcome).sum() - explained, 0)
        scale = np.sqrt(np.square(x[:, j]).sum() * rest)
        p[j] = np.mean(along >= (np.abs(r[j]) - NOTHING) * scale)
    return p
