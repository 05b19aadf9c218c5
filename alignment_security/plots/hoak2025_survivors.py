"""Figures that Hoak 2025 lacks: which benchmarks survive, family by family, and what they explain.

`analysis.hoak2025_statistics.survival` defines what survives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.analysis.hoak2025 import (
    COMPARABLE,
    MIN_FAMILIES,
    Study,
    studies,
)
from alignment_security.analysis.hoak2025_regression import variance_table
from alignment_security.analysis.hoak2025_statistics import (
    correlations_without_families,
    ranked_benchmarks,
)
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import RESAMPLES
from alignment_security.models.families import FAMILIES
from alignment_security.plots.hoak2025 import NEEDED_DATA, drawing_of, short_benchmark
from alignment_security.plots.style import (
    GREY,
    LINE_HEIGHT,
    PAGE_WIDTH,
    RADIUS_COLOURS,
    SMALL,
    Drawing,
    drawn_radii,
    put_heading,
)

LEGEND_COLUMNS = 5
GROUP_COLOURS = {
    "neural": "#009E73",
    "behavioral": "#E69F00",
    "engineering": "#0072B2",
    "other": "#000000",
}
LOWEST = -0.5  # the smallest R2 that is drawn; worse ones are drawn there
# column of the table -> marker, face, edge, label
EXPLAINED = {
    "in_sample": ("o", "white", "black", "in the sample"),
    "unseen_models": ("o", RADIUS_COLOURS[2], "none", "unseen models"),
    "unseen_families": ("^", RADIUS_COLOURS[1], "none", "unseen families"),
}


def row_panels(
    study: Study,
    labels: list[str],
    quantity: str,
    handles: list[Line2D],
    row_height: float = 0.11,
    legend_title: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """A panel per eps with a row per label, a line at 0, and a legend below.

    labels       of the rows, from the top
    quantity     label of the horizontal axis
    row_height   inches
    """
    radii = drawn_radii(study.radii)
    legend_lines = -(-len(handles) // LEGEND_COLUMNS) + (legend_title is not None)
    height = row_height * max(len(labels), 4) + 0.85 + LINE_HEIGHT * legend_lines
    figure, axes = plt.subplots(
        1,
        len(radii),
        figsize=(PAGE_WIDTH, height),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        title=legend_title,
        title_fontsize=7,
    )
    axes[0, (len(radii) - 1) // 2].set_xlabel(quantity)
    for ax, eps in zip(axes.flat, radii):
        draw_rows(ax, len(labels))
        ax.set_title(study.label(eps), loc="left", fontsize=7)
    axes.flat[0].set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.flat[0].set_ylim(len(labels) - 0.4, -0.6)
    put_heading(figure, study.heading)
    return figure, list(axes.flat)


def draw_rows(ax: Axes, count: int) -> None:
    """A line at 0, and a light line through each row."""
    ax.axvline(0, color=GREY, linewidth=0.6)
    across = ax.get_yaxis_transform()
    ax.hlines(range(count), 0, 1, transform=across, color="#EEEEEE", linewidth=0.5, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


# ---- survivors -----------------------------------------------------------------------------------


def survivors_forest(results: Results) -> Iterator[Drawing]:
    """Forest plot of the benchmarks that survive, ranked, a panel per eps."""
    for study in studies(results):
        rows, counted = ranked_benchmarks(study)
        if rows.empty:
            continue
        caption = (
            f"Spearman's correlation with accuracy under attack. {counted} Filled: survives at "
            "that eps. Thick: 95 % bootstrap interval over models (percentiles); thin: over "
            f"families (percentiles expanded for few families); {RESAMPLES} resamples each. "
            "Diamond: partial correlation given clean accuracy. What is selected for being large "
            "tends to be smaller on new models."
        )
        yield drawing_of(study, "survivors_forest", draw_forest(study, rows), rows, caption)


def draw_forest(study: Study, rows: pd.DataFrame) -> Figure:
    """A row per benchmark: rho, its partial correlation, and both intervals.

    rows   of `ranked_benchmarks`
    """
    names = rows.drop_duplicates("row")
    labels = [f"{short_benchmark(name)} (n={n})" for name, n in zip(names["benchmark"], names["n"])]
    handles = [
        Line2D([], [], color=color, marker="o", label=group)
        for group, color in GROUP_COLOURS.items()
        if rows["group"].eq(group).any()
    ]
    partial = Line2D([], [], color=GREY, marker="D", markerfacecolor="white", linestyle="")
    partial.set_label("given clean accuracy")
    figure, axes = row_panels(study, labels, "Spearman's ρ", [*handles, partial])
    for ax, eps in zip(axes, drawn_radii(study.radii)):
        draw_correlations(ax, rows[rows["accuracy"] == eps])
    return figure


def draw_correlations(ax: Axes, part: pd.DataFrame) -> None:
    """Both intervals of each row, its partial correlation, and rho, filled if it survives."""
    rows = part["row"]
    colors = part["group"].map(GROUP_COLOURS).fillna(GROUP_COLOURS["other"])
    ax.hlines(rows, part["expanded_low"], part["expanded_high"], color=colors, linewidth=0.7)
    ax.hlines(rows, part["low"], part["high"], color=colors, linewidth=2)
    diamond: Any = {"marker": "D", "facecolor": "white", "edgecolor": GREY, "linewidth": 0.6}
    ax.scatter(part["partial_rho"], rows, s=9, zorder=2.5, **diamond)
    face = np.where(part["survives"] == 1, colors, "white")
    ax.scatter(part["rho"], rows, s=13, facecolor=face, edgecolor=colors, linewidth=0.8, zorder=3)


def leave_one_family_out(results: Results) -> Iterator[Drawing]:
    """The same benchmarks with each family of models left out in turn."""
    for study in studies(results):
        rows, counted = ranked_benchmarks(study)
        families = len(np.unique(study.families))
        if rows.empty or families < MIN_FAMILIES:
            continue
        table = correlations_without_families(study, rows)
        caption = (
            f"Spearman's correlation with accuracy under attack, with each of {families} families "
            "of models left out in turn (a dot each; Other: one of the small families, in the "
            f"table by name). {counted}"
        )
        figure = draw_left_out_panels(study, rows, table)
        yield drawing_of(study, "leave_one_family_out", figure, table, caption)


def draw_left_out_panels(study: Study, rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """A row per benchmark, a dot per family left out.

    rows    of `ranked_benchmarks`
    table   of `correlations_without_families`
    """
    shown = {*table["left_out"], "Other"}
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", markersize=3, label=name)
        for name, (color, _) in FAMILIES.items()
        if name in shown
    ]
    all_models = Line2D([], [], color="black", marker="|", linestyle="", markersize=7)
    all_models.set_label("all models")
    labels = [short_benchmark(name) for name in rows["benchmark"].unique()]
    figure, axes = row_panels(
        study, labels, "Spearman's ρ", [*handles, all_models], legend_title="without"
    )
    for ax, eps in zip(axes, drawn_radii(study.radii)):
        draw_left_out(ax, table[table["accuracy"] == eps])
    return figure


def draw_left_out(ax: Axes, part: pd.DataFrame) -> None:
    """A dot per family left out, those with a colour of their own larger and on top."""
    has_colour = part["left_out"].isin(FAMILIES)
    for rows, size in ((part[~has_colour], 4), (part[has_colour], 10)):
        colors = [FAMILIES.get(name, FAMILIES["Other"])[0] for name in rows["left_out"]]
        ax.scatter(rows["rho_without"], rows["row"], s=size, color=colors, linewidth=0)
    ax.scatter(part["rho"], part["row"], s=30, marker="|", color="black", linewidth=1, zorder=2)


# ---- variance explained --------------------------------------------------------------------------


def variance_explained(results: Results) -> Iterator[Drawing]:
    """Variance of accuracy under attack explained: in sample, unseen models, unseen families."""
    for study in studies(results):
        table = variance_table(study)
        if table.empty:
            continue
        caption = (
            f"Variance of accuracy under attack explained (R2), of {table['n'][0]} models that "
            "have all averages and accuracies. Unseen models: ten folds drawn at random, five "
            "times; unseen families: ten folds of whole families; 0 is the mean of the models "
            f"seen, and less is worse than it (values below {LOWEST} are drawn there). One "
            "predictor: least squares. All benchmarks: ridge regression on standardised scores, "
            "its penalty chosen and missing scores set to the benchmark's median within each "
            f"training part; benchmarks known of at least {COMPARABLE:.0%} of the models."
        )
        yield drawing_of(study, "variance_explained", draw_explained(study, table), table, caption)


def draw_explained(study: Study, table: pd.DataFrame) -> Figure:
    """A row per predictor, a marker per kind of R2."""
    names = list(table["predictor"].unique())
    shown = table[list(EXPLAINED)].clip(lower=LOWEST)
    handles = []
    for marker, face, edge, label in EXPLAINED.values():
        handle = Line2D([], [], marker=marker, linestyle="", label=label)
        handle.set(markerfacecolor=face, markeredgecolor=edge)
        handles.append(handle)
    figure, axes = row_panels(study, names, "variance explained (R²)", handles, row_height=0.17)
    for ax, eps in zip(axes, drawn_radii(study.radii)):
        for column, (marker, face, edge, _) in EXPLAINED.items():
            ax.scatter(
                shown.loc[table["eps"] == eps, column],
                range(len(names)),
                s=16,
                marker=marker,
                facecolor=face,
                edgecolor=edge,
                linewidth=0.7,
                zorder=3,
            )
    return figure


FIGURES = {
    "survivors_forest": (survivors_forest, NEEDED_DATA),
    "leave_one_family_out": (leave_one_family_out, NEEDED_DATA),
    "variance_explained": (variance_explained, NEEDED_DATA),
}
