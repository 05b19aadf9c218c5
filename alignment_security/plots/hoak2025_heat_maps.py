"""Heat maps of Hoak 2025: correlations of every benchmark with accuracy, down a whole page."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure

from alignment_security.analysis.hoak2025 import (
    ALPHA,
    MIN_MODELS,
    Study,
    studies,
)
from alignment_security.analysis.hoak2025_accuracies import CLEAN_OUTCOME
from alignment_security.analysis.hoak2025_statistics import correlation_table
from alignment_security.analysis.results import Results
from alignment_security.plots.hoak2025 import NEEDED_DATA, drawing_of, short_benchmark
from alignment_security.plots.style import (
    DIVERGING,
    GREY,
    PAGE_WIDTH,
    SMALL,
    Drawing,
    draw_heat_map,
    put_heading,
)

ROW_HEIGHT = 0.1  # inches: a benchmark, with letters of SMALL points
SCALE_ROWS = 7  # rows that the colour scale and its label take
STRONG = 0.6  # |rho| above which a mark is white, on a dark cell


def robust_only_correlation(results: Results) -> Iterator[Drawing]:
    """Heat map: Spearman's correlation of every benchmark with clean accuracy and under attack."""
    for study in studies(results):
        table = correlation_table(study)
        table = table[[name for name in table if not name.startswith("partial_")]]
        caption = (
            "Spearman's correlation of each benchmark with accuracy, over the n models that have "
            "both (right of each row; where it differs, the smallest). "
            + correction(table["family_q"])
        )
        figure = heat_map(study, table, "rho", "family_q", "n")
        yield drawing_of(study, "robust_only_correlation", figure, table, caption)


def partial_correlation(results: Results) -> Iterator[Drawing]:
    """Heat map: the same given clean accuracy.

    So that no benchmark counts merely because better models score higher on it.
    """
    for study in studies(results):
        table = correlation_table(study)
        table = table[table["accuracy"] != CLEAN_OUTCOME]
        if table["partial_rho"].isna().all():
            continue
        caption = (
            "Partial Spearman correlation of each benchmark with accuracy under attack, given "
            "clean accuracy on the same images, over the models that have all three. "
            + correction(table["partial_family_q"])
        )
        figure = heat_map(study, table, "partial_rho", "partial_family_q", "partial_n")
        yield drawing_of(study, "partial_correlation", figure, table, caption)


def correction(q: pd.Series) -> str:
    """What the marks and the empty cells of a heat map mean, for its caption."""
    return (
        f"Dot: q over families <= {ALPHA} (ranks with a random intercept per family of models; "
        f"Benjamini-Hochberg over all {q.notna().sum()} cells that have a value; "
        f"{(q <= ALPHA).sum()} are marked). Grey: no value, because fewer than {MIN_MODELS} "
        "models, or no clean accuracy to hold constant, are known, or because all values are equal "
        "(column `empty` of the table). Bold: averages of the benchmarks below them. Marques2020_ "
        "and laboratories are left off the names."
    )


def halves(groups: list[str]) -> int:
    """Where to break rows into two columns: at the change of group nearest to the middle."""
    changes = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    if not changes:
        return (len(groups) + 1) // 2
    return min(changes, key=lambda i: abs(i - len(groups) / 2))


def heat_map(study: Study, table: pd.DataFrame, value: str, q: str, n: str) -> Figure:
    """Benchmarks in the leaderboard's order down two columns, accuracies across.

    table         rows of `correlation_table`
    value, q, n   its columns with the correlation, its q and its number of models
    The colour scale is below the shorter column.
    """
    benchmarks, outcomes = table.drop_duplicates("benchmark"), list(table["accuracy"].unique())
    cut = halves(list(benchmarks["group"]))
    parts = [part for part in (benchmarks[:cut], benchmarks[cut:]) if len(part)]
    lengths = [len(part) for part in parts]
    rows = max(max(lengths), min(lengths) + SCALE_ROWS)
    figure, axes = plt.subplots(
        1, len(parts), figsize=(PAGE_WIDTH, ROW_HEIGHT * rows + 0.9), squeeze=False
    )
    figure.set_layout_engine("constrained", wspace=0.06)
    grids = table.pivot(index="benchmark", columns="accuracy", values=[value, q, n])
    for ax, part in zip(axes.flat, parts):
        cells = grids.loc[part["benchmark"]]
        grid = (cells[name][outcomes].rename(columns=study.label) for name in (value, q, n))
        mesh = draw_column(ax, part, *grid)
        ax.set_ylim(rows, 0)
    shorter = int(np.argmin(lengths))
    label = "Spearman's ρ" + (",\ngiven clean accuracy" if value == "partial_rho" else "")
    draw_scale(axes.flat[shorter], mesh, lengths[shorter] + 3, len(outcomes), label)
    put_heading(figure, study.heading)
    return figure


def draw_scale(ax: Axes, mesh: Collection, row: int, width: int, label: str) -> None:
    """The colour scale at a row of a column, as wide as its cells."""
    scale = ax.inset_axes((0, row, width, 1.2), transform=ax.transData)
    bar = ax.figure.colorbar(mesh, cax=scale, orientation="horizontal", ticks=[-1, 0, 1])
    bar.set_label(f"{label}\n• q ≤ {ALPHA}, grey: no value", size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)


def draw_column(
    ax: Axes, rows: pd.DataFrame, value: pd.DataFrame, q: pd.DataFrame, n: pd.DataFrame
) -> Collection:
    """One column of a heat map: averages in bold, marks in cells, n at the right.

    rows          a row per benchmark, with `leaf`
    value, q, n   (benchmarks, labels of accuracies)
    """
    mesh = draw_heat_map(
        ax,
        value.astype(float),
        DIVERGING,
        vmin=-1,
        vmax=1,
        linewidths=0.3,
        xticklabels=list(value.columns),
        yticklabels=[short_benchmark(name) for name in value.index],
    )
    marked = np.argwhere((q <= ALPHA).to_numpy())
    strong = np.abs(value.to_numpy(float)[tuple(marked.T)]) > STRONG
    colors = np.where(strong, "white", "black")
    ax.scatter(marked[:, 1] + 0.5, marked[:, 0] + 0.5, s=2.5, linewidth=0, color=colors)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, pad=2, labelsize=SMALL)
    ax.tick_params(axis="x", rotation=90)
    for text, leaf in zip(ax.get_yticklabels(), rows["leaf"]):
        text.set_fontweight("normal" if leaf else "bold")
    right = value.shape[1] + 0.15
    ax.text(right, -0.4, "n", fontsize=SMALL, color=GREY)
    for i, count in enumerate(n.min(axis=1)):
        ax.text(right, i + 0.5, f"{count:.0f}", fontsize=SMALL, va="center_baseline", color=GREY)
    return mesh


FIGURES = {
    "robust_only_correlation": (robust_only_correlation, NEEDED_DATA),
    "partial_correlation": (partial_correlation, NEEDED_DATA),
}
