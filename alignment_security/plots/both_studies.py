"""Figures that join Hoak 2025 and Feng 2025: Brain-Score and robust accuracy against norms.

Few models have both. Their number is in every picture; protocols and image sets are separate
panels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.analysis.both_studies import (
    JOIN_COLUMNS,
    RobustPair,
    benchmark_table,
    joined_models,
    robust_pairs,
    without_partner,
)
from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    correlation,
    measures_text,
    models_text,
    norm_tables,
    rho_text,
    tables_with,
)
from alignment_security.analysis.hoak2025 import ALPHA, MIN_MODELS
from alignment_security.analysis.norm_table import NormTable, short_name
from alignment_security.analysis.results import NothingToDraw, Results, read_summary, runs_of_rows
from alignment_security.analysis.scores import read_scores
from alignment_security.common.eps import format_eps
from alignment_security.plots.feng2025_style import LACKING, own_figure_name, tolerance_scale
from alignment_security.plots.hoak2025 import short_benchmark
from alignment_security.plots.style import (
    DARK,
    GREY,
    MARKERS,
    PAGE_WIDTH,
    SMALL,
    TITLE_LETTERS,
    Drawing,
    panels,
)
from alignment_security.records.norm_summary import minimised_norm

SETUP = 'python -c "from utilities import setup_scores; setup_scores()"'
AVERAGES = [
    "average_vision",
    "neural_vision",
    "V1",
    "V2",
    "V4",
    "IT",
    "behavior_vision",
    "engineering_vision",
]
MAX_LEAVES = 14  # benchmarks below the averages: those of smallest family_p in either panel
MAX_LETTERS = 40  # of a benchmark's name
LEAF_COLOUR = "#0072B2"
EPS_COLOURS = ["#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#882255", "#000000"]


# ---- Brain-Score ---------------------------------------------------------------------------------


def brainscore_vs_tolerance(results: Results) -> Iterator[Drawing]:
    """Brain-Score benchmarks against both measures: a figure per source, a row per benchmark."""
    norms = tables_with(norm_tables(results), ["pt"])
    if not norms:
        return
    scores, origin = read_scores(results)
    found = [(table, benchmark_table(table, scores)) for table in norms]
    large = [(table, rows) for table, rows in found if rows["rho"].notna().any()]
    small = [(table, rows) for table, rows in found if rows["rho"].isna().all()]
    if not large:
        counts = ", ".join(f"{table.source}: {rows['models'].max()}" for table, rows in small)
        raise NothingToDraw(
            f"models with norms and Brain-Score scores ({counts}), {FEWEST} are needed"
        )
    few = ", ".join(f"{table.source} ({rows['models'].max()})" for table, rows in small)
    for table, rows in large:
        name = own_figure_name("brainscore_vs_tolerance", table, norms)
        caption = benchmarks_caption(table, rows, origin)
        if few:
            caption += f"\nToo few models with scores: {few}."
        models = joined_models(table, scores)[["source", *JOIN_COLUMNS]].sort_values("model")
        numbers = pd.concat([rows, models], ignore_index=True)
        yield name, draw_benchmarks(rows), numbers, caption


def benchmarks_caption(table: NormTable, rows: pd.DataFrame, origin: str) -> str:
    """Caption of `draw_benchmarks`; origin: where the scores are from."""
    leaves = rows["leaf"].sum() // len(MEASURES)
    return (
        "Spearman of Brain-Score benchmarks with Perturbation Tolerance and human alignment, 95 % "
        f"bootstrap intervals; above the averages, below the {MAX_LEAVES} benchmarks of smallest p "
        f"over families (the table has all {leaves}). Filled: q over families <= {ALPHA} (ranks "
        "with a random intercept per family of models; Benjamini-Hochberg over all benchmarks of "
        f"at least {MIN_MODELS} models and both measures; averages are not tested). Only "
        f"{rows['models'].max()} models have both.\n"
        f"{origin}; joined by the weights that the code of Brain-Score's plugins names: the last "
        f"rows of the table list the models.\n{table.note}{measures_text(table, ['alignment'])}"
    )


def draw_benchmarks(table: pd.DataFrame) -> Figure:
    """Two panels of dots with intervals, averages above the benchmarks of smallest p.

    table   of `benchmark_table`
    """
    smallest_p = table[table["leaf"] == 1].groupby("benchmark")["family_p"].min()
    leaves = smallest_p.nsmallest(MAX_LEAVES).index
    averages = [name for name in AVERAGES if table["benchmark"].eq(name).any()]
    names = [*averages, *leaves]
    figure, axes = plt.subplots(
        1, 2, sharey=True, figsize=(PAGE_WIDTH, 0.7 + 0.155 * len(names)), layout="constrained"
    )
    for ax, (measure, (label, _)) in zip(axes, MEASURES.items()):
        part = table[table["measure"] == measure].set_index("benchmark").loc[names]
        draw_intervals(ax, part)
        ax.axhline(len(averages) - 0.5, color="#BBBBBB", linewidth=0.6)
        ax.set(xlim=(-1, 1), ylim=(len(names) - 0.4, -0.6), xlabel="Spearman's ρ")
        ax.set_title(f"with {label.split(' (')[0]} ({part['n'].max()} models)", loc="left")
    shown = [short_benchmark(name) for name in names]
    labels = [name if len(name) <= MAX_LETTERS else f"{name[:MAX_LETTERS]}…" for name in shown]
    axes[0].set_yticks(range(len(names)), labels, fontsize=SMALL)
    dot: Any = {"linestyle": "none", "marker": "o", "color": LEAF_COLOUR}
    handles = [
        Line2D([], [], label=f"q ≤ {ALPHA} over families", **dot),
        Line2D([], [], label=f"q > {ALPHA}", markerfacecolor="white", **dot),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def draw_intervals(ax: Axes, part: pd.DataFrame) -> None:
    """A dot with its interval per row, filled if family_q is small, and n at the right."""
    at_right: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for y, row in enumerate(part.itertuples()):
        colour = LEAF_COLOUR if row.leaf else DARK
        face = colour if row.family_q <= ALPHA else "white"
        ax.plot([row.low, row.high], [y, y], color=colour, linewidth=1)
        ax.plot(row.rho, y, "o", color=colour, markerfacecolor=face)
        ax.annotate(f"{row.n}", (1, y), (3, 0), fontsize=SMALL, va="center", **at_right)
    ax.annotate(
        "n", (1, 1), (3, 2), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL
    )
    ax.axvline(0, color="#888888", linewidth=0.6)


# ---- robust accuracy against Perturbation Tolerance ----------------------------------------------


def robust_vs_tolerance(results: Results) -> Iterator[Drawing]:
    """Robust accuracy against Perturbation Tolerance: a panel per threat and source of norms.

    A colour per eps.
    """
    pairs = list(robust_pairs(results))
    if not pairs:
        if len(read_summary(results)):
            raise NothingToDraw("no model has both robust accuracies and minimal norms")
        return
    notes = dict.fromkeys(pair.norms.note for pair in pairs)
    rhos = " ".join(sentence for pair in pairs for sentence in rho_sentences(pair))
    caption = "\n".join(
        [
            "Accuracy under attack against Perturbation Tolerance of the same models; bars: 95 % "
            "Wilson intervals, standard errors. "
            f"{rhos or f'Too few models for a correlation ({FEWEST} are needed).'}",
            *heads_and_left_out(results, pairs),
            *dict.fromkeys(accuracy_note(results, pair) for pair in pairs),
            *notes,
        ]
    )
    tables = [pair.models.assign(ball=pair.accuracy) for pair in pairs]
    yield (
        "robust_vs_tolerance",
        draw_robust_pairs(pairs),
        pd.concat(tables, ignore_index=True),
        caption,
    )


def heads_and_left_out(results: Results, pairs: list[RobustPair]) -> Iterator[str]:
    """Lines on pairs whose two heads differ, and on what is in no pair."""
    for pair in pairs:
        if len(set(pair.heads)) > 1:
            accuracy, norms = pair.heads
            yield (
                f"{pair.accuracy} against {pair.norms.source}: accuracies of head {accuracy}, "
                f"norms of head {norms}."
            )
    if left_out := without_partner(results, pairs):
        yield f"In no panel, no model has both of the same images: {'; '.join(left_out)}."


def accuracy_note(results: Results, pair: RobustPair) -> str:
    """Facts on a pair's robust accuracies, and the models that it leaves out."""
    runs = runs_of_rows(results, pair.models)
    if not runs:
        return f"{pair.accuracy}: {models_text(pair.models['model'].nunique())}."
    return describe_runs(runs, results.runs, f"no norm in {pair.norms.source}")


def rho_sentences(pair: RobustPair) -> Iterator[str]:
    """Spearman of robust accuracy with tolerance at each eps that has enough models."""
    radii = pair.models["eps"].unique()
    for eps, part in pair.models.groupby("eps"):
        found = correlation(part, "pt", "robust_acc")
        if np.isfinite(found["rho"]):
            yield (
                f"{pair.accuracy} against {pair.norms.source}, "
                f"eps {format_eps(eps, pair.threat, radii)}: {rho_text(found)}."
            )


def draw_robust_pairs(pairs: list[RobustPair]) -> Figure:
    """A panel per pair, a colour per eps, and a shape per model if there are enough shapes."""
    radii = sorted({eps for pair in pairs for eps in pair.models["eps"]})
    models = sorted({model for pair in pairs for model in pair.models["model"]})
    colours = {eps: EPS_COLOURS[i % len(EPS_COLOURS)] for i, eps in enumerate(radii)}
    markers = dict(zip(models, MARKERS)) if len(models) <= len(MARKERS) else {}
    labels = radius_labels(pairs)
    handles = [Line2D([], [], color=colours[eps], label=f"ε = {labels[eps]}") for eps in radii]
    for model, marker in markers.items():
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=GREY, label=model))
    tables = [pair.norms for pair in pairs]
    figure, axes = panels(len(pairs), handles)
    for ax, pair in zip(axes, pairs):
        draw_robust_points(ax, pair.models, colours, markers)
        tolerance_scale(ax.xaxis, pair.models["pt"])
        ax.spines[["left", "bottom"]].set_position(("outward", 3))
        source = textwrap.fill(short_name(pair.norms, tables), TITLE_LETTERS)
        ax.set(xlabel=f"{MEASURES['pt'][0]}\n{source}", ylabel="robust accuracy (%)")
        ax.set_ylim(bottom=0)
        title = textwrap.fill(pair.accuracy, TITLE_LETTERS)
        ax.set_title(f"{title}\n{models_text(pair.models['model'].nunique())}", loc="left")
    return figure


def radius_labels(pairs: list[RobustPair]) -> dict[float, str]:
    """Each eps as text, in one unit with the others of its norm: `1/255`, or `0.5 or 127.5/255`."""
    radii = pd.concat(
        [pair.models[["eps"]].assign(norm=minimised_norm(pair.threat)) for pair in pairs]
    ).drop_duplicates()
    radii["text"] = [
        format_eps(eps, norm, radii.loc[radii["norm"] == norm, "eps"])
        for eps, norm in zip(radii["eps"], radii["norm"])
    ]
    return radii.groupby("eps")["text"].agg(lambda texts: " or ".join(sorted(texts))).to_dict()


def draw_robust_points(
    ax: Axes, models: pd.DataFrame, colours: dict[float, str], markers: dict[str, str]
) -> None:
    """A point per model and eps with both its bars."""
    shapes = models["model"].map(markers).fillna("o")
    for (eps, marker), points in models.groupby(["eps", shapes]):
        accuracy = points["robust_acc"]
        bars = [accuracy - points["low"], points["high"] - accuracy]
        ax.errorbar(
            points["pt"],
            100 * accuracy,
            100 * np.clip(bars, 0, None),
            points["pt_sem"].fillna(0),
            fmt=marker,
            color=colours[eps],
            elinewidth=0.6,
            markersize=4 if markers else 3,
            clip_on=False,
        )


FIGURES = {
    "brainscore_vs_tolerance": (
        brainscore_vs_tolerance,
        f"`{SETUP}` joins the leaderboard; {LACKING}",
    ),
    "robust_vs_tolerance": (
        robust_vs_tolerance,
        "`python evaluate_robustness.py --model_name NAME --results_dir {} Linf --eps 1/255`, L2 "
        "--protocol crossing, then `python utilities.py merge --results_dir {}`",
    ),
}
