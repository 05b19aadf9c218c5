"""Decode image files: only formats of photographs, and only as many pixels as are reasonable."""

from __future__ import annotations

import errno
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from alignment_security.common.file_kinds import foreign_kind
from alignment_security.common.files import DEVICE_ERRORS, LIMIT_ERRORS, reading
from alignment_security.images.image_sets import DataError

# Formats that photographs and maps have. Pillow knows more: it hands PostScript to Ghostscript,
# which runs it as a program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
MAX_PIXELS = 100_000_000  # of an image file
# Longer to shorter side. Preprocessing scales the shorter side to the model's, so an image of
# 1 x 40,000 pixels would become one of 224 x 9 million.
MAX_ASPECT = 50
METADATA_TOO_LARGE = "Decompressed data too large"  # of a PNG's texts or profile, as Pillow says
LARGEST_16_BIT = 65535.0
# a record is of one list: without the image it is another one
ADVICE = "fetch it again, or evaluate a list without it into another --results_dir"


def read_image(path: Path) -> Image.Image:
    """A file as an RGB image. Raises DataError if it cannot be decoded whole, or is too large."""
    try:
        with reading(path), open(path, "rb") as file:
            return decode_image(file, str(path), ADVICE)
    except OSError as error:
        raise unreadable(path, error) from None
    except DataError:
        kind = foreign_kind(path)
        if kind is None:
            raise
        raise DataError(f"{path}: cannot be decoded: it is {kind}") from None


def decode_image(file: BinaryIO, where: str, advice: str = "") -> Image.Image:
    """An open file as an RGB image. Raises DataError, which begins with `where`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, palettes, and sizes: see check_size
            with Image.open(file, formats=available_formats()) as image:
                check_size(image, where)
                return to_rgb(image)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        size = str(error).partition(" exceeds")[0]
        raise DataError(f"{where}: {size}, more than {MAX_PIXELS:,}; shrink it first") from None
    except Exception as error:  # a decoder may raise anything on a file that is damaged or made up
        if isinstance(error, OSError) and error.errno in LIMIT_ERRORS | DEVICE_ERRORS:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        if METADATA_TOO_LARGE in reason:
            advice = "the picture may be whole: save it without its metadata and colour profile"
        end = f"; {advice}" if advice else ""
        raise DataError(f"{where}: cannot be decoded ({reason}){end}") from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error about a file that could not be read. It says nothing about the content."""
    advice = "bring it back" if error.errno == errno.ENOENT else "make it readable for this user"
    return DataError(f"{path}: cannot be read ({error.strerror}); {advice}")


def check_size(image: Image.Image, where: str) -> None:
    """Raise DataError for an image of too many pixels, or of a shape that scaling makes huge."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{where}: {size}, more than {MAX_PIXELS:,}; shrink it first")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise DataError(
            f"{where}: {size}, one side more than {MAX_ASPECT} times the other; it is no "
            "photograph, or crop it first"
        )


@cache
def available_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of eight bits. 16-bit greys are scaled; PIL would clip them at 255."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image.convert("RGB")
    grey = np.asarray(image, dtype=np.float64)
    white = 1.0 if image.mode == "F" else LARGEST_16_BIT
    levels = (grey / white * 255).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")
