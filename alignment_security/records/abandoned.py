"""Runs that ended before their first row: they hold nothing, so another request takes their place.

A run that may be going on is none of them: its lock is held, or it is `running` on another machine,
whose locks this one may not see.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import Timeout

from alignment_security.common.locked_run import lock_file


def is_abandoned(path: Path, run: dict) -> bool:
    """Whether a run ended before its first row. Takes its lock for a moment.

    path   of its run file, whose content is `run`
    """
    if not ended_without_rows(path, run):
        return False
    try:
        lock = lock_file(path.with_suffix(".lock"), timeout=0)
    except Timeout:
        return False
    is_free = lock.is_locked
    lock.release()
    return is_free


def ended_without_rows(path: Path, run: dict) -> bool:
    """Whether a run whose lock is free has no row, and is not `running` on another machine."""
    if run["status"] == "done":
        return False
    hosts = [session.get("host") for session in run["sessions"]]
    if run["status"] == "running" and hosts[-1:] != [os.uname().nodename]:
        return False
    try:
        with path.with_suffix(".csv").open("rb") as record:
            record.readline()  # the columns
            return not record.readline()
    except FileNotFoundError:
        return True
