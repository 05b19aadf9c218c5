"""What every source of networks gives: a network with its weights, its preprocessing and facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from alignment_security.models.heads import ModelError
from alignment_security.models.timm_nets import check_data_config


@dataclass(frozen=True)
class LoadedNet:
    """A network with its weights.

    net         normalised pixels (B, 3, H, W) -> logits (B, n_outputs)
    source      of the weights, for the run file
    config      mean, std and preprocessing in timm's terms, checked
    facts       more settings for the run file
    notes       what the user should know
    """

    net: nn.Module
    source: str
    config: dict[str, Any]
    n_outputs: int
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def checked_net(
    net: nn.Module,
    source: str,
    config: dict[str, Any],
    name: str,
    classes: int | None = None,
    /,
    **facts: str,
) -> LoadedNet:
    """A network that timm did not build, in eval mode on the CPU, with its outputs counted.

    classes   how many logits it has, where that is known: they may be an entry of its output

    Raises ModelError for a preprocessing that cannot be right, weights other than float32, and
    outputs that are no logits.
    """
    check_data_config(config, name)
    config = plain(config)
    if isinstance(net, nn.DataParallel):
        net = net.module
    net = net.eval().cpu()
    for parameter in net.parameters():  # `net.requires_grad_` is none of a TorchScript program's
        parameter.requires_grad_(False)
    other = {str(parameter.dtype) for parameter in net.parameters()} - {"torch.float32"}
    if other:
        raise ModelError(
            f"{name}: its weights are {', '.join(sorted(other))}; attacks need float32: load them "
            "as float32, or call .float() on the network where it is built"
        )
    if classes:
        net = with_logits(net, config["input_size"], classes, name)
    return LoadedNet(net, source, config, count_outputs(net, config["input_size"], name), facts)


class LogitsOf(nn.Module):
    """A network whose output is a structure: its logits are one entry of it."""

    def __init__(self, net: nn.Module, entry: Any):
        super().__init__()
        self.net, self.entry = net, entry

    def forward(self, x: Tensor) -> Tensor:
        return entries(self.net(x))[self.entry]


def entries(output: Any) -> dict[Any, Any]:
    """The parts of an output by name: of a dict, an object with `logits`, a tuple or a list."""
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "logits"):
        return {"logits": output.logits}
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def with_logits(
    net: nn.Module, input_size: tuple[int, int, int], classes: int, name: str
) -> nn.Module:
    """The network itself, or its output's entry that holds the logits (B, classes).

    Raises ModelError where several entries could be the logits and none is called so.
    """
    parts = entries(output_of(net, input_size, name))
    found = [
        entry
        for entry, value in parts.items()
        if isinstance(value, Tensor) and value.shape == (1, classes)
    ]
    if "logits" in found:
        return LogitsOf(net, "logits")
    if len(found) > 1:
        raise ModelError(
            f"{name}: gives {len(found)} outputs of {classes} classes "
            f"({', '.join(map(str, found))}), and none is called logits"
        )
    return LogitsOf(net, found[0]) if found else net


def output_of(net: nn.Module, input_size: tuple[int, int, int], name: str) -> Any:
    """What a network gives for one image. Raises ModelError where its forward pass fails."""
    x = torch.linspace(-1, 1, math.prod(input_size)).view(1, *input_size)
    try:
        with torch.no_grad():
            return net(x)
    except Exception as error:  # a network's own code may raise anything
        raise ModelError(
            f"{name}: its forward pass fails on pixels (1, {', '.join(map(str, input_size))}): "
            f"{in_one_line(error)}"
        ) from None


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A checked configuration with Python's own numbers, as run files hold them."""
    numbers = {kind: tuple(map(float, config[kind])) for kind in ("mean", "std")}
    numbers |= {"input_size": tuple(map(int, config["input_size"]))}
    return config | numbers | {"crop_pct": float(config["crop_pct"])}


def count_outputs(net: nn.Module, input_size: tuple[int, int, int], name: str) -> int:
    """The number of logits that a network gives an image. Raises ModelError where it gives none."""
    logits = output_of(net, input_size, name)
    if not isinstance(logits, Tensor):
        raise ModelError(f"{name}: gives {type(logits).__name__}, not a tensor of logits")
    if logits.ndim != 2 or len(logits) != 1:
        raise ModelError(f"{name}: gives {tuple(logits.shape)} for one image, not (1, classes)")
    return logits.shape[1]


def in_one_line(error: BaseException) -> str:
    """Type and message of an error of other people's code."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
