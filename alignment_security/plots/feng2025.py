"""Figures of Feng et al. (2025): Perturbation Tolerance against human alignment, and both remedies.

Figures 2, 3 and 4 from the public numbers (--published), with a panel for each protocol of ours.
The remedies are adversarial training and harmonization with human maps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURE_NAMES,
    MEASURES,
    correlation,
    in_drawn_units,
    mark_pareto_front,
    measure_label,
    rho_text,
    robust_series,
    tables_of_every_norm,
    tables_with,
)
from alignment_security.analysis.norm_table import MULTILABEL, NormTable
from alignment_security.analysis.results import Results
from alignment_security.plots.feng2025_fits import (
    HUMAN_ACCURACY,
    HUMAN_SPREAD,
    draw_human_accuracy,
    draw_quadratic_fit,
    factor,
    fit_sentences,
)
from alignment_security.plots.feng2025_style import (
    GROUP_STYLES,
    LACKING,
    SERIES_DASHES,
    draw_front,
    draw_series,
    estimated_handles,
    group_handles,
    tolerance_scale,
)
from alignment_security.plots.style import (
    NORM_SYMBOLS,
    SMALL,
    Drawing,
    panels,
)

MAX_NAMED_POINTS = 6  # models of a panel whose names are written next to their points
MAX_LETTERS = 26  # of such a name
MARKER_RADIUS = 4  # points


# ---- panels --------------------------------------------------------------------------------------


def scatter(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Points by group with their standard errors in y; hollow where the accuracy is estimated."""
    size = 4 if len(rows) > 30 else 5
    for group, part in rows.dropna(subset=[x, y]).groupby("group", sort=False):
        colour, marker = GROUP_STYLES.get(group, GROUP_STYLES["Other"])
        ax.errorbar(
            factor(x) * part[x],
            factor(y) * part[y],
            factor(y) * part[f"{y}_sem"].fillna(0),
            fmt="none",
            ecolor=(colour, 0.35),
            elinewidth=0.6,
            zorder=1,
        )
        for is_hollow, points in part.groupby(part["estimated"] & (x == "accuracy")):
            ax.plot(
                factor(x) * points[x],
                factor(y) * points[y],
                marker,
                markersize=size + 2 * (marker == "*"),
                color=colour,
                markerfacecolor="white" if is_hollow else colour,
                markeredgecolor=colour if is_hollow else "white",
                markeredgewidth=0.7 if is_hollow else 0.3,
                zorder=2,
            )


def draw_panel(ax: Axes, table: NormTable, rows: pd.DataFrame, x: str, y: str, title: str) -> None:
    """Points of some rows of a table; above them a title and rho over its standard models."""
    scatter(ax, rows, x, y)
    if x == "pt":
        tolerance_scale(ax.xaxis, rows["pt"])
    if y == "pt":
        tolerance_scale(ax.yaxis, rows["pt"])
    x_label = measure_label(table, x) if x in MEASURES else table.accuracy_label
    ax.set(xlabel=x_label, ylabel=measure_label(table, y))
    ax.set_title(f"{title}\n{rho_text(correlation(table.standard, x, y))}", loc="left")
    ax.margins(0.08)
    if x == "accuracy":  # the margin is no accuracy
        low, high = ax.get_xlim()
        ax.set_xticks([tick for tick in ax.get_xticks() if max(0, low) <= tick <= min(high, 100)])


def name_points(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Names next to the points of a panel of few models, so that they do not overlap.

    Of a long name, the architecture.
    """
    points = rows.dropna(subset=[x, y])
    if len(points) > MAX_NAMED_POINTS:
        return
    xs, ys = factor(x) * points[x].to_numpy(), factor(y) * points[y].to_numpy()
    texts = []
    for place_x, place_y, name in zip(xs, ys, points["model"]):
        if len(name) > MAX_LETTERS:
            name = name.partition(".")[0][:MAX_LETTERS]
        texts.append(ax.text(place_x, place_y, name, fontsize=SMALL))
    ax.figure.draw_without_rendering()  # fixes the layout, which adjust_text needs
    adjust_text(
        texts,
        *marker_outline(ax, xs, ys),
        ax=ax,
        iter_lim=200,
        expand=(1.1, 1.2),
        ensure_inside_axes=True,
        arrowprops={"arrowstyle": "-", "linewidth": 0.4},
    )


def marker_outline(ax: Axes, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """x and y of the middle and the four sides of the markers of some points, (2, 5 n)."""
    radius = MARKER_RADIUS * ax.figure.dpi / 72
    sides = radius * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    pixels = ax.transData.transform(np.column_stack([xs, ys]))
    outline = (pixels[:, None] + sides).reshape(-1, 2)
    return ax.transData.inverted().transform(outline).T


def number_panels(tables: list[NormTable]) -> pd.DataFrame:
    """The rows of some tables with the number of their `panel`."""
    rows = [table.rows.assign(panel=i) for i, table in enumerate(tables, start=1)]
    return pd.concat(rows, ignore_index=True)


# ---- captions ------------------------------------------------------------------------------------


def clauses(parts: dict[str, bool]) -> str:
    """A sentence of what a figure has of some parts; "" for none."""
    text = "; ".join(part for part, is_drawn in parts.items() if is_drawn)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def point_parts(tables: list[NormTable], x: str, y: str) -> dict[str, bool]:
    """What panels of points may have, and whether these do: bars, and a correlation."""
    bars = any(table.rows[f"{y}_sem"].notna().any() for table in tables)
    counts = [len(table.standard.dropna(subset=[x, y])) for table in tables]
    return {
        "bars: standard errors": bars,
        "ρ: Spearman over the standard models (neither robust nor harmonized), 95 % bootstrap "
        "interval": max(counts) >= FEWEST,
    }


# ---- Figures 2 and 3 -----------------------------------------------------------------------------


def perturbation_tolerance(results: Results) -> Iterator[Drawing]:
    """Figure 2: Perturbation Tolerance against multi-label accuracy."""
    return against_accuracy(results, "pt", "perturbation_tolerance")


def human_alignment(results: Results) -> Iterator[Drawing]:
    """Figure 3: human alignment against multi-label accuracy."""
    return against_accuracy(results, "alignment", "human_alignment")


def against_accuracy(results: Results, measure: str, name: str) -> Iterator[Drawing]:
    """A measure against multi-label accuracy, with a quadratic fit and people's accuracy."""
    columns = ["accuracy", measure]
    tables = tables_with(tables_of_every_norm(results), columns)
    if not tables:
        return
    known = [table._replace(rows=table.rows.dropna(subset=columns)) for table in tables]
    rows, shown = number_panels(known), [in_drawn_units(table) for table in known]
    figure, axes = panels(len(shown), group_handles(rows) + estimated_handles(rows))
    for ax, table in zip(axes, shown):
        draw_quadratic_fit(ax, table.standard, measure)
        if table.accuracy_label == MULTILABEL:
            draw_human_accuracy(ax)
        draw_panel(ax, table, table.rows, "accuracy", measure, table.name)
    for ax, table in zip(axes, shown):
        name_points(ax, table.rows, "accuracy", measure)
    per_source = ", a panel per source" if len(shown) > 1 else ""
    fits = list(fit_sentences(shown, measure))
    parts = {
        **point_parts(shown, "accuracy", measure),
        "hollow: accuracy estimated from top-1": rows["estimated"].any(),
        "dashed: second-degree fit through the standard models": bool(fits),
        f"band: people, {HUMAN_ACCURACY} ± {HUMAN_SPREAD} %": any(
            table.accuracy_label == MULTILABEL for table in shown
        ),
    }
    name_of = MEASURE_NAMES[measure]
    about = f"{name_of[:1].upper()}{name_of[1:]} against accuracy{per_source}. "
    caption = "\n".join([about + clauses(parts), *fits, *(table.note for table in tables)])
    yield name, figure, rows, caption


# ---- Figure 4 ------------------------------------------------------------------------------------


def tradeoff(results: Results) -> Iterator[Drawing]:
    """Figure 4: human alignment against Perturbation Tolerance.

    Two panels per source: standard models, and all models if there are others.
    """
    found = tables_with(tables_of_every_norm(results), [*MEASURES])
    tables = [mark_pareto_front(table) for table in found]
    views = []
    for table in map(in_drawn_units, tables):
        views.append((table, table.standard, table.name))
        if len(table.rows) > len(table.standard):
            views.append((table, table.rows, f"{table.name}, all models"))
    if not views:
        return
    numbered = number_panels(tables)
    figure, axes = panels(len(views), group_handles(numbered) + series_handles(tables))
    for ax, (table, rows, title) in zip(axes, views):
        draw_front(ax, table.rows[table.rows["front"]])
        draw_series(ax, rows)
        draw_panel(ax, table, rows, "pt", "alignment", title)
    for ax, (_, rows, _) in zip(axes, views):
        name_points(ax, rows, "pt", "alignment")
    beside = ", with robust and harmonized nets in a panel of its own"
    about = "Human alignment against Perturbation Tolerance"
    about += f"{beside if len(views) > len(tables) else ''}. "
    parts = {
        "black line: Pareto front of the standard models, none of which is better in both": any(
            table.rows["front"].sum() > 1 for table in tables
        ),
        "coloured lines: one net trained against growing eps": bool(series_handles(tables)),
        **point_parts(tables, "pt", "alignment"),
    }
    caption = "\n".join([about + clauses(parts), *(table.note for table in tables)])
    yield "tradeoff", figure, numbered, caption


def series_handles(tables: list[NormTable]) -> list[Line2D]:
    """Legend of the norms that nets of some tables were trained against."""
    names = [name for table in tables for name, _ in robust_series(table.rows)]
    return [
        Line2D(
            [],
            [],
            color=GROUP_STYLES["robust"][0],
            linewidth=0.8,
            linestyle=dashes,
            label=f"growing {NORM_SYMBOLS[norm]} eps",
        )
        for norm, dashes in SERIES_DASHES.items()
        if any(name.endswith(norm) for name in names)
    ]


FIGURES = {
    "perturbation_tolerance": (perturbation_tolerance, LACKING),
    "human_alignment": (human_alignment, LACKING),
    "tradeoff": (tradeoff, LACKING),
}
