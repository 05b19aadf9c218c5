"""Read the weights of a study's next model while the present one is attacked.

A thread reads the file and keeps nothing: the system then has it in memory, for every process of
the machine. The model is loaded, and its faults are found, when its turn comes.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Thread

from alignment_security.common.settings import setting
from alignment_security.models.lists import WantedModel
from alignment_security.models.names import cached_file, find_entry

READ_BYTES = 2**22  # at once


def checkpoint_file(model: WantedModel) -> Path | None:
    """The file of its weights that a list names, in CHECKPOINT_DIR of .env."""
    return Path(setting("CHECKPOINT_DIR") or ".") / model.checkpoint if model.checkpoint else None


def weights_file(model: WantedModel) -> Path | None:
    """The file on this machine with the weights of a model; None where it is not known."""
    return checkpoint_file(model) or cached_file(find_entry(model.net or "").net)


def read_ahead(model: WantedModel) -> Thread:
    """Read the file of a model's weights, if it has one here, in a thread that delays no exit."""

    def read() -> None:
        if path := weights_file(model):
            with suppress(OSError), open(path, "rb", buffering=0) as file:
                while file.read(READ_BYTES):
                    pass

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread
