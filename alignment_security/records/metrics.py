"""Metrics as functions of arrays: accuracy intervals, human alignment, Pareto front, mCE.

No files, models or figures: only numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from scipy import stats

from alignment_security.common.environment import usable_cpus
from alignment_security.common.settings import SEVERITIES
from alignment_security.records.ceiling import HUMAN_CEILING

MAX_THREADS = 8
# AlexNet's top-1 error on ImageNet-C, mean over the five severities (hendrycks/robustness; as in
# google-research/augmix)
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


@cache  # hundreds of models share a few counts
def accuracy_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927; scipy's binomtest).

    correct, n   counts, 0 <= correct <= n, n >= 1
    Returns (low, high) in [0, 1]. Raises ValueError for other counts.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} of {n} is not a proportion")
    low, high = stats.binomtest(int(correct), int(n)).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


# ---- human alignment -----------------------------------------------------------------------------


def max_of_abs(delta: np.ndarray) -> np.ndarray:
    """(C, H, W) perturbation -> (H, W): largest size over channels."""
    return np.abs(delta).max(axis=0)


def l2_over_channels(delta: np.ndarray) -> np.ndarray:
    """(C, H, W) perturbation -> (H, W): L2 norm over channels, in double precision."""
    return np.sqrt(np.square(delta, dtype=np.float64).sum(axis=0))


def abs_of_max(delta: np.ndarray) -> np.ndarray:
    """(C, H, W) perturbation -> (H, W): size of the largest signed value over channels.

    The reduction of the published code of Feng 2025, which drops the sign after the maximum.
    """
    return np.abs(delta.max(axis=0))


# names on the command line and in run files
REDUCTIONS = {"max": max_of_abs, "l2": l2_over_channels, "feng2025": abs_of_max}


def rank_agreement(
    human_map: np.ndarray, perturbation: np.ndarray, reduce: str = "max", threads: int | None = None
) -> np.ndarray:
    """Spearman's correlation between human map and perturbation, per image; ties share ranks.

    human_map      (B, H, W), any scale
    perturbation   (B, C, H, W), pixel units of [0, 1]
    reduce         over channels, a key of REDUCTIONS: max of |delta|, l2 norm, or feng2025 =
                   |max of delta|, which gives another map
    threads        default: one per core, at most MAX_THREADS
    Returns float64 (B,): nan (undefined) where either map is constant. Write it as an empty cell
    and leave it out of every mean. Raises ValueError when the shapes do not fit or a value is not
    finite.
    """
    human_map, perturbation = np.asarray(human_map), np.asarray(perturbation)
    fits = (
        human_map.ndim == 3
        and perturbation.ndim == 4
        and human_map.shape == (len(perturbation), *perturbation.shape[2:])
    )
    if not fits:
        raise ValueError(f"maps {human_map.shape} do not fit perturbations {perturbation.shape}")
    to_map = REDUCTIONS[reduce]

    def correlation(i: int) -> float:
        return spearman(human_map[i], to_map(perturbation[i]))

    n_images = len(human_map)
    with ThreadPoolExecutor(threads or min(MAX_THREADS, usable_cpus())) as pool:
        correlations = pool.map(correlation, range(n_images))
        return np.fromiter(correlations, dtype=np.float64, count=n_images)


def agreement_of_image(
    human_map: np.ndarray, perturbation: np.ndarray, reduce: str = "max"
) -> float | None:
    """`rank_agreement` of one image, (H, W) and (C, H, W); None where it is undefined."""
    agreement = float(rank_agreement(human_map[None], perturbation[None], reduce)[0])
    return None if np.isnan(agreement) else agreement


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the average ranks of two arrays of one shape.

    nan where either array is constant. Raises ValueError when a value is not finite.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a map holds values that are not finite")
    mean_rank = (a.size + 1) / 2
    ranks_a = average_ranks(a.ravel()) - mean_rank
    ranks_b = average_ranks(b.ravel()) - mean_rank
    norm = np.sqrt(ranks_a @ ranks_a) * np.sqrt(ranks_b @ ranks_b)
    return float(np.clip(ranks_a @ ranks_b / norm, -1, 1)) if norm > 0 else np.nan


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n of (n,) values; equal values share their mean rank.

    Equals scipy.stats.rankdata, in half its time on the pixels of a map.
    """
    order = np.argsort(values)
    ordered = values[order]
    is_first_of_ties = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    begins = np.flatnonzero(is_first_of_ties)
    ends = np.append(begins[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((begins + 1 + ends) / 2, ends - begins)
    return ranks


def over_ceiling(
    agreement: float | np.ndarray, ceiling: float = HUMAN_CEILING
) -> float | np.ndarray:
    """Agreement divided by the agreement of people with each other: 1 is as human as a person."""
    if not 0 < ceiling <= 1:
        raise ValueError(f"a ceiling is a correlation in (0, 1], not {ceiling}")
    return agreement / ceiling


# ---- trade-offs ----------------------------------------------------------------------------------


def pareto_front(values: np.ndarray) -> np.ndarray:
    """Which rows are on the Pareto front: no other row is as good everywhere and better somewhere.

    values   (n, k), larger is better
    Returns bool (n,). Raises ValueError for nan, which has no order.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a Pareto front of values that hold nan")
    # (n, n): entry (i, j) compares row j with row i
    as_good = (values[None] >= values[:, None]).all(axis=2)
    better = (values[None] > values[:, None]).any(axis=2)
    is_dominated = (as_good & better).any(axis=1)
    return np.logical_not(is_dominated)


# ---- accuracy over corruptions -------------------------------------------------------------------


def mean_corruption_error(
    errors: Mapping[str, Mapping[int, float]],
    baseline: Mapping[str, Mapping[int, float]] | Mapping[str, float] | None = None,
) -> dict[str, float]:
    """mCE (Hendrycks & Dietterich 2019, section 4): errors relative to a baseline, mean over types.

    errors     type -> severity -> top-1 error in [0, 1], for the cells that were evaluated
    baseline   the same for another network, or type -> mean error over the five severities
               (ALEXNET_ERRORS). The second form requires all five severities of each type.
    Returns mean_error (the mean over types of the mean over severities, not normalised), mce (nan
    without a baseline), types and cells (how many of each are in the means). Raises ValueError when
    there is nothing to average or the baseline lacks a cell.
    """
    if not errors or any(not cells for cells in errors.values()):
        raise ValueError("no errors to average")
    mean_errors = [np.mean(list(cells.values())) for cells in errors.values()]
    ratios = []
    if baseline is not None:
        missing = sorted(set(errors) - set(baseline))
        if missing:
            raise ValueError(f"the baseline lacks {', '.join(missing)}")
        for kind, cells in errors.items():
            ratios.append(sum(cells.values()) / baseline_sum(kind, cells, baseline[kind]))
    return {
        "mean_error": float(np.mean(mean_errors)),
        "mce": float(np.mean(ratios)) if ratios else float("nan"),
        "types": len(errors),
        "cells": sum(len(cells) for cells in errors.values()),
    }


def baseline_sum(
    kind: str, cells: Mapping[int, float], baseline: Mapping[int, float] | float
) -> float:
    """Sum of the baseline's errors over the severities in `cells`.

    kind       type of corruption, for the message
    baseline   severity -> error, or the mean error over all five severities
    """
    if isinstance(baseline, Mapping):
        missing = sorted(set(cells) - set(baseline))
        if missing:
            raise ValueError(f"{kind}: the baseline has no severity {missing[0]}")
        return sum(baseline[severity] for severity in cells)
    if set(cells) != set(SEVERITIES):
        raise ValueError(
            f"{kind}: severities {sorted(cells)}; the baseline is a mean over 1 to 5, so all five "
            "are needed"
        )
    return len(SEVERITIES) * baseline
