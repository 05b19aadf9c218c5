"""Figures of the first paper (Hoak, Li & McDaniel 2025): Brain-Score's benchmarks against accuracy under attack.

Source of what is drawn and of the names: kyangl/alignment-security, plotting.py. New here: intervals, n, a correction for the
number of benchmarks, what clean accuracy explains, and missing scores that stay missing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE

from alignment_security.analysis.hoak2025 import (
    ALPHA,
    BENCHMARK_GROUPS,
    CLEAN_OUTCOME,
    COMPARABLE,
    MIN_FAMILIES,
    MIN_MODELS,
    Study,
    comparable_scores,
    drawn_radii,
    outcome_label,
    score_distances,
    short_benchmark,
    studies,
)
from alignment_security.analysis.hoak2025_statistics import correlation_table
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import linear_regression
from alignment_security.models.families import FAMILIES, family
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    DIVERGING,
    EMPTY,
    GREY,
    LINE,
    MARKERS,
    PAGE_WIDTH,
    RADIUS_COLOURS,
    ROW_HEIGHT,
    SCALE,
    SEQUENTIAL,
    SMALL,
    Drawing,
)

PERPLEXITY, TSNE_SEED = 20, 42  # of t-SNE, as in the first paper


# ---- correlations ----------------------------------------------------------------------------------------------


def put_heading(figure: Figure, study: Study) -> None:
    """What was measured, and by what budget: on every picture."""
    text = textwrap.fill(study.heading, int(figure.get_figwidth() / 0.062))
    figure.suptitle(text, x=0.01, ha="left", fontsize=7)


def robust_only_correlation(results: Results) -> Iterator[Drawing]:
    """Heat map: Spearman's correlation of every benchmark with clean accuracy and accuracy under attack."""
    for study in studies(results):
        table = correlation_table(study).drop(
            columns=["partial_rho", "partial_p", "partial_q", "partial_low", "partial_high"]
        )
        caption = (
            "Spearman's correlation of each benchmark with accuracy, over the n models that have both (right of each row; "
            "where it differs, the smallest). " + correction(table["q"])
        )
        yield (
            f"robust_only_correlation{study.name}",
            heat_map(study, table, "rho", "q"),
            table,
            f"{caption}\n{study.facts}",
        )


def partial_correlation(results: Results) -> Iterator[Drawing]:
    """Heat map: the same given clean accuracy, so that a benchmark does not count for being a test of good models."""
    for study in studies(results):
        table = correlation_table(study)
        table = table[table["accuracy"] != CLEAN_OUTCOME]
        if table["partial_rho"].notna().any():
            caption = (
                "Partial Spearman correlation of each benchmark with accuracy under attack, given clean accuracy on the "
                "same images. " + correction(table["partial_q"])
            )
            yield (
                f"partial_correlation{study.name}",
                heat_map(study, table, "partial_rho", "partial_q"),
                table,
                f"{caption}\n{study.facts}",
            )


def correction(q: pd.Series) -> str:
    """What the marks and the empty cells of a heat map mean."""
    return (
        f"Dot: q <= {ALPHA} (Benjamini-Hochberg over all {q.notna().sum()} cells that have a value; {(q <= ALPHA).sum()} are "
        f"marked). Grey: no value, for want of {MIN_MODELS} models or of clean accuracy to hold constant, or because all are "
        "equal (column `empty` of the table). "
        "Bold: averages of the benchmarks below them. Marques2020_ and laboratories are left off the names."
    )


def halves(groups: list[str]) -> int:
    """Where to break the rows into two columns: at the change of group that is nearest to the middle."""
    changes = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]] or [
        (len(groups) + 1) // 2
    ]
    return min(changes, key=lambda i: abs(i - len(groups) / 2))


def heat_map(study: Study, table: pd.DataFrame, value: str, q: str) -> Figure:
    """Benchmarks in the leaderboard's order down two columns, accuracies across; the scale below the shorter column."""
    benchmarks, outcomes = table.drop_duplicates("benchmark"), list(table["accuracy"].unique())
    cut = halves(list(benchmarks["group"]))
    parts = [part for part in (benchmarks[:cut], benchmarks[cut:]) if len(part)]
    rows = max(max(map(len, parts)), min(map(len, parts)) + SCALE)
    figure, axes = plt.subplots(
        1, len(parts), figsize=(PAGE_WIDTH, ROW_HEIGHT * rows + 0.9), squeeze=False
    )
    figure.set_layout_engine("constrained", wspace=0.06)
    for ax, part in zip(axes.flat, parts):
        grids = [
            table.pivot(index="benchmark", columns="accuracy", values=name).reindex(
                part["benchmark"]
            )[outcomes]
            for name in (value, q, "n")
        ]
        mesh = draw_cells(ax, part, outcomes, *grids)
        ax.set_ylim(rows, 0)
    place = int(np.argmin(list(map(len, parts))))
    scale = axes.flat[place].inset_axes(
        (0, len(parts[place]) + 3, len(outcomes), 1.2), transform=axes.flat[place].transData
    )
    bar = figure.colorbar(mesh, cax=scale, orientation="horizontal", ticks=[-1, 0, 1])
    given = ",\ngiven clean accuracy" if value.startswith("partial") else ""
    bar.set_label(f"Spearman's ρ{given}\n• q ≤ {ALPHA}, grey: no value", size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
    put_heading(figure, study)
    return figure


def draw_cells(
    ax, rows: pd.DataFrame, outcomes: list, value: pd.DataFrame, q: pd.DataFrame, n: pd.DataFrame
):
    """One column of a heat map; averages in bold, n at the right."""
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(value.to_numpy(float)),
        cmap=DIVERGING,
        vmin=-1,
        vmax=1,
        edgecolor="white",
        linewidth=0.3,
    )
    for i, j in np.argwhere(value.isna().to_numpy()):
        ax.add_patch(Rectangle((j, i), 1, 1, facecolor=EMPTY, edgecolor="white", linewidth=0.3))
    marked = np.argwhere((q <= ALPHA).to_numpy())
    strong = np.abs(value.to_numpy(float)[tuple(marked.T)]) > 0.6
    ax.scatter(
        marked[:, 1] + 0.5,
        marked[:, 0] + 0.5,
        s=2.5,
        linewidth=0,
        color=np.where(strong, "white", "black"),
    )
    ax.set_yticks(
        np.arange(len(rows)) + 0.5,
        [short_benchmark(name) for name in rows["benchmark"]],
        fontsize=SMALL,
    )
    for text, leaf in zip(ax.get_yticklabels(), rows["leaf"]):
        text.set_fontweight("normal" if leaf else "bold")
    for i, count in enumerate(n.min(axis=1)):
        ax.text(
            len(outcomes) + 0.15,
            i + 0.5,
            f"{count:.0f}",
            fontsize=SMALL,
            va="center_baseline",
            color=GREY,
        )
    ax.text(len(outcomes) + 0.15, -0.4, "n", fontsize=SMALL, color=GREY)
    ax.xaxis.tick_top()
    ax.set_xticks(
        np.arange(len(outcomes)) + 0.5,
        [outcome_label(outcome) for outcome in outcomes],
        fontsize=SMALL,
        rotation=90,
    )
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    return mesh


# ---- alignment against robustness ------------------------------------------------------------------------------


def avg_alignment_vs_robust(results: Results) -> Iterator[Drawing]:
    """Average, neural, behavioral and engineering alignment against accuracy under attack: a figure each, a line per eps."""
    for study in studies(results):
        for column, group in BENCHMARK_GROUPS.items():
            if column in study.scores and study.scores[column].notna().sum() >= MIN_MODELS:
                name = f"{'avg' if group == 'average' else group}_alignment_vs_robust{study.name}"
                yield name, *draw_alignment(study, column, group)


def draw_alignment(study: Study, column: str, group: str) -> tuple[Figure, pd.DataFrame, str]:
    figure, ax = plt.subplots(
        figsize=(COLUMN_WIDTH, 2.4 + LINE * len(drawn_radii(study))), layout="constrained"
    )
    tables, lines = [], []
    for i, eps in enumerate(drawn_radii(study)):
        part = pd.DataFrame(
            {"score": study.scores[column], "accuracy": study.accuracy[eps]}
        ).dropna()
        part.insert(0, "eps", eps)
        tables.append(part)
        fit = linear_regression(
            part["score"].to_numpy(),
            part["accuracy"].to_numpy(),
            study.families[study.scores.index.isin(part.index)],
        )
        color, marker = RADIUS_COLOURS[i % len(RADIUS_COLOURS)], MARKERS[i % len(MARKERS)]
        ax.scatter(
            part["score"],
            100 * part["accuracy"],
            s=7,
            color=color,
            marker=marker,
            alpha=0.45,
            linewidth=0,
        )
        ends = np.array([part["score"].min(), part["score"].max()])
        ax.plot(ends, 100 * (fit["intercept"] + fit["slope"] * ends), color=color, linewidth=1.5)
        lines.append(
            (
                Line2D(
                    [],
                    [],
                    color=color,
                    marker=marker,
                    label=f"{outcome_label(eps)}: {fit_text(fit)}",
                ),
                f"{outcome_label(eps)}: n = {fit['n']}, slope {fit['slope']:.3g}, R2 = {fit['r2']:.3f}, p = {fit['p']:.3g}, p over "
                f"families {fit['p_family']:.3g}",
            )
        )
    ax.set(xlabel=f"{group} alignment (Brain-Score)", ylabel="accuracy under attack (%)")
    ax.set_ylim(bottom=0)
    figure.legend(handles=[handle for handle, _ in lines], loc="outside lower center")
    put_heading(figure, study)
    caption = (
        f"Accuracy under attack against {group} alignment (`{column}`), a point per model and least squares lines. "
        "p over families: the slope's covariance summed over families of models (Liang & Zeger 1986).\n"
        + "\n".join(fact for _, fact in lines)
    )
    return figure, pd.concat(tables).reset_index(), f"{caption}\n{study.facts}"


def fit_text(fit: dict) -> str:
    if np.isnan(fit["r2"]):
        return "all equal, no fit"
    return f"R² = {fit['r2']:.3f}, " + ("p < 0.001" if fit["p"] < 0.001 else f"p = {fit['p']:.3f}")


def tsne_plot(results: Results) -> Iterator[Drawing]:
    """t-SNE of the score matrix: by family, and coloured by accuracy under attack at each eps."""
    for study in studies(results):
        known = comparable_scores(study.scores)
        if len(known) < MIN_MODELS:
            continue
        perplexity = min(PERPLEXITY, (len(known) - 1) / 3)
        places = TSNE(
            perplexity=perplexity, metric="precomputed", init="random", random_state=TSNE_SEED
        ).fit_transform(score_distances(known))
        table = pd.DataFrame(places, known.index, ["x", "y"]).assign(
            family=[family(model) for model in known.index]
        )
        table = table.join(study.accuracy).rename(
            columns={eps: f"accuracy at {outcome_label(eps)}" for eps in study.radii}
        )
        left = study.scores.index.difference(known.index)
        caption = (
            f"t-SNE (perplexity {perplexity:.3g}, seed {TSNE_SEED}) of {known.shape[1]} benchmarks (no averages), each scaled to "
            f"unit variance. Missing scores are not filled in: the distance of two models is that over the benchmarks "
            f"that both have, scaled up (Dixon 1979). Left out: benchmarks known of fewer than {COMPARABLE:.0%} of the "
            f"models, and {len(left)} models with fewer than {COMPARABLE:.0%} of the rest; from a panel, models that "
            "were not attacked at its eps. Axes have no unit."
        )
        yield (
            f"tsne_plot{study.name}",
            draw_tsne(study, table),
            table.reset_index(),
            f"{caption}\n{study.facts}",
        )


def draw_tsne(study: Study, table: pd.DataFrame) -> Figure:
    """The same map once by family and once per radius."""
    radii = drawn_radii(study)
    rows = -(-(1 + len(radii)) // 2)
    figure, axes = plt.subplots(
        rows,
        2,
        figsize=(PAGE_WIDTH, min(2.7 * rows, 8.6) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for name in [name for name in FAMILIES if name in set(table["family"])]:
        part = table[table["family"] == name]
        axes.flat[0].scatter(
            part["x"], part["y"], s=10, color=FAMILIES[name][0], label=name, linewidth=0, alpha=0.8
        )
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=9,
        handlelength=1,
        columnspacing=1.5,
    )
    axes.flat[0].set_title("family", loc="left")
    for ax, eps in zip(axes.flat[1:], radii):
        dots = ax.scatter(
            table["x"],
            table["y"],
            s=10,
            c=100 * table[f"accuracy at {outcome_label(eps)}"],
            cmap=SEQUENTIAL,
            linewidth=0,
        )
        figure.colorbar(dots, ax=ax, aspect=30).set_label("accuracy under attack (%)", size=7)
        ax.set_title(outcome_label(eps), loc="left")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.set_axis_off() if not ax.collections else ax.spines[:].set_visible(True)
    put_heading(figure, study)
    return figure


NEEDED_DATA = (
    f"needs at least {MIN_MODELS} models (tsne_plot: with half of the scores; variance_explained: {2 * MIN_MODELS} with all "
    f"averages; leave_one_family_out: {MIN_FAMILIES} families) that have accuracies under attack (`python "
    "evaluate_robustness.py --model_name MODEL --results_dir {} Linf --eps 1/255`, then `python utilities.py merge "
    '--results_dir {}`) and scores (`python -c "from utilities import setup_scores; setup_scores()"`)'
)
FIGURES = {
    name: (function, NEEDED_DATA)
    for name, function in {
        "robust_only_correlation": robust_only_correlation,
        "partial_correlation": partial_correlation,
        "avg_alignment_vs_robust": avg_alignment_vs_robust,
        "tsne_plot": tsne_plot,
    }.items()
}
