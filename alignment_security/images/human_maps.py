"""What people said of an image: where they look (ClickMe, the sample's drawings) and all the labels that fit (ReaL, ...).

A map goes through the resize and crop of its photograph, so that it lies over the image that the model sees.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from alignment_security.common.files import sha256_file
from alignment_security.common.settings import ROOT
from alignment_security.images.clickme import clickme_sample, is_clickme
from alignment_security.images.image_sets import ImageSet

SAMPLE_MAPS = ROOT / "lists" / "maps" / "sample_hand_drawn.json"
BLUR_SIDE, BLUR_KERNEL, BLUR_SIGMA = (
    64,
    10,
    10.0,
)  # serre-lab/Harmonization, harmonization/common/blur.py


# ---- maps ------------------------------------------------------------------------------------------------------


@cache
def drawings() -> dict[str, list[list[float]]]:
    """Ellipses of each photograph of `sample`. Hand-drawn for this project; not ClickMe and not from participants."""
    return json.loads(SAMPLE_MAPS.read_text())["maps"]


def draw_ellipses(ellipses: list[list[float]], height: int, width: int) -> np.ndarray:
    """Maximum over ellipses of weight * exp(-2 ((u/rx)^2 + (v/ry)^2)), float32 (height, width).

    ellipses   [cx, cy, rx, ry, angle in degrees, weight], in fractions of the width (x) and height (y)
    """
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    x, y, drawn = x[None, :], y[:, None], np.zeros((height, width))
    for cx, cy, rx, ry, angle, weight in ellipses:
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        u, v = c * (x - cx) + s * (y - cy), -s * (x - cx) + c * (y - cy)
        drawn = np.maximum(drawn, weight * np.exp(-2 * ((u / rx) ** 2 + (v / ry) ** 2)))
    return drawn.astype(np.float32)


def map_source(images: ImageSet) -> str | None:
    """What the maps of a set are, for the run file; None for a set without."""
    if is_clickme(images):
        return "ClickMe"
    return (
        f"hand-drawn, sha256 {sha256_file(SAMPLE_MAPS)[:12]}" if images.name == "sample" else None
    )


def original_map(images: ImageSet, i: int) -> np.ndarray | None:
    """Where people look in image i, float32 (H, W) at the photograph's own size; None where there is no map."""
    if is_clickme(images):
        return clickme_sample(images, i).heatmap
    ellipses = drawings().get(images.ids[i]) if images.name == "sample" else None
    if ellipses is None:
        return None
    with Image.open(images.paths[i]) as image:
        return draw_ellipses(ellipses, image.height, image.width)


def human_map(
    images: ImageSet, i: int, preprocessing: dict, blur: bool = False
) -> np.ndarray | None:
    """The map of image i over the pixels that the model sees, float32 (H, W), or None: no map, or one of zeros.

    preprocessing   of the model: the same size, crop and crop mode as the photograph goes through, always bilinear
    blur            Harmonization's reading before that (serre-lab/Harmonization, common/clickme_dataset.py): to 64 x 64,
                    a Gaussian of 10 x 10 pixels (sigma 10)
    """
    drawn = original_map(images, i)
    if drawn is None or not drawn.any():
        return None
    size = preprocessing["input_size"]
    geometry = (
        preprocessing
        | {"interpolation": "bilinear"}
        | ({"crop_pct": 1.0} if images.cropped else {})
    )
    transform = create_transform(
        **geometry, is_training=False, normalize=False, mean=(0.0,)
    )  # 0 where `border` pads
    seen = transform(Image.fromarray(harmonization_blur(drawn) if blur else drawn))[0].numpy()
    assert seen.shape == tuple(size[1:])
    return seen if seen.any() else None


def harmonization_blur(drawn: np.ndarray) -> np.ndarray:
    """A map (H, W) at 64 x 64 after Harmonization's blur: an even kernel, offsets -5..4, padded with zeros as in
    TensorFlow (4 before, 5 after). tf.image.resize does not antialias, nor does this.
    """
    side = torch.from_numpy(drawn)[None, None]
    small = torch.nn.functional.interpolate(
        side, size=(BLUR_SIDE, BLUR_SIDE), mode="bilinear", align_corners=False
    )
    at = torch.arange(BLUR_KERNEL, dtype=torch.float32) - BLUR_KERNEL // 2
    line = torch.exp(-(at**2) / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(
        line.flip(0), line
    )  # rows count down from 4 in the source, columns up from -5
    padded = torch.nn.functional.pad(small, ((BLUR_KERNEL - 1) // 2, BLUR_KERNEL // 2) * 2)
    return torch.nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])[0, 0].numpy()


def count_without_map(images: ImageSet) -> int:
    """How many images of a set with maps have none, or one of zeros."""
    return sum(
        drawn is None or not drawn.any()
        for drawn in (original_map(images, i) for i in range(len(images)))
    )
