"""Pixels as tensors: bytes on their way, float32 in [0, 1] where a network takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def in_unit_range(x: Tensor) -> Tensor:
    """uint8 levels as float32 in [0, 1]; other tensors are returned unchanged.

    The same values on every device: by a Python number, CUDA multiplies with its reciprocal, which
    rounds differently.
    """
    if x.dtype != torch.uint8:
        return x
    return x.float() / torch.full((), 255.0, device=x.device)
