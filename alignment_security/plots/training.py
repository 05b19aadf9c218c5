"""Figure of trainings: learning curves, from results/training/*/log.csv and run.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, MaxNLocator

from alignment_security.analysis.results import Results
from alignment_security.common.eps import format_eps
from alignment_security.common.folders import glob_visible
from alignment_security.plots.style import (
    DARK,
    MARKERS,
    RADIUS_COLOURS,
    Drawing,
    panels,
    visible_style,
)
from alignment_security.records.training import read_training_log, read_training_run

OBJECTIVE = ("objective", "form", "lambda_1", "lambda_2", "norm", "eps")
TRAIN_SET, VALIDATION, ATTACKED = "training images", "validation images", "these under attack"
IMAGES: dict[str, dict] = {
    TRAIN_SET: {"linestyle": "-", "linewidth": 1},
    VALIDATION: {"linestyle": ":", "marker": "."},
    ATTACKED: {"linestyle": "--", "marker": "v", "markersize": 3},
}
# column of log.csv -> label of its panel, images on which it is measured
CURVES = {
    "loss": ("loss", TRAIN_SET),
    "accuracy": ("accuracy (%)", TRAIN_SET),
    "val_accuracy": ("accuracy (%)", VALIDATION),
    "val_robust": ("accuracy (%)", ATTACKED),
    "harmonizer": ("harmonizer's loss", TRAIN_SET),
    "val_alignment": ("human alignment (% of ceiling)", VALIDATION),
}
ALWAYS, LOSSES = ("loss", "accuracy (%)"), ("loss", "harmonizer's loss")
Training = tuple[dict, pd.DataFrame]  # run file, learning curve


def read_training(folder: Path) -> Training | None:
    """Run file and learning curve of a training; None if no row is logged yet.

    Raises UserError if either file cannot be read.
    """
    run = read_training_run(folder / "run.json")
    rows = read_training_log(folder / "log.csv", torn=run["status"] != "done")
    return (run, rows) if len(rows) else None


def describe_training(run: dict, rows: pd.DataFrame) -> str:
    """A line of a caption: the objective of a training, and how far it has come."""
    recipe = run["settings"]["run"]
    facts = []
    for name in OBJECTIVE:
        value = recipe.get(name)
        is_form_of_none = name == "form" and recipe.get("lambda_1") is None
        if value is not None and not is_form_of_none:
            facts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    begun = run["sessions"][0]["started"][:10]
    return (
        f"{run['name']}: {', '.join(facts)}; {run['status']}, epoch {rows['epoch'].iloc[-1]:g} of "
        f"{recipe['epochs']}, begun {begun}.{describe_evaluation(recipe.get('evaluation'))}"
    )


def describe_evaluation(evaluation: dict | None) -> str:
    """A sentence of a caption: which attack the validation images of a training went through."""
    if evaluation is None:
        return ""
    norm, eps = evaluation["norm"], evaluation["eps"]
    return (
        f" Evaluated on {evaluation['images']} images of {evaluation['image_set']}: "
        f"{norm} {format_eps(eps, norm)}, {evaluation['attack']}, an upper bound of robust "
        "accuracy."
    )


def about_curves(table: pd.DataFrame) -> str:
    """What the panels of some learning curves show, of those that are drawn."""
    text = (
        "Learning curves. The losses of different objectives are different quantities; accuracy on "
        "the training images is that on the images as augmented and attacked, so of an adversarial "
        "training its robust accuracy."
    )
    sentences = {
        "harmonizer": "The harmonizer's loss, of trainings that have it, falls as input gradients "
        "come to match human maps.",
        "val_alignment": "Human alignment is the rank correlation of input gradients with human "
        "maps, over that of people.",
    }
    drawn = [column for column in sentences if column in table and table[column].notna().any()]
    return " ".join([text, *(sentences[column] for column in drawn)])


def learning_curves(results: Results) -> Iterator[Drawing]:
    """Loss, accuracies, the harmonizer's loss and human alignment by epoch, a line per training."""
    paths = glob_visible(results.folder / "training", "*/run.json")
    found = [read_training(path.parent) for path in paths]
    trainings = [training for training in found if training]
    if not trainings:
        return
    rows = [rows.assign(name=run["name"], status=run["status"]) for run, rows in trainings]
    table = pd.concat(rows, ignore_index=True)
    first = ["name", "status"]
    table = table[[*first, *(column for column in table if column not in first)]]
    caption = "\n".join([about_curves(table), *(describe_training(*one) for one in trainings)])
    yield "learning_curves", draw_trainings(trainings), table, caption


def draw_trainings(trainings: list[Training]) -> Figure:
    """Panels of loss and accuracy; of the harmonizer's loss and alignment if a training has it."""
    tables = {run["name"]: rows for run, rows in trainings}
    styles = training_styles(sorted(tables))
    known = {
        column: curve
        for column, curve in CURVES.items()
        if any(has(rows, column) for rows in tables.values())
    }
    labels = dict.fromkeys([*ALWAYS, *(label for label, _ in known.values())])
    legend = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    measured = {images for _, images in known.values()}
    if len(measured) > 1:
        drawn = [images for images in IMAGES if images in measured]
        legend += [Line2D([], [], label=name, color=DARK, **IMAGES[name]) for name in drawn]
    figure, axes = panels(len(labels), legend)
    for ax, label in zip(axes, labels):
        columns = {column: images for column, (of, images) in known.items() if of == label}
        for name, rows in tables.items():
            draw_columns(ax, rows, columns, styles[name], 100 if "%" in label else 1)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        if label in LOSSES:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(PlainLogFormatter())
            ax.yaxis.set_minor_formatter(PlainLogFormatter(minor_thresholds=(1, 0.4)))
        elif label in ALWAYS:
            ax.set_ylim(0, 100)
    return figure


def has(rows: pd.DataFrame, column: str) -> bool:
    """Whether a training has a quantity: one without the harmonizer logs 0 as its loss."""
    return bool(rows[column].any() if column == "harmonizer" else rows[column].notna().any())


class PlainLogFormatter(LogFormatter):
    """Ticks of a logarithmic axis as 0.6, not as 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def training_styles(names: list[str]) -> dict[str, dict]:
    """A colour for each training, and a marker where there are more trainings than colours."""
    colours = len(RADIUS_COLOURS)
    styles: dict[str, dict] = {}
    for k, name in enumerate(sorted(names)):
        styles[name] = {"color": RADIUS_COLOURS[k % colours]}
        if k >= colours:
            marker = MARKERS[(k // colours - 1) % len(MARKERS)]
            styles[name] |= {"marker": marker, "markersize": 3, "markevery": 0.15}
    return styles


def draw_columns(
    ax: Axes, rows: pd.DataFrame, columns: dict[str, str], style: dict, factor: int
) -> None:
    """A line for each column of a panel, over the rows that have a value; a dot for a single one.

    factor   100 for shares that are drawn in percent
    """
    for column, images in columns.items():
        if has(rows, column):
            known = rows.dropna(subset=column)
            visible = visible_style(IMAGES[images] | style, len(known))
            ax.plot(known["epoch"], factor * known[column], **visible)


TRAIN = (
    "`python training.py --model_name tf_efficientnet_lite0 --init pretrained --batch_size 10 "
    "--epochs 2 --results_dir {}`"
)
FIGURES = {"learning_curves": (learning_curves, TRAIN + " makes one")}
