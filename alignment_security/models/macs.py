"""Multiply-adds of networks: how much a forward pass of one image computes."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode


@cache
def multiply_adds(net: str) -> float | None:
    """Multiply-adds of timm's network for one image at its own size, in 10^9 (timm's GMACs).

    Counted on the meta device, without weights or memory: convolutions and matrix products. None
    for a network that computes with values, as the meta device has none.
    """
    try:
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: Any = timm.create_model(net).eval()
            image = torch.empty(1, *module.pretrained_cfg["input_size"])
            with FlopCounterMode(display=False) as counter:
                module(image)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, KeyError):
        return None
    return counter.get_total_flops() / 2e9
