"""Human alignment and mCE, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alignment_security.records.metrics import (
    ALEXNET_ERRORS,
    HUMAN_CEILING,
    REDUCTIONS,
    mean_corruption_error,
    over_ceiling,
    rank_agreement,
)

RNG = np.random.default_rng(0)


def blocks(b: int, values: int, side: int = 60) -> np.ndarray:
    """(b, side, side) float32 with few distinct values: many ties."""
    return RNG.integers(0, values, (b, side, side)).astype(np.float32)


@pytest.mark.parametrize("values", [2, 3, 50, 10**6])
@pytest.mark.parametrize(
    "reduce, by_hand",
    [
        ("max", lambda d: abs(d).max(axis=1)),
        ("l2", lambda d: (d.astype(float) ** 2).sum(axis=1) ** 0.5),
        ("feng2025", lambda d: abs(d.max(axis=1))),
    ],
)
def test_rank_agreement_is_scipys_spearman(values, reduce, by_hand):
    human = blocks(5, values)
    delta = (RNG.standard_normal((5, 3, 60, 60)) * 1e-3).astype(np.float32)
    delta[:, :, 20:40] = 0  # untouched pixels: ties there too
    delta[0, 0] += human[0] * 1e-3
    expected = [
        stats.spearmanr(h.ravel(), d.ravel()).statistic for h, d in zip(human, by_hand(delta))
    ]
    found = rank_agreement(human, delta, reduce)
    assert found.shape == (5,) and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_rank_agreement_by_hand():
    """Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: r = 4.5 / sqrt(4.5 * 5)."""
    human = np.array([[[0.0, 1.0], [1.0, 2.0]]] * 3)
    delta = np.array([[[[1, 2], [3, 4]]], [[[-1, -2], [-3, -4]]], [[[4, 3], [2, 1]]]], dtype=float)
    r = 4.5 / np.sqrt(4.5 * 5)
    np.testing.assert_allclose(rank_agreement(human, delta), [r, r, -r], atol=1e-15)


def test_rank_agreement_ignores_scale_and_any_rising_function():
    human, delta = RNG.random((3, 16, 16)), RNG.standard_normal((3, 1, 16, 16))
    once = rank_agreement(human, delta)
    np.testing.assert_array_equal(rank_agreement(1e6 * human**3, 1e-6 * delta), once)
    np.testing.assert_array_equal(rank_agreement(human, delta[:, [0, 0, 0]], "l2", threads=1), once)


def test_rank_agreement_of_a_constant_map_is_nan():
    human, delta = RNG.random((3, 8, 8)), RNG.standard_normal((3, 3, 8, 8))
    human[0], delta[1] = 0.5, 0
    found = rank_agreement(human, delta)
    assert np.isnan(found).tolist() == [True, True, False]


def test_abs_of_max_is_not_max_of_abs():
    """|max over channels| of a negative pixel is the smallest of its channels' sizes."""
    delta = np.array([[[[-3.0, 1.0]], [[-1.0, 0.5]]]])
    assert REDUCTIONS["feng2025"](delta[0]).tolist() == [[1.0, 1.0]]
    assert REDUCTIONS["max"](delta[0]).tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize(
    "human, delta, message",
    [
        (np.zeros((2, 4, 4)), np.zeros((3, 3, 4, 4)), "do not fit"),
        (np.zeros((2, 4, 4)), np.zeros((2, 3, 4, 5)), "do not fit"),
        (np.zeros((4, 4)), np.zeros((3, 4, 4)), "do not fit"),
        (np.full((1, 2, 2), np.nan), np.ones((1, 3, 2, 2)), "not finite"),
    ],
)
def test_rank_agreement_refuses_maps_that_do_not_fit(human, delta, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement(human, delta)


def test_over_ceiling():
    assert HUMAN_CEILING == 0.65753 and over_ceiling(0.65753) == 1.0
    np.testing.assert_allclose(over_ceiling(np.array([0.2, np.nan]), 0.4), [0.5, np.nan])
    for ceiling in (0, -1, 1.5):
        with pytest.raises(ValueError, match="ceiling"):
            over_ceiling(0.2, ceiling)


def test_mean_corruption_error_by_hand():
    errors = {"fog": {1: 0.2, 2: 0.4}, "snow": {3: 0.5}}
    baseline = {"fog": {1: 0.4, 2: 0.4, 3: 0.9}, "snow": {3: 0.4}}
    found = mean_corruption_error(errors, baseline)
    assert found == {
        "mean_error": pytest.approx(0.4),
        "mce": pytest.approx((0.6 / 0.8 + 0.5 / 0.4) / 2),
        "types": 2,
        "cells": 3,
    }
    assert np.isnan(mean_corruption_error(errors)["mce"])


def test_mean_corruption_error_of_alexnet_over_itself_is_1():
    """Hendrycks & Dietterich 2019, table 1: AlexNet's 15 corruption errors are 100 % of its own."""
    errors = {kind: dict.fromkeys((1, 2, 3, 4, 5), error) for kind, error in ALEXNET_ERRORS.items()}
    found = mean_corruption_error(errors, ALEXNET_ERRORS)
    assert found["mce"] == pytest.approx(1) and found["types"] == 15 and found["cells"] == 75


@pytest.mark.parametrize(
    "errors, baseline, message",
    [
        ({}, None, "no errors"),
        ({"fog": {}}, None, "no errors"),
        ({"mist": {1: 0.5}}, ALEXNET_ERRORS, "lacks mist"),
        ({"fog": {1: 0.5}}, ALEXNET_ERRORS, "all five are needed"),
        ({"fog": {1: 0.5}}, {"fog": {2: 0.5}}, "no severity 1"),
    ],
)
def test_mean_corruption_error_refuses_missing_cells(errors, baseline, message):
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, baseline)
