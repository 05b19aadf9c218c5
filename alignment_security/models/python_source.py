"""A network of one's own: `--source python:FILE.py:FUNCTION` calls a function that returns it.

The function returns the network and its preprocessing, in timm's terms:

    def my_net(checkpoint="my_net.pth"):
        net = MyNet()  # normalised pixels (B, 3, H, W) -> logits (B, classes)
        net.load_state_dict(torch.load(checkpoint))
        return net, {
            "mean": (0.485, 0.456, 0.406),  # of pixels in [0, 1]
            "std": (0.229, 0.224, 0.225),
            "input_size": (3, 224, 224),
            "interpolation": "bilinear",
            "crop_pct": 0.875,  # of the side that the image is resized to
        }
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from alignment_security.common.files import sha256_text_file
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import (
    LoadedNet,
    checked_net,
    in_one_line,
    output_of,
)

NEEDED = ("mean", "std", "input_size", "interpolation", "crop_pct")
DEFAULTS = {"crop_mode": "center"}


def load_python(name: str, place: str, checkpoint: Path | None = None) -> LoadedNet:
    """The network that a function of a Python file returns.

    place        FILE.py:FUNCTION
    checkpoint   path that the function is called with; None calls it without one

    The run file gets the sha256 of the file. Raises ModelError for a file or function that is not
    there or fails, an incomplete preprocessing, and a network that differs from call to call.
    """
    file_name, _, function = place.rpartition(":")
    path = Path(file_name).expanduser()
    if not file_name or not function:
        raise ModelError(f"--source python:{place}: write python:FILE.py:FUNCTION")
    make = find_function(import_file(path), function, path)
    source, facts = f"python:{path.name}:{function}", {"source_sha256": sha256_text_file(path)}
    if checkpoint:
        facts["checkpoint"] = checkpoint.name
    nets, notes = [], []
    for _ in range(2):
        net, config = net_of(make, path, function, checkpoint)
        if any(part.training for part in net.modules()):
            notes = [f"{path.name}: {function} returns a network in train mode, put into eval mode"]
        nets.append(checked_net(net, source, config, name, **facts))
    if what := difference(nets[0], nets[1], name):
        raise ModelError(
            f"{path}: {function} gives {what} when it is called again; load weights from a file, "
            "or draw them from a fixed seed"
        )
    return replace(nets[0], notes=notes)


def difference(first: LoadedNet, second: LoadedNet, name: str) -> str:
    """What differs between two networks that should be one; "" if nothing does.

    Outputs are compared too: not every tensor of a network is in its state dict. Those of a network
    that draws random numbers in its forward pass differ by themselves, and tell nothing.
    """
    if weights_sha256(first.net) != weights_sha256(second.net):
        return "other weights"
    if first.config != second.config:
        return "another preprocessing"
    size = first.config["input_size"]
    outputs = [output_of(each.net, size, name) for each in (first, first, second)]
    same = [torch.allclose(outputs[0], each, 1e-3, 1e-4, equal_nan=True) for each in outputs[1:]]
    return "other outputs" if same == [True, False] else ""


def import_file(path: Path) -> ModuleType:
    """A Python file as a module. It has to stand alone: its folder is not searched for others."""
    if not path.is_file():
        raise ModelError(f"--source python:{path}: no such file")
    module_name = f"alignment_security_source_{sha256_text_file(path)[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"--source python:{path}: not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file's own code may raise anything
        raise ModelError(f"{where(error, path)}: {in_one_line(error)}") from None
    return module


def find_function(module: ModuleType, function: str, path: Path) -> Callable:
    found = getattr(module, function, None)
    if callable(found):
        return found
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    near = difflib.get_close_matches(function, own, n=1, cutoff=0.5) or own
    known = f"it has {', '.join(near)}" if near else "it has none"
    raise ModelError(f"{path}: no function {function}; {known}")


def net_of(
    make: Callable, path: Path, function: str, checkpoint: Path | None
) -> tuple[nn.Module, dict[str, Any]]:
    """(network, preprocessing) that a function of the file at `path` returns."""
    try:
        made = make() if checkpoint is None else make(checkpoint)
    except (Exception, SystemExit) as error:  # the function's own code may raise anything
        raise ModelError(f"{where(error, path)}: {function}: {in_one_line(error)}") from None
    match made:
        case (nn.Module() as net, dict() as config):
            return net, complete(config, f"{path}: {function}")
    parts = made if isinstance(made, tuple) else (made,)
    kinds = ", ".join(type(part).__name__ for part in parts)
    raise ModelError(
        f"{path}: {function} returns ({kinds}), not a network and its preprocessing; end it with "
        f"`return net, {{...}}`, a torch.nn.Module and a dict of {', '.join(NEEDED)}"
    )


def complete(config: dict[str, Any], label: str) -> dict[str, Any]:
    """A preprocessing with its defaults. Raises ModelError for keys that lack or are unknown."""
    lacking = [key for key in NEEDED if key not in config]
    if lacking:
        raise ModelError(f"{label}: its preprocessing lacks {', '.join(lacking)}")
    unknown = sorted(map(str, config.keys() - {*NEEDED, *DEFAULTS}))
    if unknown:
        known = ", ".join((*NEEDED, *DEFAULTS))
        raise ModelError(f"{label}: its preprocessing has {unknown[0]}; the keys are {known}")
    return DEFAULTS | config


def where(error: BaseException, path: Path) -> str:
    """`FILE:LINE` of the file's own line that an error comes from, else `FILE`."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)
