"""Saved adversarial examples and what the records say about each: the cells of example figures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd

from alignment_security.analysis.feng2025_published import run_groups
from alignment_security.analysis.norm_table import NOT_STANDARD
from alignment_security.analysis.results import (
    Results,
    group_finished,
    read_finished_rows,
    run_columns,
)
from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError
from alignment_security.records.adversarial_examples import (
    example_path,
    examples_folder,
    load_example,
)
from alignment_security.records.comparable import compared_by, run_folder

PHOTOGRAPHS, MODELS = 4, 6  # of a figure, where --images and --models do not say which
NOT_KEPT = "fooled, no example kept"
VISIBLE = 0.5  # change that the amplified difference reaches, of the range [0, 1]
VISIBLE_QUANTILE = 0.999  # of the values; the largest 0.1 % may leave black to white


def read_example(run: dict, rows: pd.DataFrame, image_id: str) -> dict:
    """The cell of a photograph and a model.

    run, rows   a finished run and its record's rows
    Returns names and a `verdict`; if the record confirms the saved example, also its arrays
    (image, delta, perhaps human_map), classes and norms, and the `factor` that amplifies delta.
    """
    cell = run_columns(run) | {"image_id": image_id}
    part = rows[rows["image_id"] == image_id]
    fooled = part[part["robust"] == 0] if "robust" in part else part[part["success"] == 1]
    path = example_path(run["csv"], image_id)
    verdict = verdict_without_example(part, fooled, run["threat"])
    if not verdict and not path.exists():
        verdict = NOT_KEPT
    if verdict:
        return cell | {"verdict": verdict}
    example = load_example(path)
    if not np.isclose(fooled["l2"], example["l2"]).any():
        return cell | {"verdict": "fooled, the example kept is another run's"}
    facts = {
        "verdict": f"{example['label']} → {example['pred']}",
        "factor": amplification(example["delta"]),
    }
    return cell | example | facts


def verdict_without_example(part: pd.DataFrame, fooled: pd.DataFrame, threat: str) -> str:
    """Why a model has no adversarial image of a photograph; "" if it was fooled.

    part     the record's rows of the photograph
    fooled   those in which the attack succeeded
    """
    if part.empty:
        return "not in its image list"
    if not part["clean_correct"].all():
        return "misclassified without attack"
    if len(fooled):
        return ""
    if "eps" in part:
        return f"robust at ε = {format_eps(part['eps'].max(), threat)}"
    return "no adversarial image found"


def amplification(delta: np.ndarray) -> float:
    """The factor, to two digits, by which a perturbation (H, W, 3) becomes visible."""
    size = np.abs(delta.astype(float))
    largest = np.quantile(size, VISIBLE_QUANTILE) or size.max() or VISIBLE
    return float(f"{VISIBLE / largest:.2g}")


def example_columns(
    runs: list[dict], needs: str = "image", images: tuple[str, ...] = ()
) -> list[list[dict]]:
    """A column per photograph: the cells of `read_example`, one per model.

    runs     finished runs, one per model
    needs    key that a cell of a column has to have
    images   these photographs; without, the first PHOTOGRAPHS of which any model has such an
             example

    Models that kept no example of any of them are left out.
    """
    rows = [read_finished_rows(run) for run in runs]
    kept = dict.fromkeys(  # in the order of the records
        name
        for run, part in zip(runs, rows)
        for name in part["image_id"].unique()
        if example_path(run["csv"], name).exists()
    )
    names = [name for name in images if name in kept] if images else list(kept)
    columns = ([read_example(run, part, name) for run, part in zip(runs, rows)] for name in names)
    wanted = (column for column in columns if any(needs in cell for cell in column))
    shown = list(islice(wanted, len(names) if images else PHOTOGRAPHS))
    models = [
        i for i in range(len(runs)) if any(column[i]["verdict"] != NOT_KEPT for column in shown)
    ]
    return [[column[i] for i in models] for column in shown]


def example_groups(
    results: Results, kinds: tuple[str, ...], needs: str = "image"
) -> Iterator[tuple[list[dict], list[list[dict]]]]:
    """(runs of an image set and threat, `example_columns` of its models).

    The models and photographs of --models and --images, in that order. Without --models MODELS,
    those that kept examples first: standard, then robust, then harmonized ones. A record that
    stands beside others is with those of its attack.
    """
    attack = compared_by(results.runs)
    for runs in group_finished(results.runs, kinds, lambda run: (*run_folder(run), attack(run))):
        if results.models:
            shown = sorted(runs, key=lambda run: results.models.index(run["model"]))
        else:
            shown = some_of_each([run for run in runs if keeps_examples(run)], MODELS)
            others = [run for run in runs if not keeps_examples(run)]
            shown += some_of_each(others, MODELS - len(shown))
        columns = example_columns(shown, needs, results.images)
        if columns:
            yield runs, columns


def keeps_examples(run: dict) -> bool:
    """Whether a run has a folder of examples."""
    return examples_folder(run["csv"]).is_dir()


def some_of_each(runs: list[dict], most: int) -> list[dict]:
    """At most so many runs, the next of each group in turn; standard, robust, harmonized."""
    kinds = [NOT_STANDARD.index(kind) if kind in NOT_STANDARD else -1 for kind in run_groups(runs)]
    table = pd.DataFrame({"kind": kinds, "model": [run["model"] for run in runs]})
    table = table.sort_values(["kind", "model"])
    turns = table.groupby("kind").cumcount().sort_values(kind="stable")
    return [runs[i] for i in table.index if i in turns.index[:most]]


def check_images(results: Results) -> None:
    """Raise UserError for a photograph of --images of which no record kept an example."""
    for name in results.images:
        if not any(example_path(run["csv"], name).exists() for run in results.runs):
            raise UserError(
                f"--images {name}: no example of it is kept in {results.folder}/examples; evaluate "
                f"with --examples {name} (a finished record: with --overwrite)"
            )


def example_table(columns: list[list[dict]]) -> pd.DataFrame:
    """The cells of some columns without their arrays, a row each."""
    return pd.DataFrame(
        {name: value for name, value in cell.items() if not isinstance(value, np.ndarray)}
        for column in columns
        for cell in column
    )
