"""Human maps: where people look in an image (ClickMe's heat maps, files of --map_dir, drawings).

A map goes through the same resize and crop as its photograph, so it aligns with the image that the
model sees.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from alignment_security.common.files import sha256_text_file
from alignment_security.common.settings import ROOT
from alignment_security.common.text import read_text, some_of
from alignment_security.images.clickme import clickme_sample, is_clickme
from alignment_security.images.decoding import read_image
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import set_preprocessing
from alignment_security.images.map_files import check_some_map, read_map_file

SAMPLE_MAPS = ROOT / "lists" / "maps" / "sample_hand_drawn.json"
# serre-lab/Harmonization, harmonization/common/blur.py: pixels of the map, the kernel and sigma
BLUR_SIDE, BLUR_KERNEL, BLUR_SIGMA = 64, 10, 10.0


def map_source(images: ImageSet) -> str | None:
    """Origin of a set's maps, for the run file; None for a set without maps."""
    if images.maps:
        return images.maps.source
    if is_clickme(images):
        return "ClickMe"
    if images.name == "sample":
        return f"hand-drawn, sha256 {sha256_text_file(SAMPLE_MAPS)[:12]}"
    return None


def is_blurred(images: ImageSet) -> bool:
    """Whether comparisons read a set's maps blurred (harmonization_blur).

    ClickMe's are, as they were when the human ceiling was measured; files where --blur_maps asks.
    """
    return is_clickme(images) if images.maps is None else images.maps.blur


def human_map(
    images: ImageSet, i: int, preprocessing: dict, blur: bool = False
) -> np.ndarray | None:
    """The map of image i over the pixels that the model sees, float32 (H, W).

    preprocessing   of the model; the map is resized and cropped like the photograph, but always
                    with bilinear interpolation
    blur            apply harmonization_blur first

    Returns None if the image has no map, or if the map is zero, before or after the crop.
    """
    drawn = original_map(images, i)
    if drawn is None or not drawn.any():
        return None
    if blur:
        shape = drawn.shape
        drawn = harmonization_blur(drawn)
        if shape[0] != shape[1]:  # back to the photograph's proportions, for the crop
            drawn = resize_map(drawn, shape)
    # crop mode `border` pads with the mean: 0 for maps
    over_map = {"interpolation": "bilinear", "mean": (0.0,)}
    geometry = set_preprocessing(images, preprocessing) | over_map
    transform = create_transform(**geometry, is_training=False, normalize=False)
    seen = transform(Image.fromarray(drawn))[0].numpy()
    assert seen.shape == tuple(preprocessing["input_size"][1:])
    return seen if seen.any() else None


def original_map(images: ImageSet, i: int) -> np.ndarray | None:
    """The map of image i at the size of the photograph, float32 (H, W); None if there is no map.

    Raises DataError for a file that is no map of its photograph.
    """
    if not has_map(images, i):
        return None
    if images.maps:
        path = images.maps.paths[images.ids[i]]
        return read_map_file(path, photograph_size(images, i), images.paths[i])
    if is_clickme(images):
        return clickme_sample(images, i).heatmap
    width, height = photograph_size(images, i)
    return draw_ellipses(drawings()[images.ids[i]], height, width)


def has_map(images: ImageSet, i: int) -> bool:
    """Whether image i has a map, without decoding it. It may be zero everywhere."""
    if images.maps:
        return images.ids[i] in images.maps.paths
    return is_clickme(images) or (images.name == "sample" and images.ids[i] in drawings())


def photograph_size(images: ImageSet, i: int) -> tuple[int, int]:
    """(width, height) of image i before any crop. Raises DataError for one that is no image."""
    if is_clickme(images):
        height, width, _ = clickme_sample(images, i).image.shape
        return width, height
    try:
        with Image.open(images.paths[i]) as image:
            return image.size
    except OSError:
        return read_image(images.paths[i]).size  # whose error names the file


def check_maps(images: ImageSet) -> list[str]:
    """Read the map of every image once, so that a bad one ends no attack half-way.

    Only of maps in files of their own: ClickMe's are read with their images. Returns a sentence
    that counts and names the constant maps, which correlate with nothing. Raises DataError, also
    where no image has a map.
    """
    check_some_map(images)
    if not images.maps:
        return []
    maps = (original_map(images, i) for i in range(len(images)))
    constant = [
        name
        for name, found in zip(images.ids, maps)
        if found is not None and found.min() == found.max()
    ]
    if not constant:
        return []
    return [
        f"{images.maps.folder}: the maps of {len(constant)} images are constant; human alignment "
        f"leaves these out: {some_of(constant)}"
    ]


# ---- hand-drawn maps -----------------------------------------------------------------------------


@cache
def drawings() -> dict[str, list[list[float]]]:
    """{image_id: ellipses} for the photographs of `sample`, as draw_ellipses takes them.

    They were drawn by hand for this project. They are not from ClickMe or from participants.
    """
    return json.loads(read_text(SAMPLE_MAPS))["maps"]


def draw_ellipses(ellipses: list[list[float]], height: int, width: int) -> np.ndarray:
    """Maximum over ellipses of weight * exp(-2 ((u/rx)^2 + (v/ry)^2)), float32 (height, width).

    ellipses   [cx, cy, rx, ry, angle in degrees, weight], the lengths as fractions of the width (x)
               and height (y). u and v are the coordinates along the axes of the ellipse
    """
    x = ((np.arange(width) + 0.5) / width)[None, :]
    y = ((np.arange(height) + 0.5) / height)[:, None]
    drawn = np.zeros((height, width))
    for cx, cy, rx, ry, angle, weight in ellipses:
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        u = cos * (x - cx) + sin * (y - cy)
        v = -sin * (x - cx) + cos * (y - cy)
        drawn = np.maximum(drawn, weight * np.exp(-2 * ((u / rx) ** 2 + (v / ry) ** 2)))
    return drawn.astype(np.float32)


def resize_map(drawn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map as float32 (height, width) = `size`, bilinear without antialiasing."""
    x = torch.from_numpy(drawn)[None, None]
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()


# ---- Harmonization's blur ------------------------------------------------------------------------


def harmonization_blur(drawn: np.ndarray) -> np.ndarray:
    """A map (H, W) resized to 64 x 64 and blurred as by Harmonization, float32 (64, 64).

    serre-lab/Harmonization, common/clickme_dataset.py and common/blur.py: a Gaussian kernel of
    10 x 10 pixels with sigma 10. The kernel is even, with offsets -5..4, and the map is padded with
    zeros as in TensorFlow (4 before, 5 after). tf.image.resize does not antialias; neither does
    this.
    """
    small = torch.from_numpy(resize_map(drawn, (BLUR_SIDE, BLUR_SIDE)))[None, None]
    offsets = torch.arange(BLUR_KERNEL, dtype=torch.float32) - BLUR_KERNEL // 2
    line = torch.exp(-(offsets**2) / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(line.flip(0), line)  # the source counts rows from 4 down, columns from -5
    before, after = (BLUR_KERNEL - 1) // 2, BLUR_KERNEL // 2
    padded = torch.nn.functional.pad(small, (before, after, before, after))
    return torch.nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])[0, 0].numpy()
