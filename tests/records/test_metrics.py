"""Wilson's interval of an accuracy, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alignment_security.records.metrics import accuracy_interval

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@pytest.mark.parametrize("correct, n", [(18, 20), (0, 20), (20, 20), (1, 1), (37_500, 50_000)])
def test_accuracy_interval_is_wilsons(correct, n):
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927."""
    p = correct / n
    half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (
        (p + Z**2 / (2 * n) - half) / (1 + Z**2 / n),
        (p + Z**2 / (2 * n) + half) / (1 + Z**2 / n),
    )
    assert accuracy_interval(correct, n) == pytest.approx((low, high), abs=1e-12)


def test_accuracy_interval_of_18_in_20():
    """The values that Wilson's formula gives on paper."""
    assert accuracy_interval(18, 20) == pytest.approx((0.69897, 0.97213), abs=1e-5)


def test_accuracy_interval_is_wider_with_more_confidence():
    narrow, wide = accuracy_interval(18, 20, 0.9), accuracy_interval(18, 20, 0.99)
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]


@pytest.mark.parametrize("correct, n", [(1, 0), (0, 0), (3, 2), (-1, 5)])
def test_accuracy_interval_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match="not a proportion"):
        accuracy_interval(correct, n)
