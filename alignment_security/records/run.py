"""The open record of one run: locked, resumable, and complete once it is finished.

One run (model x threat x image set) has two files:

    results/records/<image set>/<threat>/<model>.csv    a row per image (and eps), appended
    results/records/<image set>/<threat>/<model>.json   settings, sessions, status

Rows are appended whole, so a killed process loses only the rows that it had not written. Resuming
cuts a last line that a full disk left incomplete, and checks every cell. `finish` sorts the rows
into the order of the image list and writes the record's sha256 to the run file. The run file is
always replaced by rename.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.locked_run import LockedRun, json_round_trip
from alignment_security.common.schema import FOLDER_NAME
from alignment_security.records.abandoned import ended_without_rows
from alignment_security.records.adversarial_examples import examples_folder
from alignment_security.records.names import record_stem
from alignment_security.records.record import (
    SCREENED_KIND,
    as_begun,
    check_complete,
    check_record_sha256,
    columns_of,
    first_difference,
    read_record,
    read_run_file,
    rows_to_csv,
    why_not_shared,
)
from alignment_security.records.record_file import RecordFile
from alignment_security.records.screened import settled


class Run(LockedRun):
    """The open record of one run: locked, resumable, append-only until `finish`.

    kind       of RECORD_COLUMNS: decides the columns
    settings   {"model": {...}, "run": {...}}: everything that changes a row. A run resumes only
               with equal settings. Those that it was begun without (LATER_SETTINGS) stay out, and
               the run goes on as it was begun. Weights are compared by their sha256: the run file
               keeps the place where they were first.
    session    facts about this process (versions, git, device): appended to the run file, never
               compared
    overwrite  begin anew. What an earlier run left stays until this one has its first row: a
               request that is refused before, or stopped, destroys nothing.
    may_grow   (settings of a finished record, those of this request, rows of the record) ->
               whether the request adds rows to them; other settings are then no refusal
    beside     settings that name it, where it is not the model's first record (records.beside)
    rows       rows that the record held when it was opened or finished; during a phase, those of
               the phase
    Raises UserError when another process holds the run, the settings or columns differ, or the
    record holds what cannot be.
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
        may_grow: Callable[[dict, dict, pd.DataFrame], bool] | None = None,
        beside: dict | None = None,
    ):
        for name in (image_set, threat):
            if not FOLDER_NAME.fullmatch(name):
                raise UserError(f"{name!r} names a folder of results: letters, digits, '.-_+' only")
        folder = Path(results_dir) / "records" / image_set / threat
        folder.mkdir(parents=True, exist_ok=True)
        stem = record_stem(model, beside)
        self.csv = folder / f"{stem}.csv"
        self._file = RecordFile(self.csv, columns_of(kind, threat))
        super().__init__(folder / f"{stem}.json", folder / f"{stem}.lock")
        with self.closed_on_error():
            self.settings = json_round_trip(settings)
            self.replaces_old, self.may_grow = overwrite, may_grow
            names = {"model": model, "image_set": image_set, "threat": threat, "kind": kind}
            names_beside = {"beside": json_round_trip(beside)} if beside else {}
            self.info = self._resume_or_begin(names | names_beside)
            if self.replaces_old:
                self.start_session(session)
                self.rows = pd.DataFrame(columns=columns_of(kind, threat))
            elif self.done:
                check_record_sha256(self.csv, self.info)
                self.rows = read_record(self.csv)
            else:
                self.rows = self._begin_session(session)

    def busy_error(self) -> UserError:
        sessions = read_run_file(self.json)["sessions"] if self.json.exists() else []
        owner = sessions[-1] if sessions else {}
        return UserError(
            f"{self.csv}: another process is writing it (pid {owner.get('pid', '?')} on "
            f"{owner.get('host', '?')} since {owner.get('started', '?')}); wait or stop it"
        )

    def _resume_or_begin(self, names: dict) -> dict:
        """Content of the run file: the existing one, if its settings are equal, or a new one.

        A new one too in the place of a run of other settings that ended before its first row.
        """
        begun = self.settings
        if self.json.exists() and not self.replaces_old:
            info = read_run_file(self.json)
            self.settings = as_begun(info["settings"], self.settings)
            difference = first_difference(info["settings"], self.settings)
            if not difference or self._grow(info):
                return info
            if not ended_without_rows(self.json, info):
                raise UserError(
                    f"{self.json}: {why_not_shared(info, self.settings, difference)}, keep both "
                    "with another --results_dir, or start anew with --overwrite"
                )
            self.csv.unlink(missing_ok=True)  # its columns may be others
            self.settings = begun
        if self.csv.exists() and not self.replaces_old:
            raise UserError(
                f"{self.csv}: a record without its run file; remove it or pass --overwrite"
            )
        new = {"settings": self.settings, "status": "running", "sessions": [], "warnings": []}
        return names | new

    def _grow(self, info: dict) -> bool:
        """Whether a finished record takes the rows of this request too; if so, it is begun again.

        The run file keeps in `grown` what the record was finished with.
        """
        if self.may_grow is None or info["status"] != "done":
            return False
        check_record_sha256(self.csv, info)
        if not self.may_grow(info["settings"], self.settings, read_record(self.csv)):
            return False
        finished = {name: info.pop(name) for name in ("images", "record_sha256") if name in info}
        old = {name: info["settings"]["run"].get(name) for name in ("slice", "eps", "list_sha256")}
        info.setdefault("grown", []).append(finished | old)
        info |= {"settings": self.settings, "status": "running"}
        return True

    def _begin_session(self, session: dict | None) -> pd.DataFrame:
        """Make the record ready for appending, and record this process; returns its rows."""
        if not self.csv.exists():
            self.save()  # before the record, which is refused without a run file
        rows = self._file.take_up()
        self.info["status"] = "running"
        self.start_session(session)
        self.save()
        return rows

    def replace_old(self) -> None:
        """With `overwrite`: put the new run in the place of what was there, examples too.

        To be called when the first row is known; later calls do nothing.
        """
        if not self.replaces_old:
            return
        self.csv.unlink(missing_ok=True)  # first: a finished run file without its record is refused
        shutil.rmtree(examples_folder(self.csv), ignore_errors=True)
        self.replaces_old = False
        self.save()
        self._file.begin()

    def counts(self) -> Counter[str]:
        """Image id -> number of rows that the record held when it was opened."""
        return Counter(self.rows["image_id"].tolist())

    def known(self, image_ids: Iterable[str] | None = None) -> dict[str, list[dict]]:
        """Rows that the record held when it was opened, by image id; all, or of some images."""
        rows = self.rows
        if image_ids is not None:
            rows = rows[rows["image_id"].isin(list(image_ids))]
        by_image: dict[str, list[dict]] = {}
        for row in rows.to_dict("records"):
            by_image.setdefault(row["image_id"], []).append(row)
        return by_image

    def read_again(self) -> pd.DataFrame:
        """The rows that the record holds now."""
        return self._file.read()

    def append(self, rows: list[dict]) -> None:
        """Append rows in one write; on a full disk, undo the write and raise OSError."""
        if rows:
            self.replace_old()
        self._file.append(rows)

    def close(self) -> None:
        self._file.close()
        super().close()

    def warn(self, message: str) -> None:
        """Add a warning to the run file, unless it has it already."""
        if message not in self.info["warnings"]:
            self.info["warnings"].append(message)
            self.save()

    def finish(self, image_ids: list[str], eps: list[float] | None = None, **facts) -> pd.DataFrame:
        """Check that each image (at each eps) has one row, sort the rows, and mark the run done.

        Of a screened record the later row of an image and eps takes the place of the first.

        image_ids   the image list, in the order that the rows get
        facts       go to the run file; see `save`
        Returns the rows. Raises UserError when rows are missing, duplicate or unknown.
        """
        rows = self._file.read()
        if self.info["kind"] == SCREENED_KIND:
            rows = settled(rows)
        check_complete(rows, image_ids, eps, self.csv)
        position = {name: i for i, name in enumerate(image_ids)}
        sort_columns = ["_position", "eps"] if eps else ["_position"]
        rows = rows.assign(_position=rows["image_id"].map(position))
        rows = rows.sort_values(sort_columns, kind="stable").drop(columns="_position")
        self._file.replace(rows_to_csv(rows).encode())
        self.rows = rows
        sha256 = sha256_file(self.csv)
        self.save(status="done", images=len(image_ids), record_sha256=sha256, **facts)
        return rows

    def discard_if_empty(self) -> None:
        """Delete the files of a run that has no row, so that a failed request leaves nothing."""
        if not self.replaces_old and self.csv.exists() and read_record(self.csv).empty:
            self.csv.unlink()
            self.json.unlink()
