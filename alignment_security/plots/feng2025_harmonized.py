"""Figures 6 and 7 of Feng et al. (2025): what harmonization does to tolerance and alignment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alignment_security.analysis.feng2025 import (
    MEASURES,
    TOLERANCES,
    tables_of_every_norm,
    tables_with,
)
from alignment_security.analysis.feng2025_harmonized import (
    harmonized_pairs,
    own_harmonized_pairs,
    paired_test,
)
from alignment_security.analysis.feng2025_published import PUBLISHED_ERRORS
from alignment_security.analysis.norm_table import ALIGNMENT, PUBLISHED
from alignment_security.analysis.results import Results
from alignment_security.plots.feng2025_style import GROUP_STYLES, own_figure_name
from alignment_security.plots.style import PAGE_WIDTH, SMALL, Drawing

PUBLIC_STYLE: Any = {"marker": "o", "color": GROUP_STYLES["CNN"][0]}
HARMONIZED_STYLE: Any = {"marker": "*", "color": GROUP_STYLES["harmonized"][0], "markersize": 8}
ROW = 0.19  # inches: a net


def figure_6_7(results: Results) -> Iterator[Drawing]:
    """Harmonized nets against standard ones of their architecture: published, then our own."""
    pairs = harmonized_pairs(results)
    if not pairs.empty:
        figure = draw_harmonized(pairs, PUBLISHED_LEGEND)
        yield "harmonized", figure, pairs, published_caption(pairs)
    tables = tables_with(tables_of_every_norm(results), [*MEASURES])
    for table in tables:
        if table.name == PUBLISHED:
            continue
        pairs = own_harmonized_pairs(results, table)
        if pairs.empty:
            continue
        figure = draw_harmonized(pairs, OWN_LEGEND, table.norm, table.alignment_label)
        caption = (
            "Harmonized nets and the standard models of their architecture on the same images; "
            "bars: standard errors. p beside a net: Wilcoxon's signed ranks over the images that "
            "both classify correctly and are fooled on, not corrected for the number of nets; "
            "above: over nets, each against the mean of its standard models.\n"
            f"{table.note}"
        )
        yield own_figure_name("harmonized", table, tables), figure, pairs, caption


def published_caption(pairs: pd.DataFrame) -> str:
    without = pairs.loc[pairs["model"].isna(), "net"].unique()[::-1]
    return (
        "Harmonized nets (Feng et al. 2025, Table 1; protocol feng2025, bars: standard errors; "
        f"{PUBLISHED_ERRORS}) and "
        "the published standard models of their architecture. Test: Wilcoxon's signed ranks, each "
        "net against the mean of its public models. The paper's own baselines were not published, "
        f"nor are there public numbers for {', '.join(without)}."
    )


PUBLISHED_LEGEND = (
    "harmonized (Table 1)",
    "public weights of that architecture, trained without human maps",
)
OWN_LEGEND = ("harmonized", "standard model of that architecture")


def draw_harmonized(
    pairs: pd.DataFrame,
    legend: tuple[str, str],
    norm: str = "L2",
    alignment_label: str = ALIGNMENT,
) -> Figure:
    """Two panels, tolerance and alignment, with a row per harmonized net.

    pairs    of `harmonized_pairs` or `own_harmonized_pairs`
    legend   of stars and dots
    """
    height = 0.9 + ROW * max(3, pairs["net"].nunique())
    figure, axes = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH, height), sharey=True, layout="constrained"
    )
    for ax, measure in zip(axes, MEASURES):
        label, factor = alignment_label, MEASURES[measure][1]
        if measure == "pt":
            label, _, factor = TOLERANCES[norm]
        draw_pairs(ax, pairs, measure, factor)
        ax.set_xlabel(label)
    stars = Line2D([], [], linestyle="none", label=legend[0], **HARMONIZED_STYLE)
    dots = Line2D([], [], linestyle="none", label=legend[1], **PUBLIC_STYLE)
    figure.legend(handles=[stars, dots], loc="outside lower center", ncols=2)
    return figure


def draw_pairs(ax: Axes, pairs: pd.DataFrame, measure: str, factor: float) -> None:
    """A star for each harmonized net, dots for the standard models of its architecture."""
    nets = list(dict.fromkeys(pairs["net"]))[::-1]
    for i, net in enumerate(nets):
        part = pairs[pairs["net"] == net]
        first, standard = part.iloc[0], part.dropna(subset=["model"])
        ax.errorbar(
            factor * standard[measure],
            [i] * len(standard),
            xerr=factor * standard[f"{measure}_sem"],
            linestyle="none",
            elinewidth=0.8,
            markersize=3.5,
            alpha=0.8,
            **PUBLIC_STYLE,
        )
        ax.errorbar(
            factor * first[f"{measure}_harmonized"],
            i,
            xerr=factor * first[f"{measure}_sem_harmonized"],
            linestyle="none",
            elinewidth=0.8,
            **HARMONIZED_STYLE,
        )
        if f"p_{measure}" in part:
            place: Any = {"transform": ax.get_yaxis_transform(), "va": "center"}
            ax.text(1.02, i, p_text(part[f"p_{measure}"]), fontsize=SMALL, **place)
    ax.set_title(test_text(paired_test(pairs, measure), factor), loc="left", fontsize=7)
    ax.set(ylim=(-0.6, len(nets) - 0.4))
    ax.set_yticks(range(len(nets)), nets)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    ax.set_axisbelow(True)


def p_text(values: pd.Series) -> str:
    """p of a net against each of its standard models: `p = 0.44, 1, < 0.001`."""
    texts = ", ".join("< 0.001" if p < 0.001 else f"{p:.2g}" for p in values.dropna())
    return f"p {texts}" if texts.startswith("<") else f"p = {texts}" if texts else ""


def test_text(test: dict[str, float], factor: float) -> str:
    """A result of `paired_test` above a panel."""
    text = f"mean difference {factor * test['difference']:+.2g}"
    if np.isnan(test["p"]):
        return f"{text} (n = {test['n']} net{'s' if test['n'] > 1 else ''})"
    return f"{text}, Wilcoxon p = {test['p']:.2g} (n = {test['n']} nets)"


FIGURES = {
    "harmonized": (
        figure_6_7,
        "--published DIR (or PUBLISHED_DIR of .env) names the folder with the paper's numbers; of "
        "your own: minimal norms with human maps of a harmonized net (--group) and of a standard "
        "one of its architecture",
    ),
}
