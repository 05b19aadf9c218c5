"""Reading what torch.save wrote, by whom so ever: nothing in the file is run, and nothing in it grows."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

# what torch.load raises for files that are damaged, hold code, or are something else
TORCH_FILE_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    ValueError,
)


def load_torch_file(path: Path, trust: bool = False):
    """The object in the file, its tensors on the CPU. With `trust` code in the file may run; never else.

    Raises one of UNREADABLE; for an archive with compressed parts too, which could be of any size once unpacked (torch.save
    compresses nothing).
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
        except zipfile.BadZipFile as error:
            raise pickle.UnpicklingError(f"damaged archive: {error}") from None
        if packed := [part for part in parts if part.compress_type != zipfile.ZIP_STORED]:
            raise pickle.UnpicklingError(
                f"{packed[0].filename} is compressed to {packed[0].compress_size} of "
                f"{packed[0].file_size} bytes; torch.save compresses nothing"
            )
    return torch.load(path, map_location="cpu", weights_only=not trust)


def error_reason(error: Exception) -> str:
    """Its kind and first line, for a message of one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
