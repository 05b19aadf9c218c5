"""Records and run files on disk: their columns and keys, reading them, and checking them.

results/README.md describes every column.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_text_file
from alignment_security.common.text import read_text

CLEAN_COLUMNS = ["image_id", "label", "clean_pred", "clean_correct"]
RECORD_COLUMNS = {
    "clean": [*CLEAN_COLUMNS, "clean_top5", "clean_real", "clean_multilabel"],
    "ball": [
        *CLEAN_COLUMNS,
        "eps",
        "robust",
        "adv_pred",
        "broken_by",
        "from_eps",
        "linf",
        "l2",
        "forwards",
        "backwards",
    ],
    "minimum_norm": [
        *CLEAN_COLUMNS,
        "success",
        "adv_pred",
        "l2",
        "linf",
        "human_alignment_raw",
        "human_alignment",
        "forwards",
        "backwards",
    ],
}
TEXT_COLUMNS = {"image_id": str, "broken_by": str}  # dtypes, for pandas
INTEGER_COLUMNS = [
    "label",
    "clean_pred",
    "clean_correct",
    "clean_top5",
    "clean_real",
    "clean_multilabel",
    "robust",
    "success",
    "adv_pred",
]
# settings that run files have had since a later version: a run begun without one goes on without
LATER_SETTINGS = ("group", "human_map_blur", "geometry")
# keys that every run file has
RUN_KEYS = {"model", "image_set", "threat", "kind", "settings", "status", "sessions", "warnings"}


# ---- reading -------------------------------------------------------------------------------------


def read_run_file(path: Path) -> dict:
    """The run file as a dict. Raises UserError when it is missing, not JSON, or lacks a key."""
    try:
        run = json.loads(read_text(path))
        missing = RUN_KEYS - run.keys() or {"model", "run"} - run["settings"].keys()
        if missing:
            raise ValueError(f"no {min(missing)}")
        return run
    except FileNotFoundError:
        raise UserError(
            f"{path}: the run file of this record is missing; evaluate the model again with "
            "--overwrite"
        ) from None
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a run file ({error}); delete it and evaluate the model again"
        ) from None


def read_record(path: Path, torn: bool = False) -> pd.DataFrame:
    """The rows of a record: exact floats, empty cells as missing values.

    torn   leave out a last line without a line end, as a running process may leave one
    Raises UserError when the record is missing or damaged.
    """
    try:
        data = Path(path).read_bytes()
        if torn:
            data = data[: data.rfind(b"\n") + 1]
        text = data.decode()
        _check_equal_lengths(text)
        return pd.read_csv(
            io.StringIO(text),
            dtype=TEXT_COLUMNS,
            float_precision="round_trip",
            keep_default_na=False,
            na_values=[""],
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error, ValueError) as error:
        raise UserError(
            f"{path}: damaged record ({str(error).strip()}); delete it and its .json, then "
            "evaluate the model again"
        ) from None


def _check_equal_lengths(text: str) -> None:
    """Raise ValueError for rows of different lengths, which pandas would fill with empty cells."""
    lengths = {len(row) for row in csv.reader(io.StringIO(text, newline=""))}
    if len(lengths) > 1:
        raise ValueError(f"rows of {' and '.join(map(str, sorted(lengths)))} cells")


def rows_to_csv(rows: pd.DataFrame, header: bool = True) -> str:
    """Rows as CSV: floats keep every digit, integers stay integers in a column with empty cells."""
    integers = {column: "Int64" for column in INTEGER_COLUMNS if column in rows}
    return rows.astype(integers).to_csv(header=header, index=False, lineterminator="\n")


# ---- checking ------------------------------------------------------------------------------------


def check_record_sha256(path: Path, run: dict) -> None:
    """Raise UserError unless the record has the sha256 that its finished run recorded."""
    if not path.exists() or sha256_text_file(path) != run.get("record_sha256"):
        raise UserError(
            f"{path}: not the file that the run finished with (sha256 differs); evaluate it again "
            "with --overwrite"
        )


def first_difference(old: dict, new: dict, prefix: str = "") -> str | None:
    """The first setting that differs between two nested dicts, as `name: old -> new`.

    None when they are equal.
    """
    for key in dict.fromkeys([*old, *new]):
        name, old_value, new_value = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            difference = first_difference(old_value, new_value, f"{name}.")
            if difference:
                return difference
        elif old_value != new_value:
            return f"{name}: {old_value!r} -> {new_value!r}"
    return None


def without_later_settings(old: dict, new: dict) -> dict:
    """The settings `new` of a request without LATER_SETTINGS that the run with `old` lacks."""
    return {
        part: {
            name: value
            for name, value in settings.items()
            if name in old.get(part, {}) or name not in LATER_SETTINGS
        }
        for part, settings in new.items()
    }


def check_complete(
    rows: pd.DataFrame, image_ids: list[str], eps: list[float] | None, path: Path
) -> None:
    """Raise UserError unless `rows` holds each image of the list (at each eps) exactly once.

    path   of the record, for the message
    """
    levels: list[float | None] = list(eps) if eps else [None]
    wanted = {(image_id, level) for image_id in image_ids for level in levels}
    row_eps = rows["eps"] if "eps" in rows else [None] * len(rows)
    counts = Counter(zip(rows["image_id"], row_eps))
    problems = {
        "missing": wanted - counts.keys(),
        "not in the image list": counts.keys() - wanted,
        "twice": {key for key, count in counts.items() if count > 1},
    }
    for problem, keys in problems.items():
        if keys:
            examples = ", ".join(
                f"{image_id}" if level is None else f"{image_id} at eps {level}"
                for image_id, level in sorted(keys)[:3]
            )
            raise UserError(
                f"{path}: {len(keys)} row(s) {problem}, e.g. {examples}; run the same command "
                "again to fill gaps, or --overwrite"
            )
