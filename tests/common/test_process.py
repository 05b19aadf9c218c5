"""Signals, standard streams and exit statuses of the scripts, in processes of their own."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from alignment_security.common.exit_status import FAILED, NOBODY_READS, WRONG_REQUEST
from alignment_security.common.files import UserError
from alignment_security.common.process import (
    open_standard_streams,
    print_line,
    report_error,
    run_command,
)

STOPS_SLOWLY = """
import os, signal, sys, time
from alignment_security.common.process import on_stop, print_line, run_script

class Stopped(BaseException):
    pass

def stop(*_):
    raise Stopped

def main():
    on_stop(stop)
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(60)
    except Stopped:
        for name in sys.argv[2:]:
            os.kill(os.getpid(), getattr(signal, name))
        print_line("saved")
        return 85

run_script(main)
"""


def run_code(code: str, *argv: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, **how
    )


@pytest.mark.parametrize("first", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("more", [["SIGTERM"], ["SIGHUP", "SIGTERM", "SIGTERM"]])
def test_a_second_signal_while_the_first_is_answered_changes_nothing(first, more):
    done = run_code(STOPS_SLOWLY, first, *more)
    assert (done.returncode, done.stdout, done.stderr) == (85, "saved\n", "")


def test_a_signal_after_the_time_to_stop_is_answered_again():
    """Where the first was lost, e.g. raised inside a destructor, the next one has to work."""
    code = STOPS_SLOWLY.replace(
        "class Stopped",
        "import alignment_security.common.process as p\np.SECONDS_TO_STOP = 0.0\nclass Stopped",
    )
    done = run_code(code, "SIGTERM", "SIGTERM")
    assert done.returncode not in (0, 85) and "Stopped" in done.stderr


def test_ctrl_c_is_130_without_a_traceback():
    code = """
import time
from alignment_security.common.process import run_script
def main():
    print("begun", flush=True)
    time.sleep(60)
run_script(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "interrupted\n" and process.returncode == 130


@pytest.mark.parametrize("command", ["merge", "audit"])
def test_ctrl_c_in_a_command_is_no_traceback(tmp_path, command):
    """It arrives while the command reads its results."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import utilities
from alignment_security.common.process import run_script
utilities.{"merge_records" if command == "merge" else "audit"} = (
    lambda *_: os.kill(os.getpid(), signal.SIGINT)
)
run_script(lambda: utilities.main(utilities.get_args_parser().parse_args(["{command}"])))
"""
    done = run_code(code)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


# ---- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [[2], [1], [0, 1, 2]])
def test_a_process_without_standard_streams_writes_its_file_alone(tmp_path, closed):
    """What a library prints to file 2 must not land in the file that got its number."""
    path = tmp_path / "record"
    code = f"""
import os, sys
from alignment_security.common.process import print_line, run_script
def main():
    with open({str(path)!r}, "w") as file:
        os.write(2, b"a warning of a library")
        print_line("a line", sys.stderr)
        print_line("a line")
        sys.stderr.isatty()
        file.write("a row")
    return 7
run_script(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        preexec_fn=lambda: [os.close(handle) for handle in closed],
    )
    assert process.wait() == 7 and path.read_text() == "a row"


def test_a_command_whose_output_nobody_reads_is_141():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "utilities.py", "models"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")


def test_a_command_whose_output_does_not_fit_is_1_and_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "utilities.py", "models"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == FAILED and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: standard output: No space left on device")


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, status, text",
    [
        (UserError("x: wrong"), WRONG_REQUEST, "x: wrong"),
        (OSError(errno.ENOSPC, "No space left"), FAILED, "make room and run the same command"),
        (OSError(errno.EDQUOT, "Quota exceeded"), FAILED, "make room"),
        (OSError(errno.EMFILE, "Too many open files"), FAILED, "ulimit -a"),
        (PermissionError(errno.EACCES, "Permission denied", "/results/a"), 2, "another --results"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/a"), 2, "make it readable"),
        (OSError(errno.ELOOP, "Too many levels", "/results/a"), 2, "another --results"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/data/a"), 2, "name another path"),
        (OSError(errno.EROFS, "Read-only file system", "/results/a"), 2, "another --results"),
    ],
)
def test_an_error_that_is_explained_is_one_line(capsys, error, status, text):
    assert report_error(error, "/results") == status
    err = capsys.readouterr().err
    assert text in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table.csv", "table.csv: cannot be written (no); use a folder"),
        ("new/folder", "cannot be used (no)"),  # what is there cannot be seen
        ("new.csv", "new.csv: cannot be written (no); use a folder"),
        (".", "cannot be used (no)"),  # listed
    ],
)
def test_a_command_says_what_was_to_be_written(tmp_path, capsys, number, name, text):
    (tmp_path / "table.csv").touch()
    assert report_error(OSError(number, "no", str(tmp_path / name))) == WRONG_REQUEST
    assert text in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_is_raised():
    with pytest.raises(OSError, match="odd"):
        report_error(OSError(errno.EXDEV, "odd"))
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_names_that_a_terminal_cannot_show_are_escaped(monkeypatch):
    """LC_ALL=C, PYTHONIOENCODING=latin-1: a name in a record is no reason for a traceback."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    open_standard_streams()
    print_line("caf\u00e9 \u4e2d")
    assert written.getvalue() == b"caf\xe9 \\u4e2d\n"
