"""ObjectNet (Barbu et al. 2019), judged over the 113 of its 313 classes that ImageNet has.

The folder is objectnet-1.0 as its ZIP unpacks: images/FOLDER/*.png, and mappings/ with the classes
of ImageNet that each class of ObjectNet stands for. A class may stand for several (a chair is a
barber chair, folding chair or rocking chair): an answer counts for any of them.
"""

from __future__ import annotations

import json
from pathlib import Path

from timm.data import ImageNetInfo

from alignment_security.common.files import UserError
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.common.text import printable_name, read_text
from alignment_security.images.class_folders import (
    class_folders,
    class_of,
    list_images,
    listing_notes,
)
from alignment_security.images.image_sets import DataError, ImageSet, checked_set

BORDER = 2  # pixels in red around each image, which its authors ask to cut off
CLASSES_OF_LABEL = "objectnet_to_imagenet_1k.json"  # {label: ImageNet names joined by "; "}
LABEL_OF_FOLDER = "folder_to_objectnet_label.json"


def objectnet_set(root: Path) -> ImageSet:
    """The images of ObjectNet's classes that ImageNet has. Raises DataError.

    The label of an image is the first class of its folder, whose others are in `merged`.
    """
    classes_of = read_mappings(root / "mappings")
    images = root / "images"
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; --data_dir is ObjectNet's objectnet-1.0")
    missing = sorted(classes_of.keys() - set(class_folders(images)))
    if missing:
        raise DataError(
            f"{images}: {len(missing)} of its {len(classes_of)} folders with classes of ImageNet "
            f"are missing ({', '.join(missing[:3])}); unpack it again"
        )
    listing = list_images(images)
    inside = [path for path in listing.files if path.parent != images]
    rows = [
        (printable_name(path.relative_to(images)), path, classes_of[folder][0])
        for path in inside
        if (folder := class_of(images, path)) in classes_of
    ]
    others = len(listing.files) - len(rows)
    note = f"{images}: {others} images of classes that ImageNet does not have are left out"
    return checked_set(
        "objectnet",
        rows,
        restrict_to=tuple(sorted(classes[0] for classes in classes_of.values())),
        merged=tuple(sorted(classes for classes in classes_of.values() if len(classes) > 1)),
        border=BORDER,
        notes=(*listing_notes(images, listing), *([note] if others else [])),
    )


def read_mappings(folder: Path) -> dict[str, tuple[int, ...]]:
    """{image folder: its ImageNet classes} from ObjectNet's mappings. Raises DataError."""
    names = ImageNetInfo()
    index = {names.index_to_description(i, detailed=False): i for i in range(IMAGENET_CLASSES)}
    try:
        classes_of_label, label_of_folder = (
            json.loads(read_text(folder / name)) for name in (CLASSES_OF_LABEL, LABEL_OF_FOLDER)
        )
        folder_of = {label: name for name, label in label_of_folder.items()}
        return {
            folder_of[label]: tuple(sorted(index[name] for name in classes.split("; ")))
            for label, classes in classes_of_label.items()
        }
    except (OSError, UserError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder}: not ObjectNet's mappings ({error!r}); --data_dir is the folder "
            "objectnet-1.0 with images/ and mappings/"
        ) from None
