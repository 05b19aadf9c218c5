"""What a record row and a run file are, and how they stay whole.

One run (a model x a threat x an image set) owns two files:

    results/records/<image set>/<threat>/<model>.csv    a row per image (and eps), appended as it is known
    results/records/<image set>/<threat>/<model>.json   settings, sessions, status; rewritten by rename

Rows are appended whole and synced, so a killed process loses at most the rows it had not written; a tail torn by a
full disk is cut on resume. A finished record is rewritten in list order and its sha256 goes to the run file.
`merge` reads finished records only and writes results/evaluation_results.csv.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from alignment_security.common.files import (
    UserError,
    safe_file_name,
    sha256_file,
    utc_now,
    write_atomic,
)
from alignment_security.records.record import (
    RECORD_COLUMNS,
    check_complete,
    check_record_sha256,
    first_difference,
    read_record,
    read_run_file,
    rows_to_csv,
)

# ---- one run ---------------------------------------------------------------------------------------------------


class Run:
    """The open record of one run: locked, resumable, append-only until `finish`.

    settings   {"model": {...}, "run": {...}}: everything that changes a row. Resuming with others is refused.
    session    facts of this process (versions, git, device): appended to the run file, never compared.
    Raises UserError when another process holds the run, the settings differ or the file's columns are others.
    """

    def __init__(
        self,
        results_dir,
        image_set: str,
        threat: str,
        model: str,
        kind: str,
        settings: dict,
        session: dict | None = None,
        overwrite: bool = False,
    ):
        folder = Path(results_dir) / "records" / image_set / threat
        folder.mkdir(parents=True, exist_ok=True)
        self.csv, self.json = (
            folder / f"{safe_file_name(model)}{end}" for end in (".csv", ".json")
        )
        self.columns = RECORD_COLUMNS[kind]
        self.lock = self._acquire(folder / f"{safe_file_name(model)}.lock")
        try:
            # a JSON round trip: what is compared is what was written (tuples are lists, keys are strings)
            self.settings = json.loads(json.dumps(settings))
            self._open(
                {"model": model, "image_set": image_set, "threat": threat, "kind": kind},
                session,
                overwrite,
            )
        except BaseException:
            self.close()
            raise

    def _acquire(self, path: Path) -> FileLock:
        """The kernel frees the lock of a process that died, so a lock file that lies there is never stale."""
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            session = (
                (read_run_file(self.json)["sessions"] or [{}])[-1] if self.json.exists() else {}
            )
            raise UserError(
                f"{self.csv}: another process is writing it (pid {session.get('pid', '?')} on "
                f"{session.get('host', '?')} since {session.get('started', '?')}); wait or stop it"
            ) from None
        return lock

    def _open(self, names: dict, session: dict | None, overwrite: bool) -> None:
        if overwrite:
            for path in (self.csv, self.json):
                path.unlink(missing_ok=True)
        if self.json.exists():
            self.info = read_run_file(self.json)
            if found := first_difference(self.info["settings"], self.settings):
                raise UserError(
                    f"{self.json}: this record was begun with other settings ({found}); run it with "
                    "the old ones, or start anew with --overwrite"
                )
        elif self.csv.exists():
            raise UserError(
                f"{self.csv}: a record without its run file; remove it or pass --overwrite"
            )
        else:
            self.info = {
                **names,
                "settings": self.settings,
                "status": "running",
                "sessions": [],
                "warnings": [],
            }
        if self.info["status"] != "done":
            if not self.csv.exists():
                self.save()  # first, for a record without its run file is refused
            self._repair()
            self.info["status"] = "running"
            self.info["sessions"].append(
                {
                    "started": utc_now(),
                    "pid": os.getpid(),
                    "host": os.uname().nodename,
                    "seconds": 0.0,
                    **(session or {}),
                }
            )
            self.save()
        else:
            check_record_sha256(self.csv, self.info)
        self.rows = read_record(self.csv)

    def _repair(self) -> None:
        """Write the header of a new record; cut a last line that has no end; refuse other columns."""
        header = (",".join(self.columns) + "\n").encode()
        text = self.csv.read_bytes() if self.csv.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            write_atomic(self.csv, header)
        elif not whole.startswith(header):
            raise UserError(
                f"{self.csv}: columns {whole.splitlines()[0].decode(errors='replace')!r} are not those "
                "of this version; remove the record or pass --overwrite"
            )
        elif whole != text:
            write_atomic(self.csv, whole)

    @property
    def done(self) -> bool:
        return self.info["status"] == "done"

    def known(self) -> dict[str, list[dict]]:
        """Rows already in the record, by image_id."""
        return {
            name: rows.to_dict("records")
            for name, rows in self.rows.groupby("image_id", sort=False)
        }

    def append(self, rows: list[dict]) -> None:
        """Append rows in one write; a write that does not fit on the disk is taken back and raised."""
        if not rows:
            return
        text = rows_to_csv(pd.DataFrame(rows, columns=self.columns), header=False).encode()
        handle = os.open(self.csv, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            try:
                while text:
                    text = text[os.write(handle, text) :]
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, size)
                raise OSError(
                    error.errno,
                    f"{error.strerror}; no row was lost, free some room and run it again",
                    str(self.csv),
                ) from None
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
        rows = (
            rows.assign(_place=rows["image_id"].map(place))
            .sort_values(["_place"] + (["eps"] if eps else []), kind="stable")
            .drop(columns="_place")
        )
        write_atomic(self.csv, rows_to_csv(rows))
        self.rows = rows
        self.save(
            status="done", images=len(image_ids), record_sha256=sha256_file(self.csv), **facts
        )
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
