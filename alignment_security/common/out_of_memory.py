"""Out of memory, as each library says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignment_security.common.files import TryAgain, reading

# What allocators of torch, CUDA, cuDNN, cuBLAS, oneDNN and C++ say. A convolution whose workspaces
# do not fit finds no engine, a handle of cuBLAS that does not fit is not initialised, and on a MIG
# instance torch's allocator fails where it asks NVML for the words of its error.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|"
    r"failed to allocate|ALLOC(ATION)?_FAILED|bad_alloc|could not create a memory|"
    r"unable to find (an engine|a valid cuDNN algorithm)|STATUS_NOT_INITIALIZED|NVML_SUCCESS ==",
    re.IGNORECASE,
)

ONE_IMAGE = "with one image at a time"  # note of an error after which no smaller pass is possible


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device or the machine had no memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(OUT_OF_MEMORY.search(str(error)))


@contextmanager
def of_one_image() -> Iterator[None]:
    """Add the note ONE_IMAGE to an error about memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            error.add_note(ONE_IMAGE)
        raise


@contextmanager
def reading_into_memory(what: object) -> Iterator[None]:
    """Raise TryAgain where memory is short; the file or network `what` is not damaged then.

    Also where a file cannot be read now (`files.reading`).
    """
    try:
        with reading(str(what)):
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TryAgain(
            f"{what}: cannot be loaded, since the machine is out of memory or a limit of it (see "
            "ulimit -a) is reached"
        ) from None
