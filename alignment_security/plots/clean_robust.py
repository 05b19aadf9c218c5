"""Figure of two accuracies: robust against clean, with the Pareto front of models."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment_security.analysis.accuracy_pairs import SAME_IMAGES, accuracy_pairs
from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.results import Results, runs_of_rows
from alignment_security.common.eps import format_eps, without_eps
from alignment_security.plots.style import (
    DARK,
    MAX_NAMED,
    Drawing,
    drawn_radii,
    legend_handles,
    model_styles,
    panels,
    put_heading,
)
from alignment_security.records.comparable import numbered

MADE_BY = (
    "`python evaluate_robustness.py --model_name NAME --results_dir {} Linf --eps 1/255`, then "
    "`python utilities.py merge --results_dir {}` make it"
)


def clean_vs_robust(results: Results) -> Iterator[Drawing]:
    """Robust against clean accuracy of the same images: a panel per eps, a point per model."""
    pairs = list(accuracy_pairs(results))
    if not pairs:
        return
    table = pd.concat(pairs, ignore_index=True)
    same = [name for name in SAME_IMAGES if name != "eps"]
    groups = [part for _, part in table.groupby(same, dropna=False)]
    names = numbered(
        [f"clean_vs_robust_{part['image_set'].iat[0]}_{part['threat'].iat[0]}" for part in groups]
    )
    for name, part in zip(names, groups):
        bars = "; bars: 95 % Wilson intervals" if part["model"].nunique() <= MAX_NAMED else ""
        caption = (
            "Accuracy under attack against clean accuracy, over the same "
            f"{part['n'].iat[0]:g} images{bars}.{front_text(part)}\n{models_of(part, results)}"
        )
        yield name, draw_accuracies(part, results.evaluated), part, caption


def front_text(part: pd.DataFrame) -> str:
    """A sentence on the line of the Pareto fronts; "" where each one drawn is one point."""
    drawn = part["front"] & part["eps"].isin(drawn_radii(sorted(part["eps"].unique())))
    points = part[drawn].drop_duplicates(["eps", "clean", "robust"])
    if points["eps"].value_counts().max() < 2:
        return ""
    return (
        " Line: the Pareto front. No other model is as good in both accuracies as one on it, and "
        "better in one."
    )


def models_of(part: pd.DataFrame, results: Results) -> str:
    """Facts on a group's models, those that are missing, and the eps that some of them lack."""
    if runs := runs_of_rows(results, part):
        return describe_runs(runs, results.runs, "no robust accuracy in the summary")
    radii = part.groupby("model")["eps"].agg(set).to_dict()
    return f"{heading_of(part)}.{without_eps(radii, part['threat'].iat[0])}"


def heading_of(part: pd.DataFrame) -> str:
    """Image set, threat, n and budget of a group."""
    first = part.iloc[0]
    budget = first["attack"] if isinstance(first["attack"], str) else "budget not given"
    return f"{first['image_set']}, {first['threat']} (n = {first['n']:g}): {budget}"


def draw_accuracies(part: pd.DataFrame, among: set[str]) -> Figure:
    """A panel per eps above a legend of models (or families); among: of `model_styles`."""
    styles = model_styles(set(part["model"]), among)
    radii = drawn_radii(sorted(part["eps"].unique()))
    handles = legend_handles(styles)
    for handle in handles:
        handle.set_linestyle("none")
        if handle.get_marker() in ("", "None", None):
            handle.set_marker("o")
    figure, axes = panels(len(radii), handles)
    for ax, eps in zip(axes, radii):
        draw_points(ax, part[part["eps"] == eps], styles)
        ax.set_title(f"ε = {format_eps(eps, part['threat'].iat[0], radii)}", loc="left")
        ax.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
    put_heading(figure, textwrap.shorten(heading_of(part), 120))
    return figure


def draw_points(ax: Axes, part: pd.DataFrame, styles: dict[str, dict]) -> None:
    """A point per model, with both bars if models are few, and the staircase of the front."""
    front = part[part["front"]].sort_values("clean")
    ax.step(
        100 * front["clean"],
        100 * front["robust"],
        where="pre",
        color=DARK,
        linewidth=0.9,
        zorder=1,
    )
    with_bars = len(styles) <= MAX_NAMED
    for row in part.to_dict("records"):
        style = styles[row["model"]]
        bars: Any = {}
        if with_bars:
            bars = {"xerr": ends(row, "clean"), "yerr": ends(row, "robust")}
        ax.errorbar(
            100 * row["clean"],
            100 * row["robust"],
            fmt=style.get("marker", "o"),
            color=style["color"],
            ecolor=(style["color"], 0.4),
            elinewidth=0.7,
            markersize=5 if with_bars else 3,
            **bars,
        )
    highest = ax.get_ylim()[1]
    ax.set_ylim(-0.04 * highest, highest)  # markers at 0 are whole


def ends(row: dict, name: str) -> np.ndarray:
    """(2, 1) lengths of an interval below and above its accuracy, in percent."""
    lengths = [row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]]
    return 100 * np.clip(lengths, 0, None).reshape(2, 1)


FIGURES = {"clean_vs_robust": (clean_vs_robust, MADE_BY)}
