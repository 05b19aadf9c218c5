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

from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    MULTILABEL,
    PUBLISHED,
    ROBUST_NAME,
    NormTable,
    correlation,
    harmonized_pairs,
    mark_pareto_front,
    norm_tables,
    paired_test,
    paper_tables,
    rho_text,
    robust_series,
    tables_with,
)
from alignment_security.analysis.feng2025_tables import (
    DIFFERS,
    NOT_PUBLIC,
    comparisons,
    correlations,
    extremes,
    harmonization,
    printed_columns,
    robust_table,
    statistic_row,
    table_2_equal,
)
from alignment_security.analysis.results import Results
from alignment_security.plots.style import NORM_SYMBOLS, PAGE_WIDTH, Drawing, panels


def text_statistics(results: Results) -> Iterator[Drawing]:
    """The statistics of the text as one table: claimed, recomputed, n, groups and rule; then the same of our own records."""
    if not (tables := norm_tables(results)):
        return
    rows: list[dict] = []
    for source in tables:
        paper = source.name == PUBLISHED
        rows += [*correlations(source, paper), *comparisons(source, paper)]
        if paper:
            rows += [
                *extremes(source),
                *table_2_equal(results),
                *harmonization(results),
                statistic_row(
                    PUBLISHED,
                    "Big Data vs Other",
                    "both",
                    "",
                    "",
                    NOT_PUBLIC,
                    "the paper does not list its Big Data models",
                ),
            ]
    if not rows:
        return
    table = pd.DataFrame(rows)
    lost = table.loc[table["reproduces"].isin([DIFFERS, NOT_PUBLIC]), "statistic"]
    caption = "\n".join(
        [
            "Statistics of Feng et al. (2025) as claimed and as recomputed from public numbers. reproduces: equal to the digits "
            "printed; no: differs; not public: what it takes was not published; empty: not in the paper. value, df and p are in full.",
            f"Does not reproduce from public numbers: {', '.join(dict.fromkeys(lost)) or 'nothing'}.",
            *(source.note for source in tables),
        ]
    )
    yield "text_statistics", None, table, caption


def paper_drawings(results: Results) -> Iterator[Drawing]:
    """Tables 1 (harmonized nets) and 2 (robust nets), and a table like them for every protocol of ours."""
    if (tables := paper_tables(results)) is not None:
        first = tables[tables["table"] == 1]
        yield (
            "table_1_harmonized",
            None,
            pd.DataFrame({"model": first["model"], **printed_columns(first)}),
            (
                "Feng et al. (2025), Table 1: harmonized nets, mean ± standard error. Printed only: no public file holds these rows."
            ),
        )
    if (both := robust_table(results)) is not None:
        nets = both["model"].str.extract(ROBUST_NAME)
        recomputed = printed_columns(
            both.assign(**{name: both[name].astype(float) for name in MEASURES})
        )
        table = pd.DataFrame(
            {
                "model": nets["net"],
                "norm": nets["norm"].map({"l2": "L2", "linf": "Linf"}),
                "eps": nets["eps"],
                **printed_columns(both, "_printed"),
                **{f"{name}, public file": values for name, values in recomputed.items()},
                "equal": both["equal"],
            }
        )
        yield (
            "table_2_robust",
            None,
            table,
            (
                f"Feng et al. (2025), Table 2: robust nets of microsoft/robust-models-transfer, mean ± standard error; eps of L2 in "
                f"pixel units, of Linf in 255ths. equal: the public file says the same to the digits printed: "
                f"{both['equal'].eq('yes').sum()} of {len(both)} rows."
            ),
        )
    for source in norm_tables(results):
        if source.name != PUBLISHED:
            yield own_drawing(source)


def own_drawing(source: NormTable) -> Drawing:
    """A protocol of ours as a table like Tables 1 and 2, the most tolerant model first."""
    rows = source.rows.sort_values("pt", ascending=False)
    table = pd.DataFrame(
        {
            "model": rows["model"],
            "group": rows["group"],
            source.accuracy_label: rows["accuracy"],
            **printed_columns(rows),
        }
    )
    return (
        f"table_{source.image_set}_{source.threat}",
        None,
        table,
        (f"Perturbation Tolerance and human alignment, mean ± standard error.\n{source.note}"),
    )


# group -> colour (Okabe and Ito), marker; "Other" is a model that the second paper did not have
GROUP_STYLES = {
    "CNN": ("#0072B2", "o"),
    "ViT": ("#CC79A7", "D"),
    "Hybrid": ("#56B4E9", "v"),
    "SSL": ("#E69F00", "s"),
    "robust": ("#D55E00", "^"),
    "harmonized": ("#009E73", "*"),
    "Other": ("#666666", "P"),
}
HUMAN_ACCURACY = (
    95.14,
    2.02,
)  # multi-label accuracy of people in percent, mean and spread (the band of the paper's Figures 2 and 3)
SERIES: Any = {"L2": "-", "Linf": ":"}
MAX_NAMED_POINTS, MAX_LETTERS = (
    6,
    26,
)  # models of a panel whose names are written beside them; letters of a name


# ---- parts -----------------------------------------------------------------------------------------------------


def group_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend of the groups among some rows."""
    return [
        Line2D([], [], linestyle="none", color=colour, marker=marker, label=name)
        for name, (colour, marker) in GROUP_STYLES.items()
        if rows["group"].eq(name).any()
    ]


def scatter(ax, rows: pd.DataFrame, x: str, y: str, bars: bool = True) -> None:
    """Points by group, with their standard errors in y; hollow where the accuracy is estimated."""
    size = 4 if len(rows) > 30 else 5
    for group, part in rows.dropna(subset=[x, y]).groupby("group", sort=False):
        colour, marker = GROUP_STYLES.get(group, GROUP_STYLES["Other"])
        factor_x, factor_y = (MEASURES.get(column, ("", 1))[1] for column in (x, y))
        if bars:
            ax.errorbar(
                factor_x * part[x],
                factor_y * part[y],
                factor_y * part[f"{y}_sem"].fillna(0),
                fmt="none",
                ecolor=(colour, 0.35),
                elinewidth=0.6,
                zorder=1,
            )
        for hollow, points in part.groupby(part["estimated"] & (x == "accuracy")):
            ax.plot(
                factor_x * points[x],
                factor_y * points[y],
                marker,
                markersize=size + 2 * (marker == "*"),
                color=colour,
                markerfacecolor="white" if hollow else colour,
                markeredgecolor=colour if hollow else "white",
                markeredgewidth=0.7 if hollow else 0.3,
                zorder=2,
            )


def tolerance_scale(axis, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers where norms span more than a factor of four."""
    if values.max() > 4 * values.min() > 0:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(plt.FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def panel(ax, source: NormTable, rows: pd.DataFrame, x: str, y: str, what: str = "") -> None:
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
    if len(points) > MAX_NAMED_POINTS:
        return
    factors = [MEASURES.get(column, ("", 1))[1] for column in (x, y)]
    texts = [
        ax.text(
            factors[0] * a,
            factors[1] * b,
            name if len(name) <= MAX_LETTERS else name.partition(".")[0][:MAX_LETTERS],
            fontsize=6,
        )
        for a, b, name in zip(points[x], points[y], points["model"])
    ]
    ax.figure.draw_without_rendering()  # the layout has to stand before texts are placed
    adjust_text(
        texts,
        factors[0] * points[x].to_numpy(),
        factors[1] * points[y].to_numpy(),
        ax=ax,
        iter_lim=200,
        expand=(1.1, 1.4),
        ensure_inside_axes=True,
        arrowprops={"arrowstyle": "-", "linewidth": 0.4},
    )


def together(tables: list[NormTable]) -> pd.DataFrame:
    return pd.concat(
        [source.rows.assign(panel=i) for i, source in enumerate(tables, start=1)], ignore_index=True
    )


# ---- Figures 2 and 3 -------------------------------------------------------------------------------------------


def against_accuracy(results: Results, y: str, name: str) -> Iterator[Drawing]:
    """A measure against multi-label accuracy: groups, second-degree fit through the standard models, human band."""
    if not (tables := tables_with(norm_tables(results), ["accuracy", y])):
        return
    shown = [source.rows.dropna(subset=["accuracy", y]) for source in tables]
    figure, axes = panels(len(tables), group_handles(pd.concat(shown)))
    for ax, source, rows in zip(axes, tables, shown):
        draw_fit(ax, source.standard.dropna(subset=["accuracy", y]), y)
        if source.accuracy_label == MULTILABEL:
            ax.axvspan(
                HUMAN_ACCURACY[0] - HUMAN_ACCURACY[1],
                HUMAN_ACCURACY[0] + HUMAN_ACCURACY[1],
                color="#BBBBBB",
                alpha=0.35,
                linewidth=0,
                zorder=0,
            )
            ax.annotate(
                "people",
                (HUMAN_ACCURACY[0], 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=7,
                color="#444444",
            )
        panel(ax, source, rows, "accuracy", y)
    for ax, rows in zip(axes, shown):
        name_points(ax, rows, "accuracy", y)
    caption = "\n".join(
        [
            f"{MEASURES[y][0]} against accuracy, a panel per source. Bars: standard errors; hollow: accuracy estimated from top-1; "
            f"dashed: second-degree fit through the standard models (all but robust and harmonized nets); band: people, {HUMAN_ACCURACY[0]} ± "
            f"{HUMAN_ACCURACY[1]} %; ρ: Spearman over the standard models, 95 % bootstrap interval.",
            *(source.note for source in tables),
        ]
    )
    yield (
        name,
        figure,
        together([source._replace(rows=rows) for source, rows in zip(tables, shown)]),
        caption,
    )


def draw_fit(ax, standard: pd.DataFrame, y: str) -> None:
    """The second-degree fit, over the accuracies that it was fitted to."""
    if standard["accuracy"].nunique() >= FEWEST:
        line = np.linspace(standard["accuracy"].min(), standard["accuracy"].max(), 200)
        ax.plot(
            line,
            MEASURES[y][1] * np.polyval(np.polyfit(standard["accuracy"], standard[y], 2), line),
            color="#222222",
            linestyle="--",
            zorder=3,
        )


def perturbation_tolerance(results: Results) -> Iterator[Drawing]:
    """Figure 2: Perturbation Tolerance against multi-label accuracy."""
    return against_accuracy(results, "pt", "perturbation_tolerance")


def human_alignment(results: Results) -> Iterator[Drawing]:
    """Figure 3: human alignment against multi-label accuracy."""
    return against_accuracy(results, "alignment", "human_alignment")


def tradeoff(results: Results) -> Iterator[Drawing]:
    """Figure 4: human alignment against Perturbation Tolerance; left standard models, right what other training does."""
    tables = [
        mark_pareto_front(source)
        for source in tables_with(norm_tables(results), ["pt", "alignment"])
    ]
    views = [
        (source, rows, what)
        for source in tables
        for rows, what in [(source.standard, ""), (source.rows, ", all models")]
        if len(rows) > len(source.standard) or not what
    ]
    if not views:
        return
    lines = [
        Line2D(
            [],
            [],
            color=GROUP_STYLES["robust"][0],
            linewidth=0.8,
            linestyle=style,
            label=f"growing {NORM_SYMBOLS[norm]} eps",
        )
        for norm, style in SERIES.items()
        if any(name.endswith(norm) for source in tables for name, _ in robust_series(source.rows))
    ]
    figure, axes = panels(len(views), group_handles(together(tables)) + lines)
    for ax, (source, rows, what) in zip(axes, views):
        draw_front(ax, source.rows[source.rows["front"]])
        draw_series(ax, rows)
        panel(ax, source, rows, "pt", "alignment", what)
    for ax, (_, rows, _) in zip(axes, views):
        name_points(ax, rows, "pt", "alignment")
    caption = "\n".join(
        [
            "Human alignment against Perturbation Tolerance, robust and harmonized nets in a panel of their own. Black line: Pareto "
            "front of the standard models, none of which is better in both; coloured lines: one net trained against growing eps. "
            "Bars: standard errors; ρ: Spearman over the standard models, 95 % bootstrap "
            "interval.",
            *(source.note for source in tables),
        ]
    )
    yield "tradeoff", figure, together(tables), caption


def draw_front(ax, front: pd.DataFrame) -> None:
    """The Pareto front as the staircase that bounds what is dominated."""
    if len(front) >= 2:
        front = front.sort_values("pt")
        ax.step(
            front["pt"],
            100 * front["alignment"],
            where="pre",
            color="#222222",
            linewidth=0.9,
            zorder=3,
        )


def draw_series(ax, rows: pd.DataFrame) -> None:
    """Lines along the eps that nets were trained against."""
    for name, part in robust_series(rows):
        x, y = part["pt"].to_numpy(), 100 * part["alignment"].to_numpy()
        style = SERIES["L2" if name.endswith("L2") else "Linf"]
        ax.plot(x, y, color=GROUP_STYLES["robust"][0], linewidth=0.6, zorder=1, linestyle=style)


def figure_6_7(results: Results) -> Iterator[Drawing]:
    """Figures 6 and 7: harmonized nets against the public models of their architecture."""
    if (pairs := harmonized_pairs(results)).empty:
        return
    nets = list(dict.fromkeys(pairs["net"]))[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.6), sharey=True, layout="constrained")
    for ax, (measure, (label, factor)) in zip(axes, MEASURES.items()):
        for i, net in enumerate(nets):
            part = pairs[pairs["net"] == net]
            first, known = part.iloc[0], part.dropna(subset=["model"])
            ax.errorbar(
                factor * known[measure],
                [i] * len(known),
                xerr=factor * known[f"{measure}_sem"],
                fmt="o",
                color=GROUP_STYLES["CNN"][0],
                elinewidth=0.8,
                markersize=3.5,
                alpha=0.8,
            )
            ax.errorbar(
                factor * first[f"{measure}_harmonized"],
                i,
                xerr=factor * first[f"{measure}_sem_harmonized"],
                fmt="*",
                color=GROUP_STYLES["harmonized"][0],
                elinewidth=0.8,
                markersize=8,
            )
        test = paired_test(pairs, measure)
        ax.set_title(
            f"mean difference {factor * test['difference']:+.2g}, Wilcoxon p = {test['p']:.2g} "
            f"(n = {test['n']} nets)",
            loc="left",
            fontsize=7,
        )
        ax.set(xlabel=label, yticks=range(len(nets)), ylim=(-0.6, len(nets) - 0.4))
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_yticklabels(nets)
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                linestyle="none",
                marker="*",
                markersize=8,
                color=GROUP_STYLES["harmonized"][0],
                label="harmonized (Table 1)",
            ),
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                color=GROUP_STYLES["CNN"][0],
                label="public weights of that architecture, trained without human maps",
            ),
        ],
        loc="outside lower center",
        ncols=2,
    )
    lacking = [net for net in nets if pairs.loc[pairs["net"] == net, "model"].isna().all()]
    caption = (
        f"Harmonized nets (Feng et al. 2025, Table 1; protocol feng2025, bars: standard errors) and the published standard "
        f"models of their architecture. Test: Wilcoxon's signed ranks, each net against the mean of its public models. "
        f"The paper's own baselines were not published, nor are there public numbers for {', '.join(lacking)}."
    )
    yield "harmonized", figure, pairs, caption


LACKING = (
    "`python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol crossing` and `python utilities.py "
    "merge --results_dir {}` make our numbers; --published DIR draws the published ones"
)
FIGURES = {
    "perturbation_tolerance": (perturbation_tolerance, LACKING),
    "human_alignment": (human_alignment, LACKING),
    "tradeoff": (tradeoff, LACKING),
    "harmonized": (
        figure_6_7,
        "--published DIR (or PUBLISHED_DIR of .env) names the folder with the paper's numbers",
    ),
    "text_statistics": (text_statistics, LACKING),
    "tables_1_2": (paper_drawings, LACKING),
}
