"""The batch size of `auto`, measured once a network and card.

It is remembered in `~/.cache/alignment_security/batch_sizes.json` (or in XDG_CACHE_HOME), which may
be deleted at any time.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from alignment_security.common.files import write_atomic
from alignment_security.models.forward import LARGEST_BATCH, auto_batch_size, device_of
from alignment_security.models.heads import Model

FREE_PARTS = 8  # of a card's memory: with another part of it free, a batch size is measured again


def remembered_batch_size(model: Model, precision: str, images: int) -> int:
    """`auto_batch_size` of a model for so many images; on a GPU measured once, then remembered.

    Measured again for other weights, heads, sizes and precisions, on another card or one that
    others use, and with another torch.
    """
    device, shape = device_of(model.module), model.preprocessing["input_size"]
    if device.type != "cuda":
        return auto_batch_size(model.module, shape, device, images)
    facts = [model.settings, shape, precision, min(images, LARGEST_BATCH), *card_facts(device)]
    key = json.dumps([*facts, torch.__version__], sort_keys=True, default=str)
    sizes = read_sizes()
    if key not in sizes:
        sizes[key] = auto_batch_size(model.module, shape, device, images)
        with suppress(OSError):  # a folder that cannot be written costs a second each time
            sizes_file().parent.mkdir(parents=True, exist_ok=True)
            write_atomic(sizes_file(), json.dumps(read_sizes() | {key: sizes[key]}, indent=1))
    return sizes[key]


def card_facts(device: torch.device) -> list:
    """Name of a GPU, its memory in bytes, and how many of FREE_PARTS others leave to this process.

    What this process itself holds counts as free: it holds the network, before and after.
    """
    free, total = torch.cuda.mem_get_info(device)
    usable = free + torch.cuda.memory_reserved(device)
    return [torch.cuda.get_device_name(device), total, FREE_PARTS * usable // total]


def sizes_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alignment_security" / "batch_sizes.json"


def read_sizes() -> dict[str, int]:
    """The sizes remembered; {} for a file that is not there or damaged."""
    with suppress(OSError, ValueError):
        sizes = json.loads(sizes_file().read_text(encoding="utf-8"))
        if isinstance(sizes, dict):
            return {key: size for key, size in sizes.items() if type(size) is int and size > 0}
    return {}
