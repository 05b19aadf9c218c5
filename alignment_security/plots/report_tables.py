"""Tables of the HTML page: cells, headings, and a frame that sorts, filters and chooses columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import pandas as pd

LONG_CELL = 40  # letters above which a cell is wrapped


class Cell(NamedTuple):
    """A cell: what is shown, the number it is sorted by, the file it links to, its interval."""

    text: str
    value: float = math.nan
    href: str = ""
    interval: str = ""  # shown smaller, behind the text


class Heading(NamedTuple):
    """A column's heading, its small print, and whether it is shown until a reader chooses."""

    text: str
    small: str = ""
    is_shown: bool = True


def cell_html(cell: Cell, tag: str = "td") -> str:
    """A cell; every text and address is escaped, whatever a model is called."""
    attributes = ""
    if not math.isnan(cell.value):
        attributes = f' class="number" data-value="{cell.value!r}"'
    elif len(cell.text) > LONG_CELL and " " in cell.text:
        attributes = ' class="long"'
    content = escape(cell.text)
    if cell.href:
        content = f'<a href="{escape(cell.href)}">{content}</a>'
    if cell.interval:
        content += f" <small>{escape(cell.interval)}</small>"
    return f"<{tag}{attributes}>{content}</{tag.split()[0]}>"


def row_html(cells: list[Cell], key: str = "") -> str:
    """A row, whose first cell names it."""
    first, *others = cells
    name = f' id="{escape(key)}"' if key else ""
    head = cell_html(first, 'th scope="row"')
    return f"<tr{name}>{head}{''.join(map(cell_html, others))}</tr>"


def heading_html(heading: Heading) -> str:
    """A heading: a button that sorts, with small print."""
    small = f"<small>{escape(heading.small)}</small>" if heading.small else ""
    button = f'<button type="button">{escape(heading.text)}{small}</button>'
    return f'<th scope="col">{button}</th>'


def chooser_html(header: list[Heading]) -> str:
    """Boxes that show and hide columns; the first column stays."""
    boxes = "\n".join(chooser_box(i, heading) for i, heading in enumerate(header) if i)
    return f'<details class="columns"><summary>Columns</summary><div>{boxes}</div></details>'


def chooser_box(column: int, heading: Heading) -> str:
    """The box of a column."""
    checked = " checked" if heading.is_shown else ""
    text = f"{escape(heading.text)} <small>{escape(heading.small)}</small>"
    return f'<label><input type="checkbox" data-column="{column}"{checked}> {text}</label>'


def table_html(
    name: str, header: list[Heading], rows: Iterable[list[Cell]], keys: Iterable[str] = ()
) -> str:
    """A table in a frame with a filter and a chooser of columns.

    name   id of the table
    keys   id of each row, if rows are linked to
    """
    rows = list(rows)
    keys = list(keys) or [""] * len(rows)
    body = "\n".join(row_html(cells, key) for cells, key in zip(rows, keys))
    key = escape(name)
    head = "".join(map(heading_html, header))
    return (
        f'<div class="board" data-table="{key}"><div class="tools">'
        '<input type="search" aria-label="Filter rows" placeholder="Filter rows …">'
        f"{chooser_html(header)}<output>{len(rows)} rows</output></div>\n"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{key}">'
        f'<table id="{key}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def number(value: float, digits: int, factor: float = 1, **more: str) -> Cell:
    """A rounded number that is sorted by all its digits; empty for nan.

    more   href, interval of the cell
    """
    return (
        Cell("") if pd.isna(value) else Cell(f"{factor * value:.{digits}f}", float(value), **more)
    )


def frame_html(name: str, table: pd.DataFrame) -> str:
    """Any table, its numbers to four digits."""
    rows = ([any_cell(value) for value in row] for row in table.itertuples(index=False))
    return table_html(name, [Heading(str(column)) for column in table], rows)


def any_cell(value: object) -> Cell:
    """A number to four digits, a text, or an empty cell for nan."""
    if pd.isna(value):
        return Cell("")
    if isinstance(value, (int, float)):
        return Cell(f"{value:.4g}", float(value))
    return Cell(str(value))
