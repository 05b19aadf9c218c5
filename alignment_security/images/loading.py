"""Load image sets by name, and stream their images as float32 in [0, 1]."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignment_security.images.clickme import clickme_image, clickme_set, is_clickme
from alignment_security.images.corruptions import corrupt, corruption_set, with_corruption
from alignment_security.images.image_sets import (
    DataError,
    ImageSet,
    existing_folder,
    folder_set,
    imagenet_set,
    sample_set,
)
from alignment_security.images.subsets import big12_set

MAX_PIXELS = 100_000_000
CHUNK = 16  # images that a worker sends at once


def load_image_set(
    name: str,
    data_dir: str | None = None,
    n_outputs: int = 1000,
    corruption: tuple[str, int] | None = None,
    seed: int = 0,
) -> ImageSet:
    """The image set called `name`. Raises DataError for data that is missing, incomplete or out of order.

    data_dir    folder of the images; not needed for `sample`
    n_outputs   of the model: the set has to have as many classes, or its labels would mean other things
    corruption  (type, severity): which folder of imagenet-c and tiny-imagenet-c; made while loading for other sets
    seed        of corruptions made while loading, drawn per image from (seed, image id)
    """
    if name in ("imagenet-c", "tiny-imagenet-c"):
        images = corruption_set(name, existing_folder(name, data_dir), corruption)
    elif name == "sample":
        images = sample_set()
    else:
        root = existing_folder(name, data_dir)
        known = {"imagenet-val": imagenet_set, "big12": big12_set, "clickme": clickme_set}
        images = known[name](root) if name in known else folder_set(name, root, n_outputs)
    if images.n_classes != n_outputs:
        raise DataError(
            f"{name}: has {images.n_classes} classes, the model {n_outputs} outputs, so that its classes are others; "
            "take a model of these classes, or put images of its own into --data_dir under another --dataset name"
        )
    return (
        images
        if corruption is None or images.corruption
        else with_corruption(images, *corruption, seed)
    )


# ---- pixels ----------------------------------------------------------------------------------------------------


def read_image(path: Path) -> Image.Image:
    """A file as an RGB image. Raises DataError naming the file when it cannot be decoded whole."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; shrink it first"
                )
            return to_rgb(image)
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{path}: cannot be decoded ({error}); fetch it again or take it off the list"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits and three channels; PIL would clip 16-bit greys at 255 instead of scaling them."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        return Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8)).convert(
            "RGB"
        )
    return image.convert("RGB")


def load_photograph(images: ImageSet, i: int) -> Image.Image:
    """Image i at its own size, RGB, with the set's corruption where that is made while loading."""
    image = clickme_image(images, i) if is_clickme(images) else read_image(images.paths[i])
    if images.corruption and images.corruption.source != "folder":
        return corrupt(image, images.corruption, images.ids[i])
    return image


def set_preprocessing(images: ImageSet, preprocessing: dict) -> dict:
    """The model's preprocessing, without its crop for sets that are cropped already."""
    return preprocessing | {"crop_pct": 1.0} if images.cropped else preprocessing


class PixelDataset(Dataset):
    """(position, image (3, H, W) float32 in [0, 1]) as the model wants to see it; a DataError in place of a bad image.

    The error is returned, not raised: raised in a worker it would arrive as a traceback instead of a line.
    as_bytes   leave the image uint8, a quarter of the size on its way out of a worker
    """

    def __init__(self, images: ImageSet, preprocessing: dict, as_bytes: bool = False):
        self.images, self.as_bytes = images, as_bytes
        self.transform = create_transform(
            **set_preprocessing(images, preprocessing), is_training=False, normalize=False
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor | DataError]:
        try:
            x = self.transform(load_photograph(self.images, i))
        except DataError as error:
            return i, error
        return i, (x if self.as_bytes else in_unit_range(x))


def in_unit_range(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def stack_chunk(
    rows: list[tuple[int, Tensor | DataError]],
) -> tuple[list[int], Tensor, DataError | None]:
    """(positions, images (n, 3, H, W), None), up to the first bad image, whose error then comes last."""
    good: list[Tensor] = []
    error = None
    for _, x in rows:
        if isinstance(x, DataError):
            error = x
            break
        good.append(x)
    return [i for i, _ in rows[: len(good)]], torch.stack(good) if good else torch.empty(0), error


def stream_images(
    images: ImageSet, preprocessing: dict, workers: int = 0
) -> Iterator[tuple[str, Tensor, int]]:
    """(image_id, image, label) in list order, decoded ahead by `workers` processes; a few dozen images are in memory.

    Workers send chunks: sixteen images in one message cost this process a third of sixteen messages.
    """
    pixels = PixelDataset(images, preprocessing, as_bytes=True)
    chunks = (
        DataLoader(
            pixels,
            CHUNK,
            collate_fn=stack_chunk,
            num_workers=workers,
            worker_init_fn=leave_the_group,
        )
        if workers
        else (stack_chunk([pixels[i]]) for i in range(len(images)))
    )
    for rows, x, error in chunks:
        for i, image in zip(rows, x):
            yield images.ids[i], in_unit_range(image), images.labels[i]
        if error is not None:
            raise error


def leave_the_group(_: int) -> None:
    """SIGTERM to the process group is for the script, which ends its workers by itself."""
    os.setpgrp()
