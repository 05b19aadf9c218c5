"""Statistics against closed forms, scipy, statsmodels, brute force and the published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from scipy import stats
from sklearn.linear_model import LinearRegression

from alignment_security.analysis.statistics import (
    benjamini_hochberg,
    cross_validated_r2,
    cross_validation_folds,
    expanded_interval,
    family_counts,
    linear_regression,
    partial_correlation,
    percentile_interval,
    rank_correlations,
    resample_counts,
    welch_test,
    without_each,
)
from alignment_security.records.metrics import spearman

FENG = DATA / "feng2025"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def tied(rng) -> np.ndarray:
    """Three columns of 30 models, two of them full of ties."""
    return np.column_stack(
        [rng.integers(0, 5, 30), rng.normal(size=30), rng.integers(0, 2, 30)]
    ).astype(float)


# ---- tests and intervals -------------------------------------------------------------------------


def test_welch_by_hand():
    """a: mean 2, variance 1, n 3; b: mean 5, variance 4, n 4.

    t = -3 / sqrt(4/3), df = (4/3)^2 / (1/18 + 1/3) = 32/7.
    """
    b = 5 + np.array([-np.sqrt(6), 0, 0, np.sqrt(6)])
    t, df, p = welch_test(np.array([1, 2, 3, np.nan]), b)
    assert (t, df) == pytest.approx((-3 / np.sqrt(4 / 3), 32 / 7))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), df))


@pytest.mark.parametrize(
    "a, b", [([1.0], [1, 2, 3]), ([], [1, 2]), ([1, 1], [2, 2]), ([np.nan, 1], [1, 2])]
)
def test_welch_of_too_little_is_undefined(a, b):
    assert np.isnan(welch_test(np.array(a), np.array(b))).all()


def test_welch_gives_the_published_comparison():
    """Feng et al. 2025: SSL against the other standard models, T(65) = 7.85 and T(98) = -7.49."""
    table = pd.read_csv(FENG / "derived_309_models.csv")
    ssl = table["group"] == "SSL"
    for column, claimed in (("pt", (7.845, 65.44)), ("aa", (-7.489, 98.11))):
        assert welch_test(table[column][ssl], table[column][~ssl])[:2] == pytest.approx(
            claimed, abs=0.005
        )


def test_benjamini_hochberg_by_hand():
    """p sorted times m / rank, then the running minimum from the right.

    Of these 4 tests: 0.04, 0.04, 0.04 and 0.5.
    """
    p = np.array([[0.03, np.nan, 0.5], [0.01, 0.02, np.nan]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.04, np.nan, 0.5], [0.04, 0.04, np.nan]])
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()


# ---- rank correlations ---------------------------------------------------------------------------


def test_rank_correlations_are_scipys(tied):
    np.testing.assert_allclose(
        rank_correlations(tied)[0], stats.spearmanr(tied).statistic, atol=1e-12
    )


def test_a_weighted_resample_is_the_resample_written_out(tied):
    counts = resample_counts(len(tied), 50, seed=3)
    fast = rank_correlations(tied, counts)
    for weights, found in zip(counts, fast):
        written_out = np.repeat(tied, weights, axis=0)
        np.testing.assert_allclose(found, stats.spearmanr(written_out).statistic, atol=1e-12)


def test_percentile_interval_agrees_with_scipys_bootstrap(rng):
    x = rng.normal(size=80)
    columns = np.column_stack([x, x + rng.normal(size=80)])
    counts = resample_counts(80, 4000)
    mine = percentile_interval(rank_correlations(columns, counts)[:, 0, 1])
    scipys = stats.bootstrap(
        columns.T, spearman, paired=True, n_resamples=4000, method="percentile", rng=1
    )
    assert mine == pytest.approx(tuple(scipys.confidence_interval), abs=0.02)


def test_a_constant_column_has_no_correlation():
    found = rank_correlations(np.column_stack([np.ones(9), np.arange(9.0)]))[0]
    assert np.isnan(found[0]).all() and found[1, 1] == pytest.approx(1)


def test_partial_correlation_is_that_of_the_residuals(rng):
    """The same number another way: the correlation of x and y's ranks after regression on z's."""
    z = rng.normal(size=50)
    ranks = np.apply_along_axis(
        stats.rankdata, 0, np.column_stack([z + rng.normal(size=50), z + rng.normal(size=50), z])
    )
    line = np.column_stack([np.ones(50), ranks[:, 2]])
    left = ranks[:, :2] - line @ np.linalg.lstsq(line, ranks[:, :2], rcond=None)[0]
    r = rank_correlations(ranks)[0]
    assert partial_correlation(r[0, 1], r[0, 2], r[1, 2]) == pytest.approx(
        np.corrcoef(left.T)[0, 1]
    )
    assert np.isnan(partial_correlation(np.array(0.9), np.array(1.0), np.array(0.9)))


# ---- families ------------------------------------------------------------------------------------


def test_family_counts_draw_families_whole():
    families = np.array(["vgg", "resnet", "vgg", "vit", "resnet"])
    counts = family_counts(families, 200)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all() and len(np.unique(counts[:, 0])) > 2


def test_copies_of_a_model_are_one_model(rng):
    """Thirty copies of each of eight models.

    An interval over models is far too narrow, one over families is not.
    """
    x = rng.normal(size=8)
    columns = np.repeat(np.column_stack([x, 0.5 * x + rng.normal(size=8)]), 30, axis=0)
    families = np.repeat(np.arange(8), 30)

    def width(counts):
        low, high = percentile_interval(rank_correlations(columns, counts)[:, 0, 1])
        return high - low

    eight = rank_correlations(columns[::30], resample_counts(8))[:, 0, 1]
    low, high = percentile_interval(eight)
    assert width(family_counts(families)) == pytest.approx(high - low, abs=1e-9)
    assert width(resample_counts(240)) < 0.4 * (high - low)


def test_without_each_leaves_one_family_out(tied):
    families = np.repeat(["a", "b", "c"], 10)
    names, weights = without_each(families)
    assert names.tolist() == ["a", "b", "c"]
    expected = stats.spearmanr(tied[families != "b"]).statistic
    np.testing.assert_allclose(rank_correlations(tied, weights)[1], expected, atol=1e-12)


def test_percentile_interval_needs_most_resamples():
    assert percentile_interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert np.isnan(percentile_interval(np.append(np.full(20, np.nan), np.arange(100.0)))).all()
    assert np.isnan(percentile_interval(np.array([]))).all()


def test_expanded_interval_by_hand():
    """Eight families: 2.365 sqrt(8 / 7) standard errors, so percentiles 0.57 and 99.43.

    2.365 is the quantile of t on 7 degrees of freedom (any table).
    """
    values = np.arange(100_001.0)
    outer = stats.norm.sf(2.3646 * np.sqrt(8 / 7))
    assert outer == pytest.approx(0.0057, abs=1e-4)
    assert expanded_interval(values, 8) == pytest.approx((1e5 * outer, 1e5 * (1 - outer)), abs=2)
    assert np.ptp(expanded_interval(values, 10_000)) == pytest.approx(0.95e5, rel=1e-3)


def test_expanded_interval_over_few_families_misses_less_often(rng):
    """Null worlds of 60 models in 8 families; percentiles are too short."""
    place = np.append(np.arange(8), rng.integers(0, 8, 52))
    missed = {"percentile": 0, "expanded": 0}
    for world in range(200):
        effects, errors = rng.normal(size=(8, 2)), rng.normal(size=(60, 2))
        columns = np.sqrt(0.5) * (effects[place] + errors)
        drawn = rank_correlations(columns, family_counts(place, 400, seed=world))[:, 0, 1]
        for kind, ends in (
            ("percentile", percentile_interval(drawn)),
            ("expanded", expanded_interval(drawn, 8)),
        ):
            missed[kind] += not ends[0] <= 0 <= ends[1]
    assert missed["expanded"] <= 12 < missed["percentile"]


# ---- regression ----------------------------------------------------------------------------------


def test_linear_regression_is_scipys(rng):
    x = rng.normal(size=40)
    y = 2 * x + rng.normal(size=40)
    line, fit = stats.linregress(x, y), linear_regression(x, y)
    assert [fit[k] for k in ("slope", "intercept", "r2", "p", "n")] == pytest.approx(
        [line.slope, line.intercept, line.rvalue**2, line.pvalue, 40]
    )


def test_copies_do_not_make_a_slope_significant():
    """Five models copied eight times: least squares counts 40, a random intercept five."""
    x, y = np.array([0.1, 0.4, 0.5, 0.7, 0.9]), np.array([0.3, 0.1, 0.5, 0.2, 0.6])
    fit = linear_regression(np.repeat(x, 8), np.repeat(y, 8), np.repeat(np.arange(5), 8))
    assert fit["p"] < 0.01 < 0.1 < fit["p_family"]
    assert fit["p_family"] == pytest.approx(stats.linregress(x, y).pvalue)


@pytest.mark.parametrize("x, y", [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_linear_regression_of_too_little_is_undefined(x, y):
    fit = linear_regression(np.array(x, float), np.array(y, float))
    assert fit["n"] == len(x) and np.isnan(fit["r2"])


def test_cross_validated_r2_by_brute_force():
    """Leave one out of five, against the mean of the other four, written out."""
    x, y = np.array([0, 1, 2, 3, 4.0]), np.array([0, 1.5, 1, 3, 5.0])
    errors, spread = 0.0, 0.0
    for i in range(5):
        rest = np.arange(5) != i
        slope, intercept = np.polyfit(x[rest], y[rest], 1)
        errors += (y[i] - slope * x[i] - intercept) ** 2
        spread += (y[i] - y[rest].mean()) ** 2
    splits = cross_validation_folds(np.arange(5), whole_families=False, repeats=1)
    found = cross_validated_r2(LinearRegression(), x[:, None], y[:, None], splits)
    assert found == pytest.approx([1 - errors / spread])


def test_noise_explains_nothing_unseen(rng):
    """40 useless predictors of 60 models: much of the variance in the sample, none outside."""
    x, y = rng.normal(size=(60, 40)), rng.normal(size=(60, 2))
    assert LinearRegression().fit(x, y).score(x, y) > 0.5
    assert (
        cross_validated_r2(LinearRegression(), x, y, cross_validation_folds(np.arange(60), False))
        < 0
    ).all()


def test_cross_validation_folds_keep_families_whole():
    families = np.array(list("aabbbccdda"))
    for train, test in cross_validation_folds(families, whole_families=True):
        assert not set(families[train]) & set(families[test])
    tested = np.concatenate([test for _, test in cross_validation_folds(families, True)])
    assert sorted(tested) == list(range(10))
