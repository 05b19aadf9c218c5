"""Checks of tables: figures whose panels pool, nets of one's own that took public numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.public_nets import public_nets
from alignment_security.common.text import read_text
from alignment_security.records.comparable import (
    comparable_settings,
    corruption_settings,
    images_and_head,
)
from alignment_security.records.summary import JOINED_NAME
from alignment_security.records.trace import (
    RUN_COLUMNS,
    SOURCE_COLUMNS,
    read_figure,
    runs_behind,
)

STUDY_GROUPS = ("SSL", "CNN", "ViT", "Hybrid")  # of public nets in Feng 2025
CORRUPTION_COLUMNS = ("model", "type", "severity")
DRAW_AGAIN = "draw it again with plotting.py"


def check_tables(results_dir: Path, figures_dir: Path, runs: dict[Path, dict]) -> Iterator[str]:
    """Problems of the joined summary and of every figure's table.

    runs   path of the record -> content of the run file, finished runs
    """
    joined = results_dir / JOINED_NAME
    if joined.exists():
        yield from check_joins(joined, read_table(joined), "run `python utilities.py join` again")
    for path in glob_visible(figures_dir, "**/*.csv"):
        table = read_table(path)
        yield from check_joins(path, table, DRAW_AGAIN)
        yield from check_panels(path, table, runs)


def read_table(path: Path) -> pd.DataFrame:
    """A table as text; empty for a file that is no table."""
    try:
        return read_figure(path, None)[0]
    except UserError:
        return pd.DataFrame()


# ---- joins ---------------------------------------------------------------------------------------


def check_joins(path: Path, table: pd.DataFrame, fix: str) -> Iterator[str]:
    """No net of one's own has scores, a group or an identity of the public net of its name."""
    if not {"model", "weights"} <= set(table.columns):
        return
    taken = pd.Series(False, table.index)
    for column in ("model_registry_name", "public"):
        if column in table:
            taken |= table[column] != ""
    if "group" in table:
        taken |= table["group"].isin(STUDY_GROUPS)
    own = table["weights"].str.startswith("file:") & (public_nets(table) == "")
    for model, weights in table.loc[taken & own, ["model", "weights"]].drop_duplicates().to_numpy():
        yield (
            f"{path}: {model} has weights {weights} and public numbers of that name, which belong "
            f"to other weights; {fix}"
        )


# ---- panels --------------------------------------------------------------------------------------


def check_panels(path: Path, table: pd.DataFrame, runs: dict[Path, dict]) -> Iterator[str]:
    """The runs of one panel differ in their models alone."""
    if set(CORRUPTION_COLUMNS) <= set(table.columns):
        yield from pooled(path, table, runs, corruption_settings)
        cells = table.groupby(["model", "type"])["severity"]
        sets = sorted({"+".join(sorted(cell)) for _, cell in cells})
        if len(sets) > 1:
            yield f"{path}: pools means over severities {' and '.join(sets)}; {DRAW_AGAIN}"
    elif "panel" in table:
        for panel, part in table.groupby("panel"):
            yield from pooled(path, part, runs, comparable_settings, f" in panel {panel}")
    elif is_of_protocols(table):
        yield from pooled(path, table, runs, images_and_head)
        for protocol, part in table.groupby("protocol"):
            yield from pooled(path, part, runs, comparable_settings, f" under {protocol}")


def is_of_protocols(table: pd.DataFrame) -> bool:
    """Whether each row is one run under one protocol: a row with a source has several runs."""
    columns = set(table.columns)
    return {"protocol", "threat", "head", "model"} <= columns and not columns & {*SOURCE_COLUMNS}


def pooled(
    path: Path, table: pd.DataFrame, runs: dict[Path, dict], key: Callable, where: str = ""
) -> Iterator[str]:
    """A sentence if the runs behind some lines of a table differ in `key`; names two of them."""
    columns = dict.fromkeys([*RUN_COLUMNS, *SOURCE_COLUMNS, *CORRUPTION_COLUMNS])
    lines = table.drop_duplicates([name for name in columns if name in table])
    caption = path.with_suffix(".txt")
    behind = runs_behind(lines, read_text(caption) if caption.exists() else "", runs)
    first: dict = {}
    for record in dict.fromkeys(record for records in behind.values() for record in records):
        first.setdefault(key(runs[record]), record)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        yield (
            f"{path}: pools runs of different settings{where}, e.g. {one} and {other}; {DRAW_AGAIN}"
        )
