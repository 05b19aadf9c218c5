"""Slices of an image set: random samples of which a shorter one is part of a longer one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alignment_security.images.image_sets import DataError, ImageSet, synsets

SLICE_SEED = 42  # of the permutation behind -s
HOAK2025, HOAK2025_SEED = "hoak2025", 42
SUBSETS = (HOAK2025,)  # --subset


def take_slice(images: ImageSet, start: int, stop: int | None, subset: str = "") -> ImageSet:
    """A random sample: images[permutation[start:stop]], kept in list order.

    The permutation is fixed, so that a shorter slice from the same start is part of a longer one.
    `stop` None takes the rest.

    subset   "" for our own permutation, "hoak2025" for that of Hoak 2025 (hoak2025_permutation)

    Raises DataError for a slice without an image.
    """
    end = len(images) if stop is None else stop
    permutation = hoak2025_permutation if subset == HOAK2025 else our_permutation
    rows = permutation(images)[start:stop]
    if not 0 <= start < end or not len(rows):
        raise DataError(f"-s {start} {stop}: takes no image; {images.name} has {len(images)}")
    return replace(images.take(sorted(rows)), slice=(start, stop), subset=subset)


def our_permutation(images: ImageSet) -> list[int]:
    """Positions in the list, in the order from which -s takes a slice."""
    return np.random.default_rng(SLICE_SEED).permutation(len(images)).tolist()


def hoak2025_permutation(images: ImageSet) -> list[int]:
    """Positions in the list, in the order from which the scripts of Hoak 2025 take a slice.

    They permute the images of torchvision's ImageFolder, which sorts class folders and then the
    files of each, by numpy's legacy generator. Source: kyangl/alignment-security@3bafa26,
    dataloading.py, get_dataloader.
    """
    names = synsets()  # once: each call takes milliseconds
    folders = [class_folder(name, label, names) for name, label in zip(images.ids, images.labels)]
    by_folder = sorted(range(len(images)), key=lambda i: (folders[i], images.ids[i]))
    order = np.random.RandomState(HOAK2025_SEED).permutation(len(images))
    return [by_folder[k] for k in order]


def class_folder(image_id: str, label: int, names: list[str]) -> str:
    """The class folder of an image; its synset of `names` where the id does not name it."""
    folder, has_folder, _ = image_id.partition("/")
    return folder if has_folder else names[label]
