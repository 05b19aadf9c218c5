"""Files and errors: atomic writing, sha256, safe file names, and UserError."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alignment_security.common.exit_status import FAILED, WRONG_REQUEST
from alignment_security.common.temporary import temporary_beside

# errors that may pass: they say nothing about the file
LIMIT_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
DEVICE_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
LONGEST_STEM = 150  # characters of a name that safe_file_name keeps


class UserError(Exception):
    """An error that the user can fix; the message includes the file and the fix.

    exit_status   of a script that ends with it
    """

    exit_status = WRONG_REQUEST


class TryAgain(UserError):
    """A failure that may pass by itself: the same command is worth another try."""

    exit_status = FAILED


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise TryAgain, which names the file, where it is whole but cannot be read now.

    Errors while an open file is read name no file; readers of formats call such a file damaged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in LIMIT_ERRORS | DEVICE_ERRORS:
            raise
        reason = "a limit of this machine (see ulimit -a) is reached"
        if error.errno in DEVICE_ERRORS:
            reason = "the disk or the network failed, run the same command again"
        where = error.filename or path
        raise TryAgain(f"{where}: cannot be read ({error.strerror}); {reason}") from None


def read_bytes(path: str | Path) -> bytes:
    """The content of a file. Raises OSError, and TryAgain as `reading`."""
    with reading(path):
        return Path(path).read_bytes()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a temporary file in the same folder and rename it to `path`.

    If writing fails, the old file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text_file(path: Path) -> str:
    r"""Hex sha256 of a text file with `\n` as its line ends, whatever a checkout made of them."""
    return hashlib.sha256(read_bytes(path).replace(b"\r\n", b"\n")).hexdigest()


def safe_file_name(name: str) -> str:
    """A model's name as a file name of letters, digits, `.`, `_` and `-`.

    Distinct names stay distinct: a name that has to change gets eight hex digits of its sha256, so
    `a/b`, `a:b` and `a--b` give three file names. A name that already ends like this gets them too.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "--", name).lstrip(".-")[:LONGEST_STEM] or "_"
    if safe == name and not re.search(r"-[0-9a-f]{8}$", name):
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
