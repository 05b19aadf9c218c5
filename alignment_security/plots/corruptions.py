"""Figures of corruptions: error under each type, and accuracy against severity."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment_security.analysis.accuracy_pairs import share_intervals
from alignment_security.analysis.captions import evaluation_dates
from alignment_security.analysis.record_tables import (
    corruption_summary,
    corruption_table,
    tables_by_severities,
)
from alignment_security.analysis.results import Results, group_finished
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    LETTER_WIDTH,
    LINE_HEIGHT,
    MAX_BANDS,
    PAGE_WIDTH,
    Drawing,
    axes_grid,
    draw_heat_map,
    legend_columns,
    legend_handles,
    model_styles,
    put_heading,
    visible_style,
)
from alignment_security.records.comparable import corruption_settings, numbered

MOST_COLUMNS = 4  # of panels
CELL_WIDTH = 0.33  # inches: a cell of a heat map with its number, at least


def corrupted_runs(results: Results) -> list[list[dict]]:
    """The finished runs on corrupted images, by image set and settings."""
    runs = [run for run in results.runs if run["threat"].startswith("corruptions-")]
    return group_finished(runs, ("clean",), corruption_settings)


# ---- error under each corruption -----------------------------------------------------------------


def corruption_errors(results: Results) -> Iterator[Drawing]:
    """Error under each corruption, mean over severities, and the mean over types.

    A figure per image set, settings and set of severities, a row per model: a mean over severity 3
    is not beside one over all five.
    """
    tables = [
        table
        for group in corrupted_runs(results)
        for table in tables_by_severities(corruption_table(group))
    ]
    names = [f"corruption_errors_{table['image_set'].iat[0]}" for table in tables]
    for name, table in zip(numbered(names), tables):
        summary = corruption_summary(table)
        yield (
            name,
            draw_corruptions(table["image_set"].iat[0], table, summary),
            table.join(summary[["mean_error", "relative_error", "mce"]], on="model"),
            corruption_caption(table, summary),
        )


def draw_corruptions(image_set: str, table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """A cell per model and corruption, with its error in it, and one for the mean."""
    errors = table.pivot_table(index="model", columns="type", values="error")  # over severities
    errors["mean"] = summary["mean_error"]
    longest = LETTER_WIDTH * max(map(len, errors.index))
    fits = longest + CELL_WIDTH * errors.shape[1] <= COLUMN_WIDTH
    figure, ax = plt.subplots(
        figsize=(COLUMN_WIDTH if fits else PAGE_WIDTH, 1.5 + 0.2 * len(errors)),
        layout="constrained",
    )
    draw_heat_map(
        ax,
        100 * errors,
        "cividis",
        vmin=0,
        vmax=100,
        annot=True,
        fmt=".0f",
        annot_kws={"size": 6.5},
    )
    names = [name.replace("_", " ") for name in errors.columns]
    ax.set_xticks(ax.get_xticks(), names, rotation=45, ha="right", rotation_mode="anchor")
    severities = severities_text(table)
    put_heading(figure, f"{image_set} (n = {table['n'].iat[0]}): error (%), {severities}")
    return figure


def severities_text(table: pd.DataFrame) -> str:
    """The severities behind each cell: `severity 3`, or `mean over severities 1, 2`."""
    severities = sorted(map(str, table["severity"].unique()))
    if len(severities) == 1:
        return f"severity {severities[0]}"
    return f"mean over severities {', '.join(severities)}"


def corruption_caption(table: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Mean error and mCE of each model, or why it has none, and which severities were run."""
    lines = []
    for model, row in summary.iterrows():
        mce = f"no mCE ({row.no_mce})"
        if np.isfinite(row.mce):
            mce = f"mCE {100 * row.mce:.1f} over ImageNet-C's 15 types (AlexNet 100)"
        elif np.isfinite(row.relative_error):
            mce += f", {100 * row.relative_error:.1f} % of AlexNet's error over the types of both"
        lines.append(
            f"{model}: mean error {100 * row.mean_error:.1f} % over {row.types:.0f} types and "
            f"{row.cells:.0f} cells, {mce}"
        )
    return "\n".join(
        [
            "Top-1 error of all images under each corruption, "
            f"{severities_text(table)}; grey: not run.",
            *lines,
            f"n = {table['n'].iat[0]} images a cell.",
        ]
    )


# ---- accuracy against severity -------------------------------------------------------------------


def accuracy_vs_severity(results: Results) -> Iterator[Drawing]:
    """Accuracy against severity: a panel per corruption, a line per model.

    A figure per image set and settings, of the types that were run at two severities or more.
    """
    groups = [(group, severity_table(group)) for group in corrupted_runs(results)]
    groups = [(group, table) for group, table in groups if len(table)]
    names = numbered([f"accuracy_vs_severity_{group[0]['image_set']}" for group, _ in groups])
    for name, (group, table) in zip(names, groups):
        bands = "; bands: 95 % Wilson intervals" if table["model"].nunique() <= MAX_BANDS else ""
        caption = (
            "Top-1 accuracy of all images against the severity of each corruption "
            f"(n = {table['n'].iat[0]} images a point{bands}). Evaluated {evaluation_dates(group)}."
        )
        figure = draw_severities(table, group[0]["image_set"], results.evaluated)
        yield name, figure, table, caption


def severity_table(group: list[dict]) -> pd.DataFrame:
    """`corruption_table` with accuracy and its interval, of types with two severities or more."""
    table = corruption_table(group)
    several = table.groupby("type")["severity"].transform("nunique") > 1
    table = table[several].sort_values(["type", "model", "severity"], ignore_index=True)
    if table.empty:
        return table
    table = table.assign(accuracy=1 - table["error"])
    table[["low", "high"]] = share_intervals(table["accuracy"], table["n"])
    return table


def draw_severities(table: pd.DataFrame, image_set: str, among: set[str]) -> Figure:
    """A panel per corruption, with common axes, above a legend of models (or families).

    among   of `model_styles`
    """
    kinds = list(table["type"].unique())
    styles = model_styles(set(table["model"]), among)
    handles = legend_handles(styles)
    columns = min(MOST_COLUMNS, len(kinds))
    rows, width = -(-len(kinds) // columns), COLUMN_WIDTH if columns < 3 else PAGE_WIDTH
    in_legend = legend_columns(handles, width)
    height = 0.5 + 1.4 * rows + LINE_HEIGHT * -(-len(handles) // in_legend)
    figure, axes = axes_grid(len(kinds), columns, (width, height), sharey=True)
    for i, (ax, kind) in enumerate(zip(axes.flat, kinds)):
        draw_severity_lines(ax, table[table["type"] == kind], styles)
        ax.set_title(kind.replace("_", " "), loc="left")
        if i >= len(kinds) - columns:  # no panel is below
            ax.set_xlabel("severity")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=in_legend)
    put_heading(figure, f"{image_set} (n = {table['n'].iat[0]})")
    return figure


def draw_severity_lines(ax: Axes, part: pd.DataFrame, styles: dict[str, dict]) -> None:
    """A line per model, with its interval if models are few."""
    for model, points in part.groupby("model"):
        style = visible_style(styles[model], len(points))
        ax.plot(points["severity"], 100 * points["accuracy"], clip_on=False, **style)
        if len(styles) <= MAX_BANDS:
            band = {"color": styles[model]["color"], "alpha": 0.12, "linewidth": 0}
            ax.fill_between(points["severity"], 100 * points["low"], 100 * points["high"], **band)
    ax.set(ylim=(0, 100), xticks=sorted(part["severity"].unique()))


CORRUPTED = (
    "`python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --dataset "
    "imagenet-c corruptions --corruption_type fog --corruption_severity 3` makes it"
)
SEVERITIES = (
    "`python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --dataset "
    "imagenet-c corruptions --corruption_type fog --corruption_severity 1 2 3 4 5` makes it"
)
FIGURES = {
    "corruption_errors": (corruption_errors, CORRUPTED),
    "accuracy_vs_severity": (accuracy_vs_severity, SEVERITIES),
}
