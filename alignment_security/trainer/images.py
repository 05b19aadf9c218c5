"""Images as training sees them: augmented together with their human maps, in a resumable order.

The images of a step follow from (seed, step), the augmentation of an image from (seed, epoch, image
id). Neither depends on workers, the number of processes or interruptions, so that no state of a
generator has to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from alignment_security.common.pixels import in_unit_range
from alignment_security.common.seeds import seed_from_text
from alignment_security.images.human_maps import harmonization_blur, has_map, original_map
from alignment_security.images.image_sets import DataError, ImageSet
from alignment_security.images.loading import load_photograph, set_preprocessing
from alignment_security.images.workers import worker_loader


class TrainingBatch(NamedTuple):
    """The images of one step in this process.

    positions   in the list of images
    x           (B, 3, H, W), uint8, or float32 in [0, 1] on the device
    labels      (B,) int64
    maps        (B, H, W) float32, zeros where has_map is false
    has_map     (B,) bool
    """

    positions: list[int]
    x: Tensor
    labels: Tensor
    maps: Tensor
    has_map: Tensor

    def part(self, rows: slice) -> TrainingBatch:
        """Some rows of the batch."""
        return TrainingBatch(
            self.positions[rows],
            self.x[rows],
            self.labels[rows],
            self.maps[rows],
            self.has_map[rows],
        )

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device, its images float32 in [0, 1] and channels last."""
        x, labels, maps, has_map = (field.to(device, non_blocking=True) for field in self[1:])
        x = in_unit_range(x).to(memory_format=torch.channels_last)
        return TrainingBatch(self.positions, x, labels, maps, has_map)


def derive_seed(*key) -> int:
    """A 56-bit seed from the sha256 of a key, e.g. (seed, epoch, image id)."""
    return seed_from_text("|".join(map(str, key)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch, which timm draws from, then restore them."""
    state, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(arrays)


# ---- human maps ----------------------------------------------------------------------------------


def load_map(images: ImageSet, i: int, size: tuple[int, int], blur: bool) -> Image.Image | None:
    """The human map of image i as a float image, or None if there is none.

    size   of the photograph, (width, height); the map gets it too
    blur   Harmonization's reading of a map (human_maps.harmonization_blur)
    """
    human_map = original_map(images, i)
    if human_map is None:
        return None
    if blur:
        human_map = harmonization_blur(human_map)
    image = Image.fromarray(human_map)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def classes_without_map(sets: list[ImageSet]) -> list[int]:
    """Classes that occur in the lists and have a map for none of their images."""
    mapped: set[int] = set()
    for images in sets:
        mapped |= {images.labels[i] for i in range(len(images)) if has_map(images, i)}
    present = {label for images in sets for label in images.labels}
    return sorted(present - mapped)


# ---- augmentation --------------------------------------------------------------------------------


class Transforms(NamedTuple):
    """timm's transforms of a photograph and its map.

    crop_photograph    crop and flip; draws the same random numbers as crop_map
    crop_map           the same crop and flip of the map, always bilinear
    finish             the rest for the photograph: colours, conversion to a tensor
    """

    crop_photograph: Callable
    crop_map: Callable
    finish: Callable


def evaluation_transforms(preprocessing: dict) -> Transforms:
    """The centre crop that evaluation uses."""
    fixed: dict = {"is_training": False, "normalize": False}
    over_map: dict = preprocessing | {"interpolation": "bilinear", "mean": (0.0,)}
    return Transforms(
        crop_photograph=lambda photograph: photograph,
        crop_map=create_transform(**over_map, **fixed),
        finish=create_transform(**preprocessing, **fixed),
    )


def training_transforms(preprocessing: dict, augmentation: dict) -> Transforms:
    """Random crops and flips, which move the map too, and colours, which do not.

    augmentation   scale, hflip, color_jitter, auto_augment of timm's create_transform
    """
    fixed: dict = {
        "input_size": preprocessing["input_size"],
        "is_training": True,
        "separate": True,
        "normalize": False,
        **augmentation,
    }
    crop, colours, to_tensor = create_transform(
        **fixed, interpolation=preprocessing["interpolation"]
    )
    crop_map, _, map_to_tensor = create_transform(**fixed, interpolation="bilinear")
    return Transforms(
        crop_photograph=crop,
        crop_map=lambda human_map: map_to_tensor(crop_map(human_map)),
        finish=lambda photograph: to_tensor(colours(photograph)),
    )


def make_transforms(preprocessing: dict, augmentation: dict | None) -> Transforms:
    if augmentation is None:
        return evaluation_transforms(preprocessing)
    return training_transforms(preprocessing, augmentation)


class AugmentedImages(Dataset):
    """(epoch, position) -> (position, image (3, H, W) uint8, label, map (H, W) float32, has_map).

    Photograph and map go through the same crop and flip. A view in which the map is flat, since the
    object was cropped away, counts as one without a map. A DataError is returned, not raised: see
    collate.

    sets           lists of images, one after the other
    augmentation   see training_transforms; None: the crop of evaluation
    blur           see load_map
    """

    def __init__(
        self,
        sets: list[ImageSet],
        preprocessing: dict,
        augmentation: dict | None,
        seed: int,
        with_maps: bool,
        blur: bool = False,
    ):
        self.sets, self.seed = sets, seed
        self.with_maps, self.blur = with_maps, blur
        self.size = tuple(preprocessing["input_size"][1:])
        self.ids = tuple(name for images in sets for name in images.ids)
        self.begins = np.cumsum([0, *map(len, sets)])  # position of the first image of each list
        self.transforms = [
            make_transforms(set_preprocessing(images, preprocessing), augmentation)
            for images in sets
        ]

    def __getitem__(self, key: tuple[int, int]) -> tuple | DataError:
        epoch, position = key
        k = int(np.searchsorted(self.begins, position, side="right")) - 1
        images, i = self.sets[k], position - int(self.begins[k])
        try:
            photograph = load_photograph(images, i)
            human_map = None
            if self.with_maps:
                human_map = load_map(images, i, photograph.size, self.blur)
        except DataError as error:
            return error

        # The same seed gives photograph and map the same crop.
        seed, transforms = derive_seed(self.seed, epoch, self.ids[position]), self.transforms[k]
        with seeded(seed):
            x = transforms.finish(transforms.crop_photograph(photograph))
        cropped = torch.zeros(self.size)
        if human_map is not None:
            with seeded(seed):
                values = np.asarray(transforms.crop_map(human_map))
            cropped = torch.as_tensor(values, dtype=torch.float32).reshape(self.size)
        return position, x, images.labels[i], cropped, bool(cropped.amax() > cropped.amin())


def collate(rows: list) -> TrainingBatch | DataError:
    """One batch, or the first error: an error raised in a worker would arrive as a traceback."""
    for row in rows:
        if isinstance(row, DataError):
            return row
    positions, x, labels, maps, known = zip(*rows)
    return TrainingBatch(
        list(positions),
        torch.stack(x),
        torch.tensor(labels),
        torch.stack(maps),
        torch.tensor(known),
    )


# ---- order ---------------------------------------------------------------------------------------


def batch_indices(
    n: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """(epoch, position) of the images of this process, a list for each step from `start` to `stop`.

    An epoch is a permutation of the n images cut into batches of `batch_size`, which the processes
    share. A last, incomplete batch is dropped.
    """
    steps_per_epoch, share = n // batch_size, batch_size // world_size
    order_epoch, order = -1, np.empty(0, int)
    for step in range(start, stop):
        epoch, k = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order_epoch, order = epoch, np.random.default_rng([seed, epoch]).permutation(n)
        begin = k * batch_size + rank * share
        yield [(epoch, int(i)) for i in order[begin : begin + share]]


def batch_loader(
    data: Dataset,
    indices: Iterator[list[tuple[int, int]]],
    workers: int,
    pin: bool,
    batch_size: int = 1,
) -> Iterator[TrainingBatch | DataError]:
    """Batches of `data` in the order of batch_indices; `pin`: in pinned memory, for a GPU."""
    height, width = getattr(data, "size", (0, 0))
    message_bytes = batch_size * height * width * (3 + 4)  # uint8 colours and a float32 map
    return worker_loader(
        data, workers, collate, message_bytes, batch_sampler=indices, pin_memory=pin
    )
