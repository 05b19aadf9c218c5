"""Figures of adversarial examples: what was added to a photograph, and whether it lies where people look."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import compress, islice

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignment_security.analysis.results import (
    Results,
    describe_runs,
    group_finished,
    norm_means,
    read_finished_rows,
    run_budget,
    run_folder,
)
from alignment_security.common.settings import format_eps
from alignment_security.plots.style import NORM_SYMBOLS, Drawing
from alignment_security.records.adversarial_examples import (
    example_path,
    examples_folder,
    load_example,
)
from alignment_security.records.metrics import HUMAN_CEILING

PHOTOGRAPHS, MODELS, CELL = 4, 3, 1.62  # columns and rows; inches a picture
MAP_COLOURS = "magma"
NOT_KEPT = "fooled, no example kept"
Picture = tuple[
    np.ndarray | str, str
]  # pixels (H, W, 3) uint8 or the reason why there are none, and the text below


# ---- reading ---------------------------------------------------------------------------------------------------


def read_example(run: dict, rows: pd.DataFrame, image_id: str) -> dict:
    """What a model made of a photograph: `verdict`, and image, delta, classes and norms where the record confirms them."""
    cell = {
        "image_set": run["image_set"],
        "threat": run["threat"],
        "budget": run_budget(run),
        "model": run["model"],
        "image_id": image_id,
    }
    part, path = rows[rows["image_id"] == image_id], example_path(run["csv"], image_id)
    fooled = part[part["robust"] == 0] if "robust" in part else part[part["success"] == 1]
    robust = (
        f"robust at ε = {format_eps(part['eps'].max())}"
        if "eps" in part
        else "no adversarial image found"
    )
    for holds, verdict in [
        (part.empty, "not in its image list"),
        (not part["clean_correct"].all(), "misclassified without attack"),
        (fooled.empty, robust),
        (not path.exists(), NOT_KEPT),
    ]:
        if holds:
            return cell | {"verdict": verdict}
    example = load_example(path)
    if not np.isclose(fooled["l2"], example["l2"]).any():
        return cell | {"verdict": "fooled, the example kept is another run's"}
    size = np.abs(example["delta"].astype(float))
    factor = 0.5 / (
        np.quantile(size, 0.999) or size.max() or 0.5
    )  # the largest 0.1 % may leave black to white
    return (
        cell
        | example
        | {"verdict": f"{example['label']} → {example['pred']}", "factor": float(f"{factor:.2g}")}
    )


def example_columns(group: list[dict], needs: str = "image") -> list[list[dict]]:
    """The first photographs of which any model has an example with `needs`: what every model that has something to tell
    made of each."""
    rows = [read_finished_rows(run) for run in group]
    names = dict.fromkeys(
        name
        for run, part in zip(group, rows)
        for name in part["image_id"].unique()
        if example_path(run["csv"], name).exists()
    )
    columns = ([read_example(run, part, name) for run, part in zip(group, rows)] for name in names)
    shown = list(
        islice((column for column in columns if any(needs in cell for cell in column)), PHOTOGRAPHS)
    )
    told = [any(column[i]["verdict"] != NOT_KEPT for column in shown) for i in range(len(group))]
    return [list(compress(column, told)) for column in shown]


def example_groups(
    results: Results, kinds: tuple[str, ...], needs: str = "image"
) -> Iterator[tuple[list[dict], list]]:
    """(runs of an image set and threat, columns of examples of the first few models that have any)."""
    for group in group_finished(results.runs, kinds, run_folder):
        first = sorted(group, key=lambda run: not examples_folder(run["csv"]).is_dir())[:MODELS]
        if columns := example_columns(first, needs):
            yield group, columns


def table_of(columns: list[list[dict]]) -> pd.DataFrame:
    """A row per picture: everything but the pixels."""
    cells = [
        {k: v for k, v in cell.items() if not isinstance(v, np.ndarray)}
        for column in columns
        for cell in column
    ]
    return pd.DataFrame(cells)


def who_is_shown(group: list[dict], columns: list[list[dict]], results: Results) -> str:
    models = [cell["model"] for cell in columns[0]]
    left = [run["model"] for run in group if run["model"] not in models]
    return describe_runs([run for run in group if run["model"] in models], results.runs) + (
        f"\nNot drawn, for want of room or of examples (see --models): {', '.join(left)}."
        if left
        else ""
    )


# ---- what fools a model ----------------------------------------------------------------------------------------


def adversarial_examples(results: Results) -> Iterator[Drawing]:
    """Photographs, and under each its amplified adversarial difference and the verdict, a row per model."""
    for group, columns in example_groups(results, ("ball", "minimum_norm")):
        caption = (
            "Photographs, and under each what was added to fool a model, amplified by the factor given (grey: nothing; "
            "the largest 0.1 % of the values may be clipped). A photograph is cropped as its first model takes it.\n"
            + who_is_shown(group, columns, results)
        )
        names = ["", *(cell["model"] for cell in columns[0])]
        rows = [
            [photograph(column) for column in columns],
            *([difference(cell) for cell in row] for row in zip(*columns)),
        ]
        yield (
            "_".join(["adversarial_examples", *run_folder(group[0])]),
            draw_grid(names, rows),
            table_of(columns),
            caption,
        )


def photograph(column: list[dict]) -> Picture:
    first = next(cell for cell in column if "image" in cell)
    return first["image"], first["label"]


def difference(cell: dict) -> Picture:
    """An amplified difference with the verdict, the radius or norm and the factor, or the reason why there is none."""
    if "delta" not in cell:
        return cell["verdict"], ""
    grey = 127.5 + 255 * cell["factor"] * cell["delta"].astype(
        float
    )  # (H,W,3), pixel units of [0, 1]
    verdict = (
        cell["verdict"] if len(cell["verdict"]) <= 28 else cell["verdict"].replace("→ ", "→\n")
    )
    return grey.clip(0, 255).astype(np.uint8), f"{verdict}\n{size_text(cell)}, ×{cell['factor']:g}"


def size_text(cell: dict) -> str:
    if np.isfinite(cell["eps"]):
        return f"ε = {format_eps(cell['eps'])}"
    return (
        f"{NORM_SYMBOLS['Linf']} = {255 * cell['linf']:.2g}/255"
        if cell["threat"].startswith("Linf")
        else f"{NORM_SYMBOLS['L2']} = {cell['l2']:.3g}"
    )


# ---- where it fools it, and where people look ------------------------------------------------------------------


def human_alignment_examples(results: Results) -> Iterator[Drawing]:
    """After Figure 5 of Feng et al. (2025): photograph, human map, and the perturbation map of each model with its
    minimal norm and alignment; beside a model's name its Perturbation Tolerance and mean alignment."""
    for group, columns in example_groups(results, ("minimum_norm",), needs="human_map"):
        runs = {run["model"]: run for run in group}
        source = group[0]["settings"]["run"].get("human_map", "source not given")
        names = [
            "",
            f"where people look\n({source.split(',')[0]})",
            *(model_facts(runs[cell["model"]]) for cell in columns[0]),
        ]
        rows = [
            [photograph(column) for column in columns],
            [human_map(column) for column in columns],
            *([perturbation_map(cell) for cell in row] for row in zip(*columns)),
        ]
        caption = (
            f"Photographs, the human map of each (source: {source}), and the size of the smallest perturbation found "
            f"per pixel (maximum over channels), white at its 99.5th percentile, with the perturbation's L2 norm and r, "
            f"its Spearman correlation with the human map over the human ceiling {HUMAN_CEILING}. "
            "PT: Perturbation Tolerance, the mean L2 norm over all correctly classified images; r beside a model: "
            "the mean over these.\n" + who_is_shown(group, columns, results)
        )
        yield (
            "_".join(["human_alignment_examples", *run_folder(group[0])]),
            draw_grid(names, rows),
            table_of(columns),
            caption,
        )


def model_facts(run: dict) -> str:
    """Name, Perturbation Tolerance and mean alignment of a model, two lines."""
    means = norm_means(read_finished_rows(run))
    return (
        f"{run['model']}\nPT {means['l2']:.3g} ± {means['l2_sem']:.1g}, "
        f"r {means['alignment']:.2f} (n = {means['n']})"
    )


def human_map(column: list[dict]) -> Picture:
    first = next(cell for cell in column if "human_map" in cell)
    return heat(first["human_map"].astype(float)), ""


def perturbation_map(cell: dict) -> Picture:
    if "delta" not in cell:
        return cell["verdict"], ""
    size = np.abs(cell["delta"].astype(float)).max(axis=2)
    alignment = cell.get("human_alignment", np.nan)
    below = f"{size_text(cell)}, r = {alignment:.2f}" if np.isfinite(alignment) else size_text(cell)
    return heat(
        size / (np.quantile(size, 0.995) or 1)
    ), f"{cell['verdict'].replace('→ ', '→' + chr(10))}\n{below}"


def heat(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (
        plt.get_cmap(MAP_COLOURS)(np.clip(values / max(1e-12, min(1, values.max())), 0, 1))[..., :3]
        * 255
    ).astype(np.uint8)


# ---- the grid --------------------------------------------------------------------------------------------------


def draw_grid(names: list[str], rows: list[list[Picture]]) -> Figure:
    """Rows of pictures with their names at the left, and a text below each picture."""
    gap, line = 0.07, 0.117  # inches: between pictures, a line of text
    names = [name.replace(".", ".\n", len(name.split("\n")[0]) > 26) for name in names]
    left = 0.08 + line * (1 + max(name.count("\n") for name in names))
    lines = [max(below.count("\n") + bool(below) for _, below in row) for row in rows]
    tops = np.cumsum([0, *(CELL + gap + line * (count + 0.5) for count in lines)])
    width, height = left + len(rows[0]) * (CELL + gap) - gap, tops[-1]
    figure = plt.figure(figsize=(width, height))
    for name, row, top in zip(names, rows, height - tops):
        figure.text(
            0.02 / width,
            (top - CELL / 2) / height,
            name,
            rotation=90,
            va="center",
            ma="center",
            fontsize=7,
        )
        for j, (picture, below) in enumerate(row):
            ax = figure.add_axes(
                (
                    (left + j * (CELL + gap)) / width,
                    (top - CELL) / height,
                    CELL / width,
                    CELL / height,
                )
            )
            ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
            ax.spines[:].set_visible(False)
            if isinstance(picture, str):
                ax.text(
                    0.5,
                    0.5,
                    textwrap.fill(picture, 20),
                    ha="center",
                    va="center",
                    color="#666666",
                    fontsize=7,
                    transform=ax.transAxes,
                )
            else:
                ax.imshow(picture, interpolation="none")
            # the last line of the text stands on y
            ax.text(
                0.5,
                -line * (below.count("\n") + 1.1) / CELL,
                below,
                ha="center",
                fontsize=7,
                transform=ax.transAxes,
            )
    return figure


EVALUATE = (
    "python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --examples 4 L2 "
    "--protocol crossing"
)
MADE_BY = f"`{EVALUATE}` makes it (a finished run: with --overwrite)"
FIGURES = {
    "adversarial_examples": (adversarial_examples, MADE_BY),
    "human_alignment_examples": (human_alignment_examples, MADE_BY),
}
