"""Load untrusted torch files: no code runs, no decompression bomb."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from alignment_security.common.files import TryAgain
from alignment_security.common.out_of_memory import reading_into_memory

# errors of torch.load for a file that is damaged, holds code, or has another format
TORCH_FILE_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    ValueError,
)
LONGEST_REASON = 120  # characters


def load_torch_file(path: Path, trust: bool = False) -> Any:
    """The object in a torch file, its tensors on the CPU.

    trust   allow the file to run code while it is loaded
    Raises one of TORCH_FILE_ERRORS. An archive with compressed parts is refused too: its unpacked
    size has no limit, and torch.save never compresses.
    """
    if zipfile.is_zipfile(path):
        _check_nothing_is_compressed(path)
    try:
        with reading_into_memory(path):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except (*TORCH_FILE_ERRORS, ImportError, TryAgain):
        raise
    except Exception as error:  # bytes that are no pickle raise anything: IndexError, struct.error
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def _check_nothing_is_compressed(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile as error:
        raise pickle.UnpicklingError(f"damaged archive: {error}") from None
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(
                f"{part.filename} is compressed to {part.compress_size} of {part.file_size} bytes; "
                "torch.save compresses nothing"
            )


def error_reason(error: Exception) -> str:
    """Type and first line of an error, for a message of one line."""
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:LONGEST_REASON]}"
