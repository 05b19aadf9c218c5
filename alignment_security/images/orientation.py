"""Photographs that their files ask to be turned: the EXIF tag `Orientation` of cameras and phones.

Pixels are read as the file stores them, as timm and torchvision's ImageFolder read them, so that
records of ImageNet's sets stay comparable. A model then sees such a photograph sideways.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from PIL import ExifTags, Image

from alignment_security.common.text import some_of
from alignment_security.images.decoding import available_formats
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import has_imagenet_order

MOST_READ = 10_000  # files of a set whose headers are read
UPRIGHT = 1
MEND = "Pillow's ImageOps.exif_transpose or `mogrify -auto-orient` turns copies upright"


def is_turned(path: Path) -> bool:
    """Whether a file asks for a turn or a mirror image that reading it does not make.

    Only the header is read. Pillow itself turns TIFF files.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=available_formats()) as image:
                # not a PNG's own getexif, which decodes the picture
                tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
                return image.format != "TIFF" and tag in range(UPRIGHT + 1, 9)
    except Exception:  # of a damaged header; decoding the image says what is wrong with it
        return False


def with_orientation_notes(images: ImageSet) -> ImageSet:
    """The set with `orientation_notes` among its notes."""
    return replace(images, notes=(*images.notes, *orientation_notes(images)))


def orientation_notes(images: ImageSet) -> list[str]:
    """A sentence that counts and names the images of a user's own set that ask for a turn.

    Of a set of more than MOST_READ images, evenly spread ones are looked at. Sets with a name of
    ours are read as everybody reads them, without a word.
    """
    if has_imagenet_order(images.name):
        return []
    step = -(-len(images) // MOST_READ)
    read = range(0, len(images), step)
    turned = [images.ids[i] for i in read if is_turned(images.paths[i])]
    if not turned:
        return []
    of = f"{len(images)} images" if step == 1 else f"{len(read)} images looked at"
    return [
        f"{len(turned)} of {of} of {images.name} are sideways, upside down or mirrored to the "
        "model: their EXIF tag Orientation asks for a turn, and pixels are taken as stored; "
        f"{MEND}, over which human maps fit: {some_of(turned)}"
    ]
