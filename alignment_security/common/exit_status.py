"""Exit statuses of the scripts; docs/running.md has them as a table."""

from __future__ import annotations

FAILED = 1  # anything unforeseen: worth another try
WRONG_REQUEST = 2  # one line on stderr says what to change
CHECKPOINTED = 85  # the state is on disk, and the same command resumes it; HTCondor's convention
INTERRUPTED = 130  # Ctrl-C, as shells have it
NOBODY_READS = 141  # the reader of the output went away (`| head`), as shells have it
