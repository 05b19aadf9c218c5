"""Pictures of Feng et al. (2025): Figures 1, 8 and 9, and the photograph beside Figure 4.

Perturbations and human maps are laid over the photograph in grey (`picture_grid.overlay`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from alignment_security.analysis.examples import example_groups, example_table
from alignment_security.analysis.feng2025 import (
    MEASURES,
    in_drawn_units,
    measure_label,
    tables_of_every_norm,
    tables_with,
)
from alignment_security.analysis.feng2025_pictures import (
    Picked,
    corner_models,
    pick,
    remedy_models,
    with_examples,
)
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import Results
from alignment_security.plots.examples import (
    MADE_BY,
    describe_examples,
    figure_name,
    means_text,
    model_facts,
    norm_and_alignment,
)
from alignment_security.plots.feng2025 import scatter
from alignment_security.plots.feng2025_style import (
    LACKING,
    group_handles,
    own_figure_name,
    tolerance_scale,
)
from alignment_security.plots.picture_grid import (
    OVERLAY_BLUR,
    Picture,
    draw_columns,
    overlay,
    put_picture,
    wrap_name,
)
from alignment_security.plots.style import COLUMN_WIDTH, DARK, PAGE_WIDTH, SMALL, Drawing

NETS = 6  # in a row of pictures
TITLE = 34  # letters in a line above a picture beside a plane
OVERLAID = (
    f"The size of the smallest perturbation found per pixel (maximum over channels, smoothed by "
    f"{OVERLAY_BLUR:.1%} of the width) and the human map, laid over the photograph: the brighter, "
    "the larger; each from its own 0 to its 99.5th percentile"
)


# ---- overlays ------------------------------------------------------------------------------------


def human_overlay(cell: dict) -> Picture:
    """Where people look at a photograph; the plain photograph without a map."""
    if "human_map" not in cell:
        return cell["image"], "no human map"
    return overlay(cell["image"], cell["human_map"]), ""


def perturbation_overlay(cell: dict) -> Picture:
    """Where a model is fooled, with the norm and its alignment; or why there is no picture."""
    if "delta" not in cell:
        return cell["verdict"], ""
    size = np.abs(cell["delta"].astype(float)).max(axis=2)
    below = "\n".join(norm_and_alignment(cell))
    return overlay(cell["image"], size, OVERLAY_BLUR), below


def photograph(cells: list[dict]) -> dict:
    """The cell whose photograph stands for a row: the first with a human map, else with any."""
    with_image = [cell for cell in cells if "image" in cell]
    return next((cell for cell in with_image if "human_map" in cell), with_image[0])


# ---- Figures 8 and 9 -----------------------------------------------------------------------------


def overlays(results: Results) -> Iterator[Drawing]:
    """Figures 8 and 9: human map and perturbations of up to six nets over each photograph.

    A row per photograph; with more nets, a figure for each six of them.
    """
    for runs, columns in example_groups(results, ("minimum_norm",)):
        run_of = {run["model"]: run for run in runs}
        for part in range(0, len(columns[0]), NETS):
            shown = [column[part : part + NETS] for column in columns]
            shown = [cells for cells in shown if any("image" in cell for cell in cells)]
            if not shown:
                continue
            facts = [model_facts(run_of[cell["model"]]) for cell in shown[0]]
            # without the numbers of images, which the caption gives
            short = [re.sub(r" \(n = \d+\)", "", fact).replace(", ", "\n") for fact in facts]
            heads = ["where people look", *short]
            rows = [
                [human_overlay(photograph(cells)), *map(perturbation_overlay, cells)]
                for cells in shown
            ]
            number = f"_{part // NETS + 1}" if len(columns[0]) > NETS else ""
            caption = (
                f"{OVERLAID}. r: Spearman correlation with the human map over the human ceiling. "
                f"{means_text([run_of[cell['model']] for cell in shown[0]])}\n"
                f"{describe_examples(runs, columns, results)}"
            )
            name = figure_name("overlays", runs, results) + number
            yield name, draw_columns(heads, rows), example_table(shown), caption


# ---- Figures 1 and 4 -----------------------------------------------------------------------------


def corners(results: Results) -> Iterator[Drawing]:
    """Figure 1: models in three corners of the plane of both measures, and where they fail."""
    tables = tables_with(tables_of_every_norm(results), [*MEASURES])
    for table in tables:
        picked = pick(results, table, corner_models(with_examples(results, table).rows))
        if picked.rows.empty:
            continue
        marked = "the model nearest to each of three corners by its ranks in both"
        if picked.cells:
            marked += ", of those that kept examples"
        yield picked_drawing(own_figure_name("corners", table, tables), table, picked, marked)


def tradeoff_photograph(results: Results) -> Iterator[Drawing]:
    """Beside Figure 4: one photograph; a standard, a robust and a harmonized model of one kind."""
    tables = tables_with(tables_of_every_norm(results), [*MEASURES])
    for table in tables:
        models = remedy_models(results, with_examples(results, table))
        picked = pick(results, table, models)
        if picked.rows.empty or table.name == PUBLISHED:
            continue
        marked = "one photograph: " if picked.cells else ""
        marked += (
            "a standard model, an adversarially trained and a harmonized one, of one architecture "
            "where records have it"
        )
        name = own_figure_name("tradeoff_photograph", table, tables)
        yield picked_drawing(name, table, picked, marked)


def picked_drawing(name: str, table: NormTable, picked: Picked, marked: str) -> Drawing:
    """A figure of `draw_picked`, and the table of the models in it.

    marked   for the caption: which models are marked
    """
    pictures = f" {OVERLAID}." if picked.cells else ""
    caption = (
        f"Human alignment against Perturbation Tolerance, and {marked}.{pictures}\n{table.note}"
    )
    drawn = in_drawn_units(table)
    rows = picked.rows.assign(letter=[*"abc"[: len(picked.rows)]])
    if picked.cells:
        facts = example_table([picked.cells])[["model", "image_set", "threat", "image_id"]]
        rows = rows.merge(facts, on="model")
    return name, draw_picked(drawn, rows, picked.cells), rows, caption


def draw_picked(table: NormTable, rows: pd.DataFrame, cells: list[dict]) -> Figure:
    """The plane of both measures with some models marked, and their pictures at its right.

    table   in drawn units
    rows    of models of the table, with `letter` and `stands_for`
    cells   of `read_example`, one per row; without, the plane alone
    """
    figure = plt.figure(figsize=(PAGE_WIDTH if cells else COLUMN_WIDTH, 3.1), layout="constrained")
    plane: Figure | SubFigure = figure
    if cells:
        halves = np.asarray(figure.subfigures(1, 2, width_ratios=(1.05, 1)), dtype=object)
        plane, pictures = halves.tolist()
        draw_overlays(pictures.subplots(2, 2), rows, cells)
    ax = plane.subplots()
    draw_plane(ax, table, rows)
    if not cells:
        names = [f"{row.letter}: {row.model}" for row in rows.itertuples()]
        ax.set_title("\n".join([table.name, *names]), loc="left")
    if handles := group_handles(table.rows):
        plane.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def draw_overlays(axes: np.ndarray, rows: pd.DataFrame, cells: list[dict]) -> None:
    """Where people look at a photograph, if a model saw it, and where each of some models fails."""
    shown: list[tuple[str, Picture]] = []
    if any("image" in cell for cell in cells):
        shown.append(("where people look", human_overlay(photograph(cells))))
    for row, cell in zip(rows.itertuples(), cells):
        name = f"{row.letter}  {row.model}\n{row.stands_for}"
        shown.append((name, perturbation_overlay(cell)))
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, (title, (picture, below)) in zip(axes.flat, shown):
        put_picture(ax, picture, below.replace("\n", ", "), letters=28)
        ax.set_title(wrap_name(title, TITLE), fontsize=SMALL, pad=2)


def draw_plane(ax: Axes, table: NormTable, rows: pd.DataFrame) -> None:
    """Human alignment against tolerance of all models; those of `rows` ringed, with a letter."""
    scatter(ax, table.rows, "pt", "alignment")
    tolerance_scale(ax.xaxis, table.rows["pt"])
    ax.set(xlabel=measure_label(table, "pt"), ylabel=measure_label(table, "alignment"))
    ax.set_title(table.name, loc="left")
    ax.margins(0.14)
    by_model = table.rows.set_index("model")
    ring: Any = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 0.9}
    for row in rows.itertuples():
        point = by_model.loc[row.model]
        place = point["pt"], MEASURES["alignment"][1] * point["alignment"]
        ax.plot(*place, "o", color=DARK, **ring)
        ax.annotate(
            row.letter,
            place,
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="white")],  # over other points
        )


FIGURES = {
    "corners": (corners, LACKING),
    "tradeoff_photograph": (tradeoff_photograph, MADE_BY),
    "overlays": (overlays, MADE_BY),
}
