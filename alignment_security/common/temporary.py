"""Temporary files beside the file or folder that they become; those of killed processes go.

A name says who made it: `.<final name>.<host>-<process>-<random>.tmp`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS_OF_ANOTHER_HOST = 24 * 3600  # whose processes cannot be asked for: left so long, it is dead


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A path in the folder of `path`, to write to and to rename to it; it is gone afterwards.

    What killed processes left under such names of `path` is removed first. An OSError about the
    temporary path names `path`.
    """
    remove_leftovers(path)
    name = f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        yield temporary
    except OSError as error:
        if error.filename is not None and Path(error.filename).is_relative_to(temporary):
            error.filename = str(path / Path(error.filename).relative_to(temporary))
        raise
    finally:
        with suppress(OSError):  # on a read-only file system, of what was never written either
            _remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders of `path` whose processes have ended."""
    beginning = f".{path.name}."
    with suppress(OSError):  # auxiliary: what cannot be listed or removed stays
        for entry in os.scandir(path.parent):
            is_temporary = entry.name.startswith(beginning) and entry.name.endswith(".tmp")
            if is_temporary and _is_abandoned(Path(entry.path), entry.name[len(beginning) : -4]):
                _remove(Path(entry.path))


def _host() -> str:
    return os.uname().nodename[:20]


def _is_abandoned(path: Path, made_by: str) -> bool:
    """Whether the process that made a temporary file has ended."""
    host, _, rest = made_by.rpartition("-")[0].rpartition("-")
    if host == _host() and rest.isdecimal():
        return not _is_running(int(rest))
    return time.time() - path.lstat().st_mtime > SECONDS_OF_ANOTHER_HOST


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else it is another user's
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
