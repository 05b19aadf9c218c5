"""What makes a figure unreadable at the size of a two-column page, measured on its texts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from alignment_security.plots.style import COLUMN_WIDTH, PAGE_WIDTH, SMALL

PAGE_HEIGHT = 9.5  # inches
SLACK = 0.02  # inches that a box may stand over the edge


def visible(figure: Figure) -> list[Text]:
    """Texts that are drawn, without ticks beyond the limits of an axis and axes that are off."""
    hidden: set[Text] = set()
    for ax in figure.findobj(Axes):
        for axis in (ax.xaxis, ax.yaxis):
            hidden |= set() if ax.axison else set(axis.findobj(Text))
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure whose boxes share more than a point in both directions.

    Slanted texts are left out: their boxes are larger than they are.
    """
    texts = [text for text in visible(figure) if text.get_rotation() % 90 == 0]
    boxes = np.array([text.get_window_extent().extents * 72 / figure.dpi for text in texts])
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return [
        (texts[i].get_text(), texts[j].get_text())
        for i, j in np.argwhere((high - low > 1).all(axis=2))
        if i < j
    ]


def beyond_the_page(figure: Figure) -> list[str]:
    """Texts that are cut at an edge of the figure."""
    size = np.array(figure.get_size_inches()) + SLACK
    boxes = [(text, text.get_window_extent().get_points() / figure.dpi) for text in visible(figure)]
    return [
        text.get_text()
        for text, (low, high) in boxes
        if (low < -SLACK).any() or (high > size).any()
    ]


def unreadable(figure: Figure) -> Iterator[str]:
    """What is wrong with a figure in a column or across a page, a sentence each."""
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    if COLUMN_WIDTH + SLACK < width < 0.7 * PAGE_WIDTH or width > PAGE_WIDTH + SLACK:
        yield f"{width:.2f} inches wide, neither of a column nor of a page"
    if height > PAGE_HEIGHT:
        yield f"{height:.2f} inches high"
    for text in visible(figure):
        if text.get_fontsize() < SMALL:
            yield f"{text.get_fontsize():g} points: {text.get_text()!r}"
    yield from (f"overlap: {one!r} and {other!r}" for one, other in overlapping(figure))
    yield from (f"cut: {text!r}" for text in beyond_the_page(figure))
