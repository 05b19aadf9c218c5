"""What a record row and a run file are, and how they stay whole.

One run (a model x a threat x an image set) owns two files:

    results/records/<image set>/<threat>/<model>.csv    a row per image (and eps), appended as it is known
    results/records/<image set>/<threat>/<model>.json   settings, sessions, status; rewritten by rename

Rows are appended whole and synced, so a killed process loses at most the rows it had not written; a tail torn by a
full disk is cut on resume. A finished record is rewritten in list order and its sha256 goes to the run file.
`merge` reads finished records only and writes results/evaluation_results.csv.
"""
from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

CLEAN = ["image_id", "label", "clean_pred", "clean_correct"]
COLUMNS = {
    "clean": [*CLEAN, "clean_top5", "clean_real", "clean_multilabel"],
    "ball": [*CLEAN, "eps", "robust", "adv_pred", "broken_by", "from_eps", "linf", "l2", "forwards", "backwards"],
    "minimum_norm": [*CLEAN, "success", "adv_pred", "l2", "linf", "human_alignment_raw", "human_alignment",
                     "forwards", "backwards"],
}
TEXT_COLUMNS = {"image_id": str, "broken_by": str}
INTEGER_COLUMNS = ["label", "clean_pred", "clean_correct", "clean_top5", "clean_real", "clean_multilabel",
                   "robust", "success", "adv_pred"]
RUN_KEYS = {"model", "image_set", "threat", "kind", "settings", "status", "sessions", "warnings"}
SUMMARY_KEY = ["model", "threat", "eps", "image_set", "protocol"]
SUMMARY_NAME = "evaluation_results.csv"


class RecordError(ValueError):
    """A record, run file or request that cannot be used as it is; the message names the file and what mends it."""


# ---- files -----------------------------------------------------------------------------------------------------

def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file beside `path` and rename it into place; a failure leaves the old file as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name(name: str) -> str:
    """A model's name made safe for a file: letters, digits, `.`, `_`, `-`; distinct names stay distinct.

    A name that has to change, or that looks as if it had been, gets eight hex digits of its sha256, so that `a/b`, `a:b`
    and `a--b` do not meet.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "--", name).lstrip(".-")[:150] or "_"
    if safe == name and not re.search(r"-[0-9a-f]{8}$", name):
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- reading ---------------------------------------------------------------------------------------------------

def read_run(path: Path) -> dict:
    """The run file as a dict. Raises RecordError when it is missing or not JSON."""
    try:
        run = json.loads(Path(path).read_text())
        if lacking := RUN_KEYS - run.keys() or {"model", "run"} - run["settings"].keys():
            raise ValueError(f"no {min(lacking)}")
        return run
    except FileNotFoundError:
        raise RecordError(f"{path}: no run file beside this record; evaluate the model again with --overwrite") from None
    except (ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not a run file ({error}); delete it and evaluate the model again") from None


def read_record(path: Path, torn: bool = False) -> pd.DataFrame:
    """Rows with exact floats, empty cells as missing; `torn` leaves out a last line without an end. Raises RecordError."""
    try:
        data = Path(path).read_bytes()
        text = (data[: data.rfind(b"\n") + 1] if torn else data).decode()
        if len(cells := {len(row) for row in csv.reader(io.StringIO(text, newline=""))}) > 1:
            raise ValueError(f"rows of {' and '.join(map(str, sorted(cells)))} cells")     # pandas would fill them up
        return pd.read_csv(io.StringIO(text), dtype=TEXT_COLUMNS, float_precision="round_trip", keep_default_na=False,
                           na_values=[""])
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error, ValueError) as error:
        raise RecordError(f"{path}: damaged record ({str(error).strip()}); delete it and its .json, then evaluate "
                          "the model again") from None


def check_sha256(path: Path, run: dict) -> None:
    """Raise RecordError unless the record at `path` is, byte for byte, the one that its run finished with."""
    if not path.exists() or sha256_file(path) != run.get("record_sha256"):
        raise RecordError(f"{path}: not the file that the run finished with (sha256 differs); evaluate it again with --overwrite")


def to_text(rows: pd.DataFrame, header: bool = True) -> str:
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


# ---- one run ---------------------------------------------------------------------------------------------------

class Run:
    """The open record of one run: locked, resumable, append-only until `finish`.

    settings   {"model": {...}, "run": {...}}: everything that changes a row. Resuming with others is refused.
    session    facts of this process (versions, git, device): appended to the run file, never compared.
    Raises RecordError when another process holds the run, the settings differ or the file's columns are others.
    """

    def __init__(self, results_dir, image_set: str, threat: str, model: str, kind: str, settings: dict,
                 session: dict | None = None, overwrite: bool = False):
        folder = Path(results_dir) / "records" / image_set / threat
        folder.mkdir(parents=True, exist_ok=True)
        self.csv, self.json = (folder / f"{file_name(model)}{end}" for end in (".csv", ".json"))
        self.columns = COLUMNS[kind]
        self.lock = self._acquire(folder / f"{file_name(model)}.lock")
        try:
            # a JSON round trip: what is compared is what was written (tuples are lists, keys are strings)
            self.settings = json.loads(json.dumps(settings))
            self._open({"model": model, "image_set": image_set, "threat": threat, "kind": kind}, session, overwrite)
        except BaseException:
            self.close()
            raise

    def _acquire(self, path: Path) -> FileLock:
        """The kernel frees the lock of a process that died, so a lock file that lies there is never stale."""
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            session = (read_run(self.json)["sessions"] or [{}])[-1] if self.json.exists() else {}
            raise RecordError(f"{self.csv}: another process is writing it (pid {session.get('pid', '?')} on "
                              f"{session.get('host', '?')} since {session.get('started', '?')}); wait or stop it") from None
        return lock

    def _open(self, names: dict, session: dict | None, overwrite: bool) -> None:
        if overwrite:
            for path in (self.csv, self.json):
                path.unlink(missing_ok=True)
        if self.json.exists():
            self.info = read_run(self.json)
            if found := first_difference(self.info["settings"], self.settings):
                raise RecordError(f"{self.json}: this record was begun with other settings ({found}); run it with "
                                  "the old ones, or start anew with --overwrite")
        elif self.csv.exists():
            raise RecordError(f"{self.csv}: a record without its run file; remove it or pass --overwrite")
        else:
            self.info = {**names, "settings": self.settings, "status": "running", "sessions": [], "warnings": []}
        if self.info["status"] != "done":
            if not self.csv.exists():
                self.save()     # first, for a record without its run file is refused
            self._repair()
            self.info["status"] = "running"
            self.info["sessions"].append({"started": now(), "pid": os.getpid(), "host": os.uname().nodename,
                                          "seconds": 0.0, **(session or {})})
            self.save()
        else:
            check_sha256(self.csv, self.info)
        self.rows = read_record(self.csv)

    def _repair(self) -> None:
        """Write the header of a new record; cut a last line that has no end; refuse other columns."""
        header = (",".join(self.columns) + "\n").encode()
        text = self.csv.read_bytes() if self.csv.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            write_atomic(self.csv, header)
        elif not whole.startswith(header):
            raise RecordError(f"{self.csv}: columns {whole.splitlines()[0].decode(errors='replace')!r} are not those "
                              "of this version; remove the record or pass --overwrite")
        elif whole != text:
            write_atomic(self.csv, whole)

    @property
    def done(self) -> bool:
        return self.info["status"] == "done"

    def known(self) -> dict[str, list[dict]]:
        """Rows already in the record, by image_id."""
        return {name: rows.to_dict("records") for name, rows in self.rows.groupby("image_id", sort=False)}

    def append(self, rows: list[dict]) -> None:
        """Append rows in one write; a write that does not fit on the disk is taken back and raised."""
        if not rows:
            return
        text = to_text(pd.DataFrame(rows, columns=self.columns), header=False).encode()
        handle = os.open(self.csv, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            try:
                while text:
                    text = text[os.write(handle, text):]
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, size)
                raise OSError(error.errno, f"{error.strerror}; no row was lost, free some room and run it again",
                              str(self.csv)) from None
        finally:
            os.close(handle)

    def save(self, **facts) -> None:
        """Update the run file; `seconds` goes to this session, everything else to the top."""
        if "seconds" in facts:
            self.info["sessions"][-1]["seconds"] = round(facts.pop("seconds"), 3)
        self.info.update(facts)
        write_atomic(self.json, json.dumps(self.info, indent=1) + "\n")

    def warn(self, message: str) -> None:
        """Keep a warning in the run file, once."""
        if message not in self.info["warnings"]:
            self.info["warnings"].append(message)
            self.save()

    def finish(self, image_ids: list[str], eps: list[float] | None = None, **facts) -> pd.DataFrame:
        """Check that every image (and eps) of the list has one row, put them in order, and mark the run done."""
        rows = read_record(self.csv)
        check_complete(rows, image_ids, eps, self.csv)
        place = {name: i for i, name in enumerate(image_ids)}
        rows = rows.assign(_place=rows["image_id"].map(place)).sort_values(
            ["_place"] + (["eps"] if eps else []), kind="stable").drop(columns="_place")
        write_atomic(self.csv, to_text(rows))
        self.rows = rows
        self.save(status="done", images=len(image_ids), record_sha256=sha256_file(self.csv), **facts)
        return rows

    def discard_if_empty(self) -> None:
        """Take back the files of a run that never had a row: nothing half-written stays after a bad request."""
        if read_record(self.csv).empty:
            self.csv.unlink()
            self.json.unlink()

    def close(self) -> None:
        self.lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def check_complete(rows: pd.DataFrame, image_ids: list[str], eps: list[float] | None, path: Path) -> None:
    """Raise RecordError unless `rows` holds each image of the list (at each eps) exactly once and nothing else."""
    levels: list[float | None] = list(eps) if eps else [None]
    want = {(i, e) for i in image_ids for e in levels}
    have = Counter(zip(rows["image_id"], rows["eps"] if "eps" in rows else [None] * len(rows)))
    for what, names in (("missing", want - have.keys()), ("not in the image list", have.keys() - want),
                        ("twice", {key for key, count in have.items() if count > 1})):
        if names:
            some = ", ".join(f"{i}" if e is None else f"{i} at eps {e}" for i, e in sorted(names)[:3])
            raise RecordError(f"{path}: {len(names)} row(s) {what}, e.g. {some}; run the same command again to fill "
                              "gaps, or --overwrite")


# ---- merge -----------------------------------------------------------------------------------------------------

def merge(results_dir, allow_partial: bool = False) -> pd.DataFrame:
    """Write results_dir/evaluation_results.csv; returns and raises as `summarise`."""
    summary = summarise(results_dir, allow_partial)
    write_atomic(Path(results_dir) / SUMMARY_NAME, summary.to_csv(index=False, lineterminator="\n"))
    return summary


def summarise(results_dir, allow_partial: bool = False) -> pd.DataFrame:
    """One row per model x threat x eps x image set x protocol, of every finished record under results_dir/records.

    Raises RecordError on an unfinished or damaged record (with allow_partial it is summarised over the rows it has and marked
    `partial=1`), and when two models of one threat and image set were run with different settings.
    """
    root = Path(results_dir) / "records"
    paths = sorted(root.glob("*/*/*.json"))
    if not paths:
        raise RecordError(f"{root}: no records; `python evaluate_robustness.py --model_name NAME clean` makes the first")
    orphans = [path for path in sorted(root.glob("*/*/*.csv")) if not path.with_suffix(".json").exists()]
    if orphans:
        raise RecordError(f"{orphans[0]}: a record without its run file ({len(orphans)} such); bring the .json or remove it")
    runs = {path: read_run(path) for path in paths}
    for path, other, found in mixed(runs):
        raise RecordError(f"{path}: not comparable with {other.name}, whose settings differ ({found}); evaluate one of "
                          "them again with --overwrite")
    summary = pd.DataFrame([row for path, run in runs.items() for row in _summarise(path, run, allow_partial)])
    if summary.empty:
        raise RecordError(f"{root}: no rows yet in any of its records; let the evaluation go on")
    summary = summary.sort_values(["image_set", "threat", "model", "eps"], kind="stable", ignore_index=True)
    if summary.duplicated(SUMMARY_KEY).any():
        raise RecordError(f"{root}: two records give {summary[summary.duplicated(SUMMARY_KEY)].iloc[0][SUMMARY_KEY].to_dict()}")
    return summary


def mixed(runs: dict[Path, dict]) -> Iterator[tuple[Path, Path, str]]:
    """(run file, another of its folder, how their settings differ). Models of one folder are compared with each other:
    their images, seed and budget have to be the same."""
    first: dict[Path, Path] = {}
    for path, run in runs.items():
        other = first.setdefault(path.parent, path)
        if found := first_difference(runs[other]["settings"]["run"], run["settings"]["run"]):
            yield path, other, found


def _summarise(path: Path, run: dict, allow_partial: bool) -> list[dict]:
    record, complete = path.with_suffix(".csv"), run["status"] == "done"
    if not complete and not allow_partial:
        raise RecordError(f"{record}: unfinished run (status {run['status']}); run the same command again to finish it, or "
                          "merge with --allow_partial")
    if complete:
        check_sha256(record, run)
    rows = read_record(record, torn=not complete)
    if rows.empty:
        return []
    groups = rows.groupby("eps") if "eps" in rows else [(None, rows)]
    return [_summary_row(run, eps, group, complete) for eps, group in groups]


def _summary_row(run: dict, eps: float | None, rows: pd.DataFrame, complete: bool) -> dict:
    settings = run["settings"]["run"]
    correct = rows[rows["clean_correct"] == 1]
    row = {"model": run["model"], "threat": run["threat"], "eps": eps, "image_set": run["image_set"],
           "protocol": settings.get("protocol"), "attack": settings.get("attack"), "n": len(rows),
           "clean_correct": len(correct), "clean_acc": len(correct) / len(rows)}
    for column in ("clean_top5", "clean_real"):
        if column in rows and rows[column].notna().any():
            row[column] = rows[column].mean()
    if "clean_multilabel" in rows and rows["clean_multilabel"].notna().any():   # mean over classes: Shankar et al. 2020
        row["clean_multilabel"] = rows.groupby("label")["clean_multilabel"].mean().mean()
    if "robust" in rows:
        row |= {"robust": int(rows["robust"].sum()), "robust_acc": rows["robust"].mean()}
    if "success" in rows:
        row |= _norm_summary(correct)
    for column in ("forwards", "backwards"):
        if column in rows:
            row[f"{column}_per_image"] = rows[column].sum() / len(rows)
    sessions = run["sessions"]
    model = run["settings"]["model"]
    return row | {"partial": int(not complete), "weights": model.get("weights"), "weights_sha256": model.get("weights_sha256"),
                  "list_sha256": settings.get("list_sha256"), "seed": settings.get("seed"),
                  "git": sessions[-1].get("git"), "device": sessions[-1].get("device"),
                  "seconds": sum(s["seconds"] for s in sessions)}


def _norm_summary(correct: pd.DataFrame) -> dict:
    """Perturbation Tolerance: mean minimal norm over correctly classified images, its SEM and what it stands on."""
    norms, maps = correct.loc[correct["success"] == 1], correct["human_alignment"].dropna()
    return {"n_norm": len(norms), "success_rate": correct["success"].mean(),
            "l2_mean": norms["l2"].mean(), "l2_sem": norms["l2"].sem(), "l2_median": norms["l2"].median(),
            "linf_mean": norms["linf"].mean(), "linf_median": norms["linf"].median(),
            "human_alignment": maps.mean(), "human_alignment_sem": maps.sem(), "n_alignment": len(maps)}
