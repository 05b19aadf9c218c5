"""Wilson's interval of an accuracy, and norms per pixel, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alignment_security.records.metrics import accuracy_interval
from alignment_security.records.summary_rows import attacked_size, per_pixel, size_text

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


# ---- sizes ---------------------------------------------------------------------------------------


def test_the_norm_per_pixel_of_a_constant_change_does_not_depend_on_the_size():
    """Every channel of every pixel changed by 0.01: a root mean square of 0.01 at any size."""
    for height, width in ((224, 224), (260, 260), (32, 96)):
        l2 = float(np.linalg.norm(np.full((3, height, width), 0.01)))
        assert per_pixel(l2, (height, width)) == pytest.approx(0.01)
    assert per_pixel(1.0, None) is None


def test_the_size_of_a_run_is_that_of_the_attacked_images():
    model = {"preprocessing": {"input_size": [3, 240, 260]}}
    own, published = {}, {"geometry": "224 px, crop 0.875, ..."}
    sizes = [attacked_size({"settings": {"model": model, "run": run}}) for run in (own, published)]
    assert sizes == [(240, 260), (224, 224)]
    assert [size_text(size) for size in sizes] == ["240x260", "224x224"]
    assert attacked_size({"settings": {"model": {}, "run": {}}}) is None
