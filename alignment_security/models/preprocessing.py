"""Measure what a preprocessing does, by calling it on synthetic images.

Brain-Score's plugins, torchvision and transformers hide it in code. Uniform images give mean and
std, and show that it is a normalisation; photograph-like scenes give size, crop and interpolation.
A preprocessing that timm's transforms cannot reproduce is refused.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import in_one_line

# uniform images: black and white give mean and std, the other two check them
UNIFORM_COLOURS = [(0, 0, 0), (255, 255, 255), (51, 102, 204), (204, 51, 102)]
# width and height of the scenes: no model's input size, one wide and one high to detect a squash
SCENE_SIZES = ((320, 240), (260, 340))
NORMALISATION_TOLERANCE = 1e-4  # relative to the largest normalised value, or absolute below 1
PIXEL_TOLERANCE = 1.01 / 255  # libraries round differently, by one of 255 levels
SMALLEST_CROP, USUAL_CROP = 0.6, 0.875  # fraction of the resized image that a central crop keeps
INTERPOLATIONS = ("bilinear", "bicubic")


@cache
def synthetic_scene(size: tuple[int, int]) -> Image.Image:
    """Smooth patches of colour with fine detail on top; no two ways of resizing it agree.

    size   (width, height) in pixels
    """
    random = np.random.default_rng(0)
    patches = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize(size, Image.Resampling.BICUBIC), dtype=int)
    detail = random.integers(-40, 41, (*size[::-1], 1))
    return Image.fromarray(np.clip(smooth + detail, 0, 255).astype(np.uint8))


def run_preprocessing(preprocess: Callable, images: list[Image.Image], name: str) -> Tensor:
    """Output of a preprocessing, which takes file names: (B, 3, H, W) float32.

    Raises ModelError if it fails or returns another shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images):
            image.save(path)
        try:
            made = preprocess(paths)
            batch = torch.stack([torch.as_tensor(np.array(part)) for part in made]).float()
        except Exception as error:  # a source's own code may raise anything
            raise ModelError(
                f"{name}: its preprocessing fails on a PNG ({in_one_line(error)})"
            ) from None
    if batch.ndim != 4 or batch.shape[1] != 3 or len(batch) != len(images):
        raise ModelError(
            f"{name}: its preprocessing gives {tuple(batch.shape)}, not an image (3, H, W) "
            "for each file"
        )
    return batch


def measured_normalisation(
    uniform: Tensor, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of a preprocessing, from its output for uniform images of UNIFORM_COLOURS.

    uniform   (B, 3, H, W) float32

    Raises ModelError unless the output is (x - mean) / std with pixels x in [0, 1], the same for
    every pixel and separate for each channel.
    """
    values = uniform.double().mean((2, 3))  # (B, 3)
    spread = (uniform - values[..., None, None]).abs().amax()
    black, white = values[0], values[1]
    std = 1 / (white - black)
    mean = -black * std
    expected = (torch.tensor(UNIFORM_COLOURS, dtype=torch.float64) / 255 - mean) / std
    limit = NORMALISATION_TOLERANCE * max(1.0, float(values.abs().max()))
    if (
        not torch.isfinite(std).all()
        or std.min() <= 0
        or spread > limit
        or (values - expected).abs().max() > limit
    ):
        raise ModelError(
            f"{name}: no mean and std explain its preprocessing: uniform images of "
            f"{UNIFORM_COLOURS} become {values.round(decimals=4).tolist()}"
        )
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    """To six decimals."""
    return tuple(values.mul(1e6).round().div(1e6).tolist())


def measured_geometry(pixels: Tensor, name: str) -> dict[str, Any]:
    """Resizing and cropping of a preprocessing, in timm's terms, from its output for the scenes.

    pixels   (2, 3, H, W) in [0, 1], one image for each of SCENE_SIZES

    Raises ModelError if none of candidate_geometries gives the same pixels.
    """
    height, width = pixels.shape[2:]
    for geometry in candidate_geometries(height, width):
        if _gives(geometry, pixels):
            return geometry
    raise ModelError(
        f"{name}: its preprocessing gives {height} x {width} pixels by a resizing that is neither "
        "a squash nor a central crop, bilinear or bicubic; no other can be reproduced"
    )


def candidate_geometries(height: int, width: int) -> Iterator[dict[str, Any]]:
    """The geometries that are tried: a squash, and central crops of every plausible resized side.

    Crops are tried for square inputs only, those near the usual crop of 0.875 first.
    """
    modes = [("squash", height)]
    if height == width:
        sides = range(height, int(height / SMALLEST_CROP) + 1)
        usual_first = sorted(sides, key=lambda side: abs(height / side - USUAL_CROP))
        modes += [("center", side) for side in usual_first]
    for mode, side in modes:
        for interpolation in INTERPOLATIONS:
            yield {
                "input_size": (3, height, width),
                "interpolation": interpolation,
                "crop_pct": _crop_pct(height, side),
                "crop_mode": mode,
            }


def _crop_pct(height: int, side: int) -> float:
    """A crop_pct for which timm, which takes floor(height / crop_pct), resizes to `side` pixels."""
    for fraction in (round(height / side, 3), height / side, height / (side + 0.5)):
        if math.floor(height / fraction) == side:
            return fraction
    raise AssertionError(f"height / ({side} + 0.5) always gives {side}")


def _gives(geometry: dict[str, Any], pixels: Tensor) -> bool:
    """Whether timm's transform of that geometry turns each scene into `pixels`, up to rounding."""
    transform = create_transform(**geometry, is_training=False, normalize=False)
    for size, wanted in zip(SCENE_SIZES, pixels):
        found = np.asarray(transform(synthetic_scene(size))) / 255
        if np.abs(found - wanted.numpy()).max() > PIXEL_TOLERANCE:
            return False
    return True


def measured_preprocessing(preprocess: Callable, name: str) -> dict[str, Any]:
    """input_size, interpolation, crop_pct, crop_mode, mean and std of a preprocessing.

    preprocess   file names -> normalised images (3, H, W), a list or a batch, as Brain-Score has it

    Raises ModelError if timm's transforms cannot reproduce it.
    """
    uniform = [Image.new("RGB", SCENE_SIZES[0], colour) for colour in UNIFORM_COLOURS]
    scenes = [synthetic_scene(size) for size in SCENE_SIZES]
    made = run_preprocessing(preprocess, [*uniform, *scenes], name)
    mean, std = measured_normalisation(made[: len(uniform)], name)
    channels = (3, 1, 1)
    pixels = made[len(uniform) :] * torch.tensor(std).view(channels)
    pixels = pixels + torch.tensor(mean).view(channels)
    return measured_geometry(pixels, name) | {"mean": mean, "std": std}
