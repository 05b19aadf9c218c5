"""Pictures in rows and columns with their names, and pictures with a map laid over them."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from alignment_security.plots.style import GREY, PAGE_WIDTH, SMALL

CELL = 1.62  # inches: a picture
GAP, TEXT_LINE = 0.07, 0.117  # inches: between pictures; a line of text
LETTER, LINE = 0.05, 0.1  # inches: a small letter, on average; a line of them
LONG_NAME = 26  # letters above which a model's name is broken
MAP_COLOURS = "magma"
OVERLAY_COLOURS = "inferno"
OVERLAY_OPACITY = 0.9  # where a map is at its highest
OVERLAY_BLUR = 0.015  # of the width: sigma of the Gaussian over a perturbation
HIGHEST_QUANTILE = 0.995  # of a map, drawn as its highest value
# pixels (H, W, 3) uint8, or the reason why there are none; and the text below
Picture = tuple[np.ndarray | str, str]


def draw_grid(names: list[str], rows: list[list[Picture]]) -> Figure:
    """Rows of pictures with their names at the left, and a text below each picture."""
    names = [break_long_name(name) for name in names]
    left = 0.08 + TEXT_LINE * (1 + max(name.count("\n") for name in names))
    heights = []  # inches: of a row with the text below it
    for row in rows:
        lines = max(len(below.splitlines()) for _, below in row)
        heights.append(CELL + GAP + TEXT_LINE * (lines + 0.5))
    width = left + len(rows[0]) * (CELL + GAP) - GAP
    below_top = np.cumsum([0, *heights])
    height = below_top[-1]
    figure = plt.figure(figsize=(width, height))
    for name, row, top in zip(names, rows, height - below_top):
        figure.text(
            0.02 / width,
            (top - CELL / 2) / height,
            name,
            rotation=90,
            va="center",
            ma="center",
            fontsize=7,
        )
        for j, picture in enumerate(row):
            place = left + j * (CELL + GAP), top - CELL
            ax = figure.add_axes((place[0] / width, place[1] / height, CELL / width, CELL / height))
            put_picture(ax, *picture, letters=20, size=7, interpolation="none")
    return figure


def break_long_name(name: str) -> str:
    """A model's name (and facts below it), broken after the architecture if it is long."""
    is_long = len(name.split("\n")[0]) > LONG_NAME
    return name.replace(".", ".\n", 1) if is_long else name


# ---- columns on a page ---------------------------------------------------------------------------


def draw_columns(heads: list[str], rows: list[list[Picture]], width: float = PAGE_WIDTH) -> Figure:
    """Rows of pictures, a name above each column, a text below each.

    width   in inches, at most; few pictures in a row are no larger than CELL
    """
    columns = len(heads)
    cell = min(CELL, (width + GAP) / columns - GAP)
    width = columns * (cell + GAP) - GAP
    letters = int(cell / LETTER)
    heads = [wrap_name(head, letters) for head in heads]
    top = LINE * (max(head.count("\n") for head in heads) + 1.6)
    lines = max(below.count("\n") + 1 if below else 0 for row in rows for _, below in row)
    step = cell + LINE * (lines + 0.5) + GAP
    height = top + len(rows) * step
    figure = plt.figure(figsize=(width, height))
    for j, head in enumerate(heads):
        left = j * (cell + GAP)
        x = (left + cell / 2) / width
        figure.text(x, 1 - (top - 0.04) / height, head, ha="center", va="bottom", fontsize=SMALL)
        for i, row in enumerate(rows):
            bottom = height - top - i * step - cell
            place = (left / width, bottom / height, cell / width, cell / height)
            ax = figure.add_axes(place)
            put_picture(ax, *row[j], letters)
    return figure


def put_picture(
    ax: Axes,
    picture: np.ndarray | str,
    below: str,
    letters: int,
    size: float = SMALL,
    interpolation: str = "antialiased",
) -> None:
    """A picture, or the reason why there is none in lines of so many letters, and a text below.

    size   of letters, points
    """
    ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
    ax.spines[:].set_visible(False)
    text: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center", "fontsize": size}
    if isinstance(picture, str):
        reason = textwrap.fill(picture, letters)
        ax.annotate(reason, (0.5, 0.5), va="center", color=GREY, **text)
    else:
        ax.imshow(picture, interpolation=interpolation)
    ax.annotate(below, (0.5, 0), (0, -2), textcoords="offset points", va="top", **text)


def wrap_name(text: str, letters: int) -> str:
    """Lines of at most so many letters; names of models break after `.`, `_` and `-` too.

    A number stays behind its ±.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for word in re.findall(r"(?:± )?[^._\- ]*[._\- ]?", part):
            if line and len(line + word) > letters:
                lines.append(line.rstrip())
                line = ""
            line += word
        lines.append(line)
    return "\n".join(lines)


# ---- maps ----------------------------------------------------------------------------------------


def share_of_highest(values: np.ndarray) -> np.ndarray:
    """A map (H, W) of any scale, from 0 up, in [0, 1]: 1 from its HIGHEST_QUANTILE up."""
    values = values.astype(float)
    highest = np.quantile(values, HIGHEST_QUANTILE) or values.max() or 1.0
    return (values / highest).clip(0, 1)


def map_colours(values: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) uint8 of a map (H, W) of any scale, the brighter, the higher."""
    colours = plt.get_cmap(MAP_COLOURS)(share_of_highest(values))
    return (colours[..., :3] * 255).astype(np.uint8)


def overlay(photograph: np.ndarray, values: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """A map laid over a photograph in grey: the higher a value, the brighter and the less grey.

    photograph   (H, W, 3) uint8
    values       (H, W), from 0 up; drawn as highest at their HIGHEST_QUANTILE
    blur         sigma of a Gaussian over the map, as a share of its width

    Returns (H, W, 3) uint8.
    """
    values = values.astype(float)
    if blur:
        values = gaussian_filter(values, blur * values.shape[1])
    share = share_of_highest(values)
    colours = 255 * plt.get_cmap(OVERLAY_COLOURS)(share)[..., :3]
    grey = photograph.mean(axis=2, keepdims=True)
    opacity = OVERLAY_OPACITY * share[..., None]
    return ((1 - opacity) * grey + opacity * colours).round().astype(np.uint8)
