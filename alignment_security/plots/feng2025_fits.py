"""What Figures 2 and 3 of Feng et al. (2025) draw besides points: fits, and people's accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from alignment_security.analysis.feng2025 import MEASURES, measure_label, quadratic_fit
from alignment_security.analysis.norm_table import NormTable
from alignment_security.plots.style import DARK

HUMAN_ACCURACY, HUMAN_SPREAD = (
    95.14,
    2.02,
)  # multi-label accuracy of people (Figures 2 and 3), percent


def factor(column: str) -> float:
    """What a column is multiplied by to be drawn: measures as percent, others as they are."""
    return MEASURES[column][1] if column in MEASURES else 1


def fit_sentences(tables: list[NormTable], measure: str) -> Iterator[str]:
    """The second-degree fit of each table in numbers, in the unit of its axis, for a caption.

    tables   of `in_drawn_units`
    """
    for table in tables:
        fit = quadratic_fit(table.standard, measure)
        if fit:
            square, slope, constant = factor(measure) * np.array(fit["coefficients"])
            yield (
                f"Fit of {table.source}: {measure_label(table, measure)} = "
                f"{constant:.4g} {slope:+.4g} a {square:+.4g} a², a: accuracy (%); "
                f"R² = {fit['r2']:.3f}, n = {fit['n']} models."
            )


def draw_human_accuracy(ax: Axes) -> None:
    """A band at the multi-label accuracy of people."""
    low, high = HUMAN_ACCURACY - HUMAN_SPREAD, HUMAN_ACCURACY + HUMAN_SPREAD
    ax.axvspan(low, high, color="#BBBBBB", alpha=0.35, linewidth=0, zorder=0)
    ax.annotate(
        "people",
        (HUMAN_ACCURACY, 1),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize=7,
        color="#444444",
    )


def draw_quadratic_fit(ax: Axes, standard: pd.DataFrame, measure: str) -> None:
    """The second-degree fit, over the accuracies that it was fitted to."""
    fit = quadratic_fit(standard, measure)
    if not fit:
        return
    line = np.linspace(standard["accuracy"].min(), standard["accuracy"].max(), 200)
    values = np.polyval(fit["coefficients"], line)
    ax.plot(line, factor(measure) * values, color=DARK, linestyle="--", zorder=3)
