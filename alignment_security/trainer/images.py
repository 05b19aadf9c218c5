"""Images as training sees them: augmented together with their human maps, in an order that can be taken up at any step.

Which images a step sees depends on (seed, step), how an image is augmented on (seed, epoch, image id): neither depends on
workers, on the number of processes, or on interruptions, so that no state of a generator has to be kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignment_security.common.seeds import seed_from_text
from alignment_security.images.clickme import is_clickme
from alignment_security.images.human_maps import drawings, harmonization_blur, original_map
from alignment_security.images.image_sets import DataError, ImageSet
from alignment_security.images.loading import (
    in_unit_range,
    leave_the_group,
    load_photograph,
    read_image,
    set_preprocessing,
)

MAP_ENDING = ".png"


class TrainingBatch(NamedTuple):
    """Images of one step. positions in the list; x (B, 3, H, W) uint8 or [0, 1]; maps (B, H, W), zeros where has_map is not."""

    positions: list[int]
    x: Tensor
    labels: Tensor
    maps: Tensor
    has_map: Tensor

    def part(self, rows: slice) -> TrainingBatch:
        return TrainingBatch(
            self.positions[rows],
            self.x[rows],
            self.labels[rows],
            self.maps[rows],
            self.has_map[rows],
        )

    def to(self, device: torch.device) -> TrainingBatch:
        x, labels, maps, has_map = (field.to(device, non_blocking=True) for field in self[1:])
        x = in_unit_range(x).to(memory_format=torch.channels_last)
        return TrainingBatch(self.positions, x, labels, maps, has_map)


def seed_of(*key) -> int:
    """A seed from what it stands for."""
    return seed_from_text("|".join(map(str, key)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's and torch's generators seeded, and put back afterwards: timm's augmentations draw from both, and numpy's."""
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


# ---- maps ------------------------------------------------------------------------------------------------------


def map_file(images: ImageSet, i: int, map_dir: Path) -> Path:
    return map_dir / PurePath(images.ids[i]).with_suffix(MAP_ENDING)


def has_map(images: ImageSet, i: int, map_dir: Path | None) -> bool:
    """Whether image i has a map, without decoding it: what comes with ClickMe, its file in map_dir, or the sample's drawing."""
    if is_clickme(images):
        return True
    if map_dir is not None:
        return map_file(images, i, map_dir).is_file()
    return images.name == "sample" and images.ids[i] in drawings()


def drawn_map(
    images: ImageSet, i: int, size: tuple[int, int], map_dir: Path | None, blur: bool
) -> Image.Image | None:
    """The human map of image i as a float image of the photograph's (width, height); None where there is none."""
    if not has_map(images, i, map_dir):
        return None
    if map_dir is None or is_clickme(images):
        drawn = original_map(images, i)
        assert drawn is not None
    else:
        drawn = np.asarray(read_image(map_file(images, i, map_dir)).convert("F"))
        if drawn.shape != size[::-1]:
            raise DataError(
                f"{map_file(images, i, map_dir)}: {drawn.shape[1]} x {drawn.shape[0]} pixels, its photograph has "
                f"{size[0]} x {size[1]}; a map has to lie over it"
            )
    found = Image.fromarray(harmonization_blur(drawn) if blur else drawn)
    return found if found.size == size else found.resize(size, Image.Resampling.BILINEAR)


def classes_without_map(sets: list[ImageSet], map_dir: Path | None) -> list[int]:
    """Classes of the lists none of whose images has a map."""
    seen = {
        images.labels[i]
        for images in sets
        for i in range(len(images))
        if has_map(images, i, map_dir)
    }
    return sorted({label for images in sets for label in images.labels} - seen)


# ---- augmentation ----------------------------------------------------------------------------------------------


def transforms(preprocessing: dict, augmentation: dict | None) -> tuple:
    """(geometry of a photograph, the same for its map, what follows for the photograph) as timm makes them.

    augmentation   scale, hflip, color_jitter, auto_augment of timm's create_transform; None: the crop of evaluation
    """
    if augmentation is None:
        plain: dict = {"is_training": False, "normalize": False}
        return (
            lambda image: image,
            create_transform(**preprocessing | {"interpolation": "bilinear"}, **plain, mean=(0.0,)),
            create_transform(**preprocessing, **plain),
        )
    common: dict = {
        "input_size": preprocessing["input_size"],
        "is_training": True,
        "separate": True,
        "normalize": False,
        **augmentation,
    }
    geometry, colours, last = create_transform(
        **common, interpolation=preprocessing["interpolation"]
    )
    over_map, _, to_tensor = create_transform(**common, interpolation="bilinear")
    return geometry, lambda drawn: to_tensor(over_map(drawn)), lambda image: last(colours(image))


class Augmented(Dataset):
    """(epoch, position) -> (position, image (3, H, W) uint8, label, map (H, W) float32, has_map), or a DataError.

    sets   one list after the other: ImageNet's images, and ClickMe's, which bring maps

    Photograph and map go through the same crop and flip. A view in which the map is flat (the object was cropped away)
    counts as one without a map.
    """

    def __init__(
        self,
        sets: list[ImageSet],
        preprocessing: dict,
        augmentation: dict | None,
        seed: int,
        with_maps: bool,
        map_dir: Path | None = None,
        blur: bool = False,
    ):
        self.sets, self.seed, self.with_maps, self.map_dir, self.blur = (
            sets,
            seed,
            with_maps,
            map_dir,
            blur,
        )
        self.size = tuple(preprocessing["input_size"][1:])
        self.ids = tuple(name for images in sets for name in images.ids)
        self.begins = np.cumsum([0, *map(len, sets)])
        self.transforms = [
            transforms(set_preprocessing(images, preprocessing), augmentation) for images in sets
        ]

    def __getitem__(self, key: tuple[int, int]):
        epoch, position = key
        k = int(np.searchsorted(self.begins, position, side="right")) - 1
        images, i, (geometry, over_map, finish) = (
            self.sets[k],
            position - int(self.begins[k]),
            self.transforms[k],
        )
        seed = seed_of(self.seed, epoch, self.ids[position])
        try:
            photograph = load_photograph(images, i)
            drawn = (
                drawn_map(images, i, photograph.size, self.map_dir, self.blur)
                if self.with_maps
                else None
            )
        except DataError as error:
            return error
        with seeded(seed):
            x = finish(geometry(photograph))
        seen = torch.zeros(self.size)
        if drawn is not None:
            with seeded(seed):
                seen = torch.as_tensor(np.asarray(over_map(drawn)), dtype=torch.float32).reshape(
                    self.size
                )
        return position, x, images.labels[i], seen, bool(seen.amax() > seen.amin())


def collate(rows: list) -> TrainingBatch | DataError:
    """One batch, or the first error: raised in a worker it would arrive as a traceback instead of a line."""
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


# ---- order -----------------------------------------------------------------------------------------------------


def shares(
    n: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """This process's (epoch, position) of each step from `start` to `stop`.

    An epoch is a permutation of the n images cut into batches of `batch_size` over all processes; a last incomplete
    batch is left out.
    """
    per_epoch, share, order, shown = n // batch_size, batch_size // world, np.empty(0, int), -1
    for step in range(start, stop):
        epoch, k = divmod(step, per_epoch)
        if epoch != shown:
            order, shown = np.random.default_rng([seed, epoch]).permutation(n), epoch
        begin = k * batch_size + rank * share
        yield [(epoch, int(i)) for i in order[begin : begin + share]]


def batch_loader(
    data: Dataset, order: Iterator[list[tuple[int, int]]], workers: int, pin: bool
) -> DataLoader:
    return DataLoader(
        data,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=leave_the_group,
    )
