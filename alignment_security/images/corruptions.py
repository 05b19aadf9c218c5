"""alignment_security.images.corruptions."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import functional

from alignment_security.images.image_sets import (
    Corruption,
    DataError,
    ImageSet,
    folder_set,
    imagenet_folders,
    synsets,
)

SEVERITIES = (1, 2, 3, 4, 5)
TINY_IMAGENET_CLASSES = 200


# ---- corruptions on disk ---------------------------------------------------------------------------------------


def corruption_set(name: str, root: Path, corruption: tuple[str, int] | None) -> ImageSet:
    """ImageNet-C or Tiny-ImageNet-C at one type and severity (Hendrycks & Dietterich 2019).

    Tiny-ImageNet-C's 200 classes keep their indices among the 1000, and `restrict_to` says which they are: a 1000-way
    model is asked for the best of the 200. Both sets hold crops already, so nothing is cut off again.
    """
    types = sorted(p.name for p in root.iterdir() if p.is_dir())
    if corruption is None or corruption[0] not in types:
        asked = (
            "no corruption was named" if corruption is None else f"no corruption {corruption[0]!r}"
        )
        raise DataError(f"{root}: {asked}; in the folder: {', '.join(types) or 'nothing'}")
    kind, severity = corruption
    folder = root / kind / str(severity)
    if severity not in SEVERITIES or not folder.is_dir():
        there = sorted(p.name for p in (root / kind).iterdir() if p.is_dir())
        raise DataError(
            f"{root / kind}: no severity {severity}; in the folder: {', '.join(there) or 'nothing'}"
        )
    what: dict = {"corruption": Corruption(kind, severity), "cropped": True}
    if name == "imagenet-c":
        return replace(imagenet_folders(folder, name), **what)
    images, classes = folder_set(name, folder, 1000), [p for p in folder.iterdir() if p.is_dir()]
    if len(classes) != TINY_IMAGENET_CLASSES:
        raise DataError(
            f"{folder}: {len(classes)} class folders, Tiny-ImageNet-C has {TINY_IMAGENET_CLASSES}; extract it again"
        )
    index = {synset: i for i, synset in enumerate(synsets())}
    return replace(images, restrict_to=tuple(sorted(index[p.name] for p in classes)), **what)


CORRUPTION_PACKAGE = "imagecorruptions-imaug"  # on PyPI; imports as imagecorruptions
IMAGENET_C_SIZE, IMAGENET_C_CROP, IMAGENET_C_QUALITY = (
    256,
    224,
    85,
)  # hendrycks/robustness, ImageNet-C/create_c


# ---- corruptions made while loading ----------------------------------------------------------------------------


def corruption_library():
    """The imagecorruptions package, or a DataError that says how to get it."""
    try:
        import imagecorruptions
    except ImportError as error:
        raise DataError(
            f"corruptions are made by {CORRUPTION_PACKAGE}, which cannot be imported ({error}); `pip install "
            f"{CORRUPTION_PACKAGE}` (its OpenCV needs the system's libGL), or give the folder of ImageNet-C"
        ) from None
    return imagecorruptions


def with_corruption(images: ImageSet, kind: str, severity: int, seed: int = 0) -> ImageSet:
    """`images` with a corruption of ImageNet-C done to each while it is loaded. Raises DataError for an unknown one."""
    known = corruption_library().get_corruption_names("all")
    if kind not in known:
        raise DataError(f"no corruption {kind!r}; there are {', '.join(known)}")
    if severity not in SEVERITIES:
        raise DataError(f"{kind}: no severity {severity}; there are 1 to 5")
    source = f"{CORRUPTION_PACKAGE} {metadata.version(CORRUPTION_PACKAGE)}"
    return replace(images, corruption=Corruption(kind, severity, source, seed), cropped=True)


def corrupt(image: Image.Image, how: Corruption, image_id: str) -> Image.Image:
    """One image as ImageNet-C was made (hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py): shorter side to
    256, centre crop 224, corruption, JPEG of quality 85. Randomness comes from (seed, image id) alone.
    """
    seed = int.from_bytes(hashlib.sha256(f"{how.seed}:{image_id}".encode()).digest()[:4], "big")
    crop = functional.center_crop(functional.resize(image, IMAGENET_C_SIZE), IMAGENET_C_CROP)
    own_seed = {"seed": seed} if how.type in ("impulse_noise", "glass_blur") else {}
    state = np.random.get_state()
    try:
        np.random.seed(seed)  # the package draws from numpy's global generator
        pixels = corruption_library().corrupt(
            np.asarray(crop), corruption_name=how.type, severity=how.severity, **own_seed
        )
    finally:
        np.random.set_state(state)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=IMAGENET_C_QUALITY, optimize=True)
    return Image.open(file).convert("RGB")
