"""Scores of models from other tables than Brain-Score's: `python utilities.py join --scores CSV`.

Any CSV with timm names and numbers: human-likeness by thingsvision, DreamSim or model-vs-human. Its
columns become benchmarks of the figures of Hoak 2025.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import NOT_BENCHMARKS, column_key
from alignment_security.analysis.brainscore_registry import REGISTRY_NAME, TIMM_NAME
from alignment_security.analysis.model_vs_human import DATASETS
from alignment_security.common.files import UserError, sha256_file, write_atomic
from alignment_security.common.public_nets import with_tag
from alignment_security.common.schema import read_json
from alignment_security.common.tables import HEADER_LINES, NO_VALUE, read_table, to_numbers
from alignment_security.common.text import repeated, some_of
from alignment_security.records.schemas import SUMMARY

OTHER_SCORES = "other_scores.csv"  # in the results folder, with a .json that names the tables
MODEL_COLUMNS = ("model", "timm_name", "model_name", "name")  # the first that a table has
UNNAMED = "Unnamed: "  # how pandas calls a column whose header is empty
TAKEN = {*SUMMARY, "match", "input_note"}  # columns of the table that scores are joined to
SOURCES = [{"source": str, "sha256": str}]  # name and sha256 of each table
AGAIN = "`python utilities.py join --scores CSV` writes it"


# ---- writing -------------------------------------------------------------------------------------


def collect_scores(paths: Sequence[Path], results_dir: Path) -> None:
    """Write the scores of some tables to results_dir/OTHER_SCORES, in place of earlier ones.

    Prints the columns that are no scores. Raises UserError for a table without names or numbers, a
    model twice, and a score that two tables have; then nothing is written.
    """
    tables = [read_scores_of(Path(path)) for path in paths]
    names = [name for table in tables for name in table]
    if twice := repeated(names):
        raise UserError(f"{some_of(twice)}: in two of these tables; rename in one of them")
    merged = pd.concat(tables, axis=1).sort_index().rename_axis("model")
    sources = [{"source": path.name, "sha256": sha256_file(path)} for path in map(Path, paths)]
    path = results_dir / OTHER_SCORES
    write_atomic(path, merged.to_csv(lineterminator="\n"))
    write_atomic(path.with_suffix(".json"), json.dumps(sources, indent=1) + "\n")
    print(f"{len(merged)} models with {len(names)} scores: {path}")


def read_scores_of(path: Path) -> pd.DataFrame:
    """The columns of numbers of a table, by timm name. Raises UserError."""
    fix = f"write a CSV with {' or '.join(MODEL_COLUMNS)} and columns of numbers"
    if not path.is_file():
        raise UserError(f"{path}: no such table")
    table = read_table(path, [], fix)
    column = next((name for name in MODEL_COLUMNS if name in table), None)
    if column is None:
        raise UserError(f"{path}: has no column {' or '.join(MODEL_COLUMNS)}")
    nets = table[column].map(str.strip).map(lambda name: with_tag(name.removeprefix("timm/")))
    if (nets == "").any() or nets.duplicated().any():
        i = int(((nets == "") | nets.duplicated()).to_numpy().argmax())
        raise UserError(
            f"{path}, line {i + HEADER_LINES + 1}: {nets.iloc[i] or 'no model'}"
            f"{' is there twice; keep one' if nets.iloc[i] else ''}"
        )
    kept = {}
    for name in table.columns.drop(column):
        if column_key(name) in NOT_BENCHMARKS or name == DATASETS:
            continue
        reason = no_score(table[name], name)
        if reason:
            print(f"{path.name}: left out {name} ({reason})")
        elif name in TAKEN:
            raise UserError(f"{path}: {name} is a column of our own results; rename it")
        else:
            kept[name] = to_numbers(path, table, [name], fix)[name].astype(float).to_numpy()
    if not kept:
        raise UserError(f"{path}: has no column of numbers; {fix}")
    return pd.DataFrame(kept, index=pd.Index(nets, name="model"))


def no_score(cells: pd.Series, name: str) -> str:
    """Why a column of text is no column of scores; "" if it is one."""
    if name.startswith(UNNAMED):
        return "its header is empty, as that of an index"
    known = cells[~cells.str.strip().isin(NO_VALUE)]
    if known.empty:
        return "no value"
    wrong = known[~np.isfinite(pd.to_numeric(known, errors="coerce"))]
    if wrong.empty:
        return ""
    return f"line {int(wrong.index[0]) + HEADER_LINES + 1}: {wrong.iloc[0]!r} is no number"


# ---- reading -------------------------------------------------------------------------------------


def has_other_scores(results_folder: Path) -> bool:
    return (results_folder / OTHER_SCORES).exists()


def with_other_scores(
    scores: pd.DataFrame | None, results_folder: Path
) -> tuple[pd.DataFrame, str]:
    """Brain-Score's scores with those of other tables, and the names of these tables.

    scores   with REGISTRY_NAME, TIMM_NAME and benchmarks; None without Brain-Score's

    A net that Brain-Score has gets the other scores in its row; another net has a row of its own.
    The other scores stand before Brain-Score's, whose averages name the groups of what follows.
    """
    if scores is None:
        scores = pd.DataFrame(columns=[REGISTRY_NAME, TIMM_NAME])
    path = results_folder / OTHER_SCORES
    if not path.exists():
        return scores, ""
    table = read_table(path, ["model"], AGAIN)
    other = to_numbers(path, table, table.columns.drop("model"), AGAIN).set_index("model")
    sources = read_sources(path.with_suffix(".json"))
    nets = scores[TIMM_NAME].fillna("").map(with_tag)
    rows = other.reindex(nets).set_index(scores.index)
    others = other[~other.index.isin(nets)].reset_index()
    new = others.rename(columns={"model": TIMM_NAME})
    new.insert(0, REGISTRY_NAME, "timm:" + new[TIMM_NAME])
    names = [name for name in scores if column_key(name) in NOT_BENCHMARKS]
    whole = pd.concat([scores[names], rows, scores.drop(columns=names)], axis=1)
    parts = [part for part in (whole, new) if len(part)]
    merged = pd.concat(parts, ignore_index=True)[list(whole)]
    return merged, ", ".join(source["source"] for source in sources)


def read_sources(path: Path) -> list[dict[str, str]]:
    """The tables that `collect_scores` put together. Raises UserError for a bad file or none."""
    try:
        return read_json(path, SOURCES, "list of tables", AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {AGAIN}") from None
