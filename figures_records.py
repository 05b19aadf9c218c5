"""Figures of attack records: accuracy against eps, and adversarial examples."""
from __future__ import annotations

import json
import textwrap
import zipfile
from collections.abc import Iterator
from itertools import compress, islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import metrics
import records
import utilities
from drawing import (
    MAX_NAMED,
    NORMS,
    Drawing,
    Results,
    budget,
    describe,
    finished,
    folder,
    legend_handles,
    model_styles,
    panels,
    radius_axis,
    read_rows,
)
from families import family

PHOTOGRAPHS, EXAMPLE_MODELS, CELL = 4, 3, 1.62      # columns and rows of examples; inches a picture
NOT_KEPT = "fooled, no example kept"


# ---- accuracy against eps --------------------------------------------------------------------------------------

def accuracy_table(run: dict) -> pd.DataFrame:
    """Accuracy on all images and its 95 % Wilson interval, a row per eps; at eps 0 it is clean accuracy."""
    rows, table = read_rows(run), []
    hits: list[tuple[Any, Any]] = [(0.0, rows.drop_duplicates("image_id")["clean_correct"])]
    hits += [(eps, part["robust"]) for eps, part in rows.groupby("eps") if eps != 0]
    for eps, hit in hits:
        correct, n = int(hit.sum()), len(hit)
        low, high = metrics.accuracy_interval(correct, n)
        table.append({"image_set": run["image_set"], "threat": run["threat"], "budget": budget(run), "model": run["model"],
                      "family": family(run["model"]), "eps": eps, "correct": correct, "n": n, "accuracy": correct / n,
                      "low": low, "high": high})
    return pd.DataFrame(table)


def accuracy_vs_eps(results: Results) -> Iterator[Drawing]:
    """Accuracy under attack against eps: a panel per image set, threat and budget, a line per model."""
    def panel(run):     # its models share every setting of the run but the list of eps
        return *folder(run), json.dumps(run["settings"]["run"] | {"eps": None}, sort_keys=True)
    if not (groups := finished(results.runs, ("ball",), panel)):
        return
    tables = [pd.concat(map(accuracy_table, group)).assign(panel=i) for i, group in enumerate(groups, start=1)]
    styles = model_styles({run["model"] for group in groups for run in group})
    figure, axes = panels(len(groups), legend_handles(styles))
    for ax, group, table in zip(axes, groups, tables):
        draw_accuracy(ax, table, styles, group[0]["settings"]["run"].get("norm", group[0]["threat"]))
        ax.set_title(panel_title(group[0], groups), loc="left")
    bars = ("Bars: 95 % Wilson intervals; models stand a little apart along the axis so that their bars can be told apart."
            if len(styles) <= MAX_NAMED else "The 95 % Wilson intervals are in the table.")
    caption = "\n".join([f"Accuracy under attack, of all images, against the radius eps (at 0: without attack). {bars}",
                         *(describe(group, results.runs) for group in groups)])
    yield "accuracy_vs_eps", figure, pd.concat(tables, ignore_index=True), caption


def panel_title(run: dict, groups: list[list[dict]]) -> str:
    """Image set, threat and n; below it the budget, and what else tells panels of the same name apart."""
    settings = run["settings"]["run"]
    others = [group[0]["settings"]["run"] for group in groups if folder(group[0]) == folder(run)]
    facts = [f"{name} {str(value)[:12]}" for name, value in settings.items() if name not in ("attack", "attacks", "eps")
             and any(other.get(name) != value for other in [*others, settings | {"head": "none"}])]
    below = textwrap.fill(", ".join([budget(run), *facts]), 46)
    return f"{run['image_set']}, {NORMS.get(run['threat'], run['threat'])} (n = {run['images']})\n{below}"


def draw_accuracy(ax, table: pd.DataFrame, styles: dict[str, dict], norm: str) -> None:
    models, radii = sorted(table["model"].unique()), np.unique(table["eps"])
    span, bars = radii[-1] or 1.0, len(styles) <= MAX_NAMED
    apart = min(0.012 * span, 0.3 * np.diff(radii, prepend=-span).min() / len(models)) if bars else 0
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        low_high = np.clip([part["accuracy"] - part["low"], part["high"] - part["accuracy"]], 0, None)
        ax.errorbar(part["eps"] + (i - (len(models) - 1) / 2) * apart, 100 * part["accuracy"], 100 * low_high,
                    elinewidth=0.8 * bars, ecolor=(styles[model]["color"], 0.6), clip_on=False, **styles[model])
    ax.set(ylim=(0, 100), xlim=(-0.05 * span, 1.05 * span), ylabel="accuracy (%)")
    ax.spines[["left", "bottom"]].set_position(("outward", 3))
    radius_axis(ax, radii, norm)


# ---- adversarial examples --------------------------------------------------------------------------------------

def example_path(run: dict, image_id: str) -> Path:
    """Where evaluate_robustness.py --examples keeps a photograph and its perturbation."""
    name = f"{records.file_name(image_id)}.npz"
    return run["csv"].parents[3].joinpath("examples", *folder(run), run["csv"].stem, name)


def read_example(run: dict, rows: pd.DataFrame, image_id: str) -> dict:
    """What a model made of a photograph: `verdict`, and image, delta, classes and norms where the record confirms them."""
    cell = {"image_set": run["image_set"], "threat": run["threat"], "budget": budget(run), "model": run["model"],
            "image_id": image_id}
    part, path = rows[rows["image_id"] == image_id], example_path(run, image_id)
    fooled = part[part["robust"] == 0] if "robust" in part else part[part["success"] == 1]
    robust = f"robust at ε = {utilities.format_eps(part['eps'].max())}" if "eps" in part else "no adversarial image found"
    for holds, verdict in [(part.empty, "not in its image list"),
                           (not part["clean_correct"].all(), "misclassified without attack"),
                           (fooled.empty, robust), (not path.exists(), NOT_KEPT)]:
        if holds:
            return cell | {"verdict": verdict}
    try:
        with np.load(path) as file:
            example = {name: file[name] if file[name].ndim else file[name].item()
                       for name in ("label", "pred", "eps", "l2", "linf", "image", "delta")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise records.RecordError(f"{path}: damaged example ({error}); delete it") from None
    if not np.isclose(fooled["l2"], example["l2"]).any():
        return cell | {"verdict": "fooled, the example kept is another run's"}
    size = np.abs(example["delta"].astype(float))
    factor = 0.5 / (np.quantile(size, 0.999) or size.max() or 0.5)      # the largest 0.1 % may leave black to white
    return cell | example | {"verdict": f"{example['label']} → {example['pred']}", "factor": float(f"{factor:.2g}")}


def example_columns(group: list[dict]) -> list[list[dict]]:
    """The first photographs of which any model has an example: what every model that has something to tell made of each."""
    rows = [read_rows(run) for run in group]
    names = dict.fromkeys(name for run, part in zip(group, rows) for name in part["image_id"].unique()
                          if example_path(run, name).exists())
    columns = ([read_example(run, part, name) for run, part in zip(group, rows)] for name in names)
    shown = list(islice((column for column in columns if any("image" in cell for cell in column)), PHOTOGRAPHS))
    told = [any(column[i]["verdict"] != NOT_KEPT for column in shown) for i in range(len(group))]
    return [list(compress(column, told)) for column in shown]


def adversarial_examples(results: Results) -> Iterator[Drawing]:
    """Photographs, and under each its amplified adversarial difference and the verdict, a row per model."""
    for group in finished(results.runs, ("ball", "minimum_norm"), folder):
        first = sorted(group, key=lambda run: not example_path(run, "any").parent.is_dir())[:EXAMPLE_MODELS]
        if not (columns := example_columns(first)):
            continue
        models = [cell["model"] for cell in columns[0]]
        table = pd.DataFrame([cell for column in columns for cell in column]).drop(columns=["image", "delta"])
        caption = ("Photographs, and under each what was added to fool a model, amplified by the factor given (grey: nothing; "
                   "the largest 0.1 % of the values may be clipped). A photograph is cropped as its first model takes it.\n"
                   + describe([run for run in group if run["model"] in models], results.runs))
        if left := [run["model"] for run in group if run["model"] not in models]:
            caption += f"\nNot drawn, for want of room or of examples (see --models): {', '.join(left)}."
        yield "_".join(["adversarial_examples", *folder(group[0])]), draw_examples(columns), table, caption


def draw_examples(columns: list[list[dict]]) -> Figure:
    """A column per photograph: the photograph as the first model sees it, and below it a row per model."""
    gap, line = 0.07, 0.117     # inches: between pictures, a line of text
    names = ["", *(cell["model"].replace(".", ".\n", len(cell["model"]) > 26) for cell in columns[0])]
    left = 0.08 + line * (1 + max(name.count("\n") for name in names))
    first = [next(cell for cell in column if "image" in cell) for column in columns]
    rows = [[{"image": cell["image"], "label": cell["label"]} for cell in first], *zip(*columns)]
    lines = [max(picture_text(cell).count("\n") + 1 for cell in row) for row in rows]
    tops = np.cumsum([0, *(CELL + gap + line * (count + 0.5) for count in lines)])
    width, height = left + len(columns) * (CELL + gap) - gap, tops[-1]
    figure = plt.figure(figsize=(width, height))
    for name, row, top in zip(names, rows, height - tops):
        figure.text(0.02 / width, (top - CELL / 2) / height, name, rotation=90, va="center", ma="center", fontsize=7)
        for j, cell in enumerate(row):
            ax = figure.add_axes(((left + j * (CELL + gap)) / width, (top - CELL) / height, CELL / width, CELL / height))
            ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
            ax.spines[:].set_visible(False)
            draw_picture(ax, cell)
            below = picture_text(cell)      # its last line stands on y
            ax.text(0.5, -line * (below.count("\n") + 1.1) / CELL, below, ha="center", fontsize=7, transform=ax.transAxes)
    return figure


def draw_picture(ax, cell: dict) -> None:
    """A photograph, an amplified difference, or the reason why there is none."""
    if "image" not in cell:
        why = textwrap.fill(cell["verdict"], 20)
        ax.text(0.5, 0.5, why, ha="center", va="center", color="#666666", fontsize=7, transform=ax.transAxes)
    elif "delta" in cell:   # (H,W,3), pixel units of [0, 1]
        grey = 127.5 + 255 * cell["factor"] * cell["delta"].astype(float)
        ax.imshow(grey.clip(0, 255).astype(np.uint8), interpolation="none")
    else:
        ax.imshow(cell["image"])


def picture_text(cell: dict) -> str:
    """Below a photograph its class; below a difference the verdict, the radius or norm, and the factor."""
    if "delta" not in cell:
        return cell.get("label", "")
    size = (f"ε = {utilities.format_eps(cell['eps'])}" if np.isfinite(cell["eps"]) else
            f"{NORMS['Linf']} = {255 * cell['linf']:.2g}/255" if cell["threat"].startswith("Linf") else
            f"{NORMS['L2']} = {cell['l2']:.3g}")
    verdict = cell["verdict"] if len(cell["verdict"]) <= 28 else cell["verdict"].replace("→ ", "→\n")
    return f"{verdict}\n{size}, ×{cell['factor']:g}"


EVALUATE = "`python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --examples 4 Linf --eps 1/255`"
MADE_BY = EVALUATE + " makes it (a finished run: with --overwrite)"
FIGURES = {"accuracy_vs_eps": (accuracy_vs_eps, MADE_BY), "adversarial_examples": (adversarial_examples, MADE_BY)}
