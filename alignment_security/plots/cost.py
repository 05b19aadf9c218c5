"""Figure of what evaluations cost: passes through the network and seconds per image."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from alignment_security.analysis.captions import describe_runs, either
from alignment_security.analysis.results import (
    Results,
    group_finished,
    read_finished_rows,
    run_budget,
    run_columns,
)
from alignment_security.plots.style import LINE_HEIGHT, Drawing, put_heading, width_beside
from alignment_security.records.comparable import comparable_settings, numbered
from alignment_security.records.record import BALL_KINDS

MAX_BARS = 40  # models of a picture, the most expensive ones; the table has all
FORWARD, BACKWARD, SECONDS = "#0072B2", "#56B4E9", "#E69F00"
MADE_BY = "`python evaluate_robustness.py --model_name NAME --results_dir {} L2` makes it"


def cost(results: Results) -> Iterator[Drawing]:
    """Passes and seconds per image of each model: a figure per image set, threat and settings."""
    groups = group_finished(results.runs, (*BALL_KINDS, "minimum_norm"), comparable_settings)
    names = numbered([f"cost_{run['image_set']}_{run['threat']}" for run, *_ in groups])
    for name, group in zip(names, groups):
        table = pd.DataFrame(map(run_cost, group)).sort_values(
            "seconds", ascending=False, ignore_index=True
        )
        run = group[0]
        hidden = len(table) - MAX_BARS
        caption = (
            "What an attack cost per image: rows through the network, forward and backward, and "
            "seconds of all sessions, loading included. Seconds are of "
            f"{either('the device', list(table['device']))}: compare those of one device."
            + (f" The {hidden} cheapest models are in the table only." if hidden > 0 else "")
        )
        heading = f"{run['image_set']}, {run['threat']} (n = {run['images']}): {run_budget(run)}"
        text = f"{caption}\n{describe_runs(group, results.runs)}"
        yield name, draw_cost(table[:MAX_BARS], heading), table, text


def run_cost(run: dict) -> dict:
    """Forward and backward passes, and seconds, per image of a finished run."""
    rows, images = read_finished_rows(run), run["images"]
    sessions = run["sessions"]
    return {
        **run_columns(run),
        "images": images,
        "forwards": rows["forwards"].sum() / images,
        "backwards": rows["backwards"].sum() / images,
        "seconds": sum(session["seconds"] for session in sessions) / images,
        "device": " + ".join(
            dict.fromkeys(session.get("device") or "unknown" for session in sessions)
        ),
    }


def draw_cost(table: pd.DataFrame, heading: str) -> Figure:
    """Two panels, passes and seconds, a bar per model, the most expensive one first."""
    places = range(len(table))
    height = 1.3 + 1.3 * LINE_HEIGHT * len(table)
    figure, (passes, seconds) = plt.subplots(
        1, 2, sharey=True, figsize=(width_beside(table["model"]), height), layout="constrained"
    )
    passes.barh(places, table["forwards"], 0.7, color=FORWARD, label="forward")
    passes.barh(
        places, table["backwards"], 0.7, table["forwards"], color=BACKWARD, label="backward"
    )
    seconds.barh(places, table["seconds"], 0.7, color=SECONDS)
    passes.set_yticks(places, table["model"])
    passes.invert_yaxis()
    passes.set_xlabel("passes per image")
    seconds.set_xlabel("seconds per image")
    for ax in (passes, seconds):
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
    handles, labels = passes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    put_heading(figure, heading)
    return figure


FIGURES = {"cost": (cost, MADE_BY)}
