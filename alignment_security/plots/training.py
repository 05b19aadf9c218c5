"""Figures of trainings: learning curves, from results/training/*/log.csv and run.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from alignment_security.analysis.results import Results
from alignment_security.common.files import UserError
from alignment_security.plots.style import Drawing, legend_handles, model_styles, panels

OBJECTIVE = ("objective", "form", "lambda_1", "lambda_2", "norm", "eps")


def read_training(folder: Path) -> tuple[dict, pd.DataFrame] | None:
    """Run file and learning curve of a training; None where no row is logged yet. Raises UserError."""
    try:
        run, rows = (
            json.loads((folder / "run.json").read_text()),
            pd.read_csv(folder / "log.csv", float_precision="round_trip"),
        )
        if not {"name", "status", "settings", "sessions"} <= run.keys() or not {
            "epoch",
            "loss",
            "accuracy",
        } <= set(rows):
            raise ValueError("keys or columns are missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: no training that can be drawn ({error}); train it again with --overwrite"
        ) from None
    return (run, rows) if len(rows) else None


def describe_training(run: dict, rows: pd.DataFrame) -> str:
    """A line of a caption: how far it came, and its objective."""
    recipe = run["settings"]["run"]
    facts = [
        f"{name} {recipe[name]:g}" if isinstance(recipe[name], float) else f"{name} {recipe[name]}"
        for name in OBJECTIVE
        if recipe.get(name) is not None and not (name == "form" and recipe.get("lambda_1") is None)
    ]
    how_far = f"epoch {rows['epoch'].iloc[-1]:g} of {recipe['epochs']}"
    return f"{run['name']}: {', '.join(facts)}; {run['status']}, {how_far}, begun {run['sessions'][0]['started'][:10]}."


def learning_curves(results: Results) -> Iterator[Drawing]:
    """Loss, and accuracy on what was trained on (line) and on the validation set (dotted, where there is one), against epochs."""
    found = [
        read_training(path.parent)
        for path in sorted((results.folder / "training").glob("*/run.json"))
    ]
    trainings = [training for training in found if training]
    if not trainings:
        return
    styles = model_styles({run["name"] for run, _ in trainings})
    styles = {name: style | {"marker": "", "linewidth": 1} for name, style in styles.items()}
    figure, (loss, accuracy) = panels(2, legend_handles(styles))
    for run, rows in trainings:
        loss.plot(rows["epoch"], rows["loss"], **styles[run["name"]])
        accuracy.plot(rows["epoch"], 100 * rows["accuracy"], **styles[run["name"]])
        if rows["val_accuracy"].notna().any():
            known = rows.dropna(subset="val_accuracy")
            accuracy.plot(
                known["epoch"],
                100 * known["val_accuracy"],
                **styles[run["name"]] | {"linestyle": ":", "marker": "."},
            )
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    table = pd.concat(
        [rows.assign(name=run["name"], status=run["status"]) for run, rows in trainings],
        ignore_index=True,
    )
    caption = "\n".join(
        [
            "Learning curves. The losses of different objectives are different quantities; accuracy is that on the "
            "images trained on, as augmented and attacked (dotted: on the validation set, neither).",
            *(describe_training(run, rows) for run, rows in trainings),
        ]
    )
    yield (
        "learning_curves",
        figure,
        table[["name", "status", *(c for c in table if c not in ("name", "status"))]],
        caption,
    )


TRAIN = "`python training.py --model_name tf_efficientnet_lite0 --init pretrained --batch_size 10 --epochs 2 --results_dir {}`"
FIGURES = {"learning_curves": (learning_curves, TRAIN + " makes one")}
