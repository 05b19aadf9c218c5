"""Brain-Score's own models: the bare net of a plugin, and its preprocessing as measured through the plugin's own function.

A plugin hides its preprocessing in a function from file names to arrays. It is called on images made for the purpose: uniform
ones give mean and std (and that it is a mean and a std), a scene gives size, crop and interpolation. What cannot be told so
is refused; nothing is taken from what the plugin says of itself.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from alignment_security.models.heads import ModelError

INSTALL_HINT = "it needs an environment of its own: pip install -r requirements-brainscore.txt"
CLASSES = 1000
COLOURS = [
    (0, 0, 0),
    (255, 255, 255),
    (51, 102, 204),
    (204, 51, 102),
]  # of the uniform images; the last two check
SCENES = (
    (320, 240),
    (260, 340),
)  # pixels, width and height: no model's input, wide and high, so that a squash shows
TOLERANCE = 1e-4  # of a normalised value of a uniform image
SAME_PIXELS = 1.01 / 255  # pixels may differ by one level: libraries round differently
SMALLEST_CROP, USUAL_CROP = 0.6, 0.875  # share of the resized image that a central crop keeps


# ---- preprocessing ---------------------------------------------------------------------------------------------


@cache
def test_scene(size: tuple[int, int]) -> Image.Image:
    """Smooth patches of all colours with detail on top: every resizing of it differs from every other."""
    random = np.random.default_rng(0)
    patches = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    detail = random.integers(-40, 41, (*size[::-1], 1))
    return Image.fromarray(
        np.clip(np.asarray(patches, dtype=int) + detail, 0, 255).astype(np.uint8)
    )


def preprocessed(preprocess: Callable, images: list[Image.Image], name: str) -> Tensor:
    """What a plugin's preprocessing, which wants file names, makes of images: (B, 3, H, W) float32. Raises ModelError."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images):
            image.save(path)
        try:
            made = preprocess(paths)
            batch = torch.stack([torch.as_tensor(np.array(part)) for part in made]).float()
        except Exception as error:  # a plugin's own code: it may raise anything
            raise ModelError(
                f"{name}: its preprocessing fails on a PNG ({type(error).__name__}: {error})"
            ) from None
    if batch.ndim != 4 or batch.shape[1] != 3 or len(batch) != len(images):
        raise ModelError(
            f"{name}: its preprocessing gives {tuple(batch.shape)}, not an image (3, H, W) for each file"
        )
    return batch


def measured_normalisation(
    uniform: Tensor, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) that turn pixels in [0, 1] into what came out for uniform images of COLOURS (B, 3, H, W).

    Raises ModelError unless that is what the preprocessing does, to every pixel and channel by itself.
    """
    values = uniform.double().mean((2, 3))  # (B, 3)
    spread = (uniform - values[..., None, None]).abs().amax()
    std = 1 / (values[1] - values[0])
    mean = -values[0] * std
    expected = (torch.tensor(COLOURS, dtype=torch.float64) / 255 - mean) / std
    limit = TOLERANCE * max(1.0, float(values.abs().max()))
    if (
        not torch.isfinite(std).all()
        or std.min() <= 0
        or spread > limit
        or (values - expected).abs().max() > limit
    ):
        raise ModelError(
            f"{name}: no mean and std can be told from its preprocessing: uniform images of {COLOURS} become "
            f"{values.round(decimals=4).tolist()}"
        )
    return tuple(mean.mul(1e6).round().div(1e6).tolist()), tuple(
        std.mul(1e6).round().div(1e6).tolist()
    )


def measured_geometry(pixels: Tensor, name: str) -> dict:
    """The resizing and cropping, in timm's terms, that turns SCENES into these pixels (2, 3, H, W) in [0, 1].

    Tried: the whole image squashed, and its shorter side resized to every length before a central crop, bilinear and
    bicubic. Raises ModelError where none gives the same pixels.
    """
    height, width = pixels.shape[2:]
    sides = range(height, int(height / SMALLEST_CROP) + 1) if height == width else ()
    usual_first = sorted(sides, key=lambda side: abs(height / side - USUAL_CROP))
    for mode, side in [("squash", height), *(("center", side) for side in usual_first)]:
        share = next(
            x
            for x in (round(height / side, 3), height / side, height / (side + 0.5))
            if math.floor(height / x) == side
        )
        for interpolation in ("bilinear", "bicubic"):
            found: dict[str, Any] = {
                "input_size": (3, height, width),
                "interpolation": interpolation,
                "crop_pct": share,
                "crop_mode": mode,
            }
            shown = create_transform(**found, is_training=False, normalize=False)
            if all(
                np.abs(np.asarray(shown(test_scene(size))) / 255 - made.numpy()).max()
                <= SAME_PIXELS
                for size, made in zip(SCENES, pixels)
            ):
                return found
    raise ModelError(
        f"{name}: its preprocessing gives {height} x {width} pixels by a resizing that is neither a squash nor a "
        "central crop, bilinear or bicubic; images cannot be shown to it as it wants them"
    )


def measured_preprocessing(preprocess: Callable, name: str) -> dict:
    """{input_size, interpolation, crop_pct, crop_mode, mean, std} of a plugin's preprocessing; ModelError if it has none."""
    uniform = [Image.new("RGB", SCENES[0], colour) for colour in COLOURS]
    made = preprocessed(preprocess, [*uniform, *map(test_scene, SCENES)], name)
    mean, std = measured_normalisation(made[: len(COLOURS)], name)
    pixels = made[len(COLOURS) :] * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(
        3, 1, 1
    )
    return measured_geometry(pixels, name) | {"mean": mean, "std": std}


# ---- the net ---------------------------------------------------------------------------------------------------


def load_plugin(name: str):
    """The activations model of a registered Brain-Score model. Raises ModelError.

    brainscore_core would run `pip install` for a plugin's requirements; BS_INSTALL_DEPENDENCIES=no unless it is set.
    """
    os.environ.setdefault("BS_INSTALL_DEPENDENCIES", "no")
    try:
        import brainscore_vision
    except ImportError as error:
        raise ModelError(
            f"{name}: Brain-Score's models need brainscore-vision ({error}); {INSTALL_HINT}"
        ) from None
    try:
        made = brainscore_vision.model_registry.get(name)  # one that the caller registered
        model = made() if made else brainscore_vision.load_model(name)
    except Exception as error:  # a plugin's own code: it may raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(
            f"{name}: brainscore-vision cannot load it ({why}); see `python utilities.py models --list brainscore`, "
            "and fetch weights on a machine with network"
        ) from None
    return getattr(model, "activations_model", model)


def load_brainscore(name: str) -> tuple[nn.Module, dict]:
    """(net, data configuration as timm's) of a Brain-Score model: pixels normalised by mean and std -> 1000 ImageNet logits.

    Raises ModelError for a model that is no PyTorch net, whose preprocessing cannot be told, that does not give 1000
    logits, or that gives others for the same image.
    """
    wrapper = load_plugin(name)
    net, extractor = getattr(wrapper, "_model", None), getattr(wrapper, "_extractor", None)
    if not isinstance(net, nn.Module) or extractor is None:
        raise ModelError(
            f"{name}: is no PyTorch net behind Brain-Score's PytorchWrapper ({type(wrapper).__name__})"
        )
    if options := getattr(wrapper, "_forward_kwargs", None):
        raise ModelError(
            f"{name}: its forward pass takes options ({', '.join(options)}), which an attack does not give"
        )
    config = measured_preprocessing(extractor.preprocess, name)
    net = net.module if isinstance(net, nn.DataParallel) else net
    net = net.eval().requires_grad_(False).cpu()
    if other := {str(part.dtype) for part in net.parameters()} - {"torch.float32"}:
        raise ModelError(
            f"{name}: its weights are {', '.join(sorted(other))}; attacks need float32"
        )
    check_logits(net, config, name)
    return net, config


def check_logits(net: nn.Module, config: dict, name: str) -> None:
    """Raise ModelError unless an image of the net's size gives 1000 logits, twice the same."""
    x = torch.linspace(-1, 1, math.prod(config["input_size"])).view(1, *config["input_size"])
    with torch.no_grad():
        logits, again = net(x), net(x)
    if not isinstance(logits, Tensor) or logits.shape != (1, CLASSES):
        shape = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{name}: gives {shape}, not the {CLASSES} logits of ImageNet")
    if not torch.allclose(logits, again, rtol=1e-4, atol=1e-5 * float(again.abs().max())):
        raise ModelError(
            f"{name}: gives other logits for the same image (stochastic, as VOneNets are): AutoAttack's standard "
            "budget and a minimal norm mean nothing for it"
        )
