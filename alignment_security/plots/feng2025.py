"""Figures of Feng et al. (2025): the trade-off between Perturbation Tolerance and human alignment, and what breaks it.

Figures 2, 3, 4, 6 and 7 from the published numbers (--published), and a panel like theirs for every protocol of ours.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from scipy import stats

from alignment_security.analysis import statistics as inference
from alignment_security.analysis.feng2025 import MULTILABEL, PUBLISHED, ROBUST_NAME, Source, paper_tables, sources
from alignment_security.plots.style import NORMS, PAGE, Drawing, Results, panels
from alignment_security.records.metrics import pareto_front

# group -> colour (Okabe and Ito), marker; "Other" is a model that the second paper did not have
GROUPS = {"CNN": ("#0072B2", "o"), "ViT": ("#CC79A7", "D"), "Hybrid": ("#56B4E9", "v"), "SSL": ("#E69F00", "s"),
          "robust": ("#D55E00", "^"), "harmonized": ("#009E73", "*"), "Other": ("#666666", "P")}
HUMAN = 95.14, 2.02     # multi-label accuracy of people in percent, mean and spread (the band of the paper's Figures 2 and 3)
TOLERANCE, ALIGNMENT = "Perturbation Tolerance ($L_2$)", "human alignment (% of ceiling)"
MEASURES = {"pt": (TOLERANCE, 1), "alignment": (ALIGNMENT, 100)}    # column -> label, factor
NORM_NAMES = {"l2": "L2", "linf": "Linf"}   # of file names
SERIES: Any = {"L2": "-", "Linf": ":"}
MAX_NAMED, LETTERS = 6, 26      # models of a panel whose names are written beside them; letters of a name
FEWEST = 5              # models below which nothing is fitted and no correlation is given


# ---- parts -----------------------------------------------------------------------------------------------------

def group_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend of the groups among some rows."""
    return [Line2D([], [], linestyle="none", color=colour, marker=marker, label=name)
            for name, (colour, marker) in GROUPS.items() if rows["group"].eq(name).any()]


def scatter(ax, rows: pd.DataFrame, x: str, y: str, bars: bool = True) -> None:
    """Points by group, with their standard errors in y; hollow where the accuracy is estimated."""
    size = 4 if len(rows) > 30 else 5
    for group, part in rows.dropna(subset=[x, y]).groupby("group", sort=False):
        colour, marker = GROUPS.get(group, GROUPS["Other"])
        factor_x, factor_y = (MEASURES.get(column, ("", 1))[1] for column in (x, y))
        if bars:
            ax.errorbar(factor_x * part[x], factor_y * part[y], factor_y * part[f"{y}_sem"].fillna(0), fmt="none",
                        ecolor=(colour, 0.35), elinewidth=0.6, zorder=1)
        for hollow, points in part.groupby(part["estimated"] & (x == "accuracy")):
            ax.plot(factor_x * points[x], factor_y * points[y], marker, markersize=size + 2 * (marker == "*"), color=colour,
                    markerfacecolor="white" if hollow else colour, markeredgecolor=colour if hollow else "white",
                    markeredgewidth=0.7 if hollow else 0.3, zorder=2)


def tolerance_scale(axis, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers where norms span more than a factor of four."""
    if values.max() > 4 * values.min() > 0:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(plt.FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """Spearman's rho of the models with both values, its 95 % bootstrap interval and n; nan below FEWEST models."""
    pair = rows[[x, y]].dropna().to_numpy()
    if len(pair) < FEWEST:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": len(pair)}
    low, high = inference.percentiles(inference.rank_correlations(pair, inference.resample_counts(len(pair)))[:, 0, 1])
    return {"rho": inference.rank_correlations(pair)[0, 0, 1], "low": low, "high": high, "n": len(pair)}


def rho_text(found: dict[str, float]) -> str:
    if np.isnan(found["rho"]):
        return f"n = {found['n']}"
    return f"ρ = {found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}], n = {found['n']}"


def panel(ax, source: Source, rows: pd.DataFrame, x: str, y: str, what: str = "") -> None:
    """Points of a source; above them its name and Spearman's rho over its standard models."""
    scatter(ax, rows, x, y)
    for axis, column in ((ax.xaxis, x), (ax.yaxis, y)):
        if column == "pt":
            tolerance_scale(axis, rows["pt"])
    ax.set(xlabel=MEASURES.get(x, (source.accuracy_label, 1))[0], ylabel=MEASURES[y][0])
    ax.set_title(f"{source.name}{what}\n{rho_text(correlation(source.standard, x, y))}", loc="left")
    ax.margins(0.08)


def name_points(ax, rows: pd.DataFrame, x: str, y: str) -> None:
    """Names (or architectures, where names are long) beside the points of a panel of few models, off each other."""
    points = rows.dropna(subset=[x, y])
    if len(points) > MAX_NAMED:
        return
    factors = [MEASURES.get(column, ("", 1))[1] for column in (x, y)]
    texts = [ax.text(factors[0] * a, factors[1] * b, name if len(name) <= LETTERS else name.partition(".")[0][:LETTERS], fontsize=6)
             for a, b, name in zip(points[x], points[y], points["model"])]
    ax.figure.draw_without_rendering()      # the layout has to stand before texts are placed
    adjust_text(texts, factors[0] * points[x].to_numpy(), factors[1] * points[y].to_numpy(), ax=ax, iter_lim=200,
                expand=(1.1, 1.4), ensure_inside_axes=True, arrowprops={"arrowstyle": "-", "linewidth": 0.4})


def drawn(tables: list[Source], columns: list[str]) -> list[Source]:
    """Sources that have values in all these columns."""
    return [source for source in tables if len(source.rows.dropna(subset=columns))]


def together(tables: list[Source]) -> pd.DataFrame:
    return pd.concat([source.rows.assign(panel=i) for i, source in enumerate(tables, start=1)], ignore_index=True)


# ---- Figures 2 and 3 -------------------------------------------------------------------------------------------

def against_accuracy(results: Results, y: str, name: str) -> Iterator[Drawing]:
    """A measure against multi-label accuracy: groups, second-degree fit through the standard models, human band."""
    if not (tables := drawn(sources(results), ["accuracy", y])):
        return
    shown = [source.rows.dropna(subset=["accuracy", y]) for source in tables]
    figure, axes = panels(len(tables), group_handles(pd.concat(shown)))
    for ax, source, rows in zip(axes, tables, shown):
        draw_fit(ax, source.standard.dropna(subset=["accuracy", y]), y)
        if source.accuracy_label == MULTILABEL:
            ax.axvspan(HUMAN[0] - HUMAN[1], HUMAN[0] + HUMAN[1], color="#BBBBBB", alpha=0.35, linewidth=0, zorder=0)
            ax.annotate("people", (HUMAN[0], 1), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=7,
                        color="#444444")
        panel(ax, source, rows, "accuracy", y)
    for ax, rows in zip(axes, shown):
        name_points(ax, rows, "accuracy", y)
    caption = "\n".join([
        f"{MEASURES[y][0]} against accuracy, a panel per source. Bars: standard errors; hollow: accuracy estimated from top-1; "
        f"dashed: second-degree fit through the standard models (all but robust and harmonized nets); band: people, {HUMAN[0]} ± "
        f"{HUMAN[1]} %; ρ: Spearman over the standard models, 95 % bootstrap interval.", *(source.note for source in tables)])
    yield name, figure, together([source._replace(rows=rows) for source, rows in zip(tables, shown)]), caption


def draw_fit(ax, standard: pd.DataFrame, y: str) -> None:
    """The second-degree fit, over the accuracies that it was fitted to."""
    if standard["accuracy"].nunique() >= FEWEST:
        line = np.linspace(standard["accuracy"].min(), standard["accuracy"].max(), 200)
        ax.plot(line, MEASURES[y][1] * np.polyval(np.polyfit(standard["accuracy"], standard[y], 2), line), color="#222222",
                linestyle="--", zorder=3)


def perturbation_tolerance(results: Results) -> Iterator[Drawing]:
    """Figure 2: Perturbation Tolerance against multi-label accuracy."""
    return against_accuracy(results, "pt", "perturbation_tolerance")


def human_alignment(results: Results) -> Iterator[Drawing]:
    """Figure 3: human alignment against multi-label accuracy."""
    return against_accuracy(results, "alignment", "human_alignment")


# ---- Figure 4 --------------------------------------------------------------------------------------------------

def mark_front(source: Source) -> Source:
    """The source with a column `front`: standard models that no other standard model beats in both measures."""
    standard = source.standard.dropna(subset=["pt", "alignment"])
    best = standard.index[pareto_front(standard[["pt", "alignment"]].to_numpy())]
    return source._replace(rows=source.rows.dropna(subset=["pt", "alignment"]).assign(front=source.rows.index.isin(best)))


def tradeoff(results: Results) -> Iterator[Drawing]:
    """Figure 4: human alignment against Perturbation Tolerance; left standard models, right what other training does."""
    tables = [mark_front(source) for source in drawn(sources(results), ["pt", "alignment"])]
    views = [(source, rows, what) for source in tables for rows, what in [
        (source.standard, ""), (source.rows, ", all models")] if len(rows) > len(source.standard) or not what]
    if not views:
        return
    lines = [Line2D([], [], color=GROUPS["robust"][0], linewidth=0.8, linestyle=style, label=f"growing {NORMS[norm]} eps")
             for norm, style in SERIES.items() if any(name.endswith(norm) for source in tables
                                                      for name, _ in robust_series(source.rows))]
    figure, axes = panels(len(views), group_handles(together(tables)) + lines)
    for ax, (source, rows, what) in zip(axes, views):
        draw_front(ax, source.rows[source.rows["front"]])
        draw_series(ax, rows)
        panel(ax, source, rows, "pt", "alignment", what)
    for ax, (_, rows, _) in zip(axes, views):
        name_points(ax, rows, "pt", "alignment")
    caption = "\n".join([
        "Human alignment against Perturbation Tolerance, robust and harmonized nets in a panel of their own. Black line: Pareto "
        "front of the standard models, none of which is better in both; coloured lines: one net trained against growing eps. "
        "Bars: standard errors; ρ: Spearman over the standard models, 95 % bootstrap "
        "interval.", *(source.note for source in tables)])
    yield "tradeoff", figure, together(tables), caption


def draw_front(ax, front: pd.DataFrame) -> None:
    """The Pareto front as the staircase that bounds what is dominated."""
    if len(front) >= 2:
        front = front.sort_values("pt")
        ax.step(front["pt"], 100 * front["alignment"], where="pre", color="#222222", linewidth=0.9, zorder=3)


def robust_series(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Robust nets as (name of net and norm, rows in order of the eps they were trained against)."""
    parts = rows["model"].str.extract(ROBUST_NAME)
    known = rows.join(parts.astype({"eps": float})).dropna(subset=["net"]).sort_values("eps")
    return [(f"{net} {NORM_NAMES[norm]}", part) for (net, norm), part in known.groupby(["net", "norm"])]


def draw_series(ax, rows: pd.DataFrame) -> None:
    """Lines along the eps that nets were trained against."""
    for name, part in robust_series(rows):
        x, y = part["pt"].to_numpy(), 100 * part["alignment"].to_numpy()
        style = SERIES["L2" if name.endswith("L2") else "Linf"]
        ax.plot(x, y, color=GROUPS["robust"][0], linewidth=0.6, zorder=1, linestyle=style)


# ---- Figures 6 and 7 -------------------------------------------------------------------------------------------

def harmonized_pairs(results: Results) -> pd.DataFrame:
    """A row per harmonized net of Table 1 and public standard model of its architecture (or none: empty cells)."""
    tables = [source.standard for source in sources(results) if source.name == PUBLISHED]
    printed = paper_tables(results)
    if not tables or printed is None:
        return pd.DataFrame()
    harmonized = printed[printed["table"] == 1].drop(columns="table").rename(columns={"model": "net"})
    standard = tables[0].assign(net=tables[0]["model"].str.partition(".")[0])
    return harmonized.merge(standard[["net", "model", *MEASURES, "pt_sem", "alignment_sem"]], how="left", on="net",
                            suffixes=("_harmonized", ""))


def paired_test(pairs: pd.DataFrame, measure: str) -> dict[str, float]:
    """Wilcoxon's signed-rank test of harmonized nets against the mean of the public models of their architecture."""
    means = pairs.dropna(subset=["model"]).groupby("net")[[f"{measure}_harmonized", measure]].mean()
    difference = means.iloc[:, 0] - means.iloc[:, 1]
    p = stats.wilcoxon(difference).pvalue if len(difference) >= FEWEST else np.nan
    return {"difference": difference.mean(), "p": p, "n": len(difference)}


def harmonized(results: Results) -> Iterator[Drawing]:
    """Figures 6 and 7: harmonized nets against the public models of their architecture."""
    if (pairs := harmonized_pairs(results)).empty:
        return
    nets = list(dict.fromkeys(pairs["net"]))[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.6), sharey=True, layout="constrained")
    for ax, (measure, (label, factor)) in zip(axes, MEASURES.items()):
        for i, net in enumerate(nets):
            part = pairs[pairs["net"] == net]
            first, known = part.iloc[0], part.dropna(subset=["model"])
            ax.errorbar(factor * known[measure], [i] * len(known), xerr=factor * known[f"{measure}_sem"], fmt="o",
                        color=GROUPS["CNN"][0], elinewidth=0.8, markersize=3.5, alpha=0.8)
            ax.errorbar(factor * first[f"{measure}_harmonized"], i, xerr=factor * first[f"{measure}_sem_harmonized"], fmt="*",
                        color=GROUPS["harmonized"][0], elinewidth=0.8, markersize=8)
        test = paired_test(pairs, measure)
        ax.set_title(f"mean difference {factor * test['difference']:+.2g}, Wilcoxon p = {test['p']:.2g} "
                     f"(n = {test['n']} nets)", loc="left", fontsize=7)
        ax.set(xlabel=label, yticks=range(len(nets)), ylim=(-0.6, len(nets) - 0.4))
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_yticklabels(nets)
    figure.legend(handles=[Line2D([], [], linestyle="none", marker="*", markersize=8, color=GROUPS["harmonized"][0],
                                  label="harmonized (Table 1)"),
                           Line2D([], [], linestyle="none", marker="o", color=GROUPS["CNN"][0],
                                  label="public weights of that architecture, trained without human maps")],
                  loc="outside lower center", ncols=2)
    lacking = [net for net in nets if pairs.loc[pairs["net"] == net, "model"].isna().all()]
    caption = (f"Harmonized nets (Feng et al. 2025, Table 1; protocol feng2025, bars: standard errors) and the published standard "
               f"models of their architecture. Test: Wilcoxon's signed ranks, each net against the mean of its public models. "
               f"The paper's own baselines were not published, nor are there public numbers for {', '.join(lacking)}.")
    yield "harmonized", figure, pairs, caption


LACKING = ("`python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol crossing` and `python utilities.py "
           "merge --results_dir {}` make our numbers; --published DIR draws the published ones")
FIGURES = {
    "perturbation_tolerance": (perturbation_tolerance, LACKING),
    "human_alignment": (human_alignment, LACKING),
    "tradeoff": (tradeoff, LACKING),
    "harmonized": (harmonized, "--published DIR (or PUBLISHED_DIR of .env) names the folder with the paper's numbers"),
}
