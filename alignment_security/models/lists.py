"""Model lists, lists/models/*.txt: which models a study evaluated, their weights and their groups.

A list is tab-separated text with `#` comments and the columns `name source weights family group`,
or a name a line: of timm, or brainscore:NAME. A name is a value of --model_name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import ROOT
from alignment_security.common.text import repeated, some_of, text_lines

MODEL_LISTS = ROOT / "lists" / "models"
LIST_COLUMNS = ["name", "source", "weights", "family", "group"]
COLUMNS = ", ".join(LIST_COLUMNS)
LISTED_TWICE = "listed twice, and records have one name; keep one line of each"
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

    Of a file with a name a line, family and group are empty.
    Raises UserError, which names the lines that are wrong.
    """
    path = model_list_path(name)
    lines = {
        number: [cell.strip() for cell in line.split("\t")]
        for number, line in enumerate(text_lines(path), start=1)
        if line.strip() and not line.startswith("#")
    }
    lines = {number: cells for number, cells in lines.items() if cells != LIST_COLUMNS}
    if not lines:
        raise UserError(
            f"{path}: names no model; write a name a line, or {COLUMNS}, separated by tabs"
        )
    if all(len(cells) == 1 for cells in lines.values()):
        lines = {number: row_of_name(*cells) for number, cells in lines.items()}
    else:
        check_rows(path, lines)
    names = [cells[0] for cells in lines.values()]
    places = [
        f"{name} (lines {', '.join(str(i) for i, cells in lines.items() if cells[0] == name)})"
        for name in repeated(names)
    ]
    if places:
        raise UserError(f"{path}: {some_of(places)}: {LISTED_TWICE}")
    return pd.DataFrame(list(lines.values()), columns=LIST_COLUMNS)


def row_of_name(name: str) -> list[str]:
    """The cells of a line that is a name alone, of timm or brainscore:NAME."""
    if name.startswith(PLUGIN):
        return [name.removeprefix(PLUGIN), "brainscore", "plugin", "", ""]
    return [name, f"timm:{name}", f"timm:{name}", "", ""]


def check_rows(path: Path, lines: dict[int, list[str]]) -> None:
    """Raise UserError for the first line that is wrong."""
    for number, cells in lines.items():
        if error := row_error(cells):
            raise UserError(f"{path}, line {number}: {error}")


def row_error(cells: list[str]) -> str | None:
    """What is wrong with the cells of a line, or None."""
    if len(cells) == 1:
        return f"a name without tabs may not be mixed with lines of {COLUMNS}, separated by tabs"
    if len(cells) != len(LIST_COLUMNS) or not all(cells):
        return f"{len(cells)} cells, some may be empty; write {COLUMNS}, separated by tabs"
    _, source, weights, *_ = cells
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
        raise UserError(f"{' '.join(map(str, sources))}: {some_of(twice)}: {LISTED_TWICE}")
    return wanted


def _read_source(source: str | Path) -> list[WantedModel]:
    if str(source).startswith(PLUGIN):
        return [_wanted_model(*row_of_name(str(source))[:3])]
    return [_wanted_model(*row[:3]) for row in read_model_list(source).itertuples(index=False)]


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
