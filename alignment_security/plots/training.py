"""Figure of trainings: learning curves, from results/training/*/log.csv and run.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from alignment_security.analysis.results import Results
from alignment_security.common.folders import glob_visible
from alignment_security.plots.style import Drawing, legend_handles, model_styles, panels
from alignment_security.records.training import read_training_log, read_training_run

OBJECTIVE = ("objective", "form", "lambda_1", "lambda_2", "norm", "eps")
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
        f"{recipe['epochs']}, begun {begun}."
    )


def learning_curves(results: Results) -> Iterator[Drawing]:
    """Loss, accuracy and the harmonizer's loss against epochs, a line per training.

    Dotted: accuracy on the validation set, if there is one.
    """
    paths = glob_visible(results.folder / "training", "*/run.json")
    found = [read_training(path.parent) for path in paths]
    trainings = [training for training in found if training]
    if not trainings:
        return
    rows = [rows.assign(name=run["name"], status=run["status"]) for run, rows in trainings]
    table = pd.concat(rows, ignore_index=True)
    first = ["name", "status"]
    table = table[[*first, *(column for column in table if column not in first)]]
    caption = "\n".join(
        [
            "Learning curves. The losses of different objectives are different quantities; "
            "accuracy is that on the images trained on, as augmented and attacked, so of an "
            "adversarial training its robust accuracy (dotted: on the validation set, neither). "
            "The harmonizer's loss, of trainings that have it, falls as input gradients come to "
            "match human maps.",
            *(describe_training(run, rows) for run, rows in trainings),
        ]
    )
    yield "learning_curves", draw_trainings(trainings), table, caption


def draw_trainings(trainings: list[Training]) -> Figure:
    """Two panels, loss and accuracy, and a third if a training has the harmonizer's loss."""
    styles = {
        name: style | {"marker": "", "linewidth": 1}
        for name, style in model_styles({run["name"] for run, _ in trainings}).items()
    }
    harmonized = [pair for pair in trainings if pair[1]["harmonizer"].notna().any()]
    figure, axes = panels(3 if harmonized else 2, legend_handles(styles))
    loss, accuracy = axes[:2]
    for run, rows in trainings:
        style = styles[run["name"]]
        loss.plot(rows["epoch"], rows["loss"], **style)
        draw_accuracies(accuracy, rows, style)
    for run, rows in harmonized:
        known = rows.dropna(subset="harmonizer")
        axes[2].plot(known["epoch"], known["harmonizer"], **styles[run["name"]])
    for ax, label in zip([loss, *axes[2:]], ("loss", "harmonizer's loss")):
        ax.set(xlabel="epoch", ylabel=label, yscale="log")
        ax.yaxis.set_major_formatter(LogFormatter())
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    return figure


def draw_accuracies(ax: Axes, rows: pd.DataFrame, style: dict) -> None:
    """Accuracy on the training images, and dotted on the validation set."""
    ax.plot(rows["epoch"], 100 * rows["accuracy"], **style)
    known = rows.dropna(subset="val_accuracy")
    if len(known):
        dotted = style | {"linestyle": ":", "marker": "."}
        ax.plot(known["epoch"], 100 * known["val_accuracy"], **dotted)


TRAIN = (
    "`python training.py --model_name tf_efficientnet_lite0 --init pretrained --batch_size 10 "
    "--epochs 2 --results_dir {}`"
)
FIGURES = {"learning_curves": (learning_curves, TRAIN + " makes one")}
