"""Figures of records: accuracy against eps, error under corruptions, minimal norms under both protocols."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from alignment_security.analysis.results import (
    Results,
    describe_runs,
    group_finished,
    norm_means,
    read_finished_rows,
    run_budget,
    run_folder,
)
from alignment_security.models.families import family
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    MARKERS,
    MAX_NAMED,
    NORM_SYMBOLS,
    PAGE_WIDTH,
    Drawing,
    legend_handles,
    model_styles,
    panels,
    radius_axis,
)
from alignment_security.records.metrics import (
    ALEXNET_ERRORS,
    SEVERITIES,
    accuracy_interval,
    mean_corruption_error,
)

PROTOCOL_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito


# ---- accuracy against eps --------------------------------------------------------------------------------------


def accuracy_table(run: dict) -> pd.DataFrame:
    """Accuracy on all images and its 95 % Wilson interval, a row per eps; at eps 0 it is clean accuracy."""
    rows, table = read_finished_rows(run), []
    hits: list[tuple[Any, Any]] = [(0.0, rows.drop_duplicates("image_id")["clean_correct"])]
    hits += [(eps, part["robust"]) for eps, part in rows.groupby("eps") if eps != 0]
    for eps, hit in hits:
        correct, n = int(hit.sum()), len(hit)
        low, high = accuracy_interval(correct, n)
        table.append(
            {
                "image_set": run["image_set"],
                "threat": run["threat"],
                "budget": run_budget(run),
                "model": run["model"],
                "family": family(run["model"]),
                "eps": eps,
                "correct": correct,
                "n": n,
                "accuracy": correct / n,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(table)


def accuracy_vs_eps(results: Results) -> Iterator[Drawing]:
    """Accuracy under attack against eps: a panel per image set, threat and budget, a line per model."""

    def panel(run):  # its models share every setting of the run but the list of eps
        return *run_folder(run), json.dumps(run["settings"]["run"] | {"eps": None}, sort_keys=True)

    if not (groups := group_finished(results.runs, ("ball",), panel)):
        return
    tables = [
        pd.concat(map(accuracy_table, group)).assign(panel=i)
        for i, group in enumerate(groups, start=1)
    ]
    styles = model_styles({run["model"] for group in groups for run in group})
    figure, axes = panels(len(groups), legend_handles(styles))
    for ax, group, table in zip(axes, groups, tables):
        draw_accuracy(
            ax, table, styles, group[0]["settings"]["run"].get("norm", group[0]["threat"])
        )
        ax.set_title(panel_title(group[0], groups), loc="left")
    bars = (
        "Bars: 95 % Wilson intervals; models stand a little apart along the axis so that their bars can be told apart."
        if len(styles) <= MAX_NAMED
        else "The 95 % Wilson intervals are in the table."
    )
    caption = "\n".join(
        [
            f"Accuracy under attack, of all images, against the radius eps (at 0: without attack). {bars}",
            *(describe_runs(group, results.runs) for group in groups),
        ]
    )
    yield "accuracy_vs_eps", figure, pd.concat(tables, ignore_index=True), caption


def panel_title(run: dict, groups: list[list[dict]]) -> str:
    """Image set, threat and n; below it the budget, and what else tells panels of the same name apart."""
    settings = run["settings"]["run"]
    others = [
        group[0]["settings"]["run"] for group in groups if run_folder(group[0]) == run_folder(run)
    ]
    facts = [
        f"{name} {str(value)[:12]}"
        for name, value in settings.items()
        if name not in ("attack", "attacks", "eps")
        and any(other.get(name) != value for other in [*others, settings | {"head": "none"}])
    ]
    below = textwrap.fill(", ".join([run_budget(run), *facts]), 46)
    return f"{run['image_set']}, {NORM_SYMBOLS.get(run['threat'], run['threat'])} (n = {run['images']})\n{below}"


def draw_accuracy(ax, table: pd.DataFrame, styles: dict[str, dict], norm: str) -> None:
    models, radii = sorted(table["model"].unique()), np.unique(table["eps"])
    span, bars = radii[-1] or 1.0, len(styles) <= MAX_NAMED
    apart = (
        min(0.012 * span, 0.3 * np.diff(radii, prepend=-span).min() / len(models)) if bars else 0
    )
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        low_high = np.clip(
            [part["accuracy"] - part["low"], part["high"] - part["accuracy"]], 0, None
        )
        ax.errorbar(
            part["eps"] + (i - (len(models) - 1) / 2) * apart,
            100 * part["accuracy"],
            100 * low_high,
            elinewidth=0.8 * bars,
            ecolor=(styles[model]["color"], 0.6),
            clip_on=False,
            **styles[model],
        )
    ax.set(ylim=(0, 100), xlim=(-0.05 * span, 1.05 * span), ylabel="accuracy (%)")
    ax.spines[["left", "bottom"]].set_position(("outward", 3))
    radius_axis(ax, radii, norm)


# ---- corruptions -----------------------------------------------------------------------------------------------


def corruption_table(runs: list[dict]) -> pd.DataFrame:
    """Top-1 error of each model, corruption type and severity that was run."""
    return pd.DataFrame(
        [
            {
                "image_set": run["image_set"],
                "model": run["model"],
                "type": kind,
                "severity": int(severity),
                "n": run["images"],
                "error": 1 - read_finished_rows(run)["clean_correct"].mean(),
            }
            for run in runs
            for _, kind, severity in [run["threat"].rsplit("-", 2)]
        ]
    )


def corruption_summary(table: pd.DataFrame) -> pd.DataFrame:
    """metrics.mean_corruption_error of each model (index); over AlexNet's where ImageNet-C was run at all five severities."""
    rows = {}
    for model, part in table.groupby("model"):
        errors = {
            kind: dict(zip(cells["severity"], cells["error"]))
            for kind, cells in part.groupby("type")
        }
        whole = all(set(cells) == set(SEVERITIES) for cells in errors.values())
        comparable = (
            whole
            and set(errors) <= set(ALEXNET_ERRORS)
            and set(part["image_set"]) == {"imagenet-c"}
        )
        rows[model] = mean_corruption_error(errors, ALEXNET_ERRORS if comparable else None)
    return pd.DataFrame.from_dict(rows, orient="index")


def corruption_errors(results: Results) -> Iterator[Drawing]:
    """Error under each corruption, mean over the severities run, and the mean over types; a row per model."""
    runs = [run for run in results.runs if run["threat"].startswith("corruptions-")]
    for group in group_finished(runs, ("clean",), lambda run: run["image_set"]):
        image_set, table = group[0]["image_set"], corruption_table(group)
        summary = corruption_summary(table)
        shown = table.pivot_table(
            index="model", columns="type", values="error"
        )  # mean over severities
        shown["mean"] = summary["mean_error"]
        figure, ax = plt.subplots(
            figsize=(max(COLUMN_WIDTH, 1.6 + 0.36 * shown.shape[1]), 1.5 + 0.2 * len(shown)),
            layout="constrained",
        )
        draw_cells(ax, 100 * shown)
        ax.set_title(f"{image_set}: error (%), mean over severities", loc="left")
        yield (
            f"corruption_errors_{image_set}",
            figure,
            table.join(summary[["mean_error", "mce"]], on="model"),
            corruption_caption(table, summary),
        )


def corruption_caption(table: pd.DataFrame, summary: pd.DataFrame) -> str:
    lines = [
        f"{model}: mean error {100 * row.mean_error:.1f} % over {row.types:.0f} types and {row.cells:.0f} cells, "
        + (
            f"mCE {100 * row.mce:.1f} (AlexNet 100)"
            if np.isfinite(row.mce)
            else "no mCE (it needs imagenet-c at all five severities)"
        )
        for model, row in summary.iterrows()
    ]
    severities, n = (
        " or ".join(map(str, sorted(table[column].unique()))) for column in ("severity", "n")
    )
    return "\n".join(
        [
            f"Top-1 error of all images under each corruption, mean over the severities run ({severities}); empty: not "
            "run.",
            *lines,
            f"n = {n} images a cell.",
        ]
    )


def draw_cells(ax, shown: pd.DataFrame) -> None:
    """A coloured cell per value, with the value in it."""
    ax.imshow(shown, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    ax.set_xticks(
        range(shown.shape[1]),
        [name.replace("_", " ") for name in shown.columns],
        rotation=45,
        ha="right",
    )
    ax.set_yticks(range(len(shown)), shown.index)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(shown.to_numpy()):
        if np.isfinite(value):
            ax.text(
                j,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if value < 50 else "black",
            )


# ---- the two protocols -----------------------------------------------------------------------------------------


def protocols_compared(results: Results) -> Iterator[Drawing]:
    """Perturbation Tolerance and human alignment of the same models, images and head under each L2 protocol."""

    def same(run):
        return run["image_set"], run["settings"]["run"].get("head", "none")

    runs = [run for run in results.runs if run["threat"].startswith("L2-")]
    for group in group_finished(runs, ("minimum_norm",), same):
        table = pd.DataFrame(
            [
                {
                    "image_set": run["image_set"],
                    "head": same(run)[1],
                    "model": run["model"],
                    "threat": run["threat"],
                    "attack": run_budget(run),
                }
                | norm_means(read_finished_rows(run))
                for run in group
            ]
        )
        if "L2-feng2025" not in set(table["threat"]) or table["threat"].nunique() < 2:
            continue
        height = 1.3 + 0.26 * table["model"].nunique()
        figure, axes = plt.subplots(
            1, 2, figsize=(PAGE_WIDTH, height), sharey=True, layout="constrained"
        )
        for ax, value, label in zip(
            axes,
            ("l2", "alignment"),
            ("Perturbation Tolerance ($L_2$, log scale)", "human alignment"),
        ):
            draw_protocols(ax, table, value)
            ax.set_xlabel(label)
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        caption = "\n".join(
            [
                "The same models, photographs and head under each protocol: mean and standard error over the "
                "correctly classified images. feng2025: foolbox's L2 FMN as published: never projects, stretched "
                "pixels, norms that are not minimal.",
                *(
                    describe_runs([run for run in group if run["threat"] == threat], results.runs)
                    for threat in table["threat"].unique()
                ),
            ]
        )
        yield (
            "_".join(filter(None, ["protocols_compared", *same(group[0])])),
            figure,
            table,
            caption,
        )


def draw_protocols(ax, table: pd.DataFrame, value: str) -> None:
    """A row per model, a marker with its standard error per protocol."""
    models = sorted(table["model"].unique(), reverse=True)
    for k, (threat, part) in enumerate(table.groupby("threat")):
        height = 0.16 * (
            k - (table["threat"].nunique() - 1) / 2
        )  # bars of one model beside each other
        ax.errorbar(
            part[value],
            [models.index(model) - height for model in part["model"]],
            xerr=part[f"{value}_sem"],
            fmt=MARKERS[k],
            color=PROTOCOL_COLOURS[k % len(PROTOCOL_COLOURS)],
            label=threat.removeprefix("L2-"),
            elinewidth=0.8,
        )
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(-0.6, len(models) - 0.4)


EVALUATE = "python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} Linf --eps 1/255"
MADE_BY = f"`{EVALUATE}` makes it (a finished run: with --overwrite)"
CORRUPTED = (
    "`python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --dataset imagenet-c corruptions "
    "--corruption_type fog --corruption_severity 3` makes it"
)
BOTH = "runs of the same models with `L2 --protocol feng2025` and with `L2 --protocol fmn` (or crossing) in {} make it"
FIGURES = {
    "accuracy_vs_eps": (accuracy_vs_eps, MADE_BY),
    "corruption_errors": (corruption_errors, CORRUPTED),
    "protocols_compared": (protocols_compared, BOTH),
}
