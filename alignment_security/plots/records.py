"""Figures of records: accuracy against eps, and norms under each protocol."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.feng2025 import count_range
from alignment_security.analysis.record_tables import (
    accuracy_by_eps,
    protocol_table,
)
from alignment_security.analysis.results import Results, group_finished, panel_budget
from alignment_security.plots.style import (
    MARKERS,
    MAX_NAMED,
    NORM_SYMBOLS,
    PAGE_WIDTH,
    TITLE_LETTERS,
    Drawing,
    largest_of_alike,
    legend_handles,
    model_styles,
    panels,
    plain_log_ticks,
    radius_axis,
)
from alignment_security.records.ceiling import other_ceiling_text
from alignment_security.records.comparable import (
    comparable_settings,
    images_and_head,
    numbered,
)
from alignment_security.records.record import BALL_KINDS, SCREENED_KIND

# Okabe and Ito's
PROTOCOL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ESTIMATED = (
    " Of a screened record the accuracy is an estimate, and its interval that of what the full "
    "budget would give on the same images."
)


# ---- accuracy against eps ------------------------------------------------------------------------


def accuracy_vs_eps(results: Results) -> Iterator[Drawing]:
    """Accuracy under attack against eps: a panel per image set, threat and settings.

    A line per model.
    """
    groups = group_finished(results.runs, BALL_KINDS, comparable_settings)
    if not groups:
        return
    tables = [
        pd.concat([accuracy_by_eps(run) for run in group]).assign(panel=i)
        for i, group in enumerate(groups, start=1)
    ]
    runs = [run for group in groups for run in group]
    styles = model_styles({run["model"] for run in runs}, results.evaluated)
    figure, axes = panels(len(groups), legend_handles(styles))
    norms = [run["settings"]["run"].get("norm", run["threat"]) for run, *_ in groups]
    alike = [(group[0]["image_set"], norm) for group, norm in zip(groups, norms)]
    ends = largest_of_alike(alike, [table["eps"].max() for table in tables])
    for ax, group, table, norm, end in zip(axes, groups, tables, norms, ends):
        draw_accuracy(ax, table, styles, norm, end)
        ax.set_title(panel_title(group[0], groups), loc="left")
    if len(styles) <= MAX_NAMED:
        bars = (
            "Bars: 95 % Wilson intervals; models are shifted a little along the axis so that their "
            "bars do not overlap."
        )
    else:
        bars = "The 95 % Wilson intervals are in the table."
    caption = "\n".join(
        [
            "Accuracy under attack, of all images, against the radius eps (at 0: without attack). "
            f"{bars}{ESTIMATED if any(run['kind'] == SCREENED_KIND for run in runs) else ''}",
            *(describe_runs(group, results.runs) for group in groups),
        ]
    )
    yield "accuracy_vs_eps", figure, pd.concat(tables, ignore_index=True), caption


def panel_title(run: dict, groups: list[list[dict]]) -> str:
    """Image set, threat and n; below, the budget and the settings that distinguish panels.

    run      a run of the panel
    groups   the runs of all panels
    """
    threat = NORM_SYMBOLS.get(run["threat"], run["threat"])
    below = textwrap.fill(panel_budget(run, groups), TITLE_LETTERS)
    return f"{run['image_set']}, {threat} (n = {run['images']})\n{below}"


def draw_accuracy(
    ax: Axes, table: pd.DataFrame, styles: dict[str, dict], norm: str, end: float
) -> None:
    """A line per model, with bars and models side by side if they are few.

    end   of the axis of eps
    """
    models, radii = sorted(table["model"].unique()), np.unique(table["eps"])
    span, with_bars = end or 1.0, len(styles) <= MAX_NAMED
    shift = 0.0
    if with_bars:
        narrowest = np.diff(radii, prepend=-span).min()
        shift = min(0.012 * span, 0.3 * narrowest / len(models))
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        bars = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        ax.errorbar(
            part["eps"] + (i - (len(models) - 1) / 2) * shift,
            100 * part["accuracy"],
            100 * np.clip(bars, 0, None),
            elinewidth=0.8 * with_bars,
            ecolor=(styles[model]["color"], 0.6),
            clip_on=False,
            **styles[model],
        )
    ax.set(ylim=(0, 100), xlim=(-0.05 * span, 1.05 * span), ylabel="accuracy (%)")
    ax.spines[["left", "bottom"]].set_position(("outward", 3))
    radius_axis(ax, radii, norm, span)


# ---- the protocols -------------------------------------------------------------------------------


def protocols_compared(results: Results) -> Iterator[Drawing]:
    """Perturbation Tolerance and human alignment of the same models under each L2 protocol.

    A figure per image list and head.
    """
    runs = [run for run in results.runs if run["threat"].startswith("L2-")]
    groups = group_finished(runs, ("minimum_norm",), images_and_head)
    names = [f"protocols_compared_{'_'.join(images_and_head(group[0])[:2])}" for group in groups]
    for name, group in zip(numbered(names), groups):
        table = protocol_table(group)
        threats = table["threat"].unique()
        if "L2-feng2025" not in threats or len(threats) < 2:
            continue
        caption = "\n".join(
            [
                "The same models, photographs and head under each protocol: mean and standard "
                "error over the correctly classified images that were fooled "
                f"({count_range(table['n'])}), of human alignment over those with a human map "
                f"({count_range(table['n_maps'])}). feng2025: foolbox's L2 FMN as published: it "
                "never projects, it stretches pixels, and its norms are not minimal."
                f"{other_ceiling_text(run['settings']['run'] for run in group)}",
                *(
                    describe_runs([run for run in group if run["threat"] == threat], results.runs)
                    for threat in threats
                ),
            ]
        )
        yield name, draw_protocols(table), table, caption


def draw_protocols(table: pd.DataFrame) -> Figure:
    """Two panels, norms and alignments, with a row per model."""
    height = 1.3 + 0.26 * table["model"].nunique()
    figure, (norms, alignments) = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH, height), sharey=True, layout="constrained"
    )
    draw_protocol_means(norms, table, "l2")
    draw_protocol_means(alignments, table, "alignment")
    norms.set(xlabel="Perturbation Tolerance (L₂, log scale)", xscale="log")
    plain_log_ticks(norms.xaxis)
    alignments.set_xlabel("human alignment")
    handles, labels = norms.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def draw_protocol_means(ax: Axes, table: pd.DataFrame, value: str) -> None:
    """A row per model, a marker with its standard error per protocol."""
    models = sorted(table["model"].unique(), reverse=True)
    middle = (table["protocol"].nunique() - 1) / 2
    for k, (protocol, part) in enumerate(table.groupby("protocol")):
        below = 0.16 * (k - middle)  # so that the bars of a model do not overlap
        ax.errorbar(
            part[value],
            [models.index(model) - below for model in part["model"]],
            xerr=part[f"{value}_sem"],
            fmt=MARKERS[k % len(MARKERS)],
            color=PROTOCOL_COLOURS[k % len(PROTOCOL_COLOURS)],
            label=protocol,
            elinewidth=0.8,
        )
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(-0.6, len(models) - 0.4)


EVALUATE = (
    "python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} Linf "
    "--eps 1/255"
)
MADE_BY = f"`{EVALUATE}` makes it (a finished run: with --overwrite)"
BOTH = (
    "runs of the same models with `L2 --protocol feng2025` and with `L2 --protocol fmn` (or "
    "crossing) in {} make it"
)
FIGURES = {
    "accuracy_vs_eps": (accuracy_vs_eps, MADE_BY),
    "protocols_compared": (protocols_compared, BOTH),
}
