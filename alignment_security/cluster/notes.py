"""Notes of `utilities.py sweep_status`: why a model failed or is held, short enough for a row."""

from __future__ import annotations

import time
from pathlib import Path

from alignment_security.common.text import lines_that_say_something

NOTE_WIDTH = 150  # characters
LEFT_OUT = " ... "
TRY_MARK = "# "  # of the line that job.sh writes to the error file when it begins


def shortened(note: str, keep_end: bool) -> str:
    """A note on one line of at most NOTE_WIDTH characters.

    keep_end   leave out the middle: HTCondor names the file of a failed transfer last
    """
    text = " ".join(note.split())
    if len(text) <= NOTE_WIDTH or not keep_end:
        return text[:NOTE_WIDTH]
    begin = NOTE_WIDTH // 3
    return text[:begin] + LEFT_OUT + text[begin + len(LEFT_OUT) - NOTE_WIDTH :]


def reason_of_failure(error_file: Path) -> str:
    """The first line `error: ...` of the last try, else its last line; "" where there is none."""
    lines = lines_that_say_something(error_file)
    marks = [number for number, line in enumerate(lines) if line.startswith(TRY_MARK)]
    last_try = lines[marks[-1] + 1 :] if marks else lines
    errors = [line for line in last_try if line.startswith("error: ")]
    return next(iter([*errors, *last_try[-1:]]), "")


def date_text(seconds: float) -> str:
    """`2026-11-27 02:10 UTC`, from seconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
