"""alignment_security.models.heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from alignment_security.common.files import UserError

IMAGENET_CLASSES = 1000
ANIMATE_CLASSES = 398  # ImageNet classes 0-397 are animals
HEAD_TEMPERATURE = (
    0.2  # temperature of the smoothed head's gradient, in standard deviations of the logits
)
SMALLEST_TEMPERATURE = 1e-12
HEAD_REDUCTIONS: dict[str, Callable[..., Tensor]] = {"max": torch.amax, "sum": torch.sum}
HEADS = {"none": None, "animate": "max", "animate-sum": "sum"}


class PixelModel(nn.Module):
    """net((x - mean) / std) for x (B, 3, H, W) float32 in [0, 1]; returns logits (B, classes) float32."""

    def __init__(self, net: nn.Module, mean, std):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def two_groups(logits: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(B, 1000) -> (B, 2): each group of classes made one number."""
    return torch.stack(
        [reduce(logits[:, :ANIMATE_CLASSES], dim=1), reduce(logits[:, ANIMATE_CLASSES:], dim=1)],
        dim=1,
    )


class AnimateHead(nn.Module):
    """1000 ImageNet logits -> (animate, inanimate): the maximum, or the sum, over classes 0-397 and 398-999.

    The second study's two-way task (Feng et al. 2025): out (B, 2).

    smooth   above 0, the gradient is not the maximum's, which knows one class of a group, but that of log-sum-exp, which
             sees every class near: its temperature in standard deviations of the image's logits. Values stay exact.
    """

    def __init__(self, reduce: str = "max", smooth: float = 0.0):
        super().__init__()
        self.reduce, self.smooth = HEAD_REDUCTIONS[reduce], smooth

    def forward(self, logits: Tensor) -> Tensor:
        exact = two_groups(logits, self.reduce)
        if not self.smooth:
            return exact
        temperature = (
            self.smooth * logits.detach().float().std(dim=1, keepdim=True) + SMALLEST_TEMPERATURE
        )
        soft = two_groups(logits.float() / temperature, torch.logsumexp) * temperature
        return exact.detach() + (soft - soft.detach())


def smooth_head(module: nn.Module) -> nn.Module:
    """The same values with the gradient of an animate head smoothed; a module without kinks of ours as it is.

    For attacks that search for a minimal norm: a walk along the one largest class settles into the basin of that class.
    """
    if isinstance(module, nn.Sequential) and len(module):
        *parts, head = module
        if isinstance(head, AnimateHead) and head.reduce is torch.amax:
            return nn.Sequential(*parts, AnimateHead("max", HEAD_TEMPERATURE)).eval()
    return module


class RestrictedHead(nn.Module):
    """1000 logits with those outside `classes` below all others, so that an answer is one of them; out (B, 1000)."""

    keep: Tensor

    def __init__(self, classes):
        super().__init__()
        self.register_buffer(
            "keep",
            torch.zeros(IMAGENET_CLASSES, dtype=torch.bool).index_fill(
                0, torch.tensor(classes), True
            ),
        )

    def forward(self, logits: Tensor) -> Tensor:
        return torch.where(self.keep, logits, logits.amin(dim=1, keepdim=True) - 1)


def restrict_classes(model: Model, classes) -> Model:
    """The model with its answers among `classes` only (Tiny-ImageNet-C's 200); the same model where there are none."""
    if not classes:
        return model
    if model.n_outputs != IMAGENET_CLASSES:
        raise ModelError(
            f"{model.settings['name']}: restricted answers need the {IMAGENET_CLASSES} ImageNet logits"
        )
    device = next(model.module.buffers()).device
    head = RestrictedHead(list(classes)).to(device)
    return replace(model, module=nn.Sequential(model.module, head).eval())


@dataclass(frozen=True)
class Model:
    """A ready model. `settings` goes to the run file: name, weights and their hash, preprocessing."""

    module: nn.Module
    settings: dict
    preprocessing: (
        dict  # input_size, interpolation, crop_pct, crop_mode: for timm's create_transform
    )
    n_outputs: int
    notes: list[str] = field(default_factory=list)  # for the run file and the screen


def add_head(module: nn.Module, n_outputs: int, head: str, name: str) -> tuple[nn.Module, int]:
    """The module and its number of outputs, two behind an animate head. Raises ModelError where a head cannot stand."""
    if n_outputs == 0:
        raise ModelError(
            f"{name}: gives features, no classes; it needs a head (see `python utilities.py models {name}`)"
        )
    if not (reduce := HEADS[head]):
        return module, n_outputs
    if n_outputs != IMAGENET_CLASSES:
        raise ModelError(
            f"{name}: --head {head} needs the {IMAGENET_CLASSES} ImageNet logits, it has {n_outputs}"
        )
    return nn.Sequential(module, AnimateHead(reduce)), 2


class ModelError(UserError):
    """A model that cannot be had or used as asked; the message names it and what mends it."""
