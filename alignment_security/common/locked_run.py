"""A run that one process at a time may write: its lock, its run file and the entry of each session.

Base of `records.run.Run` (an evaluation) and `trainer.run.TrainingRun`. A subclass defines
the files of a run, the conditions of resuming, and the messages of its errors.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from alignment_security.common.files import UserError, utc_now, write_atomic
from alignment_security.common.process import print_line

# of flock, where a file system has none: NFS without lockd, some FUSE mounts
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock_file(path: Path, timeout: float = -1) -> FileLock:
    """Take a lock, and return it, to be released; where the file system has none, warn and go on.

    timeout   seconds to wait; -1 waits as long as it takes
    Raises filelock.Timeout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        print_line(
            f"warning: {path}: this file system has no locks; let no other process write the same "
            "results",
            sys.stderr,
        )
    return lock


def json_round_trip(value: dict) -> dict:
    """A dict as JSON gives it back: tuples become lists, keys become strings.

    Settings are compared in this form, since this is how the run file holds them.
    """
    return json.loads(json.dumps(value))


class LockedRun:
    """A run file and its lock, held from construction to `close`.

    json           path of the run file
    info           its content: status, sessions, warnings and whatever the subclass adds; `save`
                   writes it
    replaces_old   another run is still in the place of this one, and `save` writes nothing
    """

    def __init__(self, json_path: Path, lock_path: Path):
        """Take the lock without waiting. Raises `busy_error()` when another process holds it.

        The kernel releases the lock of a process that died, so a lock file on disk is never stale.
        """
        self.json = json_path
        self.info: dict = {}
        self.replaces_old = False
        try:
            self._lock = lock_file(lock_path, timeout=0)
        except Timeout:
            raise self.busy_error() from None

    def busy_error(self) -> UserError:
        """The error of a run that another process is writing."""
        return UserError(f"{self.json}: another process is writing it; wait or stop it")

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Release the lock when the body fails, e.g. because the settings differ."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> bool:
        return self.info["status"] == "done"

    def start_session(self, facts: dict | None) -> None:
        """Append this process to the sessions of the run; `save` writes it.

        facts   versions, git, device, ...: recorded, never compared
        """
        session = {
            "started": utc_now(),
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "seconds": 0.0,
        }
        self.info["sessions"].append(session | (facts or {}))

    def save(self, **facts) -> None:
        """Update the run file; `seconds` goes to this session, other facts to the top level."""
        if "seconds" in facts:
            self.info["sessions"][-1]["seconds"] = round(facts.pop("seconds"), 3)
        self.info.update(facts)
        if not self.replaces_old:
            write_atomic(self.json, json.dumps(self.info, indent=1) + "\n")

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()
