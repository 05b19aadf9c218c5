"""Tests with families of models against statsmodels, scipy, enumeration and simulated worlds."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import linalg, stats

from alignment_security.analysis import family_tests
from alignment_security.analysis.family_tests import (
    ICCS,
    group_test,
    rank_tests,
    shuffles,
    slope_tests,
    welch_test_decorrelated,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def uneven_families(models: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(models,) names; the larger the number, the smaller the family."""
    share = 1 / np.arange(1, count + 1)
    drawn = rng.choice(count, models - count, p=share / share.sum())
    return np.append(np.arange(count), drawn).astype(str)


def with_families(families, icc, rng, count=1) -> np.ndarray:
    """(models, count): variance 1, of which icc between families."""
    place = np.unique(families, return_inverse=True)[1]
    effects, errors = (rng.normal(size=(m, count)) for m in (place.max() + 1, len(place)))
    return np.sqrt(icc) * effects[place] + np.sqrt(1 - icc) * errors


# ---- the model -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_constant_that_is_held_constant_changes_nothing(rng):
    """As clean accuracy where every model classifies every image."""
    families = uneven_families(80, 9, rng)
    x, y = rng.normal(size=80), with_families(families, 0.5, rng, 5)
    alone, given = rank_tests(x, y, families), rank_tests(x, y, families, np.full(80, 0.9))
    np.testing.assert_array_equal(given.icc, alone.icc)
    np.testing.assert_allclose(given.p, alone.p, rtol=0.05)


@pytest.mark.parametrize("given", [False, True])
def test_icc_is_that_of_statsmodels_mixed_model(rng, given):
    families = uneven_families(80, 9, rng)
    x, y = rng.normal(size=80), with_families(families, 0.5, rng, 5)
    z = rng.normal(size=80) + y[:, 0]
    found = slope_tests(x, y, families, z if given else None).icc
    for j, icc in enumerate(found):
        table = pd.DataFrame({"y": y[:, j], "z": z, "family": families})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a variance at 0
            fit = smf.mixedlm("y ~ z" if given else "y ~ 1", table, groups="family").fit(reml=True)
        between = float(fit.cov_re.iloc[0, 0])
        assert icc == pytest.approx(between / (between + fit.scale), abs=np.diff(ICCS).max())


@pytest.mark.parametrize("given", [False, True])
def test_slope_is_that_of_generalised_least_squares_and_its_variance_of_two_strata(rng, given):
    """statsmodels, with the covariance of the estimated intraclass correlation written out.

    The variance from projections on families' means and on the rest, as matrices.
    """
    families = uneven_families(60, 8, rng)
    x = with_families(families, 0.3, rng)[:, 0]
    y, z = with_families(families, 0.6, rng, 3) + 0.3 * x[:, None], rng.normal(size=(60, 3))
    found = slope_tests(x, y, families, z if given else None)
    same = families[:, None] == families
    means = same / same.sum(axis=1)
    for j, icc in enumerate(found.icc):
        covariance = icc * same + (1 - icc) * np.eye(60)
        design = np.column_stack([np.ones(60), x, *([z[:, j]] if given else [])])
        slope = sm.GLS(y[:, j], design, sigma=covariance).fit().params[1]
        root = np.linalg.inv(linalg.sqrtm(covariance))
        left = np.eye(60) - root @ design @ np.linalg.pinv(root @ design)
        weights = np.linalg.pinv(root @ design)[1]
        parts, freedom = [], []
        for stratum in (means, np.eye(60) - means):
            errors = stratum @ left @ root @ y[:, j]
            freedom.append(np.trace(left @ stratum @ left))
            parts.append(np.square(stratum @ weights).sum() * np.square(errors).sum() / freedom[-1])
        df = sum(parts) ** 2 / sum(part**2 / f for part, f in zip(parts, freedom))
        assert (found.t[j], found.df[j]) == pytest.approx((slope / np.sqrt(sum(parts)), df))
        assert found.p[j] == pytest.approx(2 * stats.t.sf(abs(found.t[j]), df))


def test_x_between_families_is_tested_on_their_means_and_x_within_them_without(rng):
    """Families of one size: the regression of ten means, and that with an intercept of each."""
    families = np.repeat(np.arange(10), 6)
    y = with_families(families, 0.5, rng)
    x = rng.normal(size=10)
    means = stats.linregress(x, y[:, 0].reshape(10, 6).mean(axis=1))
    assert slope_tests(x[families], y, families).p[0] == pytest.approx(means.pvalue)
    x = rng.normal(size=60)
    x -= (x.reshape(10, 6).mean(axis=1))[families]
    indicators = (families[:, None] == np.arange(10)).astype(float)
    fixed = sm.OLS(y[:, 0], np.column_stack([indicators, x])).fit()
    assert slope_tests(x, y, families).p[0] == pytest.approx(fixed.pvalues[-1])


def test_independent_models_have_spearmans_p_and_that_of_partial_ranks(rng):
    x, z, y = rng.integers(0, 9, 40), rng.normal(size=40), rng.normal(size=(40, 2))
    families = np.repeat(["a", "b"], 20)
    expected = [stats.spearmanr(x, column).pvalue for column in y.T]
    assert rank_tests(x, y, families, independent=True).p == pytest.approx(expected)
    ranks = [stats.rankdata(column) for column in (y[:, 0], x, z)]
    fit = sm.OLS(ranks[0], sm.add_constant(np.column_stack(ranks[1:]))).fit()
    given = rank_tests(x, y, families, given=z, independent=True)
    assert given.p[0] == pytest.approx(fit.pvalues[1]) and given.df[0] == 37


def test_few_families_are_compared_within(rng):
    """The same as an intercept of each: least squares with indicators of the families."""
    families = np.repeat(["a", "b", "c"], [20, 15, 5])
    x, y = rng.normal(size=40), with_families(families, 0.9, rng)
    indicators = (families[:, None] == np.unique(families)).astype(float)
    fit = sm.OLS(y[:, 0], np.column_stack([indicators, x])).fit()
    found = slope_tests(x, y, families)
    expected = (fit.tvalues[-1], fit.pvalues[-1], 36)
    assert (found.t[0], found.p[0], found.df[0]) == pytest.approx(expected)
    assert np.isnan(found.icc).all()


@pytest.mark.parametrize("noise", [0, 1e-9, 1e-3])
def test_copies_of_a_model_are_one_model(rng, noise):
    """Ten (near) copies of each of nine models have the p of the nine."""
    x, y = rng.normal(size=(2, 9))
    y += 0.7 * x
    shaken = np.repeat(y, 10) + noise * rng.normal(size=90)
    columns = np.repeat(x, 10), shaken[:, None], np.repeat(np.arange(9), 10)
    copies, alone = slope_tests(*columns), slope_tests(*columns, independent=True)
    assert alone.p[0] < 1e-6 < copies.p[0] / 100
    assert copies.p[0] == pytest.approx(stats.linregress(x, y).pvalue, rel=0.02)


def test_what_determines_x_or_never_varies_has_no_p(rng):
    x, families = rng.normal(size=40), np.repeat(np.arange(8), 5)
    y = np.column_stack([rng.normal(size=40), np.ones(40)])
    found = slope_tests(x, y, families)
    assert np.isfinite(found.p[0]) and np.isnan([found.t[1], found.p[1]]).all()
    assert np.isnan(slope_tests(x, y, families, given=2 * x + 1).p).all()
    assert np.isnan(slope_tests(x[:2], y[:2], families[:2]).p).all()  # no degree of freedom


# ---- few models ----------------------------------------------------------------------------------


def test_p_of_five_models_is_a_share_of_120_orders(rng):
    """Perfect agreement: two of 120 orders are as extreme; the t distribution says 0."""
    found = rank_tests(np.arange(5), np.arange(5.0)[:, None] ** 3, np.arange(5), independent=True)
    assert found.p == pytest.approx(2 / 120)
    assert stats.spearmanr(np.arange(5), np.arange(5)).pvalue < 1e-20


@pytest.mark.parametrize("n", [5, 7])
def test_p_of_few_models_is_scipys_permutation_test(rng, n):
    x, y = rng.integers(0, 4, n).astype(float), rng.normal(size=n)
    exact = stats.permutation_test(
        (x,),
        lambda order: abs(stats.spearmanr(order, y).statistic),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    found = rank_tests(x, y[:, None], np.arange(n), independent=True)
    assert found.p == pytest.approx(exact.pvalue)


def test_drawn_orders_give_nearly_the_p_of_t(rng):
    """20 models: the t distribution is good in the middle, and orders are drawn, not enumerated."""
    x, y, z = rng.normal(size=20), rng.normal(size=(20, 8)), rng.normal(size=20)
    families = np.repeat(np.arange(5), 4)
    assert len(shuffles(20)) == family_tests.PERMUTATIONS + 1
    for given in (None, z):
        found = slope_tests(x, y, families, given)
        assert found.p == pytest.approx(2 * stats.t.sf(abs(found.t), found.df), abs=0.03)


def test_p_of_few_models_is_uniform_in_worlds_without_correlation(rng):
    """Twelve models of five families, half of the variance between them."""
    families = uneven_families(12, 5, rng)
    x, y = with_families(families, 0.5, rng)[:, 0], with_families(families, 0.5, rng, 400)
    p = rank_tests(x, y, families).p
    assert np.mean(p <= 0.05) < 0.09 and np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.1)


# ---- groups --------------------------------------------------------------------------------------


def test_groups_of_independent_models_have_welchs_t(rng):
    a, b = rng.normal(size=12), 3 * rng.normal(size=31)
    design = np.column_stack([np.ones(43), np.arange(43) < 12])
    t, df, p = welch_test_decorrelated(design.astype(float), np.append(a, b)[:, None])
    assert t == pytest.approx(stats.ttest_ind(a, b, equal_var=False).statistic)
    assert 11 < df < 42 and p == pytest.approx(2 * stats.t.sf(abs(t), df))


def test_group_test_is_the_larger_p_of_one_and_of_two_variances(rng):
    """HC2 of statsmodels; its degrees of freedom as those of a quadratic form in the errors."""
    families = uneven_families(60, 9, rng)
    first = rng.random(60) < 0.3
    values = with_families(families, 0.4, rng)[:, 0] + 0.5 * first
    larger = []
    for spread in (0.3, 1, 5):
        v = np.where(first, spread * values, values)
        one = slope_tests(first.astype(float), v[:, None], families)
        covariance = one.icc[0] * (families[:, None] == families) + (1 - one.icc[0]) * np.eye(60)
        root = np.linalg.inv(linalg.sqrtm(covariance))
        design = root @ np.column_stack([np.ones(60), first])
        hat = design @ np.linalg.pinv(design)
        weights = np.linalg.pinv(design)[1] ** 2 / (1 - np.diag(hat))
        form = (np.eye(60) - hat) @ np.diag(weights) @ (np.eye(60) - hat)
        t = sm.OLS(root @ v, design).fit(cov_type="HC2").tvalues[1]
        two = 2 * stats.t.sf(abs(t), np.trace(form) ** 2 / np.trace(form @ form))
        assert group_test(first, v, families) == pytest.approx(max(one.p[0], two))
        larger.append(two > one.p[0])
    assert len(set(larger)) == 2  # each of the two has been the larger one
    assert np.isnan(group_test(np.zeros(60, dtype=bool), values, families))


def test_groups_made_of_whole_families_differ_less_than_welch_says(rng):
    """Null worlds, two thirds of the variance between families: Welch finds half of them."""
    families = np.repeat(np.arange(20), 6).astype(str)
    first = np.repeat(np.arange(20) < 8, 6)
    worlds = with_families(families, 0.65, rng, 150).T
    over_families = [group_test(first, values, families) for values in worlds]
    welch = [stats.ttest_ind(v[first], v[~first], equal_var=False).pvalue for v in worlds]
    assert np.mean(np.array(over_families) <= 0.05) < 0.12
    assert np.mean(np.array(welch) <= 0.05) > 0.3
