"""Figures of minimal norms: accuracy against eps without another attack, and ranks by protocol."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.feng2025 import NOT_MINIMAL, correlation, norm_tables, rho_text
from alignment_security.analysis.norm_table import short_name
from alignment_security.analysis.norms import (
    ProtocolPair,
    accuracy_curve,
    norm_groups,
    protocol_pairs,
)
from alignment_security.analysis.results import NothingToDraw, Results, panel_budget
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    FAMILY_COLOURS,
    GREY,
    MAX_BANDS,
    MAX_NAMED,
    PAGE_WIDTH,
    SMALL,
    TITLE_LETTERS,
    Drawing,
    axes_grid,
    largest_of_alike,
    legend_handles,
    model_styles,
    panels,
    radius_axis,
    visible_style,
)
from alignment_security.records.comparable import run_folder
from alignment_security.records.norm_summary import minimised_norm

MAX_LETTERS = 34  # of a model's name


# ---- accuracy against eps ------------------------------------------------------------------------


def accuracy_vs_norm(results: Results) -> Iterator[Drawing]:
    """Accuracy against eps from minimal norms: a panel per image set, threat and settings.

    A line per model.
    """
    groups = norm_groups(results)
    if not groups:
        return
    tables = [
        pd.concat([accuracy_curve(run) for run in group]).assign(panel=i)
        for i, group in enumerate(groups, start=1)
    ]
    models = {run["model"] for group in groups for run in group}
    looks = model_styles(models, results.evaluated)
    styles = {model: style | {"marker": ""} for model, style in looks.items()}
    figure, axes = panels(len(groups), legend_handles(styles))
    ends = largest_of_alike(
        [axis_key(group[0]) for group in groups], [t["eps"].max() for t in tables]
    )
    for ax, group, table, end in zip(axes, groups, tables, ends):
        draw_curves(ax, table, styles, minimised_norm(group[0]["threat"]), end)
        names = f"{', '.join(run_folder(group[0]))} (n = {group[0]['images']})"
        below = textwrap.fill(panel_budget(group[0], groups), TITLE_LETTERS)
        ax.set_title(f"{names}\n{below}", loc="left")
    bands = "bands: 95 % Wilson intervals; " if len(styles) <= MAX_BANDS else ""
    caption = "\n".join(
        [
            "Accuracy against eps from minimal norms: the share of all images that are classified "
            "correctly and whose smallest perturbation found is larger than eps; "
            f"{bands}an upper bound of robust accuracy, far above it where norms are not minimal "
            f"(protocol {NOT_MINIMAL}). Panels of one norm and image set have one axis, those of "
            f"{NOT_MINIMAL} another.",
            *(describe_runs(group, results.runs, "no L1 norm in its record") for group in groups),
        ]
    )
    yield "accuracy_vs_norm", figure, pd.concat(tables, ignore_index=True), caption


def axis_key(run: dict) -> tuple[str, str, bool]:
    """What panels of one axis share: image set, norm, and whether norms are minimal."""
    not_minimal = run["settings"]["run"].get("protocol") == NOT_MINIMAL
    return run["image_set"], minimised_norm(run["threat"]), not_minimal


def draw_curves(
    ax: Axes, table: pd.DataFrame, styles: dict[str, dict], norm: str, end: float
) -> None:
    """A falling step function per model, with its interval if models are few.

    end   of the axis of eps
    A dot for a model without a norm, on the axis if it classifies no image correctly.
    """
    if not table["correct"].any():
        reason = "no image is classified correctly"
        ax.text(0.5, 0.5, reason, ha="center", color=GREY, transform=ax.transAxes)
    for model, part in table.groupby("model"):
        style = visible_style(styles[model], len(part))
        alone = len(part) == 1  # its dot is on the axis
        ax.plot(
            part["eps"],
            100 * part["accuracy"],
            drawstyle="steps-post",
            clip_on=not alone,
            **style,
        )
        if len(styles) <= MAX_BANDS:
            ax.fill_between(
                part["eps"],
                100 * part["low"],
                100 * part["high"],
                color=styles[model]["color"],
                alpha=0.12,
                linewidth=0,
                step="post",
            )
    largest = end or 1.0
    unit = 255 if norm == "Linf" else 1
    ticks = np.asarray(plt.MaxNLocator(5).tick_values(0, unit * largest)) / unit
    radius_axis(ax, ticks[ticks <= largest], norm, largest)
    ax.set(ylim=(0, 100), xlim=(0, 1.04 * largest), ylabel="accuracy (%)")


# ---- ranks under two protocols -------------------------------------------------------------------


def rank_change(results: Results) -> Iterator[Drawing]:
    """Ranks of models by Perturbation Tolerance under feng2025 and under fmn or crossing.

    A panel per pair of protocols.
    """
    pairs = list(protocol_pairs(results))
    if not pairs:
        if norm_tables(results):
            raise NothingToDraw(
                f"two models with norms under {NOT_MINIMAL} and under fmn or crossing are needed"
            )
        return
    notes = dict.fromkeys(note for pair in pairs for note in (pair.feng2025.note, pair.other.note))
    caption = "\n".join(
        [
            "Models ranked by Perturbation Tolerance, the most tolerant first, under Feng 2025's "
            "protocol (whose norms are not minimal) and under one whose norms are; published "
            "numbers are of other images than ours. Title: Spearman over models with its 95 % "
            "bootstrap interval; behind a name, Spearman over the images of that model.",
            *notes,
        ]
    )
    tables = [pair.models.assign(panel=i) for i, pair in enumerate(pairs, start=1)]
    yield "rank_change", draw_rank_panels(pairs), pd.concat(tables), caption


def draw_rank_panels(pairs: list[ProtocolPair]) -> Figure:
    """A panel per pair of protocols, and a legend of families if names do not fit."""
    columns = min(2, len(pairs))
    most = max(len(pair.models) for pair in pairs)
    height = -(-len(pairs) // columns) * (0.9 + 0.13 * min(MAX_NAMED, most))
    width = PAGE_WIDTH if columns > 1 else COLUMN_WIDTH
    figure, axes = axes_grid(len(pairs), columns, (width, height))
    styles = model_styles({model for pair in pairs for model in pair.models["model"]})
    if len(styles) > MAX_NAMED:
        ncols = 5 if columns > 1 else 3
        figure.legend(handles=legend_handles(styles), loc="outside lower center", ncols=ncols)
    tables = [table for pair in pairs for table in (pair.feng2025, pair.other)]
    for ax, pair in zip(axes.flat, pairs):
        draw_ranks(ax, pair.models)
        rho = rho_text(correlation(pair.models, "pt_feng2025", "pt_other"))
        first = short_name(pair.feng2025, tables)
        second = short_name(pair.other, tables)
        lines = [textwrap.fill(text, TITLE_LETTERS) for text in (f"from {first}", f"to {second}")]
        ax.set_title("\n".join([*lines, rho]), loc="left")
    return figure


def draw_ranks(ax: Axes, models: pd.DataFrame) -> None:
    """A line per model from rank to rank, with its name if models are few."""
    with_names = len(models) <= MAX_NAMED
    for row in models.itertuples():
        ax.plot(
            [0, 1],
            [row.rank_feng2025, row.rank_other],
            marker="o",
            color=FAMILY_COLOURS[row.family],
            linewidth=0.8,
            markersize=3,
        )
        if with_names:
            ax.annotate(
                rank_label(row.model, row.rho_images),
                (1, row.rank_other),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
    right = 3.3 if with_names else 1.1
    ax.set(xlim=(-0.1, right), ylim=(len(models) + 0.5, 0.5), ylabel="rank", xticks=[])
    ax.yaxis.set_major_locator(plt.MaxNLocator(integer=True))
    ax.spines[["bottom"]].set_visible(False)


def rank_label(model: str, rho_images: float) -> str:
    """A model's name, cut off if it is long, and its correlation over images if it has one."""
    name = model if len(model) <= MAX_LETTERS else f"{model[: MAX_LETTERS - 1]}…"
    return name if np.isnan(rho_images) else f"{name} ({rho_images:.2f})"


MINIMAL_NORMS = (
    "`python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol crossing` "
    "makes it"
)
BOTH_PROTOCOLS = (
    "run `python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol "
    "feng2025`, the same with fmn or crossing, and `python utilities.py merge --results_dir {}`"
)
FIGURES = {
    "accuracy_vs_norm": (accuracy_vs_norm, MINIMAL_NORMS),
    "rank_change": (rank_change, BOTH_PROTOCOLS),
}
