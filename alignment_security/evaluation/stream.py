"""The stream of images of an evaluation: labels of the model's head, and an end at the deadline."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from torch import Tensor

from alignment_security.attacks.clean import ImageStream
from alignment_security.models.heads import ANIMATE_CLASSES, HEADS


def with_head_labels(source: ImageStream, head: str) -> Generator[tuple[str, Tensor, int]]:
    """Images with the labels that the head's outputs stand for."""
    for name, image, label in source:
        if HEADS[head] is not None:
            label = int(label >= ANIMATE_CLASSES)
        yield name, image, label


def stop_at(source: ImageStream, deadline: float) -> Iterator[tuple[str, Tensor, int]]:
    """Yield images until the deadline, at least one.

    Attacks finish the images that they have begun, so nothing is computed twice.
    """
    for item in source:
        yield item
        if time.monotonic() > deadline:
            return
