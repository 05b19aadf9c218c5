"""Model lists, lists/models/*.txt: which models a study evaluated, their weights and their groups.

A list is tab-separated text with `#` comments and the columns `name source weights family group`.
A name is a value of --model_name.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import ROOT
from alignment_security.common.text import text_lines

MODEL_LISTS = ROOT / "lists" / "models"
LIST_COLUMNS = ["name", "source", "weights", "family", "group"]
SOURCE_PREFIXES = ("timm:", "brainscore")
WEIGHTS_PREFIXES = ("hub:", "file:", "timm:", "plugin")


def available_lists() -> list[str]:
    """Names of the lists that come with the project."""
    return [path.stem for path in glob_visible(MODEL_LISTS, "*.txt")]


def model_list_path(name: str | Path) -> Path:
    """File of a list: `name` is one of available_lists(), or a path to your own list."""
    path = MODEL_LISTS / f"{name}.txt"
    if path.is_file():
        return path
    if not Path(name).is_file():
        available = ", ".join(available_lists())
        raise UserError(f"{name}: no such model list; give one of {available}, or a path to yours")
    return Path(name)


def read_model_list(name: str | Path) -> pd.DataFrame:
    """A model list as text, columns LIST_COLUMNS, in file order.

    Raises UserError, which names the line that is wrong.
    """
    path = model_list_path(name)
    rows: list[list[str]] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(text_lines(path), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip() or line.startswith("#") or cells == LIST_COLUMNS:
            continue
        error = row_error(cells, line_of)
        if error:
            raise UserError(f"{path}, line {number}: {error}")
        line_of[cells[0]] = number
        rows.append(cells)
    if not rows:
        columns = ", ".join(LIST_COLUMNS)
        raise UserError(f"{path}: names no model; a line holds {columns}, separated by tabs")
    return pd.DataFrame(rows, columns=LIST_COLUMNS)


def row_error(cells: list[str], line_of: dict[str, int]) -> str | None:
    """What is wrong with the cells of a line, or None; `line_of` has the names of earlier lines."""
    if len(cells) != len(LIST_COLUMNS) or not all(cells):
        columns = ", ".join(LIST_COLUMNS)
        return f"{len(cells)} cells, some may be empty; write {columns}, separated by tabs"
    name, source, weights = cells[:3]
    if name in line_of:
        return f"{name} is on line {line_of[name]} too; keep one"
    if not source.startswith(SOURCE_PREFIXES):
        return f"source {source!r}; write timm:NAME or brainscore"
    if not weights.startswith(WEIGHTS_PREFIXES):
        return f"weights {weights!r}; write hub:REPOSITORY, file:NAME, timm:NAME or plugin"
    return None
