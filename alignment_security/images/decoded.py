"""Decoded images that stay in memory for the next threat, and for the next model that wants them.

A study looks at the same images under each threat of a model, and many of its models have the same
preprocessing. An attack that breaks everything at once takes less time than decoding.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from alignment_security.images.image_sets import ImageSet

# of a process: 7,000 images of 224 x 224
KEPT_BYTES = 2**30


def image_key(images: ImageSet, i: int) -> Hashable:
    """What decides the pixels of image i before a model's preprocessing; None: no such file."""
    try:
        stat = images.paths[i].stat()
    except OSError:
        return None
    offset = images.offsets[i] if images.offsets else 0
    noise = (images.corruption, images.ids[i]) if images.corruption else None
    return images.paths[i], stat.st_size, stat.st_mtime_ns, offset, images.border, noise


class DecodedImages:
    """Pixels (3, H, W) uint8 by preprocessing and image, `most_bytes` of them at most.

    An image makes room by dropping those of other preprocessings, the ones used longest ago first.
    Those of its own stay: of a set that does not fit, the first images are kept.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES):
        self.most_bytes, self.n_bytes = most_bytes, 0
        self.pixels: dict[str, dict[Hashable, Tensor]] = {}  # the one used last comes last

    def of(self, preprocessing: dict) -> dict[Hashable, Tensor]:
        """The images of a preprocessing, by `image_key`."""
        name = repr(sorted(preprocessing.items()))
        self.pixels[name] = self.pixels.pop(name, {})
        return self.pixels[name]

    def keep(self, preprocessing: dict, key: Hashable, x: Tensor) -> None:
        """Keep an image, if there is room."""
        own = self.of(preprocessing)
        while self.n_bytes + x.nbytes > self.most_bytes and len(self.pixels) > 1:
            others = self.pixels.pop(next(iter(self.pixels)))
            self.n_bytes -= sum(image.nbytes for image in others.values())
        if key is not None and key not in own and self.n_bytes + x.nbytes <= self.most_bytes:
            own[key] = x.clone()  # `x` may be a view of a worker's whole message
            self.n_bytes += x.nbytes

    def clear(self) -> None:
        self.pixels.clear()
        self.n_bytes = 0


DECODED = DecodedImages()  # of this process
