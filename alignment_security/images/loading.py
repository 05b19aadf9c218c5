"""Load image sets by name, and stream their images as float32 in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from alignment_security.common.files import UserError, reading
from alignment_security.common.pixels import in_unit_range
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.images.class_folders import folder_set
from alignment_security.images.clickme import clickme_sample, clickme_set, is_clickme
from alignment_security.images.clickme_pairs import big12_or_pairs
from alignment_security.images.corruptions import corrupt, corruption_set, with_corruption
from alignment_security.images.decoded import DECODED, image_key
from alignment_security.images.decoding import read_image
from alignment_security.images.image_sets import (
    DataError,
    ImageSet,
    check_folder_is_read,
    default_dir,
    existing_folder,
    sample_set,
)
from alignment_security.images.imagenet import imagenet_set
from alignment_security.images.objectnet import objectnet_set
from alignment_security.images.subsets import attackbench_set, robustbench_set
from alignment_security.images.variants import VARIANTS, variant_set
from alignment_security.images.workers import worker_loader

NAMED_SETS: dict[str, Callable[[Path], ImageSet]] = {
    "imagenet-val": imagenet_set,
    "big12": big12_or_pairs,
    "clickme": clickme_set,
    "robustbench": robustbench_set,
    "attackbench": attackbench_set,
    "objectnet": objectnet_set,
    **{name: partial(variant_set, name) for name in VARIANTS},
}
CORRUPTED_SETS = ("imagenet-c", "tiny-imagenet-c")
# Images that a worker sends at once: one message of 16 costs the receiving process a third of the
# time of 16 messages.
CHUNK_IMAGES = 16
Chunk = tuple[Tensor, UserError | None]  # as stack_chunk returns it


def load_image_set(
    name: str,
    data_dir: str | None = None,
    n_outputs: int = IMAGENET_CLASSES,
    corruption: tuple[str, int] | None = None,
    seed: int = 0,
    class_order: str | Path | None = None,
) -> ImageSet:
    """The image set called `name`; image_sets.py lists the names.

    data_dir    folder of the images; default: that of .env; not needed for `sample`
    n_outputs   of the model; the set must have as many classes
    corruption  (type, severity): the folder of imagenet-c and tiny-imagenet-c; for other sets, the
                corruption that is made while loading
    seed        of corruptions made while loading, drawn per image from (seed, image id)
    class_order "text", "natural" or a file: the order of class folders (class_folders.folder_set)

    Raises DataError for data that is missing, incomplete or inconsistent.
    """
    check_folder_is_read(name, data_dir)
    try:
        data_dir = data_dir or default_dir(name)
        with reading(data_dir or name):
            images = _named_set(name, data_dir, n_outputs, corruption, class_order)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if images.n_classes != n_outputs:
        raise DataError(
            f"{name}: has {images.n_classes} classes, the model {n_outputs} outputs, so that its "
            "classes are others; take a model of these classes, or put images of its classes into "
            "--data_dir under another --dataset name"
        )
    if corruption is None or images.corruption:
        return images
    return with_corruption(images, *corruption, seed)


def _named_set(
    name: str,
    data_dir: str | None,
    n_outputs: int,
    corruption: tuple[str, int] | None,
    class_order: str | Path | None,
) -> ImageSet:
    """The image set before a corruption that is made while loading. Raises DataError, OSError."""
    if class_order is not None and has_imagenet_order(name):
        raise DataError(f"--class_order {class_order}: {name} has the order of ImageNet's classes")
    if name in CORRUPTED_SETS:
        return corruption_set(name, existing_folder(name, data_dir), corruption)
    if name == "sample":
        return sample_set()
    if name in NAMED_SETS:
        return NAMED_SETS[name](existing_folder(name, data_dir))
    return folder_set(name, existing_folder(name, data_dir), n_outputs, class_order)


def has_imagenet_order(name: str) -> bool:
    """Whether the image set of that name has ImageNet's labels, whatever its folders are called."""
    return name == "sample" or name in NAMED_SETS or name in CORRUPTED_SETS


# ---- one image -----------------------------------------------------------------------------------


def load_photograph(images: ImageSet, i: int) -> Image.Image:
    """Image i at its own size, without the set's border, RGB.

    Corrupted if the set's corruption is made while loading.

    Raises DataError.
    """
    if is_clickme(images):
        image = Image.fromarray(clickme_sample(images, i).image)
    else:
        image = read_image(images.paths[i])
    if images.border:
        image = ImageOps.crop(image, images.border)
    if images.corruption and images.corruption.source != "folder":
        return corrupt(image, images.corruption, images.ids[i])
    return image


def set_preprocessing(images: ImageSet, preprocessing: dict) -> dict:
    """The model's preprocessing, without its crop for sets whose images are crops already."""
    return preprocessing | {"crop_pct": 1.0} if images.cropped else preprocessing


class PixelDataset(Dataset):
    """Images (3, H, W) uint8 after the model's preprocessing.

    For a bad image the error is returned in place of the image. Raised in a worker, it would
    arrive as a traceback instead of one line.
    """

    def __init__(self, images: ImageSet, preprocessing: dict):
        self.images = images
        self.transform = create_transform(
            **set_preprocessing(images, preprocessing), is_training=False, normalize=False
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor | UserError:
        try:
            return self.transform(load_photograph(self.images, i))
        except UserError as error:
            return error


# ---- streaming -----------------------------------------------------------------------------------


def stream_images(
    images: ImageSet, preprocessing: dict, workers: int = 0
) -> Iterator[tuple[str, Tensor, int]]:
    """(image_id, image (3, H, W) float32 in [0, 1], label) in list order.

    workers   processes that decode ahead; 0 decodes in this process

    A few dozen images are in memory at a time. Raises UserError for a bad image, after the images
    in front of it.
    """
    pixels = PixelDataset(images, preprocessing)
    for name, x, label in zip(images.ids, _decoded(pixels, preprocessing, workers), images.labels):
        yield name, in_unit_range(x), label


def stream_bytes(
    images: ImageSet, preprocessing: dict, workers: int = 0
) -> Iterator[tuple[str, Tensor, int]]:
    """As `stream_images`, but uint8 levels; an image that DECODED keeps is not decoded again."""
    wanted = set_preprocessing(images, preprocessing)
    keys = [image_key(images, i) for i in range(len(images))]
    kept = list(map(DECODED.of(wanted).get, keys))
    missing = images.take(i for i, x in enumerate(kept) if x is None)
    pixels = PixelDataset(missing, preprocessing)
    decoded = _decoded(pixels, preprocessing, workers)
    for name, key, x, label in zip(images.ids, keys, kept, images.labels):
        if x is None:
            x = next(decoded)
            DECODED.keep(wanted, key, x)
        yield name, x, label


def _decoded(pixels: PixelDataset, preprocessing: dict, workers: int) -> Iterator[Tensor]:
    """The images one by one. Raises UserError for a bad one."""
    for x, error in _chunks(pixels, preprocessing, workers):
        yield from x
        if error is not None:
            raise error


def _chunks(pixels: PixelDataset, preprocessing: dict, workers: int) -> Iterable[Chunk]:
    """The images as stack_chunk returns them, from worker processes or one by one."""
    if not workers:
        return (stack_chunk([pixels[i]]) for i in range(len(pixels)))
    message_bytes = CHUNK_IMAGES * math.prod(preprocessing["input_size"])
    return worker_loader(pixels, workers, stack_chunk, message_bytes, batch_size=CHUNK_IMAGES)


def stack_chunk(rows: list[Tensor | UserError]) -> Chunk:
    """(images (n, 3, H, W), None); or those up to the first bad image, with its error."""
    good: list[Tensor] = []
    for x in rows:
        if isinstance(x, UserError):
            return torch.stack(good) if good else torch.empty(0), x
        good.append(x)
    return torch.stack(good), None
