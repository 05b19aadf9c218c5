"""Model lists, lists/models/*.txt: which models a study evaluated, their weights and their groups.

A list is tab-separated text with `#` comments and the columns `name source weights family group`.
A name is a value of --model_name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import ROOT
from alignment_security.common.text import repeated, text_lines

MODEL_LISTS = ROOT / "lists" / "models"
LIST_COLUMNS = ["name", "source", "weights", "family", "group"]
# kinds of source whose own code builds the net and finds the weights
CODE_SOURCES = ("brainscore", "python", "torchvision")
SOURCE = re.compile(r"timm:.+|python:.+|(brainscore|torchvision)(:.+)?")
PLUGIN = "brainscore:"  # before the name of a plugin where a timm name could stand
WEIGHTS_PREFIXES = ("hub:", "file:", "timm:", "plugin", "source")


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
        if len(cells) == 1:
            return (
                f"a name without tabs may not be mixed with lines of {columns}, separated by tabs"
            )
        return f"{len(cells)} cells, some may be empty; write {columns}, separated by tabs"
    name, source, weights = cells[:3]
    if name in line_of:
        return f"{name} is on line {line_of[name]} too; keep one"
    if not SOURCE.fullmatch(source):
        return (
            f"source {source!r}; write timm:NAME, brainscore, python:FILE.py:FUNCTION or "
            "torchvision:NAME"
        )
    if not weights.startswith(WEIGHTS_PREFIXES):
        return f"weights {weights!r}; write hub:REPOSITORY, file:NAME, timm:NAME, plugin or source"
    return None


# ---- models to evaluate --------------------------------------------------------------------------


class WantedModel(NamedTuple):
    """A line of a model list."""

    name: str  # of the record
    net: str | None  # timm's name of the net; None where the code of its source builds it
    checkpoint: str | None = None  # file, when the list names one
    source: str = "brainscore"  # value of --source, where `net` is None


def read_wanted(*sources: str | Path) -> list[WantedModel]:
    """The models of some lists, in order.

    sources   brainscore:NAME, a plugin; name of a list in lists/models/, a table of that format, or
              a file with a name per line, of timm or brainscore:NAME
    In a table, source or weights `timm:NET` names timm's net, and weights `file:NAME` a checkpoint;
    any other model of the source `brainscore[:IDENTIFIER]` is a plugin. Raises UserError.
    """
    wanted = [model for source in sources for model in _read_source(source)]
    if twice := repeated(model.name for model in wanted):
        raise UserError(
            f"{' '.join(map(str, sources))}: {min(twice)} is listed twice, and its records would "
            "have one name"
        )
    return wanted


def _read_source(source: str | Path) -> list[WantedModel]:
    if str(source).startswith(PLUGIN):
        return [_named_model(str(source))]
    file = model_list_path(source)
    lines = [line.strip() for line in text_lines(file) if line.strip() and not line.startswith("#")]
    if any("\t" in line for line in lines) or not lines:
        return [_wanted_model(*row[:3]) for row in read_model_list(file).itertuples(index=False)]
    return [_named_model(line) for line in lines]


def _named_model(name: str) -> WantedModel:
    if name.startswith(PLUGIN):
        return WantedModel(name.removeprefix(PLUGIN), None)
    return WantedModel(name, name)


def _wanted_model(name: str, source: str, weights: str) -> WantedModel:
    """A row of a table as a WantedModel.

    timm has to be named: the net of a plugin may have the name of timm's and other weights.
    """
    net = checkpoint = None
    if weights.startswith("file:"):
        checkpoint = weights.removeprefix("file:")
    if source.startswith("timm:"):
        net = source.removeprefix("timm:")
    elif source.startswith("brainscore") and weights.startswith("timm:"):
        net = weights.removeprefix("timm:")
    if net is None:
        return WantedModel(name, None, checkpoint, source)
    return WantedModel(name, net, checkpoint)
