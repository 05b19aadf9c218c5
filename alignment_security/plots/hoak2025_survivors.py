"""What the first paper lacks: which benchmarks survive, how far they hang on one family of models, and what is explained.

A benchmark survives if its correlation with accuracy under attack has q <= 0.05 over the whole grid of the heat map, an
interval over families of models that does not hold 0, and one sign whichever family is left out (alignment_study.survives).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.analysis.hoak2025 import (
    BENCHMARK_GROUPS,
    CLEAN_OUTCOME,
    COMPARABLE,
    MIN_FAMILIES,
    Study,
    drawn_radii,
    outcome_label,
    short_benchmark,
    studies,
)
from alignment_security.analysis.hoak2025_statistics import (
    LISTED,
    correlation_table,
    ranked_benchmarks,
    regression_row,
    variance_table,
    without_families,
)
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import RESAMPLES
from alignment_security.models.families import FAMILIES
from alignment_security.plots.hoak2025 import NEEDED_DATA, put_heading
from alignment_security.plots.style import (
    GREY,
    LINE,
    PAGE_WIDTH,
    RADIUS_COLOURS,
    SMALL,
    Drawing,
)

LEGEND = 5  # columns
GROUP_COLORS = dict(
    zip(
        ["neural", "behavioral", "engineering", "other"],
        ("#009E73", "#E69F00", "#0072B2", "#000000"),
    )
)
LOWEST = 0.5  # of negative R2 that is drawn; what is worse stands at the edge
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
    row: float = 0.11,
    **legend,
):
    """Figure and axes: a row per label, top down, and a panel per eps, with a line at 0 and a legend below."""
    radii, lines = drawn_radii(study), -(-len(handles) // LEGEND) + ("title" in legend)
    figure, axes = plt.subplots(
        1,
        len(radii),
        figsize=(PAGE_WIDTH, row * max(len(labels), 4) + 0.85 + LINE * lines),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=LEGEND, title_fontsize=7, **legend
    )
    axes[0, (len(radii) - 1) // 2].set_xlabel(quantity)
    for ax, title in zip(axes.flat, map(outcome_label, radii)):
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.hlines(
            range(len(labels)),
            0,
            1,
            transform=ax.get_yaxis_transform(),
            color="#EEEEEE",
            linewidth=0.5,
            zorder=0,
        )
        ax.set_title(title, loc="left", fontsize=7)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes.flat[0].set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.flat[0].set_ylim(len(labels) - 0.4, -0.6)
    put_heading(figure, study)
    return figure, list(axes.flat)


def survivors_forest(results: Results) -> Iterator[Drawing]:
    """Forest plot of the benchmarks that survive, ranked, a panel per eps."""
    for study in studies(results):
        rows, counted = ranked_benchmarks(study)
        if len(rows):
            caption = (
                f"Spearman's correlation with accuracy under attack. {counted} Filled: survives at that eps. Thick: 95 % "
                f"bootstrap interval over models; thin: over families ({RESAMPLES} resamples each, percentiles; "
                "rough where families are few and uneven). Diamond: partial correlation given clean accuracy. What is "
                "selected for being large tends to be smaller on new models."
            )
            yield (
                f"survivors_forest{study.name}",
                draw_forest(study, rows),
                rows,
                f"{caption}\n{study.facts}",
            )


def draw_forest(study: Study, rows: pd.DataFrame) -> Figure:
    names = rows.drop_duplicates("row")
    labels = [f"{short_benchmark(name)} (n={n})" for name, n in zip(names["benchmark"], names["n"])]
    handles = [
        Line2D([], [], color=color, marker="o", label=group)
        for group, color in GROUP_COLORS.items()
        if group in set(rows["group"])
    ]
    handles.append(
        Line2D(
            [],
            [],
            color=GREY,
            marker="D",
            markerfacecolor="white",
            linestyle="",
            label="given clean accuracy",
        )
    )
    figure, axes = row_panels(study, labels, "Spearman's ρ", handles)
    for ax, eps in zip(axes, drawn_radii(study)):
        part = rows[rows["accuracy"] == eps]
        colors = part["group"].map(GROUP_COLORS).fillna("#000000")
        ax.hlines(part["row"], part["family_low"], part["family_high"], color=colors, linewidth=0.7)
        ax.hlines(part["row"], part["low"], part["high"], color=colors, linewidth=2)
        ax.scatter(
            part["partial_rho"],
            part["row"],
            s=9,
            marker="D",
            facecolor="white",
            edgecolor=GREY,
            linewidth=0.6,
            zorder=2.5,
        )
        ax.scatter(
            part["rho"],
            part["row"],
            s=13,
            facecolor=np.where(part["survives"] == 1, colors, "white"),
            edgecolor=colors,
            linewidth=0.8,
            zorder=3,
        )
    return figure


def leave_one_family_out(results: Results) -> Iterator[Drawing]:
    """The same benchmarks with each family of models left out in turn."""
    for study in studies(results):
        rows, counted = ranked_benchmarks(study)
        if rows.empty or len(np.unique(study.families)) < MIN_FAMILIES:
            continue
        table = pd.concat(
            [without_families(study, row) for row in rows.to_dict("records")], ignore_index=True
        )
        handles = [
            Line2D([], [], color=color, marker="o", linestyle="", markersize=3, label=name)
            for name, (color, _) in FAMILIES.items()
            if name in {*table["left_out"], "Other"}
        ]
        handles.append(
            Line2D(
                [], [], color="black", marker="|", linestyle="", markersize=7, label="all models"
            )
        )
        labels = [short_benchmark(name) for name in rows["benchmark"].unique()]
        figure, axes = row_panels(study, labels, "Spearman's ρ", handles, title="without")
        for ax, eps in zip(axes, drawn_radii(study)):
            draw_left_out(ax, table[table["accuracy"] == eps])
        caption = (
            f"Spearman's correlation with accuracy under attack, with each of {len(np.unique(study.families))} families of "
            f"models left out in turn (a dot each; Other: one of the small families, in the table by name). {counted}"
        )
        yield f"leave_one_family_out{study.name}", figure, table, f"{caption}\n{study.facts}"


def draw_left_out(ax, part: pd.DataFrame) -> None:
    large = part["left_out"].isin(FAMILIES)
    for rows, size in (
        (part[~large], 4),
        (part[large], 10),
    ):  # the families with a colour of their own on top
        colors = [FAMILIES.get(name, FAMILIES["Other"])[0] for name in rows["left_out"]]
        ax.scatter(rows["rho_without"], rows["row"], s=size, color=colors, linewidth=0)
    ax.scatter(part["rho"], part["row"], s=30, marker="|", color="black", linewidth=1, zorder=2)


def variance_explained(results: Results) -> Iterator[Drawing]:
    """Variance of accuracy under attack explained in the sample, in unseen models and in unseen families."""
    for study in studies(results):
        table = variance_table(study)
        if table.empty:
            continue
        caption = (
            f"Variance of accuracy under attack explained (R2), of {table['n'][0]} models that have all averages and "
            "accuracies. Unseen models: ten folds drawn at random, five times; unseen families: ten folds of whole "
            "families; 0 is the mean of the models seen, and less is worse than it (values below -0.5 are drawn "
            "there). One predictor: least squares. All benchmarks: ridge regression on standardised scores, its "
            "penalty chosen and missing scores set to the benchmark's median within each training part; benchmarks known "
            f"of at least {COMPARABLE:.0%} of the models."
        )
        yield (
            f"variance_explained{study.name}",
            draw_explained(study, table),
            table,
            f"{caption}\n{study.facts}",
        )


def draw_explained(study: Study, table: pd.DataFrame) -> Figure:
    names, shown = list(table["predictor"].unique()), table[list(EXPLAINED)].clip(lower=-LOWEST)
    handles = [
        Line2D(
            [],
            [],
            marker=marker,
            markerfacecolor=color,
            linestyle="",
            label=label,
            markeredgecolor=edge,
        )
        for marker, color, edge, label in EXPLAINED.values()
    ]
    figure, axes = row_panels(study, names, "variance explained (R²)", handles, row=0.17)
    for ax, eps in zip(axes, drawn_radii(study)):
        for column, (marker, color, edge, _) in EXPLAINED.items():
            ax.scatter(
                shown.loc[table["eps"] == eps, column],
                range(len(names)),
                s=16,
                marker=marker,
                facecolor=color,
                edgecolor=edge,
                linewidth=0.7,
                zorder=3,
            )
    return figure


# ---- tables ----------------------------------------------------------------------------------------------------


def regression_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the regressions of accuracy under attack on each kind of alignment."""
    for study in studies(results):
        rows = [
            fit
            for (column, group), eps in product(BENCHMARK_GROUPS.items(), study.radii)
            if column in study.scores
            if (fit := regression_row(study, column, eps, {"alignment": group}))
        ]
        caption = (
            "Accuracy under attack regressed on alignment: least squares, R2 in the sample and of unseen models (ten folds, "
            "five times) and families (ten folds), p of the slope, and p with its covariance summed over families."
        )
        if rows:
            yield (
                f"regression_table{study.name}",
                None,
                pd.DataFrame(rows),
                f"{caption}\n{study.facts}",
            )


def benchmark_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the benchmarks that go most with, and most against, accuracy at the largest eps."""
    for study in studies(results):
        table = correlation_table(study)
        table = table[
            (table["leaf"] == 1) & (table["accuracy"] != CLEAN_OUTCOME) & table["rho"].notna()
        ]
        if table.empty:
            continue
        largest = table["accuracy"].max()
        table = table[table["accuracy"] == largest].sort_values("rho", ascending=False)
        table = pd.concat([table[:LISTED], table[LISTED:][-LISTED:]])
        shown = pd.DataFrame(
            {
                "benchmark": table["benchmark"].map(short_benchmark),
                "kind": table["group"],
                "n": table["n"],
                "rho": table["rho"],
                "95 % interval": interval(table["low"], table["high"]),
                "over families": interval(table["family_low"], table["family_high"]),
                "q": table["q"],
                "given clean": table["partial_rho"],
                "survives": table["survives"].map({1: "yes", 0: "no"}),
            }
        )
        caption = (
            f"Spearman's correlation with accuracy at {outcome_label(largest)}: the strongest benchmarks of either sign, "
            f"with bootstrap intervals over models and over families. {ranked_benchmarks(study)[1]} Given clean: partial correlation "
            f"given clean accuracy.\n{study.facts}"
        )
        yield f"benchmark_table{study.name}", None, shown, caption


def interval(low: pd.Series, high: pd.Series) -> list[str]:
    return ["" if np.isnan(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high)]


FIGURES = {
    name: (function, NEEDED_DATA)
    for name, function in {
        "survivors_forest": survivors_forest,
        "leave_one_family_out": leave_one_family_out,
        "variance_explained": variance_explained,
        "regression_table": regression_table,
        "benchmark_table": benchmark_table,
    }.items()
}
