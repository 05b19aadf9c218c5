"""elastic_transform, frost and snow against the code of ImageNet-C, number by number."""

import importlib.util

import numpy as np
import pytest
import torch

from alignment_security.images import imagenet_c
from alignment_security.images.imagenet_c import MADE_HERE, TEXTURES, motion_blur, texture
from alignment_security.images.loading import load_image_set, stream_images

# hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py (OpenCV 4, scikit-image) after
# np.random.seed(7) on `picture()`, severities 1 to 5: the mean of the channels at (28, 28),
# (28, 84), (84, 28), ... every 56 pixels, the first two rows. The motion blur of snow is that of
# imagecorruptions.
CREATE_C = {
    "elastic_transform": [
        [56.67, 100.33, 136.33, 164.0, 79.67, 131.67, 86.67, 129.0],
        [101.0, 80.33, 116.67, 130.0, 114.0, 131.33, 108.33, 103.0],
        [69.67, 115.0, 146.0, 164.0, 112.33, 122.67, 83.67, 153.33],
        [69.67, 115.33, 146.33, 164.0, 112.33, 122.67, 84.0, 152.67],
        [68.33, 115.67, 146.33, 163.33, 112.0, 123.0, 83.67, 151.67],
    ],
    "frost": [
        [142.0, 175.0, 192.67, 202.0, 152.67, 169.33, 138.67, 212.33],
        [161.0, 191.33, 202.67, 210.67, 156.0, 170.67, 148.67, 216.0],
        [169.67, 199.0, 207.33, 215.0, 154.67, 171.0, 154.0, 217.33],
        [166.0, 197.0, 204.0, 213.67, 148.33, 165.0, 149.67, 209.33],
        [170.33, 200.67, 206.33, 214.67, 147.67, 165.67, 152.67, 209.0],
    ],
    "snow": [
        [100.0, 142.0, 171.33, 187.67, 147.0, 151.33, 123.67, 195.33],
        [111.67, 153.67, 183.0, 202.67, 162.0, 169.0, 143.67, 219.33],
        [118.67, 153.67, 183.67, 210.33, 162.0, 168.0, 143.67, 213.33],
        [138.0, 198.67, 205.33, 207.67, 169.33, 246.33, 160.33, 228.0],
        [148.67, 190.33, 200.33, 246.67, 250.33, 254.33, 177.33, 255.0],
    ],
}
has_package = importlib.util.find_spec("imagecorruptions") is not None


def picture() -> np.ndarray:
    """uint8 (224, 224, 3): two slopes and a wave."""
    y, x = np.mgrid[:224, :224] / 224
    channels = [255 * x, 255 * y, 127.5 + 127.5 * np.sin(20 * x * y)]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("kind", CREATE_C)
def test_corruptions_are_those_of_the_code_of_imagenet_c(kind, severity):
    if kind == "frost" and not has_package:
        pytest.skip("no imagecorruptions, whose textures frost takes")
    made = MADE_HERE[kind](picture(), severity, np.random.RandomState(7))
    assert made.shape == (224, 224, 3) and made.dtype == np.uint8
    found = made[28::56, 28::56].mean(axis=-1)[:2].ravel()
    np.testing.assert_allclose(
        found, CREATE_C[kind][severity - 1], atol=0.7
    )  # a level of a channel


def test_frost_is_a_weighted_sum_with_a_crop_of_the_texture(monkeypatch):
    """Texture i is constant, 10 i: an image of 100 becomes 100 + 0.4 * 10 i at severity 1."""
    size = (300, 400, 3)
    monkeypatch.setattr(imagenet_c, "texture", lambda name: np.full(size, 10 * int(name[5])))
    grey = np.full((224, 224, 3), 100, np.uint8)
    levels = {
        int(MADE_HERE["frost"](grey, 1, np.random.RandomState(i))[0, 0, 0]) for i in range(60)
    }
    assert levels == {104, 108, 112, 116, 120} and len(TEXTURES) == 5


@pytest.mark.skipif(not has_package, reason="no imagecorruptions")
def test_textures_are_larger_than_an_image():
    assert all(min(texture(name).shape[:2]) > 224 for name in TEXTURES)


def test_motion_blur_of_a_point_is_a_one_sided_gaussian():
    """Downwards (90 degrees), sigma 4: the point's light is shared by the 21 pixels above it."""
    point = np.zeros((101, 101), np.uint8)
    point[50, 50] = 255
    column = motion_blur(point, 10, 4.0, 90)[:, 50]
    weights = np.exp(-(np.arange(21) ** 2) / 32)
    np.testing.assert_array_equal(column[30:51][::-1], np.round(255 * weights / weights.sum()))
    assert column[51:].sum() == 0


@pytest.mark.parametrize("kind", ["elastic_transform", "snow"])
def test_they_depend_on_seed_and_image_only_and_need_no_package(sample, kind):
    preprocessing = {
        "input_size": (3, 64, 64),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    images = load_image_set("sample", corruption=(kind, 3))
    whole = {name: x for name, x, _ in stream_images(images.take([0, 1, 2]), preprocessing)}
    for name, x, _ in stream_images(images.take([2, 0]), preprocessing):
        assert torch.equal(whole[name], x)
    other = load_image_set("sample", corruption=(kind, 3), seed=1).take([0])
    assert not torch.equal(next(stream_images(other, preprocessing))[1], whole[images.ids[0]])
    assert images.facts["corruption"]["source"] == "hendrycks/robustness create_c"
