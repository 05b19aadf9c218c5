"""What killed processes left is removed; what others still write is not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from alignment_security.common.files import write_atomic
from alignment_security.common.temporary import remove_leftovers, temporary_beside

KILLED = """
import os, sys
from pathlib import Path
from alignment_security.common.temporary import temporary_beside
with temporary_beside(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        (temporary / "in").mkdir(parents=True)
    else:
        temporary.write_text("half")
    os._exit(137)
"""


def killed_beside(path, kind="file") -> None:
    """A process that dies between writing a temporary file and renaming it."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], cwd=ROOT)
    assert done.returncode == 137


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, kind):
    path = tmp_path / "table.csv"
    killed_beside(path, kind)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".table.csv.") and left.name.endswith(".tmp")
    write_atomic(path, "whole")
    assert os.listdir(tmp_path) == ["table.csv"] and path.read_text() == "whole"


def test_what_another_process_writes_is_left_alone(tmp_path):
    path = tmp_path / "table.csv"
    with temporary_beside(path) as ours, temporary_beside(path) as other:
        ours.write_text("1")
        other.write_text("2")
        write_atomic(path, "whole")
        assert ours.exists() and other.exists() and ours != other
    assert os.listdir(tmp_path) == ["table.csv"]


def test_files_of_other_names_and_young_files_of_other_hosts_are_left_alone(tmp_path):
    names = [
        ".table.csv.bak",
        ".table.csv2.host-1-ab.tmp",
        ".table.csv.elsewhere-1-ab.tmp",
        "x.tmp",
    ]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "table.csv")
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / names[2], (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path / "table.csv")
    assert sorted(os.listdir(tmp_path)) == sorted(set(names) - {names[2]})


def test_a_temporary_file_of_an_older_version_goes_after_a_day(tmp_path):
    old = tmp_path / ".table.csv.x8_1k2q.tmp"
    old.touch()
    write_atomic(tmp_path / "table.csv", "")
    assert old.exists()
    os.utime(old, (1, 1))
    write_atomic(tmp_path / "table.csv", "")
    assert not old.exists()


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    with pytest.raises(FileNotFoundError) as error, temporary_beside(path) as temporary:
        temporary.write_text("")
    assert error.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as error, temporary_beside(path) as temporary:
        (temporary / "part.csv").write_text("")
    assert error.value.filename == str(path / "part.csv")
    with pytest.raises(FileNotFoundError) as error, temporary_beside(path):
        (tmp_path / "read.csv").read_text()
    assert error.value.filename == str(tmp_path / "read.csv")


def test_a_temporary_file_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    """A read-only file system refuses to remove what is not there."""

    def refuse(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    path = tmp_path / "table.csv"
    with pytest.raises(OSError, match="in the body") as error, temporary_beside(path) as temporary:
        raise OSError(errno.EROFS, "in the body", str(temporary))
    assert error.value.filename == str(path)


def test_the_temporary_file_goes_when_the_body_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), temporary_beside(tmp_path / "a") as temporary:
        temporary.mkdir()
        1 // 0  # noqa: B018
    assert os.listdir(tmp_path) == []
