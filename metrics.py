"""Every number a paper prints, as functions of arrays (numpy and scipy underneath).

Nothing here knows files, models or figures.
"""
from __future__ import annotations

import numpy as np
from scipy import stats


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
