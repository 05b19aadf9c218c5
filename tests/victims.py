"""Code that runs in processes which the tests kill, starve and hang up on.

A fork server imports it once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

import evaluate_robustness

OVERRIDES = (
    1 << 1 | 1 << 2
)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root write into a read-only folder


def script(argv: list[str], said: str, prepare=None) -> None:
    """The script, with what it says in a file; ends the process with its exit status."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # as a shell starts a command at a terminal, whatever nohup or a script's `&` had tests ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if prepare:
        prepare()
    sys.exit(evaluate_robustness.main(argv))


def small_files(limit: int) -> None:
    """Limit files to `limit` bytes: the kernel writes what fits, then refuses, as a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def bound_by_permissions() -> None:
    """Give up what lets root ignore the permissions of files (capset(2), version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        data[0] &= ~OVERRIDES
        libc.capset(header, data)


def ignore_hang_up() -> None:
    """As nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def nobody_reads() -> None:
    """Standard output becomes a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
