"""AttackedModel: a network under attack, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from alignment_security.models.forward import Forward


def ignore(message: str) -> None:
    """A `log` that drops its messages."""


@dataclass(frozen=True)
class AttackedModel:
    """What every attack is given of a network.

    module       pixels (B, C, H, W) in [0, 1] -> logits (B, n_outputs)
    exact        float32 network that classifies clean images and confirms adversarial points; by
                 default `module`
    batch_size   images a pass; halved when the device runs out of memory
    seed         of the attack's random numbers
    log          receives warnings
    """

    module: nn.Module
    n_outputs: int
    exact: nn.Module | None = None
    batch_size: int = 8
    seed: int = 0
    log: Callable[[str], None] = ignore

    def forward(self) -> Forward:
        """Passes of `module`."""
        return Forward(self.module, self.batch_size, self.log)

    def exact_forward(self) -> Forward:
        """Passes of `exact`."""
        return Forward(self.exact or self.module, self.batch_size, self.log)
