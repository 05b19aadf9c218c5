"""What figures share: style, finished runs and their rows, colours of models, panels and captions."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.common.settings import format_eps
from alignment_security.models.families import FAMILIES, family

DIVERGING, SEQUENTIAL, EMPTY, GREY = "RdBu_r", "viridis", "#D9D9D9", "#666666"
ROW_HEIGHT, LINE = (
    0.1,
    0.16,
)  # inches: a benchmark, with letters of SMALL points; a line of a legend
SMALL, SCALE = 6, 7  # points; rows that the scale and its label take
RADIUS_COLOURS = (
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#CC79A7",
    "#E69F00",
    "#000000",
)  # Okabe and Ito's, a colour per radius


COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches: one column of a two-column paper, and both
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,
}
MARKERS, DASHES = "osD^vP*X", ("-", "--", ":", "-.")  # tell the models of a family apart
MAX_NAMED = 24  # models in a legend; above it plain lines, and the legend gives families
NORM_SYMBOLS = {"Linf": "$L_\\infty$", "L2": "$L_2$", "L1": "$L_1$"}
Drawing = tuple[
    str, Figure | None, pd.DataFrame, str
]  # name, figure (None: a LaTeX table), the table drawn, caption


def model_styles(models: set[str]) -> dict[str, dict]:
    """Keywords of a line: colour by family, marker and dashes by the place within it."""
    styles, seen = {}, dict.fromkeys(FAMILIES, 0)
    for model in sorted(models):
        name = family(model)
        styles[model] = {"color": FAMILIES[name][0]} | (
            {"linewidth": 0.6}
            if len(models) > MAX_NAMED
            else {
                "marker": MARKERS[seen[name] % len(MARKERS)],
                "linestyle": DASHES[seen[name] % len(DASHES)],
            }
        )
        seen[name] += 1
    return styles


# ---- parts of figures ------------------------------------------------------------------------------------------


def panels(count: int, legend: list[Line2D]) -> tuple[Figure, list]:
    """`count` axes, one to a column or two to a page, above a legend with as many columns as fit."""
    width, columns = (COLUMN_WIDTH, 1) if count == 1 else (PAGE_WIDTH, 2)
    rows, fit = (
        -(-count // columns),
        max(1, int(width / max(0.45 + 0.062 * len(str(line.get_label())) for line in legend))),
    )
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(width, 2.3 * rows + 0.15 * -(-len(legend) // fit)),
    )
    figure.legend(handles=legend, loc="outside lower center", ncols=min(fit, len(legend)))
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def legend_handles(styles: dict[str, dict]) -> list[Line2D]:
    """A line per model, or per family where there are too many models to name."""
    if len(styles) <= MAX_NAMED:
        return [Line2D([], [], label=model, **style) for model, style in styles.items()]
    return [
        Line2D([], [], label=name, color=FAMILIES[name][0])
        for name in FAMILIES
        if name in map(family, styles)
    ]


def radius_axis(ax, eps, norm: str) -> None:
    """Ticks at the radii that were evaluated, the larger one where two would touch; Linf in 255ths."""
    ticks: list[float] = []
    for value in sorted(eps, reverse=True):
        if not ticks or ticks[-1] - value > 0.1 * max(eps):
            ticks.append(float(value))
    shown = [format_eps(value) if norm == "Linf" else f"{value:g}" for value in ticks]
    ax.set_xticks(ticks, [text.removesuffix("/255") for text in shown])
    ax.set_xlabel(
        f"radius ε in {NORM_SYMBOLS.get(norm, norm)}"
        + (" (1/255)" if any("/255" in text for text in shown) else "")
    )
