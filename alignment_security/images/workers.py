"""Processes that decode images ahead: how their images travel, and how their failures end.

torch sends tensors of a worker through shared memory. In a container /dev/shm has 64 MB unless
`--ipc=host` or `--shm-size` says otherwise, and a worker that gets no more leaves the reader
waiting for ever. Where there may be too little, images travel through the worker's pipe instead.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignment_security.common.files import TryAgain, UserError

SHARED_MEMORY = "/dev/shm"
AHEAD = 2  # messages of a worker that may wait, torch's default
LONGEST_WAIT = 600  # seconds for one message; a slow disk is waited for, a lost one is not


def worker_loader(
    data: Dataset, workers: int, collate: Callable[[list], Any], message_bytes: int, **options
) -> Iterator[Any]:
    """What torch's DataLoader yields for `options`, decoded by `workers` processes.

    collate         list of items -> what is sent: tensors, lists, tuples of them
    message_bytes   about the size of one message
    Raises UserError where the processes cannot start, and TryAgain where one was killed or hangs.
    """
    shared = shared_memory_suffices(workers, message_bytes)
    try:
        loader = DataLoader(
            data,
            collate_fn=collate if shared else ThroughPipe(collate),
            num_workers=workers,
            worker_init_fn=leave_the_group,
            timeout=LONGEST_WAIT if workers else 0,
            **options,
        )
        for message in loader:
            yield message if shared else map_leaves(message, np.ndarray, torch.from_numpy)
    except RuntimeError as error:
        raise worker_error(error, workers) or error from None
    except OSError as error:
        if error.errno not in NO_PROCESS:
            raise
        free_half_made(error)
        raise UserError(
            f"--workers {workers}: the processes cannot start ({error.strerror}); --workers 0 "
            "decodes in this one"
        ) from None


# no semaphores, no processes, no files, no memory for another process
NO_PROCESS = (errno.ENOSYS, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


def free_half_made(error: OSError) -> None:
    """Free the loader that could not start, without the traceback that its destructor prints."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    traceback.clear_frames(error.__traceback__)
    sys.unraisablehook = hook


def worker_error(error: RuntimeError, workers: int) -> TryAgain | None:
    """The error about a worker that died or hangs; None for an error of another kind."""
    text = str(error)
    if "timed out" in text:
        return TryAgain(
            f"--workers {workers}: no image for {LONGEST_WAIT} s, the disk or a process hangs; run "
            "the same command again, or --workers 0"
        )
    if "DataLoader worker" not in text:
        return None
    reason = text.partition("\n")[0]
    return TryAgain(
        f"--workers {workers}: a decoding process ended ({reason}); most often the machine is out "
        "of memory, or /dev/shm is full (docker run --ipc=host); fewer --workers need less"
    )


def shared_memory_suffices(workers: int, message_bytes: int) -> bool:
    """Whether /dev/shm has room for twice the messages under way."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return False
    return free >= 2 * workers * AHEAD * message_bytes


class ThroughPipe:
    """A collate function whose tensors are sent as arrays, which torch pickles into the pipe."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, items: list) -> Any:
        return map_leaves(self.collate(items), Tensor, Tensor.numpy)


def map_leaves(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` of every instance of `kind` in it and in its tuples."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        parts = [map_leaves(part, kind, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def leave_the_group(_: int) -> None:
    """Leave the process group, so that a SIGTERM to it reaches the script and not its workers.

    The script ends its workers itself.
    """
    os.setpgrp()
