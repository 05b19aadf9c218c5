"""Records and run files on disk: their columns and keys, reading them, and checking them.

results/README.md describes every column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, read_bytes, sha256_text_file
from alignment_security.common.schema import FIRST_LINE, parse_table, read_json
from alignment_security.records.names import record_stem
from alignment_security.records.norm_summary import minimised_norm
from alignment_security.records.schemas import RECORD, RUN_FILE

CLEAN_COLUMNS = ["image_id", "label", "clean_pred", "clean_correct"]
BALL_COLUMNS = [
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
]
SCREENED_KIND = "ball_screened"  # kind of run whose robust accuracy is an estimate
VERDICT_KINDS = ("ball", "ball_rand")  # kinds of run with the full budget's verdict per eps
BALL_KINDS = (*VERDICT_KINDS, SCREENED_KIND)
SALIENCY_KIND = "saliency"  # kind of run with the input gradient's agreement with human maps
RECORD_COLUMNS = {
    "clean": [*CLEAN_COLUMNS, "clean_top5", "clean_real", "clean_multilabel"],
    "ball": BALL_COLUMNS,
    "ball_rand": [*BALL_COLUMNS, "draws", "wrong_share", "wrong_low", "wrong_high"],
    SCREENED_KIND: [*BALL_COLUMNS, "screen_norm", "stage"],
    "minimum_norm": [
        *CLEAN_COLUMNS,
        "success",
        "adv_pred",
        "l2",
        "linf",
        "l1",
        "human_alignment_raw",
        "human_alignment",
        "forwards",
        "backwards",
    ],
    SALIENCY_KIND: [*CLEAN_COLUMNS, "human_alignment_raw", "human_alignment"],
}
LATER_COLUMNS = ("l1",)  # a record begun without them goes on without
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
    "draws",
]
# settings that run files have had since a later version: a run begun without one goes on without
LATER_SETTINGS = (
    "group",
    "training",
    "human_map_blur",
    "geometry",
    "walks",
    "step_unit",
    "saturation",
)
# settings that earlier versions wrote: in which order the eps were attacked, which decides nothing
FORMER_SETTINGS = ("ladder",)
MAX_LINES = 50  # that a message says how to remove
# what to do about a record or run file that cannot be right; {line} is the line
MEND_RECORD = (
    "remove this line (sed -i '{line}d' {path}) and the same command evaluates its image again, or "
    "start anew with --overwrite"
)
MEND_RUN_FILE = "bring back the one that belongs to its record, or evaluate again with --overwrite"


def columns_of(kind: str, threat: str) -> list[str]:
    """The columns of a new record: `l1` where the threat is of L1."""
    is_l1 = minimised_norm(threat) == "L1"
    return [name for name in RECORD_COLUMNS[kind] if name != "l1" or is_l1]


# ---- reading -------------------------------------------------------------------------------------


def read_run_file(path: Path) -> dict:
    """The run file as a dict.

    Raises UserError when it is missing, has not the keys and types of `RUN_FILE`, or is of another
    model, threat or image set than its folder and name say: names in it become names of files.
    """
    path = Path(path)
    try:
        run = read_json(path, RUN_FILE, "run file", MEND_RUN_FILE)
    except FileNotFoundError:
        raise UserError(
            f"{path}: the run file of this record is missing; evaluate the model again with "
            "--overwrite"
        ) from None
    place = (path.parent.parent.name, path.parent.name, path.stem)
    names = (run["image_set"], run["threat"], record_stem(run["model"], run.get("beside")))
    if names != place:
        raise UserError(
            f"{path}: is the run file of {'/'.join(names)}.json; move it and its record back"
        )
    if run["status"] == "done" and not run["sessions"]:
        raise UserError(f"{path}: done without a session; {MEND_RUN_FILE}")
    return run


def readable_run_files(paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """(path, content) of those run files that are there and can be read."""
    for path in paths:
        try:
            yield path, read_run_file(path)
        except UserError:
            continue


def read_record(path: Path, torn: bool = False) -> pd.DataFrame:
    """The rows of a record: exact floats, empty cells as missing values.

    torn   leave out a last line without a line end, as a running process may leave one
    Raises UserError when the record is missing, damaged, or holds a value that cannot be.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    if torn:
        data = data[: data.rfind(b"\n") + 1]
    return parse_table(path, data, RECORD, MEND_RECORD)


def rows_to_csv(rows: pd.DataFrame) -> str:
    """Rows as CSV: floats keep every digit, integers stay integers in a column with empty cells."""
    integers = {column: "Int64" for column in INTEGER_COLUMNS if column in rows}
    return rows.astype(integers).to_csv(index=False, lineterminator="\n")


# ---- checking ------------------------------------------------------------------------------------


def check_record_sha256(path: Path, run: dict) -> None:
    """Raise UserError unless the record has the sha256 that its finished run recorded."""
    if not path.exists():
        raise UserError(f"{path}: no such record; {missing_record_advice(path)}")
    if sha256_text_file(path) != run.get("record_sha256"):
        raise UserError(
            f"{path}: not the file that the run finished with (sha256 differs); evaluate it again "
            "with --overwrite"
        )


def missing_record_advice(path: Path) -> str:
    """What to do about a finished run without its record, which an archive has as parquet."""
    results_dir = path.parents[3]
    table = Path(results_dir, "tables", *path.parts[-3:-1]).with_name(f"{path.parent.name}.parquet")
    if table.is_file():
        return (
            f"{results_dir} is an archive without CSV; `python utilities.py verify {results_dir} "
            "--out DIR` writes its results folder to DIR"
        )
    return "bring it back, or evaluate it again with --overwrite"


def first_difference(old: dict, new: dict, prefix: str = "") -> str | None:
    """The first setting that differs between two nested dicts, as `name: old -> new`.

    None when they are equal.
    """
    for key in dict.fromkeys([*old, *new]):
        if key in FORMER_SETTINGS:
            continue
        name, old_value, new_value = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            difference = first_difference(old_value, new_value, f"{name}.")
            if difference:
                return difference
        elif old_value != new_value:
            return f"{name}: {old_value!r} -> {new_value!r}"
    return None


def why_not_shared(run: dict, new: dict, difference: str) -> str:
    """Why a request with other images or eps has no place in a record, and what has one.

    run          the content of its run file
    new          settings of the request
    difference   the first one
    """
    if run["kind"] == SCREENED_KIND:
        return (
            f"this screened record was begun otherwise ({difference}) and cannot grow, since its "
            "sample is of its images; ask for what it has"
        )
    old, new = run["settings"]["run"], new["run"]
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    may_differ = {"eps", "images", "list_sha256", "slice"}
    other_model = run["settings"].get("model") != new.get("model")
    if other_model or changed == {"list_sha256"} or not changed <= may_differ:
        return f"this record was begun with other settings ({difference}); run it with the old ones"
    if run["status"] != "done":
        return (
            f"this record is unfinished and begun otherwise ({difference}); finish it as it was "
            "begun and then ask for more"
        )
    if (new.get("images") or 0) < (old.get("images") or 0) or len(new.get("eps") or []) < len(
        old.get("eps") or []
    ):
        return f"this record has more than is asked for ({difference}); ask for all that it has"
    return f"this record has other images or eps ({difference}); ask for all that it has, and more"


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


def as_begun(old: dict, new: dict) -> dict:
    """The settings `new` of a request as the run with `old` names them.

    Without LATER_SETTINGS that it lacks; the same network's weights are where that run had them.
    """
    settings = without_later_settings(old, new)
    before, model = old.get("model", {}), settings.get("model", {})
    if network_of(before) and network_of(before) == network_of(model) and "weights" in before:
        model["weights"] = before["weights"]
    return settings


def network_of(model: dict) -> tuple[str, ...]:
    """What makes the network of a run: its weights (sha256) and, of a Python file, its code.

    model   settings of the model
    Two functions of one file may load the same weights behind another forward pass. Empty where
    the sha256 of the weights is unknown.
    """
    sha256 = model.get("weights_sha256")
    kind, _, place = str(model.get("weights")).partition(":")
    if not sha256 or kind != "python":
        return (sha256,) if sha256 else ()
    return sha256, place.rpartition(":")[2], str(model.get("source_sha256"))


def check_complete(
    rows: pd.DataFrame, image_ids: list[str], eps: list[float] | None, path: Path
) -> None:
    """Raise UserError unless `rows` holds each image of the list (at each eps) exactly once.

    path   of the record, for the message
    """
    check_rows_belong(rows, image_ids, eps, path)
    levels: list[float | None] = list(eps) if eps else [None]
    wanted = {(image_id, level) for image_id in image_ids for level in levels}
    missing = sorted(wanted.difference(row_keys(rows)))
    if missing:
        raise UserError(
            f"{path}: {len(missing)} row(s) missing, e.g. {name_rows(missing)}; run the same "
            "command again to fill gaps, or --overwrite"
        )


def check_rows_belong(
    rows: pd.DataFrame, image_ids: Sequence[str], eps: Sequence[float] | None, path: Path
) -> None:
    """Raise UserError for rows of other images or eps than asked for, and for rows that are twice.

    The message says how to remove these lines; the same command then fills the gaps.
    """
    keys = row_keys(rows)
    images: set[str] = set(image_ids)
    levels: set[float | None] = set(eps) if eps else {None}
    counts = Counter(keys)
    problems = {
        "not in the image list": [key[0] not in images or key[1] not in levels for key in keys],
        "twice": [counts[key] > 1 for key in keys],
    }
    for problem, wrong in problems.items():
        lines = [line for line, is_wrong in enumerate(wrong, FIRST_LINE) if is_wrong]
        if lines:
            named = sorted({keys[line - FIRST_LINE] for line in lines})
            deletions = ";".join(f"{line}d" for line in lines[:MAX_LINES])
            raise UserError(
                f"{path}: {len(named)} row(s) {problem}, e.g. {name_rows(named)}; remove these "
                f"lines (sed -i '{deletions}' {path}) and run the same command again, or "
                "--overwrite"
            )


def row_keys(rows: pd.DataFrame) -> list[tuple[str, float | None]]:
    """(image id, eps or None) of each row."""
    levels: list[float | None] = [None] * len(rows)
    if "eps" in rows:
        levels = rows["eps"].tolist()
    return list(zip(rows["image_id"].tolist(), levels))


def name_rows(keys: list[tuple[str, float | None]]) -> str:
    """The first three of some keys of rows, as text."""
    return ", ".join(
        image_id if level is None else f"{image_id} at eps {level}" for image_id, level in keys[:3]
    )
