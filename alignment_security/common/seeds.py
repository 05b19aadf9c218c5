"""Seeds of random number generators that depend on a text alone.

A seed that depends only on its purpose (seed of the run, image, attack) is the same on every
machine, in every batch and after every interruption, so no generator state has to be saved.
"""

from __future__ import annotations

import hashlib


def seed_from_text(text: str, n_bytes: int = 7) -> int:
    """A seed from the sha256 of a text.

    n_bytes   of the digest, taken from its start and read as a big-endian number: 7 for torch and
              Python's random (0 to 2^56 - 1), 4 for numpy's global generator (0 to 2^32 - 1)
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:n_bytes], "big")
