"""Figure of norm-bounded attacks: what became of the images of each model at each eps."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.record_tables import VERDICTS, verdicts_by_eps
from alignment_security.analysis.results import Results, group_finished, panel_budget
from alignment_security.common.eps import format_eps
from alignment_security.plots.style import (
    DARK,
    LINE_HEIGHT,
    PAGE_WIDTH,
    Drawing,
    drawn_radii,
    put_heading,
)
from alignment_security.records.comparable import comparable_settings, numbered
from alignment_security.records.record import VERDICT_KINDS

MAX_BARS = 40  # models of a picture, the most robust ones; the table has all
# what is drawn from left to right: robust, each attack of the budget, misclassified
COLOURS = dict(zip(VERDICTS, ("#009E73", "#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#D9D9D9")))
MADE_BY = (
    "`python evaluate_robustness.py --model_name NAME --results_dir {} Linf --eps 1/255` makes it"
)


def broken_by(results: Results) -> Iterator[Drawing]:
    """Which attack broke what: a bar per model, ranked by robust accuracy, a panel per eps."""
    groups = group_finished(results.runs, VERDICT_KINDS, comparable_settings)
    names = numbered([f"broken_by_{run['image_set']}_{run['threat']}" for run, *_ in groups])
    for name, group in zip(names, groups):
        table = pd.concat([verdicts_by_eps(run) for run in group], ignore_index=True)
        run = group[0]
        budget = panel_budget(run, groups)
        heading = f"{run['image_set']}, {run['threat']} (n = {run['images']}): {budget}"
        hidden = table["model"].nunique() - MAX_BARS
        caption = (
            "What became of all images of each model at each eps, and the attack of the budget "
            "that broke them first; later attacks run only on what is left. Models by robust "
            "accuracy at the largest eps drawn; bars: its 95 % Wilson interval."
            + (f" The {hidden} least robust models are in the table only." if hidden > 0 else "")
        )
        yield (
            name,
            draw_verdicts(table, run["threat"], heading),
            table,
            f"{caption}\n{describe_runs(group, results.runs)}",
        )


def draw_verdicts(table: pd.DataFrame, threat: str, heading: str) -> Figure:
    """A panel per eps, a stacked bar per model.

    table   of `verdicts_by_eps`
    """
    radii = drawn_radii(sorted(table["eps"].unique()))
    ranked = table[table["eps"] == radii[-1]].sort_values(
        ["robust", "model"], ascending=[False, True]
    )
    models = list(ranked["model"][:MAX_BARS])
    height = 1.1 + 1.3 * LINE_HEIGHT * len(models)
    figure, axes = plt.subplots(
        1,
        len(radii),
        sharey=True,
        figsize=(PAGE_WIDTH, height),
        layout="constrained",
        squeeze=False,
    )
    for ax, eps in zip(axes.flat, radii):
        at_eps = table[table["eps"] == eps].set_index("model").reindex(models)
        draw_bars(ax, at_eps)
        ax.set_title(f"ε = {format_eps(eps, threat, radii)}", loc="left")
    axes.flat[0].set_yticks(range(len(models)), models)
    axes.flat[0].invert_yaxis()
    axes.flat[(len(radii) - 1) // 2].set_xlabel("share of all images (%)")
    shown = [verdict for verdict in VERDICTS if table[verdict].any()]
    handles = [Patch(color=COLOURS[verdict], label=verdict) for verdict in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown))
    put_heading(figure, heading)
    return figure


def draw_bars(ax: Axes, table: pd.DataFrame) -> None:
    """A stacked bar per row, and the interval of its robust accuracy."""
    places, left = np.arange(len(table)), np.zeros(len(table))
    for verdict, colour in COLOURS.items():
        share = 100 * (table[verdict] / table["n"]).to_numpy(float)
        ax.barh(places, share, 0.7, left, color=colour)
        left = left + share
    robust = 100 * (table["robust"] / table["n"]).to_numpy(float)
    bars = [robust - 100 * table["low"], 100 * table["high"] - robust]
    ax.errorbar(
        robust, places, xerr=np.clip(bars, 0, None), fmt="none", ecolor=DARK, elinewidth=0.8
    )
    ax.set_xlim(0, 100)
    ax.tick_params(axis="y", length=0)


FIGURES = {"broken_by": (broken_by, MADE_BY)}
