"""The process of a script: its standard streams, its signals, and its exit status."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from alignment_security.common.exit_status import FAILED, INTERRUPTED, NOBODY_READS, WRONG_REQUEST
from alignment_security.common.files import DEVICE_ERRORS, LIMIT_ERRORS, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SECONDS_TO_STOP = 30.0  # while a stop is under way, the same request again changes nothing
MODE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS}
PLACE_ERRORS = {
    *MODE_ERRORS,
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
}
FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# ---- signals -------------------------------------------------------------------------------------


def on_stop(handler: Callable) -> None:
    """Install `handler` for SIGTERM, and for SIGHUP unless it is ignored, as it is under nohup.

    A signal that arrives within SECONDS_TO_STOP of the last one is dropped: the process is busy
    writing its state.
    """
    answered = -SECONDS_TO_STOP

    def handle(number: int, frame: object) -> None:
        nonlocal answered
        if time.monotonic() - answered >= SECONDS_TO_STOP:
            answered = time.monotonic()
            handler(number, frame)

    for name in STOP_SIGNALS:
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handle)


# ---- streams -------------------------------------------------------------------------------------


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a line; ignore a closed pipe or terminal, so that it ends no run."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        drop_output(stream)


def drop_output(stream: TextIO) -> None:
    """Send what is written to a stream nowhere, from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that the process was started without.

    It gets the lowest free number, which is the stream's. Else the next file to be opened would get
    it, and what a library prints. Letters that the encoding of standard output lacks are escaped.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# ---- exit status ---------------------------------------------------------------------------------


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit with its status; Ctrl-C at any moment is no traceback."""
    open_standard_streams()
    try:
        status = main()
    except KeyboardInterrupt:
        print_line("interrupted", sys.stderr)
        status = INTERRUPTED
    for name in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    sys.exit(status)


def run_command(work: Callable[[], int | None]) -> int:
    """The exit status of a command that writes no record; its errors become one line."""
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        drop_output(sys.stdout)
        return NOBODY_READS
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            drop_output(sys.stdout)  # e.g. on a full disk: it is not flushed again at the end
        return report_error(error)


def report_error(error: UserError | OSError, written_dir: str | Path | None = None) -> int:
    """Print an error of the request or of the machine as one line; returns the exit status.

    written_dir   --results_dir of a run: other folders are only read
    Raises an OSError again that none of these explains.
    """
    if isinstance(error, UserError):
        print_line(f"error: {error}", sys.stderr)
        return error.exit_status
    reason = str(error.strerror).partition(";")[0]
    place = error.filename or written_dir or "standard output"
    if error.errno in PLACE_ERRORS:
        status, text = WRONG_REQUEST, place_text(place, reason, written_dir)
        if written_dir is None and error.errno in MODE_ERRORS and was_to_be_written(Path(place)):
            text = f"cannot be written ({reason}); use a folder that this user can write to"
    elif error.errno in FULL_ERRORS | DEVICE_ERRORS:
        status = FAILED
        advice = "make room and " if error.errno in FULL_ERRORS else ""
        text = f"{reason}; what is written stays, {advice}run the same command again"
    elif error.errno in LIMIT_ERRORS:
        status, text = FAILED, f"{reason}; a limit of this machine (see ulimit -a) is reached"
    elif isinstance(error, FileNotFoundError):
        status, text = WRONG_REQUEST, reason
    else:
        raise error
    print_line(f"error: {place}: {text}", sys.stderr)
    return status


def was_to_be_written(path: Path) -> bool:
    """Whether a path that its mode forbids to use is no file that cannot be read."""
    if os.path.lexists(path):
        return path.is_file() and os.access(path, os.R_OK)
    return path.parent.is_dir() and os.access(path.parent, os.X_OK)


def place_text(place: object, reason: str, written_dir: str | Path | None) -> str:
    """What is wrong with a path: it is written below `written_dir`, and else only read."""
    if written_dir is None:
        return f"cannot be used ({reason})"
    is_written = Path(str(place)).absolute().is_relative_to(Path(written_dir).absolute())
    if is_written:
        return f"cannot be written ({reason}); give another --results_dir"
    return f"cannot be read ({reason}); make it readable for this user, or name another path"
