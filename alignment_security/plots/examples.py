"""Figures of adversarial examples: what was added to a photograph, and do people look there."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.examples import example_groups, example_table
from alignment_security.analysis.feng2025 import count_range
from alignment_security.analysis.record_tables import norm_means
from alignment_security.analysis.results import Results, read_finished_rows
from alignment_security.common.eps import format_eps
from alignment_security.common.files import safe_file_name
from alignment_security.plots.picture_grid import Picture, draw_columns, draw_grid, map_colours
from alignment_security.plots.style import COLUMN_WIDTH, NORM_SYMBOLS, Drawing
from alignment_security.records.ceiling import other_ceiling_text
from alignment_security.records.comparable import compared_by, run_folder
from alignment_security.records.metrics import HUMAN_CEILING
from alignment_security.records.norm_summary import minimised_norm
from alignment_security.records.record import BALL_KINDS

LONG_VERDICT = 28  # letters above which a text is broken
SMALL_LETTERS = 20  # below a picture of a column


# ---- what fools a model --------------------------------------------------------------------------


def adversarial_examples(results: Results) -> Iterator[Drawing]:
    """Photographs, and under each its amplified adversarial difference and the verdict.

    A figure per image set and threat, a row per model.
    """
    for runs, columns in example_groups(results, (*BALL_KINDS, "minimum_norm")):
        caption = (
            "Photographs, and under each what was added to fool a model, amplified by the factor "
            "given (grey: nothing; the largest 0.1 % of the values may be clipped). A photograph "
            f"is cropped as its first model takes it.\n{describe_examples(runs, columns, results)}"
        )
        names = ["", *(cell["model"] for cell in columns[0])]
        rows = [
            [photograph(column) for column in columns],
            *([difference(cell) for cell in row] for row in zip(*columns)),
        ]
        yield (
            figure_name("adversarial_examples", runs, results),
            draw_grid(names, rows),
            example_table(columns),
            caption,
        )


def figure_name(kind: str, runs: list[dict], results: Results) -> str:
    """The kind, image set and threat, and the attack where records stand beside each other."""
    attack = compared_by(results.runs)(runs[0])
    return "_".join([kind, *run_folder(runs[0]), *([safe_file_name(attack)] if attack else [])])


def describe_examples(runs: list[dict], columns: list[list[dict]], results: Results) -> str:
    """Facts on the runs that are drawn, and the models that are not."""
    models = {cell["model"] for cell in columns[0]}
    shown = [run for run in runs if run["model"] in models]
    return describe_runs(shown, results.runs, "no room, or no example kept; see --models")


def photograph(column: list[dict]) -> Picture:
    """The photograph of a column as its first model with an example saw it."""
    first = next(cell for cell in column if "image" in cell)
    return first["image"], first["label"]


def difference(cell: dict) -> Picture:
    """An amplified difference with verdict, radius or norm, and factor; or why there is none."""
    if "delta" not in cell:
        return cell["verdict"], ""
    # (H, W, 3), pixel units of [0, 1], around grey
    pixels = 127.5 + 255 * cell["factor"] * cell["delta"].astype(float)
    verdict = cell["verdict"]
    if len(verdict) > LONG_VERDICT:
        verdict = verdict.replace("→ ", "→\n")
    return pixels.clip(0, 255).astype(np.uint8), (
        f"{verdict}\n{size_text(cell)}, ×{cell['factor']:g}"
    )


def size_text(cell: dict) -> str:
    """The radius of an attack in a ball, else the norm of the perturbation."""
    if np.isfinite(cell["eps"]):
        return f"ε = {format_eps(cell['eps'], cell['threat'])}"
    if cell["threat"].startswith("Linf"):
        return f"{NORM_SYMBOLS['Linf']} = {255 * cell['linf']:.2g}/255"
    return f"{NORM_SYMBOLS['L2']} = {cell['l2']:.3g}"


# ---- one model, in a column ----------------------------------------------------------------------


def fooled_pictures(results: Results) -> Iterator[Drawing]:
    """Photograph, amplified perturbation and the picture that fools, a row per photograph.

    A figure of one column per image set and threat, of the first model with examples.
    """
    for runs, columns in example_groups(results, (*BALL_KINDS, "minimum_norm")):
        # the first that has an example
        model = next(cell["model"] for row in zip(*columns) for cell in row if "delta" in cell)
        cells = [cell for column in columns for cell in column if cell["model"] == model]
        fooled = [cell for cell in cells if "delta" in cell]
        rows = [[seen_right(cell), difference_alone(cell), fooling(cell)] for cell in fooled]
        caption = (
            f"What fools {model}: photograph with its class, what was added (amplified by the "
            "factor given; grey: nothing), and their sum, drawn in 8 bits, with the class that the "
            "model takes it for before it is rounded.\n"
            f"{describe_examples(runs, [cells[:1]], results)}"
        )
        yield (
            figure_name("fooled_pictures", runs, results),
            draw_columns(["photograph", "perturbation", "sum"], rows, COLUMN_WIDTH),
            example_table([[cell] for cell in fooled]),
            caption,
        )


def seen_right(cell: dict) -> Picture:
    """The photograph and its class."""
    return cell["image"], textwrap.fill(cell["label"], SMALL_LETTERS)


def difference_alone(cell: dict) -> Picture:
    """An amplified difference with radius or norm, and factor."""
    picture, _ = difference(cell)
    return picture, f"{size_text(cell)}\n×{cell['factor']:g}"


def fooling(cell: dict) -> Picture:
    """The photograph with its perturbation, and the class that the model takes it for."""
    pixels = cell["image"].astype(float) + 255 * cell["delta"].astype(float)
    taken_for = cell["verdict"].rpartition("→ ")[2]
    return pixels.clip(0, 255).round().astype(np.uint8), textwrap.fill(taken_for, SMALL_LETTERS)


# ---- whether people look there -------------------------------------------------------------------


def human_alignment_examples(results: Results) -> Iterator[Drawing]:
    """After Figure 5 of Feng 2025: photographs, human maps, and perturbation maps of each model.

    With the norm and alignment of each perturbation, and next to a model's name its Perturbation
    Tolerance and mean alignment.
    """
    for runs, columns in example_groups(results, ("minimum_norm",), needs="human_map"):
        run_of = {run["model"]: run for run in runs}
        sources = map_sources(runs)
        names = [
            "",
            f"where people look\n({', '.join(source.split(',')[0] for source in sources)})",
            *(model_facts(run_of[cell["model"]]) for cell in columns[0]),
        ]
        rows = [
            [photograph(column) for column in columns],
            [human_map_picture(column) for column in columns],
            *([perturbation_map(cell) for cell in row] for row in zip(*columns)),
        ]
        caption = (
            f"Photographs, the human map of each (source: {'; '.join(sources)}), and the size of "
            "the smallest perturbation found per pixel (maximum over channels), each map brightest "
            "at its own 99.5th percentile. Below: the perturbation's norm and r, its Spearman "
            f"correlation with the human map over the human ceiling {HUMAN_CEILING}. "
            f"{means_text([run_of[cell['model']] for cell in columns[0]])}\n"
            f"{describe_examples(runs, columns, results)}"
        )
        yield (
            figure_name("human_alignment_examples", runs, results),
            draw_grid(names, rows),
            example_table(columns),
            caption,
        )


def map_sources(runs: list[dict]) -> list[str]:
    """Where the human maps of some runs are from; a run without maps names nothing."""
    named = [run["settings"]["run"].get("human_map") for run in runs]
    return list(dict.fromkeys(filter(None, named))) or ["source not given"]


def model_facts(run: dict) -> str:
    """Name, Perturbation Tolerance and mean alignment of a model, as far as it has any.

    With the number of images of each mean; two numbers where these differ. The error is missing
    with one image.
    """
    means = norm_means(read_finished_rows(run))
    norm = minimised_norm(run["threat"])
    column, factor = ("linf", 255) if norm == "Linf" else ("l2", 1)  # as below the pictures
    tolerance, error = factor * means[column], factor * means[f"{column}_sem"]
    unit = {"Linf": " (1/255)", "L1": " (L₂)"}.get(norm, "")
    if not means["n"]:
        return f"{run['model']}\nno norm found (n = 0)"
    # one digit of the error, without an exponent: 10, not 1e+01
    plus_minus = f" ± {float(f'{error:.1g}'):g}" if np.isfinite(error) else ""
    tolerance_text, n, n_maps = f"PT{unit} {tolerance:.3g}{plus_minus}", means["n"], means["n_maps"]
    if not n_maps:
        return f"{run['model']}\n{tolerance_text} (n = {n})"
    between = ", " if n == n_maps else f" (n = {n})\n"
    agreement = f"r {means['alignment']:z.2f} (n = {n_maps})"
    return f"{run['model']}\n{tolerance_text}{between}{agreement}"


def means_text(runs: list[dict]) -> str:
    """What PT and r beside some models are, and over how many images."""
    means = [norm_means(read_finished_rows(run)) for run in runs]
    norms, maps = (pd.Series([one[name] for one in means]) for name in ("n", "n_maps"))
    text = (
        "PT: Perturbation Tolerance, the mean norm of the correctly classified images that were "
        f"fooled ({count_range(norms)})."
    )
    if maps.any():
        text += f" r beside a model: the mean of those with a human map ({count_range(maps)})."
        text += other_ceiling_text(run["settings"]["run"] for run in runs)
    return text


def human_map_picture(column: list[dict]) -> Picture:
    """The human map of a column's photograph."""
    first = next(cell for cell in column if "human_map" in cell)
    return map_colours(first["human_map"]), ""


def perturbation_map(cell: dict) -> Picture:
    """A perturbation's size per pixel, with verdict, norm and alignment; or why there is none."""
    if "delta" not in cell:
        return cell["verdict"], ""
    size = np.abs(cell["delta"].astype(float)).max(axis=2)
    verdict = cell["verdict"].replace("→ ", "→\n")
    return map_colours(size), f"{verdict}\n{', '.join(norm_and_alignment(cell))}"


def norm_and_alignment(cell: dict) -> list[str]:
    """The norm of a perturbation, and its alignment if it has one, as texts."""
    alignment = cell.get("human_alignment", np.nan)
    return [size_text(cell), *([f"r = {alignment:z.2f}"] if np.isfinite(alignment) else [])]


EVALUATE = (
    "python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --examples "
    "4 L2 --protocol crossing"
)
MADE_BY = f"`{EVALUATE}` makes it (a finished run: with --overwrite)"
FIGURES = {
    "adversarial_examples": (adversarial_examples, MADE_BY),
    "fooled_pictures": (fooled_pictures, MADE_BY),
    "human_alignment_examples": (human_alignment_examples, MADE_BY),
}
