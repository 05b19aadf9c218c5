"""Lists of models in lists/models/*.txt: which nets a study evaluated, where their weights come from, and their groups.

Tab-separated text with `#` comments: `name source weights family group`. A name is what --model_name takes.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.settings import ROOT

MODEL_LISTS = ROOT / "lists" / "models"
LIST_COLUMNS = ["name", "source", "weights", "family", "group"]
SOURCE_PREFIXES, WEIGHTS_PREFIXES = ("timm:", "brainscore"), ("hub:", "file:", "timm:", "plugin")


def available_lists() -> list[str]:
    """Names of the lists that come with the project."""
    return sorted(path.stem for path in MODEL_LISTS.glob("*.txt"))


def model_list_path(name: str | Path) -> Path:
    """File of a list: one of available(), or a path to your own."""
    path = MODEL_LISTS / f"{name}.txt"
    if path.is_file():
        return path
    if not Path(name).is_file():
        raise UserError(
            f"{name}: no such model list; give one of {', '.join(available_lists())}, or a file of your own"
        )
    return Path(name)


def read_model_list(name: str | Path) -> pd.DataFrame:
    """A model list as text, columns COLUMNS, in the order of the file. UserError names the line that is wrong."""
    path, rows, seen = model_list_path(name), list[list[str]](), dict[str, int]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip() or line.startswith("#") or cells == LIST_COLUMNS:
            continue
        if wrong := wrong_row(cells, seen):
            raise UserError(f"{path}, line {number}: {wrong}")
        seen[cells[0]] = number
        rows.append(cells)
    if not rows:
        raise UserError(
            f"{path}: names no model; a line holds {', '.join(LIST_COLUMNS)}, with tabs between them"
        )
    return pd.DataFrame(rows, columns=LIST_COLUMNS)


def wrong_row(cells: list[str], seen: dict[str, int]) -> str:
    """What is wrong with the cells of a line, or nothing."""
    if len(cells) != len(LIST_COLUMNS) or not all(cells):
        return f"{len(cells)} cells, some may be empty; write {', '.join(LIST_COLUMNS)} with tabs between them"
    name, source, weights = cells[:3]
    if name in seen:
        return f"{name} stands on line {seen[name]} too; keep one"
    if not source.startswith(SOURCE_PREFIXES):
        return f"source {source!r}; write timm:NAME or brainscore"
    return (
        ""
        if weights.startswith(WEIGHTS_PREFIXES)
        else f"weights {weights!r}; write hub:REPOSITORY, file:NAME, timm:NAME or plugin"
    )
