"""Numbers that can be checked by hand, and against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from alignment_security.records.metrics import accuracy_interval, norms

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@pytest.mark.parametrize("correct, n", [(18, 20), (0, 20), (20, 20), (1, 1), (37_500, 50_000)])
def test_interval_is_wilsons(correct, n):
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927."""
    p = correct / n
    half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (
        (p + Z**2 / (2 * n) - half) / (1 + Z**2 / n),
        (p + Z**2 / (2 * n) + half) / (1 + Z**2 / n),
    )
    assert accuracy_interval(correct, n) == pytest.approx((low, high), abs=1e-12)


def test_interval_of_18_in_20():
    """The values that Wilson's formula gives on paper."""
    assert accuracy_interval(18, 20) == pytest.approx((0.69897, 0.97213), abs=1e-5)


def test_interval_is_wider_with_more_confidence():
    narrow, wide = accuracy_interval(18, 20, 0.9), accuracy_interval(18, 20, 0.99)
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]


@pytest.mark.parametrize("correct, n", [(1, 0), (0, 0), (3, 2), (-1, 5)])
def test_interval_refuses_counts_that_are_none(correct, n):
    with pytest.raises(ValueError, match="not a proportion"):
        accuracy_interval(correct, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_norms_are_summed_in_double_precision(dtype):
    delta = (np.random.default_rng(0).standard_normal((3, 3, 224, 224)) * 1e-3).astype(dtype)
    l2, linf = norms(delta)
    exact = delta.astype(np.float64).reshape(3, -1)
    assert l2.dtype == linf.dtype == np.float64
    np.testing.assert_allclose(l2, np.linalg.norm(exact, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(linf, np.abs(exact).max(axis=1))


def test_norms_by_hand():
    l2, linf = norms(np.array([[[3.0, 0.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert l2.tolist() == [5.0, 0.0] and linf.tolist() == [4.0, 0.0]
