"""Check the tables and JSON files that this project writes, when it reads them again.

A file may have been edited, cut, damaged or made up. Every error is one line with the file, the
line and the column (or the key), and how to mend it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError, read_bytes
from alignment_security.common.text import as_a_spreadsheet_saves, decode_text

TEXT, NAME, WHOLE, NUMBER = "text", "name", "whole number", "number"
FIRST_LINE = 2  # of the cells of a table, after its header
LARGEST = 2.0**53  # of a whole number that a float holds
NUMBER_CHARACTERS = set("0123456789+-.eE")  # float() also takes nan, inf and 1_000
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")  # no separator, no leading dot


class Column(NamedTuple):
    """What the cells of a column may hold.

    kind       TEXT, NAME (of a file or folder: no path), WHOLE or NUMBER
    low, high  range of a number, limits included
    empty      whether a cell may be empty
    shared     whether a WHOLE number may also be a share of one, a fraction
    """

    kind: str
    low: float = 0
    high: float = LARGEST
    empty: bool = False
    shared: bool = False


# ---- tables --------------------------------------------------------------------------------------


def parse_table(
    path: Path, data: bytes, columns: Mapping[str, Column], fix: str, delimiter: str = ","
) -> pd.DataFrame:
    """The table in the bytes of a file whose first line names its columns.

    path     for messages
    columns  name -> what its cells may hold; a table may lack some of them. Other columns are
             numbers if all their cells are, else text.
    fix      what the user can do about a bad file, appended to each message; {path} and {line} in
             it are replaced
    Whole numbers are int64, or float64 where a cell is empty or a fraction; empty cells are missing
    values.
    Floats are exact. Raises UserError.
    """
    text = decode_text(data, path)
    if not text.endswith("\n"):
        raise _error(path, text.count("\n") + 1, "the last line is cut off", fix)
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        raise _error(path, 1, f"damaged table ({error})", fix) from None
    if problem := as_a_spreadsheet_saves(text.partition("\n")[0], delimiter):
        raise UserError(f"{path}: {problem}, or bring the file back as it was")
    if len(set(header)) < len(header):
        raise _error(path, 1, "a column is there twice", fix)
    for line, row in enumerate(rows, FIRST_LINE):
        if len(row) != len(header):
            raise _error(path, line, f"{len(row)} cells and not {len(header)}", fix)
    by_column = dict(zip(header, zip(*rows) if rows else [()] * len(header)))
    return pd.DataFrame(
        {name: _parse_column(path, name, cells, columns, fix) for name, cells in by_column.items()}
    )


def _parse_column(
    path: Path, name: str, cells: Sequence[str], columns: Mapping[str, Column], fix: str
) -> pd.Series:
    if name not in columns:
        numbers = _to_floats(cells)
        return _text(cells) if numbers is None else pd.Series(numbers)
    column = columns[name]
    line = FIRST_LINE
    if column.kind in (TEXT, NAME):
        wrong = [cell for cell in dict.fromkeys(cells) if not _is_text(cell, column)]
        if not wrong:
            return _text(cells)
        line += cells.index(wrong[0])
    else:
        values = _to_floats(cells)
        if values is not None and _are_in_range(values, column):
            is_whole = column.kind == WHOLE and (values == np.floor(values)).all()
            return pd.Series(values.astype(np.int64) if is_whole else values)
        line += next(i for i, cell in enumerate(cells) if not _is_number(cell, column))
    problem = f"column {name}: {cells[line - FIRST_LINE]!r} is {_no_such_value(column)}"
    raise _error(path, line, problem, fix)


def _error(path: Path, line: int, problem: str, fix: str) -> UserError:
    fix = fix.replace("{line}", str(line)).replace("{path}", str(path))
    return UserError(f"{path}, line {line}, {problem}; {fix}")


def _text(cells: Sequence[str]) -> pd.Series:
    series = pd.Series(list(cells), dtype="str")
    return series.mask(series == "")


def _is_text(cell: str, column: Column) -> bool:
    if not cell:
        return column.empty
    return column.kind == TEXT or bool(FOLDER_NAME.fullmatch(cell))


def _to_floats(cells: Sequence[str]) -> np.ndarray | None:
    """The cells as float64, empty ones as nan; None if one is no number."""
    if not set("".join(cells)) <= NUMBER_CHARACTERS:
        return None
    try:
        return np.fromiter((float(cell or "nan") for cell in cells), np.float64, len(cells))
    except ValueError:
        return None


def _are_in_range(values: np.ndarray, column: Column) -> bool:
    missing = np.isnan(values)
    if missing.any() and not column.empty:
        return False
    known = values[~missing]
    if column.kind == WHOLE and not column.shared and (known != np.floor(known)).any():
        return False
    return bool(((known >= column.low) & (known <= column.high)).all())


def _is_number(cell: str, column: Column) -> bool:
    value = _to_floats([cell])
    return value is not None and _are_in_range(value, column)


def _no_such_value(column: Column) -> str:
    if column.kind == TEXT:
        return "no text"
    if column.kind == NAME:
        return "no name of a folder"
    high = "" if column.high == LARGEST else f" to {column.high:g}"
    return f"no {column.kind} from {column.low:g}{high}"


# ---- JSON ----------------------------------------------------------------------------------------


def read_json(path: Path, shape: Any, what: str, fix: str) -> Any:
    """The content of a JSON file of a shape (`check_shape`).

    what, fix   the kind of file, and what the user can do about a bad one, for messages
    Raises FileNotFoundError, and UserError for a file that is no JSON or of another shape.
    """
    try:
        value = json.loads(decode_text(read_bytes(path), path))
        check_shape(value, shape, "the file")
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a {what} ({reason}); {fix}") from None
    return value


def check_shape(value: Any, shape: Any, name: str) -> None:
    """Raise ValueError unless a JSON value has a shape.

    shape   a type, or a tuple of types; a pattern, which a text has to match; [shape] of a list's
            elements; {key: shape}, where a key that ends in `?` may be missing
    name    of the value, for the message
    """
    if isinstance(shape, dict):
        _check_type(value, dict, name)
        for key, inner in shape.items():
            if key.rstrip("?") in value:
                check_shape(value[key.rstrip("?")], inner, key.rstrip("?"))
            elif not key.endswith("?"):
                raise ValueError(f"no {key} in {name}")
    elif isinstance(shape, list):
        _check_type(value, list, name)
        for element in value:
            check_shape(element, shape[0], f"an element of {name}")
    elif isinstance(shape, re.Pattern):
        _check_type(value, str, name)
        if not shape.fullmatch(value):
            raise ValueError(f"{name} is {value[:80]!r}, which it cannot be")
    else:
        _check_type(value, shape, name)


def _check_type(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    is_wrong_bool = isinstance(value, bool) and bool not in kinds
    if is_wrong_bool or not isinstance(value, kinds):
        raise ValueError(f"{name} is {type(value).__name__} and not {kinds[0].__name__}")
