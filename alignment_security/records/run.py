"""The open record of one run: locked, resumable, and complete once it is finished.

One run (model x threat x image set) has two files:

    results/records/<image set>/<threat>/<model>.csv    a row per image (and eps), appended
    results/records/<image set>/<threat>/<model>.json   settings, sessions, status

Rows are appended whole and synced, so a killed process loses only the rows that it had not
written. Resuming cuts a last line that a full disk left incomplete. `finish` sorts the rows into
the order of the image list and writes the record's sha256 to the run file. The run file is always
replaced by rename.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, safe_file_name, sha256_file, write_atomic
from alignment_security.common.locked_run import LockedRun, json_round_trip
from alignment_security.records.record import (
    RECORD_COLUMNS,
    check_complete,
    check_record_sha256,
    first_difference,
    read_record,
    read_run_file,
    rows_to_csv,
    without_later_settings,
)


class Run(LockedRun):
    """The open record of one run: locked, resumable, append-only until `finish`.

    kind       clean, ball or minimum_norm: decides the columns
    settings   {"model": {...}, "run": {...}}: everything that changes a row. A run resumes only
               with equal settings. Those that it was begun without (LATER_SETTINGS) stay out, and
               the run goes on as it was begun.
    session    facts about this process (versions, git, device): appended to the run file, never
               compared
    overwrite  delete what an earlier run left
    rows       rows that the record held when it was opened or finished
    Raises UserError when another process holds the run, or the settings or columns differ.
    """

    def __init__(
        self,
        results_dir: str | Path,
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
        stem = safe_file_name(model)
        self.csv = folder / f"{stem}.csv"
        self.columns = RECORD_COLUMNS[kind]
        super().__init__(folder / f"{stem}.json", folder / f"{stem}.lock")
        with self.closed_on_error():
            self.settings = json_round_trip(settings)
            if overwrite:
                self.csv.unlink(missing_ok=True)
                self.json.unlink(missing_ok=True)
            names = {"model": model, "image_set": image_set, "threat": threat, "kind": kind}
            self.info = self._resume_or_begin(names)
            if self.done:
                check_record_sha256(self.csv, self.info)
            else:
                self._begin_session(session)
            self.rows = read_record(self.csv)

    def busy_error(self) -> UserError:
        sessions = read_run_file(self.json)["sessions"] if self.json.exists() else []
        owner = sessions[-1] if sessions else {}
        return UserError(
            f"{self.csv}: another process is writing it (pid {owner.get('pid', '?')} on "
            f"{owner.get('host', '?')} since {owner.get('started', '?')}); wait or stop it"
        )

    def _resume_or_begin(self, names: dict) -> dict:
        """Content of the run file: the existing one, if its settings are equal, or a new one."""
        if self.json.exists():
            info = read_run_file(self.json)
            self.settings = without_later_settings(info["settings"], self.settings)
            if difference := first_difference(info["settings"], self.settings):
                raise UserError(
                    f"{self.json}: this record was begun with other settings ({difference}); "
                    "run it with the old ones, or start anew with --overwrite"
                )
            return info
        if self.csv.exists():
            raise UserError(
                f"{self.csv}: a record without its run file; remove it or pass --overwrite"
            )
        new = {"settings": self.settings, "status": "running", "sessions": [], "warnings": []}
        return names | new

    def _begin_session(self, session: dict | None) -> None:
        """Make the record ready for appending, and record this process in the run file."""
        if not self.csv.exists():
            self.save()  # before the record, which is refused without a run file
        self._repair_record()
        self.info["status"] = "running"
        self.start_session(session)
        self.save()

    def _repair_record(self) -> None:
        """Write the header of a new record; cut an incomplete last line; refuse other columns."""
        header = (",".join(self.columns) + "\n").encode()
        text = self.csv.read_bytes() if self.csv.exists() else b""
        whole_lines = text[: text.rfind(b"\n") + 1]
        if not whole_lines:
            write_atomic(self.csv, header)
        elif not whole_lines.startswith(header):
            found = whole_lines.splitlines()[0].decode(errors="replace")
            raise UserError(
                f"{self.csv}: columns {found!r} are not those of this version; remove the record "
                "or pass --overwrite"
            )
        elif whole_lines != text:
            write_atomic(self.csv, whole_lines)

    def known(self) -> dict[str, list[dict]]:
        """Rows that the record held when it was opened, by image_id."""
        by_image = self.rows.groupby("image_id", sort=False)
        return {name: rows.to_dict("records") for name, rows in by_image}

    def append(self, rows: list[dict]) -> None:
        """Append rows in one write; on a full disk, undo the write and raise OSError."""
        if not rows:
            return
        text = rows_to_csv(pd.DataFrame(rows, columns=self.columns), header=False).encode()
        handle = os.open(self.csv, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            try:
                while text:
                    written = os.write(handle, text)
                    text = text[written:]
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

    def warn(self, message: str) -> None:
        """Add a warning to the run file, unless it has it already."""
        if message not in self.info["warnings"]:
            self.info["warnings"].append(message)
            self.save()

    def finish(self, image_ids: list[str], eps: list[float] | None = None, **facts) -> pd.DataFrame:
        """Check that each image (at each eps) has one row, sort the rows, and mark the run done.

        image_ids   the image list, in the order that the rows get
        facts       go to the run file; see `save`
        Returns the rows. Raises UserError when rows are missing, duplicate or unknown.
        """
        rows = read_record(self.csv)
        check_complete(rows, image_ids, eps, self.csv)
        position = {name: i for i, name in enumerate(image_ids)}
        sort_columns = ["_position", "eps"] if eps else ["_position"]
        rows = rows.assign(_position=rows["image_id"].map(position))
        rows = rows.sort_values(sort_columns, kind="stable").drop(columns="_position")
        write_atomic(self.csv, rows_to_csv(rows))
        self.rows = rows
        sha256 = sha256_file(self.csv)
        self.save(status="done", images=len(image_ids), record_sha256=sha256, **facts)
        return rows

    def discard_if_empty(self) -> None:
        """Delete the files of a run that has no row, so that a failed request leaves nothing."""
        if read_record(self.csv).empty:
            self.csv.unlink()
            self.json.unlink()
