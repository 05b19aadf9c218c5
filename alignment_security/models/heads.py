"""Model, and the layers around a network: normalisation in front, an animate or restricted head.

Every model maps pixels in [0, 1] to logits. The heads act on the logits of ImageNet's 1000 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from alignment_security.common.files import UserError
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.models.forward import device_of

ANIMATE_CLASSES = 398  # ImageNet classes 0-397 are animals
HEAD_REDUCTIONS: dict[str, Callable[..., Tensor]] = {"max": torch.amax, "sum": torch.sum}
HEADS = {"none": None, "animate": "max", "animate-sum": "sum"}  # --head -> reduction
# of the smoothed head's gradient, in standard deviations of the image's logits
HEAD_TEMPERATURE = 0.2
SMALLEST_TEMPERATURE = 1e-12  # keeps the division finite where all logits are equal
# two passes over the same images may differ by rounding
REPEAT_RELATIVE, REPEAT_ABSOLUTE = 1e-4, 1e-5


class ModelError(UserError):
    """A model that cannot be loaded, or not used as requested."""


@dataclass(frozen=True)
class Model:
    """A model that is ready to be attacked: frozen, in eval mode, on its device.

    module         pixels (B, 3, H, W) in [0, 1] -> logits (B, n_outputs)
    settings       for the run file: name, weights and their sha256, mean, std, preprocessing, head
    preprocessing  input_size, interpolation, crop_pct and crop_mode for timm's create_transform;
                   for crop mode `border` the mean too
    notes          for the run file and the screen
    """

    module: nn.Module
    settings: dict
    preprocessing: dict
    n_outputs: int
    notes: list[str] = field(default_factory=list)


def example_pixels(model: Model, count: int) -> Tensor:
    """Pixels (count, 3, H, W) in [0, 1] on the model's device: random, and the same each time."""
    shape = (count, *model.preprocessing["input_size"])
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return pixels.to(device_of(model.module))


class PixelModel(nn.Module):
    """net((x - mean) / std): x is (B, 3, H, W) float32 in [0, 1], the result logits (B, classes).

    mean, std   three values each, in pixel units of [0, 1]
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def logits_repeat(logits: Tensor, again: Tensor) -> bool:
    """Whether the logits of two passes over the same images are equal up to rounding."""
    absolute = REPEAT_ABSOLUTE * float(again.abs().max())
    return torch.allclose(logits.detach(), again, rtol=REPEAT_RELATIVE, atol=absolute)


# ---- animate or inanimate: the two-way task of Feng 2025 -----------------------------------------


def two_groups(logits: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(B, 1000) -> (B, 2): animate and inanimate classes, each reduced to one number."""
    animate = reduce(logits[:, :ANIMATE_CLASSES], dim=1)
    inanimate = reduce(logits[:, ANIMATE_CLASSES:], dim=1)
    return torch.stack([animate, inanimate], dim=1)


class AnimateHead(nn.Module):
    """Logits (B, 1000) -> (B, 2), animate and inanimate: the two-way task of Feng 2025.

    reduce   "max" or "sum" over classes 0-397 and over classes 398-999
    smooth   Above 0, log-sum-exp's gradient replaces the maximum's, which depends on one class of
             a group only. `smooth` is the temperature in standard deviations of the image's
             logits. Outputs are unchanged.
    """

    def __init__(self, reduce: str = "max", smooth: float = 0.0):
        super().__init__()
        self.reduce = HEAD_REDUCTIONS[reduce]
        self.smooth = smooth

    def forward(self, logits: Tensor) -> Tensor:
        exact = two_groups(logits, self.reduce)
        if not self.smooth:
            return exact
        spread = logits.detach().float().std(dim=1, keepdim=True)
        temperature = self.smooth * spread + SMALLEST_TEMPERATURE
        soft = two_groups(logits.float() / temperature, torch.logsumexp) * temperature
        return exact.detach() + (soft - soft.detach())


def smooth_head(module: nn.Module) -> nn.Module:
    """The module with a smooth gradient behind its max head; other modules are returned unchanged.

    Outputs do not change. Minimum-norm attacks use it: following the gradient of the largest class
    alone, they would settle in the basin of that class.
    """
    if not isinstance(module, nn.Sequential) or not len(module):
        return module
    *parts, head = module
    if not isinstance(head, AnimateHead) or head.reduce is not torch.amax:
        return module
    return nn.Sequential(*parts, AnimateHead("max", HEAD_TEMPERATURE)).eval()


def add_head(module: nn.Module, n_outputs: int, head: str, name: str) -> tuple[nn.Module, int]:
    """The module behind a head of HEADS, and the number of outputs: 2 for an animate head.

    Raises ModelError for a module without classes or with one, and for an animate head on other
    than the 1000 ImageNet logits.
    """
    if n_outputs == 0:
        raise ModelError(
            f"{name}: outputs features, not classes; pass weights that have a classifier by "
            "--checkpoint FILE"
        )
    if n_outputs == 1:
        raise ModelError(
            f"{name}: has one output, and attacks compare classes; for a yes or no let the network "
            "give two logits, `torch.cat([torch.zeros_like(z), z], 1)`"
        )
    reduce = HEADS[head]
    if reduce is None:
        return module, n_outputs
    if n_outputs != IMAGENET_CLASSES:
        raise ModelError(
            f"{name}: --head {head} needs the {IMAGENET_CLASSES} ImageNet logits, "
            f"it has {n_outputs}"
        )
    return nn.Sequential(module, AnimateHead(reduce)).train(module.training), 2


def with_head(model: Model, head: str) -> Model:
    """A model that was loaded without a head, behind one of HEADS. Raises ModelError."""
    module, n_outputs = add_head(model.module, model.n_outputs, head, model.settings["name"])
    settings = model.settings | {"head": head}
    return replace(model, module=module, settings=settings, n_outputs=n_outputs)


# ---- answers among some classes ------------------------------------------------------------------


class RestrictedHead(nn.Module):
    """Logits (B, 1000) -> (B, 1000), those outside `classes` set below all others.

    merged   groups of classes: the first one gets the largest logit of its group

    The predicted class is then always one of `classes`.
    """

    keep: Tensor  # (1000,) bool
    first: Tensor  # (groups,) int64

    def __init__(self, classes: Sequence[int], merged: Sequence[Sequence[int]] = ()):
        super().__init__()
        keep = torch.zeros(IMAGENET_CLASSES, dtype=torch.bool)
        keep[list(classes)] = True
        self.register_buffer("keep", keep)
        self.merged = [list(group) for group in merged]
        self.register_buffer("first", torch.tensor([group[0] for group in merged]))

    def forward(self, logits: Tensor) -> Tensor:
        lowest = logits.amin(dim=1, keepdim=True) - 1
        if self.merged:
            largest = [logits[:, group].amax(dim=1) for group in self.merged]
            logits = logits.index_copy(1, self.first, torch.stack(largest, dim=1))
        return torch.where(self.keep, logits, lowest)


def restrict_classes(
    model: Model, classes: Sequence[int], merged: Sequence[Sequence[int]] = ()
) -> Model:
    """The model restricted to predict one of `classes`, such as Tiny-ImageNet-C's 200.

    merged   groups of classes of which each counts as the first (`RestrictedHead`)

    Returns the same model if `classes` is empty. Raises ModelError without the 1000 logits.
    """
    if not classes:
        return model
    if model.n_outputs != IMAGENET_CLASSES:
        raise ModelError(
            f"{model.settings['name']}: restricted answers need the {IMAGENET_CLASSES} "
            "ImageNet logits"
        )
    device = device_of(model.module)
    head = RestrictedHead(classes, merged).to(device)
    return replace(model, module=nn.Sequential(model.module, head).eval())
