"""Exit statuses of the scripts; docs/running.md has them as a table."""

from __future__ import annotations

from collections.abc import Collection

FAILED = 1  # anything unforeseen: worth another try
WRONG_REQUEST = 2  # one line on stderr says what to change
CHECKPOINTED = 85  # the state is on disk, and the same command resumes it; HTCondor's convention
INTERRUPTED = 130  # Ctrl-C, as shells have it
NOBODY_READS = 141  # the reader of the output went away (`| head`), as shells have it


def status_of_all(statuses: Collection[int]) -> int:
    """0 if all are done, else the status of one that is worth another try, else any other's."""
    return FAILED if FAILED in statuses else max(statuses)
