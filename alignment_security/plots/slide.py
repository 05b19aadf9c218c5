"""One figure for a slide: the trade-off of Feng 2025 and its two remedies in one plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    correlation,
    mark_pareto_front,
    norm_tables,
    robust_series,
    tables_with,
)
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.plots.feng2025 import clauses
from alignment_security.plots.feng2025_style import (
    GROUP_STYLES,
    LACKING,
    draw_front,
    draw_series,
    tolerance_scale,
)
from alignment_security.plots.style import DARK, PAGE_WIDTH, Drawing

LARGE_TYPE: Any = {
    "font.size": 10,
    "axes.labelsize": 11,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
REMEDIES = {"robust": "adversarially trained", "harmonized": "harmonized with human maps"}


def slide(results: Results) -> Iterator[Drawing]:
    """Trade-off and two remedies, coloured by accuracy, in large type.

    Of the published numbers, else of our largest source.
    """
    tables = [table for table in tables_with(norm_tables(results), [*MEASURES]) if is_enough(table)]
    if not tables:
        if norm_tables(results):
            raise NothingToDraw(f"norms, alignment and accuracy of {FEWEST} models are needed")
        return
    best = max(tables, key=lambda table: (table.name == PUBLISHED, len(table.rows)))
    table = mark_pareto_front(best)
    with plt.rc_context(LARGE_TYPE):
        figure = draw_slide(table)
    parts = {
        "each dot is a standard model, coloured by its accuracy, with which the correlations above "
        "are": True,
        "black line: their Pareto front": table.rows["front"].sum() > 1,
        "coloured lines: one net trained against growing eps, solid in L2, dotted in Linf": bool(
            robust_series(table.rows)
        ),
    }
    about = f"Human alignment against Perturbation Tolerance. {clauses(parts)}"
    caption = f"{about}\n{table.note}"
    yield "slide", figure, table.rows, caption


def is_enough(table: NormTable) -> bool:
    """Whether FEWEST standard models have both measures and an accuracy."""
    return len(table.standard.dropna(subset=[*MEASURES, "accuracy"])) >= FEWEST


def draw_slide(table: NormTable) -> Figure:
    """Standard models coloured by accuracy, their Pareto front, robust and harmonized nets."""
    figure, ax = plt.subplots(figsize=(PAGE_WIDTH, 4.4), layout="constrained")
    standard = table.standard.dropna(subset=["accuracy"]).sort_values("accuracy")
    dots = ax.scatter(
        standard["pt"],
        100 * standard["alignment"],
        c=standard["accuracy"],
        cmap="cividis",
        s=22,
        linewidth=0.3,
        edgecolor="white",
        zorder=2,
        label=f"standard ({len(standard)}), coloured by accuracy",
    )
    figure.colorbar(dots, ax=ax, label=table.accuracy_label, pad=0.01)
    draw_front(ax, table.rows[table.rows["front"]])
    draw_series(ax, table.rows)
    for group, label in REMEDIES.items():
        part = table.rows[table.rows["group"] == group]
        colour, marker = GROUP_STYLES[group]
        if part.empty:
            continue
        ax.scatter(
            part["pt"],
            100 * part["alignment"],
            color=colour,
            marker=marker,
            s=90 if marker == "*" else 26,
            linewidth=0.3,
            edgecolor="white",
            zorder=3,
            label=f"{label} ({len(part)})",
        )
    if table.rows["front"].sum() > 1:
        ax.plot([], [], color=DARK, linewidth=0.9, label="Pareto front of standard models")
    tolerance_scale(ax.xaxis, table.rows["pt"])
    ax.set_title(correlations_text(standard), loc="left", fontsize=10)
    ax.set(
        xlabel=MEASURES["pt"][0] + ": harder to fool →",
        ylabel=f"{table.alignment_label}:\nfooled where people look →",
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, handlelength=1.5)
    ax.margins(0.06)
    return figure


def correlations_text(standard: pd.DataFrame) -> str:
    """Spearman of accuracy with both measures."""
    texts = []
    for name, measure in (("tolerance", "pt"), ("alignment", "alignment")):
        rho = correlation(standard, "accuracy", measure)["rho"]
        texts.append(f"{name} {'undefined' if np.isnan(rho) else f'{rho:+.2f}'}")
    return f"Spearman with accuracy of standard models: {', '.join(texts)}"


FIGURES = {"slide": (slide, LACKING)}
