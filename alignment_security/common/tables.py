"""Read CSV tables as text, and turn their columns into checked numbers.

Every error names the file, the line and the column, and how to get a table that works. A cell that
is missing is "" as text and nan as a number; a model that is called `NA` or `None` keeps its name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.text import (
    as_a_spreadsheet_saves,
    read_text,
    repeated,
    without_zero_width,
)

HEADER_LINES = 1  # the first row of a table is line 2 of its file
# cells without a value in tables that pandas or a spreadsheet wrote
NO_VALUE = ("", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL", "None")


def read_table(path: Path, columns: Iterable[str], fix: str) -> pd.DataFrame:
    """Read a CSV with a header line; every cell is text.

    path      the file
    columns   names that the header has to contain; other columns are kept
    fix       what the user can do about a bad file, appended to each message
    Raises UserError if the file cannot be read, is no CSV, is cut off, lacks a column, has a column
    twice, or has no rows.
    """
    try:
        text = without_zero_width(read_text(path))
        check_delimiter(text, columns)
        check_rows(text)
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (OSError, UserError, csv.Error, ValueError) as error:  # pandas' errors are ValueErrors
        raise UserError(f"{path}: not a table ({str(error).strip()}); {fix}") from None
    check_columns(path, table, columns, fix)
    if table.empty:
        raise UserError(f"{path}: has a header and no rows; {fix}")
    return table


def check_delimiter(text: str, columns: Iterable[str]) -> None:
    """Raise ValueError for a table whose cells a spreadsheet separated otherwise."""
    header = text.partition("\n")[0]
    problem = as_a_spreadsheet_saves(header)
    if problem and {header} != {*columns}:
        raise ValueError(problem)


def check_columns(path: Path, table: pd.DataFrame, columns: Iterable[str], fix: str) -> None:
    """Raise UserError unless a table has these columns; parameters as of `read_table`."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; {fix}")


def check_rows(text: str) -> None:
    """Raise ValueError for what pandas would read as something else, and csv.Error for a quoted
    cell that does not end: a column twice (the second gets another name), and rows of other lengths
    than the first (they get empty cells)."""
    header: list[str] = []
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    for row in rows:
        if not header:
            header = row
            if twice := repeated(filter(None, header)):
                raise ValueError(f"column {twice[0]} is there twice")
        if row and len(row) != len(header):
            raise ValueError(
                f"line {rows.line_num} has {len(row)} cells, the first has {len(header)}"
            )


def to_numbers(
    path: Path,
    table: pd.DataFrame,
    columns: Iterable[str],
    fix: str,
    low: float = -np.inf,
    high: float = np.inf,
    no_value: Sequence[str] = NO_VALUE,
) -> pd.DataFrame:
    """A copy of a text table with some of its columns as numbers; cells without one become nan.

    path, fix   the file that `read_table` read, and what the user can do, for messages
    columns     names of columns; those that the table lacks are skipped
    low, high   range of the values, limits included; infinite values are no numbers
    no_value    cells that stay without a value; ("",) also refuses the word `nan`
    Raises UserError with line, column and text of the first cell that is no number in the range.
    """
    table = table.copy()
    for column in columns:
        if column not in table:
            continue
        cells = table[column].mask(table[column].isin(list(no_value)))
        values = pd.to_numeric(cells, errors="coerce")
        wrong = cells.notna() & ~(values.between(low, high) & np.isfinite(values))
        if wrong.any():
            row = wrong.idxmax()
            limits = "" if np.isinf([low, high]).all() else f" from {low:g} to {high:g}"
            raise UserError(
                f"{path}, line {row + 1 + HEADER_LINES}, column {column}: {cells[row]!r} is no "
                f"number{limits}; {fix}"
            )
        table[column] = values
    return table
