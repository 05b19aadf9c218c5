"""Style that figures share: sizes, colours of models and radii, panels, heat maps and headings."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError
from alignment_security.models.families import FAMILIES, OTHER, family

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches: one column of a two-column paper, and both
LINE_HEIGHT = 0.16  # inches: a line of a legend
LETTER_WIDTH = 0.062  # inches: a letter of 7 points, on average
LONGEST_SHARE = 0.4  # of a column's width, that names of rows may take
SMALL = 6  # points: the smallest letters
TITLE_LETTERS = 46  # in a line of a panel's title
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"  # colour maps
EMPTY, GREY, DARK = "#D9D9D9", "#666666", "#222222"
# the family OTHER is a light grey, which a line or a point on white is lost in
FAMILY_COLOURS = {name: colour for name, (colour, _) in FAMILIES.items()} | {OTHER: "#707070"}
# Okabe and Ito's colours; a radius each, so that figures show at most as many radii
RADIUS_COLOURS = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#000000")
STYLE: Any = {
    "figure.max_open_warning": 0,  # --show_plots keeps them all
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
    "text.parse_math": False,  # a name with two dollar signs is no mathematics
}
MARKERS, DASHES = "osD^vP*X", ("-", "--", ":", "-.")  # distinguish the models of a family
MAX_NAMED = 24  # models in a legend; with more, lines are plain and the legend gives families
MAX_BANDS = 8  # lines with a band around each; more bands hide each other
NORM_SYMBOLS = {"Linf": "L∞", "L2": "L₂", "L1": "L₁"}
# name, figure (None: a LaTeX table), the table that is drawn, caption
Drawing = tuple[str, Figure | None, pd.DataFrame, str]


# ---- models and radii ----------------------------------------------------------------------------


def visible_style(style: dict[str, Any], points: int) -> dict[str, Any]:
    """Keywords of a line of so many points: of a single one nothing shows but a marker."""
    if points > 1:
        return style
    return {"markersize": 3, **style, "marker": style.get("marker") or "o", "markevery": None}


def model_styles(models: set[str], among: Iterable[str] = ()) -> dict[str, dict]:
    """Keywords of each model's line: colour by family, marker and dashes by its place in it.

    Few models have a colour each: three of one family would be three lines of one colour.

    among   every model of the results. If they are as few, a model looks alike in all figures
    """
    everyone = models.union(among)
    limits = len(RADIUS_COLOURS), MAX_NAMED  # above each of which models look otherwise
    if any(len(models) <= limit < len(everyone) for limit in limits):
        everyone = models
    styles = styles_of_all(sorted(everyone))
    return {model: styles[model] for model in sorted(models)}


def styles_of_all(models: list[str]) -> dict[str, dict]:
    """`model_styles` of models that share no figure with others."""
    if len(models) <= len(RADIUS_COLOURS):
        looks = zip(RADIUS_COLOURS, MARKERS, itertools.cycle(DASHES))
        return {
            model: {"color": colour, "marker": marker, "linestyle": dashes}
            for model, (colour, marker, dashes) in zip(models, looks)
        }
    styles, seen = {}, dict.fromkeys(FAMILIES, 0)
    for model in models:
        name = family(model)
        style: dict[str, Any] = {"color": FAMILY_COLOURS[name]}
        if len(models) > MAX_NAMED:
            style["linewidth"] = 0.6
        else:
            style["marker"] = MARKERS[seen[name] % len(MARKERS)]
            style["linestyle"] = DASHES[seen[name] % len(DASHES)]
        styles[model] = style
        seen[name] += 1
    return styles


def legend_handles(styles: dict[str, dict]) -> list[Line2D]:
    """A line per model, or per family if there are more than MAX_NAMED models."""
    if len(styles) <= MAX_NAMED:
        return [Line2D([], [], label=model, **style) for model, style in styles.items()]
    present = {family(model) for model in styles}
    return [
        Line2D([], [], label=name, color=color)
        for name, color in FAMILY_COLOURS.items()
        if name in present
    ]


def drawn_radii(radii: list[float]) -> list[float]:
    """The radii that get a panel or a colour: all, or as many as there are colours, spread out."""
    most = len(RADIUS_COLOURS)
    if len(radii) <= most:
        return radii
    return [radii[i] for i in np.linspace(0, len(radii) - 1, most).round().astype(int)]


def radius_axis(ax: Axes, eps: Iterable[float], norm: str, end: float) -> None:
    """Ticks at the radii evaluated, of those that would touch the largest, 0 or the larger one.

    Linf in 255ths.

    end   of the axis
    """
    radii = sorted(eps, reverse=True)
    ticks: list[float] = []
    for value in [radii[0], *(value for value in radii if value == 0), *radii]:
        if all(abs(value - tick) > 0.1 * end for tick in ticks):
            ticks.append(float(value))
    ticks.sort(reverse=True)
    labels = [format_eps(value, norm, radii) for value in ticks]
    unit = " (1/255)" if any("/255" in label for label in labels) else ""
    ax.set_xticks(ticks, [label.removesuffix("/255") for label in labels])
    ax.set_xlabel(f"radius ε in {NORM_SYMBOLS.get(norm, norm)}{unit}")


# ---- parts of figures ----------------------------------------------------------------------------


def panels(count: int, legend: list[Line2D]) -> tuple[Figure, list[Axes]]:
    """`count` axes, one to a column or two to a page, above a legend of as many columns as fit."""
    width, columns = (COLUMN_WIDTH, 1) if count == 1 else (PAGE_WIDTH, 2)
    in_legend = legend_columns(legend, width) if legend else 1
    height = 2.3 * -(-count // columns) + 0.15 * -(-len(legend) // in_legend)
    figure, axes = axes_grid(count, columns, (width, height))
    figure.legend(handles=legend, loc="outside lower center", ncols=in_legend)
    return figure, list(axes.flat[:count])


def axes_grid(
    count: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    """`count` axes in rows of so many, (rows, columns); places that are left over stay empty.

    size      of the figure, inches
    options   of plt.subplots
    """
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, layout="constrained", figsize=size, **options
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes


def plain_log_ticks(axis: XAxis | YAxis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade, without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def largest_of_alike(keys: Sequence[Hashable], values: Sequence[float]) -> list[float]:
    """For each panel the largest value of the panels with its key: the end of their common axis."""
    return pd.Series(values).groupby(pd.Series(keys)).transform("max").tolist()


def legend_columns(legend: list[Line2D], width: float) -> int:
    """As many columns of a legend as fit a width in inches."""
    longest = max(len(str(line.get_label())) for line in legend)
    return min(len(legend), max(1, int(width / (0.45 + LETTER_WIDTH * longest))))


def width_beside(names: Iterable[str]) -> float:
    """Width of a figure with a name beside each row: a column, or a page for long names."""
    longest = LETTER_WIDTH * max(map(len, names))
    return COLUMN_WIDTH if longest <= LONGEST_SHARE * COLUMN_WIDTH else PAGE_WIDTH


def check_windows() -> None:
    """Raise UserError where matplotlib can open no window. It draws in memory then, silently."""
    backend = plt.get_backend()
    if backend.lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
        raise UserError(
            f"--show_plots: matplotlib can open no window here (its backend is {backend}: no "
            "display, or neither Tk nor Qt for this Python); without it, figures are written to "
            "--figures_dir"
        )


def titles_into_caption(figure: Figure) -> str:
    """Take titles and heading off a figure; panels keep a letter. Returns them as a sentence."""
    heading = figure.get_suptitle().replace("\n", " ")
    figure.suptitle("")
    titled = [ax for ax in figure.axes if ax.get_title(loc="left")]
    letters = [""] if len(titled) == 1 else [f"({chr(ord('a') + i)})" for i in range(len(titled))]
    sentences = [heading] if heading else []
    for ax, letter in zip(titled, letters):
        title = ax.get_title(loc="left").replace("\n", ", ")
        sentences.append(f"{letter} {title}".strip())
        ax.set_title(letter, loc="left")
    return "".join(f"{sentence}. " for sentence in sentences)


def put_heading(figure: Figure, text: str) -> None:
    """A heading across the top of a figure: what was measured, and with which budget."""
    wrapped = textwrap.fill(text, int(figure.get_figwidth() / LETTER_WIDTH))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=7)


def draw_heat_map(ax: Axes, values: pd.DataFrame, cmap: str, **options) -> Collection:
    """A coloured cell per value, EMPTY where there is none, rows from the top.

    options   of seaborn.heatmap: vmin, vmax, annot, linewidths, xticklabels, ...
    Returns the mesh, for a colour bar.
    """
    colours = plt.get_cmap(cmap).with_extremes(bad=EMPTY)
    sns.heatmap(values, ax=ax, cmap=colours, cbar=False, **options)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    return ax.collections[0]
