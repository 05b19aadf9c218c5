"""Figures of Hoak, Li & McDaniel 2025: Brain-Score's benchmarks against accuracy under attack.

Data and names are those of kyangl/alignment-security, plotting.py. Added here: intervals, n, a
correction for the number of benchmarks, what clean accuracy explains, and missing scores that stay
missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.analysis.hoak2025 import (
    BENCHMARK_GROUPS,
    COMPARABLE,
    MIN_FAMILIES,
    MIN_MODELS,
    Study,
    studies,
)
from alignment_security.analysis.hoak2025_regression import MIN_MODELS_EXPLAINED, alignment_fit
from alignment_security.analysis.hoak2025_tsne import (
    SEED,
    comparable_scores,
    tsne_map,
    tsne_perplexity,
)
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import MIN_FIT
from alignment_security.models.families import FAMILIES
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    LINE_HEIGHT,
    MARKERS,
    PAGE_WIDTH,
    RADIUS_COLOURS,
    SEQUENTIAL,
    Drawing,
    axes_grid,
    drawn_radii,
    put_heading,
)


def short_benchmark(benchmark: str) -> str:
    """A benchmark's name without its laboratory, and without Marques2020_, which 22 have."""
    return re.sub(r"^([a-z]+\.|Marques2020_)", "", benchmark).replace("_", " ")


def drawing_of(
    study: Study, kind: str, figure: Figure | None, table: pd.DataFrame, caption: str
) -> Drawing:
    """A figure or table of a study, named after it; its facts end the caption.

    The table names the runs behind it, for `utilities.py trace`.
    """
    return (
        f"{kind}{study.name}",
        figure,
        table.assign(**study.runs),
        f"{caption}\n{study.facts}",
    )


# ---- alignment against robustness ----------------------------------------------------------------


def avg_alignment_vs_robust(results: Results) -> Iterator[Drawing]:
    """Average, neural, behavioral and engineering alignment against accuracy under attack.

    A figure each, a line per eps.
    """
    for study in studies(results):
        for column, group in BENCHMARK_GROUPS.items():
            if column in study.scores and study.scores[column].notna().sum() >= MIN_MODELS:
                kind = "avg" if group == "average" else group
                drawn = draw_alignment(study, column, group)
                yield drawing_of(study, f"{kind}_alignment_vs_robust", *drawn)


def draw_alignment(study: Study, column: str, group: str) -> tuple[Figure, pd.DataFrame, str]:
    """Figure, table and caption of one kind of alignment: points and a line per eps.

    column, group   the average of the benchmarks, and what it is an average of
    """
    radii = drawn_radii(study.radii)
    height = 2.4 + LINE_HEIGHT * len(radii)
    figure, ax = plt.subplots(figsize=(COLUMN_WIDTH, height), layout="constrained")
    tables, handles, facts = [], [], []
    for i, eps in enumerate(radii):
        pairs, fit = alignment_fit(study, column, eps)
        color, marker = RADIUS_COLOURS[i], MARKERS[i]
        draw_fit(ax, pairs, fit, color, marker)
        label = f"{study.label(eps)}: {fit_text(fit)}"
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
        tables.append(pairs)
        facts.append(f"{study.label(eps)}: n = {fit['n']}, {fit_numbers(fit)}")
    ax.set(xlabel=f"{group} alignment (Brain-Score)", ylabel="accuracy under attack (%)")
    ax.set_ylim(bottom=0)
    figure.legend(handles=handles, loc="outside lower center")
    put_heading(figure, study.heading)
    caption = "\n".join(
        [
            f"Accuracy under attack against {group} alignment (`{column}`), a point per model and "
            "least squares lines. p over families: with a random intercept per family of models.",
            *facts,
        ]
    )
    return figure, pd.concat(tables).reset_index(), caption


def draw_fit(ax: Axes, pairs: pd.DataFrame, fit: dict, color: str, marker: str) -> None:
    """Points of models, and their least squares line between the outermost scores.

    seaborn.regplot would fit again, without families, and draw a line where there is no fit.
    """
    ax.scatter(
        pairs["score"],
        100 * pairs["accuracy"],
        s=7,
        color=color,
        marker=marker,
        alpha=0.45,
        linewidth=0,
    )
    ends = np.array([pairs["score"].min(), pairs["score"].max()])
    ax.plot(ends, 100 * (fit["intercept"] + fit["slope"] * ends), color=color, linewidth=1.5)


def fit_numbers(fit: dict) -> str:
    """A fit in numbers, for a caption."""
    if np.isnan(fit["r2"]):
        return fit_text(fit)
    p_family = fit["p_family"]
    over_families = "not tested" if np.isnan(p_family) else f"{p_family:.3g}"
    return (
        f"slope {fit['slope']:.3g}, R2 = {fit['r2']:.3f}, p = {fit['p']:.3g}, p over families "
        f"{over_families}"
    )


def fit_text(fit: dict) -> str:
    """R2 and p of a fit, for a legend."""
    if np.isnan(fit["r2"]):
        return "too few models, no fit" if fit["n"] < MIN_FIT else "all equal, no fit"
    p = "p < 0.001" if fit["p"] < 0.001 else f"p = {fit['p']:.3f}"
    return f"R² = {fit['r2']:.3f}, {p}"


# ---- t-SNE ---------------------------------------------------------------------------------------


def tsne_plot(results: Results) -> Iterator[Drawing]:
    """t-SNE of the score matrix: by family, and coloured by accuracy under attack at each eps."""
    for study in studies(results):
        known = comparable_scores(study.scores)
        if len(known) < MIN_MODELS:
            continue
        table = tsne_map(study, known)
        left_out = len(study.scores) - len(known)
        caption = (
            f"t-SNE (perplexity {tsne_perplexity(len(known)):.3g}, seed {SEED}) of "
            f"{known.shape[1]} benchmarks (no averages), each scaled to unit variance. Missing "
            "scores are not filled in: the distance of two models is that over the benchmarks that "
            "both have, scaled up (Dixon 1979). Left out: benchmarks known of fewer than "
            f"{COMPARABLE:.0%} of the models, and {left_out} models with fewer than "
            f"{COMPARABLE:.0%} of the rest; from a panel, models that were not attacked at its "
            "eps. Axes have no unit."
        )
        yield drawing_of(study, "tsne_plot", draw_tsne(study, table), table.reset_index(), caption)


def draw_tsne(study: Study, table: pd.DataFrame) -> Figure:
    """The same map once by family and once per radius."""
    radii = drawn_radii(study.radii)
    count = 1 + len(radii)
    height = min(2.7 * -(-count // 2), 8.6) + 0.5
    figure, axes = axes_grid(count, 2, (PAGE_WIDTH, height))
    draw_families(axes.flat[0], table)
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=9,
        handlelength=1,
        columnspacing=1.5,
    )
    for ax, eps in zip(axes.flat[1:], radii):
        accuracy = 100 * table[f"accuracy at {study.label(eps)}"]
        dots = ax.scatter(table["x"], table["y"], s=10, c=accuracy, cmap=SEQUENTIAL, linewidth=0)
        figure.colorbar(dots, ax=ax, aspect=30).set_label("accuracy under attack (%)", size=7)
        ax.set_title(study.label(eps), loc="left")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
    put_heading(figure, study.heading)
    return figure


def draw_families(ax: Axes, table: pd.DataFrame) -> None:
    """The map coloured by family."""
    for name, (color, _) in FAMILIES.items():
        part = table[table["family"] == name]
        if len(part):
            ax.scatter(part["x"], part["y"], s=10, color=color, label=name, linewidth=0, alpha=0.8)
    ax.set_title("family", loc="left")


NEEDED_DATA = (
    f"needs at least {MIN_MODELS} models (tsne_plot: with half of the scores; variance_explained: "
    f"{MIN_MODELS_EXPLAINED} with all averages; leave_one_family_out: {MIN_FAMILIES} families) "
    "that have accuracies under attack (`python evaluate_robustness.py --model_name MODEL "
    "--results_dir {} Linf --eps 1/255`, then `python utilities.py merge --results_dir {}`) and "
    'scores (`python -c "from utilities import setup_scores; setup_scores()"`, or a leaderboard '
    "under --published)"
)
FIGURES = {
    "avg_alignment_vs_robust": (avg_alignment_vs_robust, NEEDED_DATA),
    "tsne_plot": (tsne_plot, NEEDED_DATA),
}
