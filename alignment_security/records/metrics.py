"""Every number a paper prints, as functions of arrays (numpy and scipy underneath).

Nothing here knows files, models or figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from scipy import stats

from alignment_security.common.settings import SEVERITIES

# split-half agreement of people on ClickMe maps, Spearman (Fel et al. 2022, "Harmonizing the object recognition
# strategies of deep neural networks with humans"; the constant of Feng et al. 2025)
HUMAN_CEILING = 0.65753
# AlexNet's top-1 error on ImageNet-C, mean over the five severities (hendrycks/robustness; as in google-research/augmix)
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# (C, H, W) perturbation -> (H, W) map
REDUCTIONS = {
    "max": lambda delta: np.abs(delta).max(axis=0),
    "l2": lambda delta: np.sqrt(np.square(delta, dtype=np.float64).sum(axis=0)),
    "feng2025": lambda delta: np.abs(
        delta.max(axis=0)
    ),  # as published: the sign is dropped after the maximum
}


@cache  # hundreds of models share a few counts
def accuracy_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927; scipy's binomtest).

    correct, n   counts, 0 <= correct <= n, n >= 1
    Returns (low, high) in [0, 1]. Raises ValueError on counts that are none.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} of {n} is not a proportion")
    low, high = stats.binomtest(int(correct), int(n)).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def norms(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2 and Linf norm of each perturbation.

    delta   (B, ...) any float dtype, pixel units of [0, 1]
    Returns two float64 arrays (B,), summed in double precision.
    """
    flat = np.asarray(delta, dtype=np.float64).reshape(len(delta), -1)
    return np.sqrt(np.einsum("ij,ij->i", flat, flat)), np.abs(flat).max(axis=1, initial=0.0)


# ---- agreement with people -----------------------------------------------------------------------


def rank_agreement(
    human_map: np.ndarray, perturbation: np.ndarray, reduce: str = "max", threads: int | None = None
) -> np.ndarray:
    """Spearman's correlation between where people look and where the perturbation is, per image; ties share ranks.

    human_map      (B, H, W), any scale
    perturbation   (B, C, H, W), pixel units of [0, 1]
    reduce         over channels: max of |delta|, l2 norm, or feng2025 = |max of delta|, which is another map
    threads        default: one a core, at most 8
    Returns float64 (B,), nan where either map is constant: undefined, so write an empty cell and never average it.
    Raises ValueError on shapes that do not lie over each other and on values that are not finite.
    """
    human_map, perturbation = np.asarray(human_map), np.asarray(perturbation)
    b, *size = human_map.shape
    if (
        human_map.ndim != 3
        or perturbation.ndim != 4
        or perturbation.shape != (b, perturbation.shape[1], *size)
    ):
        raise ValueError(
            f"maps {human_map.shape} do not lie over perturbations {perturbation.shape}"
        )

    def one(i: int) -> float:
        return spearman(human_map[i], REDUCTIONS[reduce](perturbation[i]))

    with ThreadPoolExecutor(threads or min(8, len(os.sched_getaffinity(0)))) as pool:
        return np.fromiter(pool.map(one, range(b)), dtype=np.float64, count=b)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the average ranks of two arrays of one shape; nan where either is constant."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a map holds values that are not finite")
    ranks = [average_ranks(values.ravel()) - (values.size + 1) / 2 for values in (a, b)]
    norm = np.sqrt(ranks[0] @ ranks[0]) * np.sqrt(ranks[1] @ ranks[1])
    return float(np.clip(ranks[0] @ ranks[1] / norm, -1, 1)) if norm > 0 else np.nan


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n of (n,) values, equal ones sharing their mean: scipy's rankdata in half its time on a map of pixels."""
    order = np.argsort(values)
    ordered = values[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(begins[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((begins + 1 + ends) / 2, ends - begins)
    return ranks


def over_ceiling(
    agreement: float | np.ndarray, ceiling: float = HUMAN_CEILING
) -> float | np.ndarray:
    """Agreement as a share of what people agree with each other; 1 is as human as a person."""
    if not 0 < ceiling <= 1:
        raise ValueError(f"a ceiling is a correlation in (0, 1], not {ceiling}")
    return agreement / ceiling


def pareto_front(values: np.ndarray) -> np.ndarray:
    """Which rows of (n, k) values, the larger the better, no other row beats in one column and equals in the rest: (n,) bool.

    Raises ValueError on nan, which can neither win nor lose.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a Pareto front of values that hold nan")
    no_worse = (values[None] >= values[:, None]).all(
        axis=2
    )  # (n, n): is column's row as good as row's?
    better = (values[None] > values[:, None]).any(axis=2)
    return np.logical_not((no_worse & better).any(axis=1))


# ---- accuracy over corruptions -------------------------------------------------------------------


def mean_corruption_error(
    errors: Mapping[str, Mapping[int, float]],
    baseline: Mapping[str, Mapping[int, float]] | Mapping[str, float] | None = None,
) -> dict[str, float]:
    """mCE (Hendrycks & Dietterich 2019, section 4): mean over types of sum of errors / sum of the baseline's errors.

    errors     type -> severity -> top-1 error in [0, 1], of what was run
    baseline   the same of the network that others are compared with, or type -> mean error over the five severities
               (ALEXNET_ERRORS); a type that was not run at all five can only be compared with the first form
    Returns mean_error (not normalised: the mean over types of the mean over severities), mce (nan without a baseline),
    and how much they stand on: types, and the number of type x severity cells.
    """
    if not errors or any(not cells for cells in errors.values()):
        raise ValueError("no errors to average")
    lacking = sorted(set(errors) - set(baseline)) if baseline is not None else []
    if lacking:
        raise ValueError(f"the baseline lacks {', '.join(lacking)}")
    ratios = [
        sum(cells.values()) / baseline_sum(kind, cells, baseline[kind])
        for kind, cells in errors.items()
        if baseline
    ]
    return {
        "mean_error": float(np.mean([np.mean(list(cells.values())) for cells in errors.values()])),
        "mce": float(np.mean(ratios)) if ratios else float("nan"),
        "types": len(errors),
        "cells": sum(len(cells) for cells in errors.values()),
    }


def baseline_sum(
    kind: str, cells: Mapping[int, float], baseline: Mapping[int, float] | float
) -> float:
    """Sum of the baseline's errors at the severities that were run."""
    if isinstance(baseline, Mapping):
        missing = sorted(set(cells) - set(baseline))
        if missing:
            raise ValueError(f"{kind}: the baseline has no severity {missing[0]}")
        return sum(baseline[severity] for severity in cells)
    if set(cells) != set(SEVERITIES):
        raise ValueError(
            f"{kind}: severities {sorted(cells)}; the baseline is a mean over 1 to 5, so all five are needed"
        )
    return len(SEVERITIES) * baseline
