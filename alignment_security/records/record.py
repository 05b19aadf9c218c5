"""alignment_security.records.record."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_file

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
TEXT_COLUMNS = {"image_id": str, "broken_by": str}
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
RUN_KEYS = {"model", "image_set", "threat", "kind", "settings", "status", "sessions", "warnings"}


# ---- reading -------------------------------------------------------------------------------------


def read_run_file(path: Path) -> dict:
    """The run file as a dict. Raises UserError when it is missing or not JSON."""
    try:
        run = json.loads(Path(path).read_text())
        if lacking := RUN_KEYS - run.keys() or {"model", "run"} - run["settings"].keys():
            raise ValueError(f"no {min(lacking)}")
        return run
    except FileNotFoundError:
        raise UserError(
            f"{path}: no run file beside this record; evaluate the model again with --overwrite"
        ) from None
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a run file ({error}); delete it and evaluate the model again"
        ) from None


def read_record(path: Path, torn: bool = False) -> pd.DataFrame:
    """Rows with exact floats, empty cells as missing; `torn` leaves out a last line without an end. Raises UserError."""
    try:
        data = Path(path).read_bytes()
        text = (data[: data.rfind(b"\n") + 1] if torn else data).decode()
        if len(cells := {len(row) for row in csv.reader(io.StringIO(text, newline=""))}) > 1:
            raise ValueError(
                f"rows of {' and '.join(map(str, sorted(cells)))} cells"
            )  # pandas would fill them up
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
            f"{path}: damaged record ({str(error).strip()}); delete it and its .json, then evaluate "
            "the model again"
        ) from None


def check_record_sha256(path: Path, run: dict) -> None:
    """Raise UserError unless the record at `path` is, byte for byte, the one that its run finished with."""
    if not path.exists() or sha256_file(path) != run.get("record_sha256"):
        raise UserError(
            f"{path}: not the file that the run finished with (sha256 differs); evaluate it again with --overwrite"
        )


def rows_to_csv(rows: pd.DataFrame, header: bool = True) -> str:
    """Rows as CSV: integers stay integers beside empty cells, floats keep every digit."""
    integers = {column: "Int64" for column in INTEGER_COLUMNS if column in rows}
    return rows.astype(integers).to_csv(header=header, index=False, lineterminator="\n")


def first_difference(old: dict, new: dict, path: str = "") -> str | None:
    """The first setting that differs between two nested dicts, as `name: old -> new`; None when they are equal."""
    for key in dict.fromkeys([*old, *new]):
        a, b, name = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f"{name}."):
                return found
        elif a != b:
            return f"{name}: {a!r} -> {b!r}"
    return None


def check_complete(
    rows: pd.DataFrame, image_ids: list[str], eps: list[float] | None, path: Path
) -> None:
    """Raise UserError unless `rows` holds each image of the list (at each eps) exactly once and nothing else."""
    levels: list[float | None] = list(eps) if eps else [None]
    want = {(i, e) for i in image_ids for e in levels}
    have = Counter(zip(rows["image_id"], rows["eps"] if "eps" in rows else [None] * len(rows)))
    for what, names in (
        ("missing", want - have.keys()),
        ("not in the image list", have.keys() - want),
        ("twice", {key for key, count in have.items() if count > 1}),
    ):
        if names:
            some = ", ".join(
                f"{i}" if e is None else f"{i} at eps {e}" for i, e in sorted(names)[:3]
            )
            raise UserError(
                f"{path}: {len(names)} row(s) {what}, e.g. {some}; run the same command again to fill "
                "gaps, or --overwrite"
            )
