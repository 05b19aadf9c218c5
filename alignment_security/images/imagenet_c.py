"""Corruptions of ImageNet-C that imagecorruptions makes otherwise: elastic_transform, frost, snow.

As hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py, made them (Hendrycks & Dietterich
2019): the same constants, and random numbers in the same order. imagecorruptions has other
constants in elastic_transform, and in frost a sixth texture and another scale of all of them. In
snow it rounds the layer after the motion blur, not before, and cuts it at one side.

Each takes uint8 (H, W, 3), a severity from 1 to 5 and a generator, and returns the same type.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

Random = np.random.RandomState
# severity -> strength and width of the displacement, and range of the affine part, in pixels
ELASTIC = (
    (244 * 2, 244 * 0.7, 244 * 0.1),
    (244 * 2, 244 * 0.08, 244 * 0.2),
    (244 * 0.05, 244 * 0.01, 244 * 0.02),
    (244 * 0.07, 244 * 0.01, 244 * 0.02),
    (244 * 0.12, 244 * 0.01, 244 * 0.02),
)
# severity -> weights of the image and of the texture
FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
TEXTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
# severity -> mean and deviation of the layer, its zoom and threshold, radius and sigma of its
# motion blur, weight of the image
SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
LUMA = (0.299, 0.587, 0.114)


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Levels from 0 to 255 as uint8, cut off as numpy casts."""
    return np.clip(values, 0, 255).astype(np.uint8)


# ---- elastic_transform ---------------------------------------------------------------------------


def elastic_transform(pixels: np.ndarray, severity: int, random: Random) -> np.ndarray:
    """A random affine map of three points, then a smooth random displacement of every pixel."""
    strength, width, affine_range = ELASTIC[severity - 1]
    values = pixels.astype(np.float32) / 255
    size = values.shape[:2]
    inverse = inverse_affine(size, affine_range, random)
    y, x = np.indices(size)
    at_x, at_y = (inverse @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])).reshape(2, *size)
    values = sample(values, at_y, at_x, "mirror")

    dx, dy = (
        ndimage.gaussian_filter(random.uniform(-1, 1, size), width, mode="reflect", truncate=3)
        for _ in "xy"
    )
    return to_pixels(255 * sample(values, y + strength * dy, x + strength * dx, "reflect"))


def inverse_affine(size: tuple[int, int], largest: float, random: Random) -> np.ndarray:
    """(2, 3) map from a pixel (x, y, 1) of the result to the image: three points move at random.

    largest   change of a coordinate, in pixels
    """
    centre, reach = np.array(size, np.float32) // 2, min(size) // 3
    points = np.array([centre + reach, centre + [reach, -reach], centre - reach], np.float32)
    moved = points + random.uniform(-largest, largest, points.shape).astype(np.float32)
    return np.linalg.solve(np.column_stack([moved, np.ones(3)]), points).T


def sample(values: np.ndarray, y: np.ndarray, x: np.ndarray, mode: str) -> np.ndarray:
    """`values` (H, W, 3) at real-valued places, bilinear; `mode` continues them at the border."""
    channels = np.moveaxis(values, -1, 0)
    moved = [ndimage.map_coordinates(one, (y, x), order=1, mode=mode) for one in channels]
    return np.stack(moved, axis=-1)


# ---- frost ---------------------------------------------------------------------------------------


@cache
def texture(name: str) -> np.ndarray:
    """A frost texture of the imagecorruptions package, uint8 (H, W, 3): ImageNet-C's own files."""
    path = importlib.resources.files("imagecorruptions") / "frost" / name
    with importlib.resources.as_file(path) as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def frost(pixels: np.ndarray, severity: int, random: Random) -> np.ndarray:
    """A crop of a texture laid over the image, at the texture's own scale."""
    of_image, of_texture = FROST[severity - 1]
    height, width = pixels.shape[:2]
    ice = texture(TEXTURES[random.randint(len(TEXTURES))])
    top = random.randint(0, ice.shape[0] - height)
    left = random.randint(0, ice.shape[1] - width)
    crop = ice[top : top + height, left : left + width]
    return to_pixels(of_image * pixels.astype(float) + of_texture * crop)


# ---- snow ----------------------------------------------------------------------------------------


def snow(pixels: np.ndarray, severity: int, random: Random) -> np.ndarray:
    """Flakes blurred along a slanting line, twice, over an image that is whitened."""
    mean, deviation, zoom, threshold, radius, sigma, of_image = SNOW[severity - 1]
    x = pixels.astype(np.float32) / 255
    layer = clipped_zoom(random.normal(mean, deviation, x.shape[:2]), zoom)
    layer[layer < threshold] = 0
    layer = to_pixels(255 * layer)
    layer = motion_blur(layer, radius, sigma, random.uniform(-135, -45)) / 255
    white = 1.5 * (x @ np.array(LUMA, np.float32))[..., None] + 0.5
    x = of_image * x + (1 - of_image) * np.maximum(x, white)
    return to_pixels(255 * (x + layer[..., None] + np.rot90(layer, 2)[..., None]))


def clipped_zoom(values: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a square array, enlarged to its size."""
    side = len(values)
    inner = math.ceil(side / factor)
    first = (side - inner) // 2
    large = ndimage.zoom(values[first : first + inner, first : first + inner], factor, order=1)
    first = (len(large) - side) // 2
    return large[first : first + side, first : first + side]


def motion_blur(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's MotionBlurImage of uint8 (H, W): a one-sided Gaussian along a line."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    direction = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = (np.ceil(steps * one - 0.5).astype(int) for one in direction)
    margin, (height, width) = len(steps), values.shape
    padded = np.pad(values.astype(float), margin, mode="edge")
    blurred = sum(
        weight * padded[margin + dy :, margin + dx :][:height, :width]
        for weight, dy, dx in zip(weights / weights.sum(), down, across)
    )
    return np.round(blurred)


MADE_HERE: dict[str, Callable[[np.ndarray, int, Random], np.ndarray]] = {
    "elastic_transform": elastic_transform,
    "frost": frost,
    "snow": snow,
}
