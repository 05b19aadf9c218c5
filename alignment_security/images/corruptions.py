"""Corruptions of ImageNet-C: published folders, or made while loading.

ImageNet-C and Tiny-ImageNet-C: Hendrycks & Dietterich 2019.
"""

from __future__ import annotations

import io
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import functional

from alignment_security.common.seeds import seed_from_text
from alignment_security.common.settings import IMAGENET_CLASSES, SEVERITIES
from alignment_security.images.class_folders import class_folders, folder_set
from alignment_security.images.image_sets import Corruption, DataError, ImageSet, synset_labels
from alignment_security.images.imagenet import imagenet_folders
from alignment_security.images.imagenet_c import MADE_HERE

TINY_IMAGENET_CLASSES = 200
CORRUPTION_PACKAGE = "imagecorruptions-imaug"  # on PyPI; imports as imagecorruptions
# made as the code of ImageNet-C makes them, not by the package
SOURCE_CODE = "hendrycks/robustness create_c"
WITHOUT_PACKAGE = frozenset(MADE_HERE) - {"frost"}  # whose textures are the package's
OWN_GENERATOR = ("impulse_noise", "glass_blur")  # these take a seed instead of numpy's global state
# hendrycks/robustness, ImageNet-C/create_c: pixels of the shorter side and the crop, JPEG quality
IMAGENET_C_SIZE, IMAGENET_C_CROP, IMAGENET_C_QUALITY = 256, 224, 85


# ---- published folders ---------------------------------------------------------------------------


def corruption_set(name: str, root: Path, corruption: tuple[str, int] | None) -> ImageSet:
    """ImageNet-C or Tiny-ImageNet-C at one (type, severity).

    Both sets hold crops, so they are not cropped again. Tiny-ImageNet-C's 200 classes keep their
    indices among the 1000. `restrict_to` lists them, and a 1000-way model answers with the best of
    the 200. Raises DataError, naming what is in the folder.
    """
    kind, severity = _existing_corruption(root, corruption)
    folder = root / kind / str(severity)
    if name == "imagenet-c":
        images = imagenet_folders(folder, name)
    else:
        images = _tiny_imagenet(name, folder)
    return replace(images, corruption=Corruption(kind, severity), cropped=True)


def _existing_corruption(root: Path, corruption: tuple[str, int] | None) -> tuple[str, int]:
    """The corruption, if root/<type>/<severity> exists. Raises DataError."""
    types = class_folders(root)
    if corruption is None or corruption[0] not in types:
        asked = "no corruption was named" if not corruption else f"no corruption {corruption[0]!r}"
        raise DataError(f"{root}: {asked}; in the folder: {', '.join(types) or 'nothing'}")
    kind, severity = corruption
    if severity not in SEVERITIES or not (root / kind / str(severity)).is_dir():
        there = ", ".join(class_folders(root / kind)) or "nothing"
        raise DataError(f"{root / kind}: no severity {severity}; in the folder: {there}")
    return kind, severity


def _tiny_imagenet(name: str, folder: Path) -> ImageSet:
    """The images of 200 synset folders, with answers restricted to their classes."""
    images = folder_set(name, folder, IMAGENET_CLASSES)
    classes = class_folders(folder)
    if len(classes) != TINY_IMAGENET_CLASSES:
        raise DataError(
            f"{folder}: {len(classes)} class folders, Tiny-ImageNet-C has "
            f"{TINY_IMAGENET_CLASSES}; extract it again"
        )
    index = synset_labels()
    return replace(images, restrict_to=tuple(sorted(index[synset] for synset in classes)))


# ---- corruptions made while loading --------------------------------------------------------------


def corruption_library():
    """The imagecorruptions package. Raises DataError with the command that installs it."""
    try:
        import imagecorruptions
    except ImportError as error:
        raise DataError(
            f"corruptions are made by {CORRUPTION_PACKAGE}, which cannot be imported ({error}); "
            f"`pip install {CORRUPTION_PACKAGE}` (its OpenCV needs the system's libGL), or give "
            "the folder of ImageNet-C"
        ) from None
    return imagecorruptions


def with_corruption(images: ImageSet, kind: str, severity: int, seed: int = 0) -> ImageSet:
    """`images` with a corruption of ImageNet-C, applied to each image while it is loaded.

    Raises DataError for an unknown type or severity.
    """
    if kind not in WITHOUT_PACKAGE:
        known = corruption_library().get_corruption_names("all")
        if kind not in known:
            raise DataError(f"no corruption {kind!r}; there are {', '.join(known)}")
    if severity not in SEVERITIES:
        raise DataError(
            f"{kind}: no severity {severity}; there are {SEVERITIES[0]} to {SEVERITIES[-1]}"
        )
    source = SOURCE_CODE if kind in MADE_HERE else ""
    if kind not in WITHOUT_PACKAGE:
        package = f"{CORRUPTION_PACKAGE} {metadata.version(CORRUPTION_PACKAGE)}"
        source = f"{source}, textures of {package}" if source else package
    return replace(images, corruption=Corruption(kind, severity, source, seed), cropped=True)


def corrupt(image: Image.Image, corruption: Corruption, image_id: str) -> Image.Image:
    """One image as ImageNet-C was made: RGB, 224 x 224 pixels.

    Steps, as in hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py: shorter side to 256,
    centre crop of 224, corruption, JPEG of quality 85. The noise depends on (seed, image_id) only.
    """
    crop = functional.center_crop(functional.resize(image, IMAGENET_C_SIZE), IMAGENET_C_CROP)
    seed = seed_from_text(f"{corruption.seed}:{image_id}", n_bytes=4)
    corrupted = _corrupt_pixels(np.asarray(crop), corruption, seed)
    file = io.BytesIO()
    Image.fromarray(corrupted).save(file, "JPEG", quality=IMAGENET_C_QUALITY, optimize=True)
    return Image.open(file).convert("RGB")


def _corrupt_pixels(pixels: np.ndarray, corruption: Corruption, seed: int) -> np.ndarray:
    """A corruption of uint8 (H, W, 3); leaves numpy's global generator as it was.

    By imagecorruptions, where it does as ImageNet-C's code (MADE_HERE has the others).
    """
    if corruption.type in MADE_HERE:
        random = np.random.RandomState(seed)
        return MADE_HERE[corruption.type](pixels, corruption.severity, random)
    own_seed = {"seed": seed} if corruption.type in OWN_GENERATOR else {}
    state = np.random.get_state()
    try:
        np.random.seed(seed)  # the package draws from numpy's global generator
        return corruption_library().corrupt(
            pixels, corruption_name=corruption.type, severity=corruption.severity, **own_seed
        )
    finally:
        np.random.set_state(state)
