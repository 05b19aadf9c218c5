"""The CSV of an open record: rows are appended whole, and nobody else may write to it."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.process import print_line
from alignment_security.records.record import (
    INTEGER_COLUMNS,
    LATER_COLUMNS,
    read_record,
    rows_to_csv,
)

SYNC_SECONDS = 1.0  # at most so much work is lost when the machine, not the process, dies


class RecordFile:
    """Appends rows to the CSV of a record.

    A row is in the file when `append` returns, so a killed process loses none. The file is synced
    to disk every SYNC_SECONDS and on `close`.

    path      of the CSV
    columns   of a row, in order
    """

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns
        self._size = 0  # bytes, as this process left them
        self._synced = -math.inf  # time of the last sync
        self._is_synced = True

    def begin(self) -> None:
        """Write the header of a new record."""
        self.replace((",".join(self.columns) + "\n").encode())

    def take_up(self) -> pd.DataFrame:
        """Make what an earlier session left ready for appending; returns its rows.

        An incomplete last line is cut. Raises UserError for other columns, and as `read_record`.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        header = (",".join(self.columns) + "\n").encode()
        whole_lines = data[: data.rfind(b"\n") + 1] or header
        found = whole_lines.splitlines()[0].decode(errors="replace")
        if found == ",".join(name for name in self.columns if name not in LATER_COLUMNS):
            self.columns = found.split(",")
        elif not whole_lines.startswith(header):
            raise UserError(
                f"{self.path}: columns {found!r} are not those of this version; remove the record "
                "or pass --overwrite"
            )
        self.replace(whole_lines)
        return self.read()

    def read(self) -> pd.DataFrame:
        """The rows of the file. Those that are there twice, equal in every cell, are dropped."""
        rows = read_record(self.path)
        is_again = rows.duplicated()
        if is_again.any():
            print_line(
                f"{self.path}: {is_again.sum()} row(s) were there twice and equal, and are "
                "dropped; did two processes write it?",
                sys.stderr,
            )
            rows = rows[~is_again].reset_index(drop=True)
            self.replace(rows_to_csv(rows).encode())
        return rows

    def replace(self, content: bytes) -> None:
        """Replace the file, unless it has this content."""
        if not self.path.exists() or self.path.read_bytes() != content:
            write_atomic(self.path, content)
        self._size = len(content)

    def append(self, rows: list[dict]) -> None:
        """Append rows in one write; on a full disk, undo the write and raise OSError.

        Raises UserError when the file is gone, or another process has written to it.
        """
        if not rows:
            return
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: was moved or deleted while this run wrote it; bring it back and run "
                "the same command again, or run it to begin anew"
            ) from None
        try:
            self._check_untouched(os.fstat(handle).st_size)
            self._write(handle, self._lines(rows))
        finally:
            os.close(handle)

    def _check_untouched(self, size: int) -> None:
        if size != self._size:
            raise UserError(
                f"{self.path}: another process writes it too ({size} bytes, this process left "
                f"{self._size}); stop one of them and run the same command again"
            )

    def _write(self, handle: int, text: bytes) -> None:
        size = self._size + len(text)
        try:
            while text:
                written = os.write(handle, text)
                text = text[written:]
            self._is_synced = time.monotonic() - self._synced >= SYNC_SECONDS
            if self._is_synced:
                os.fsync(handle)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(handle, self._size)
            raise OSError(
                error.errno,
                f"{error.strerror}; no row was lost, free some room and run it again",
                str(self.path),
            ) from None
        self._size = size

    def _lines(self, rows: Iterable[dict]) -> bytes:
        """Rows as lines of CSV: floats keep every digit, flags and classes are whole numbers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            writer.writerow([cell_text(row.get(name), name) for name in self.columns])
        return text.getvalue().encode()

    def close(self) -> None:
        """Sync what is not yet synced."""
        if not self._is_synced and self.path.exists():
            handle = os.open(self.path, os.O_WRONLY)
            os.fsync(handle)
            os.close(handle)
            self._is_synced = True


def cell_text(value: object, column: str) -> str:
    """A value of a row as the text of a cell; a missing one is empty."""
    if value is None or value != value:
        return ""
    if column in INTEGER_COLUMNS:
        return str(int(value))  # type: ignore[call-overload]
    return str(value)
