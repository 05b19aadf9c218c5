"""torchvision's networks with its weights: `--source torchvision[:NAME][:WEIGHTS]`."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torchvision.models import get_model, get_model_weights, list_models

from alignment_security.common.files import TryAgain
from alignment_security.common.out_of_memory import reading_into_memory
from alignment_security.models.heads import ModelError
from alignment_security.models.loaded_net import LoadedNet, checked_net, in_one_line
from alignment_security.models.preprocessing import measured_preprocessing
from alignment_security.models.timm_nets import TRANSIENT_ANSWERS, HubBusy, hub_answer


def load_torchvision(name: str, place: str) -> LoadedNet:
    """A classifier of torchvision with its weights, and what the weights' transforms do.

    place   NAME:WEIGHTS, where WEIGHTS is as IMAGENET1K_V2; without WEIGHTS they are torchvision's
            default, and without NAME `name` is the network's

    Raises ModelError.
    """
    parts = [part for part in place.split(":") if part]
    nets = list_models(module=torchvision.models)
    has_name = len(parts) > 1 or (parts and name not in nets)
    net_name = parts.pop(0) if has_name else name
    if net_name not in nets:
        near = difflib.get_close_matches(net_name, nets, n=3, cutoff=0.5)
        version = f"torchvision {torchvision.__version__}"
        nearest = f"; nearest names: {', '.join(near)}" if near else ""
        raise ModelError(f"{net_name}: {version} has no such classifier{nearest}")
    weights = _weights(net_name, parts[0] if parts else "DEFAULT")
    try:
        with reading_into_memory(net_name):
            net = get_model(net_name, weights=weights)
    except TryAgain:
        raise
    except Exception as error:  # of the download, of a damaged file
        raise _weights_error(net_name, weights.url, error) from None
    transform = weights.transforms()

    def preprocess(paths: list[str]) -> list[torch.Tensor]:
        return [transform(Image.open(path).convert("RGB")) for path in paths]

    config = measured_preprocessing(preprocess, name)
    return checked_net(net, f"torchvision:{net_name}:{weights.name}", config, name)


def _weights(net_name: str, weights: str):
    known = get_model_weights(net_name)
    try:
        return known[weights]
    except KeyError:
        names = ", ".join(member.name for member in known) or "none"
        raise ModelError(
            f"{net_name}: torchvision has no weights {weights}; it has {names}"
        ) from None


def _weights_error(net_name: str, url: str, error: Exception) -> ModelError:
    """The error about weights that could not be downloaded or read."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    reason = in_one_line(error)
    if hub_answer(error) in TRANSIENT_ANSWERS:
        return HubBusy(f"{net_name}: {url} cannot be downloaded now ({reason}); wait")
    if file.is_file():
        return ModelError(f"{file}: cannot be loaded into {net_name} ({reason}); remove it")
    return ModelError(
        f"{net_name}: {url} cannot be downloaded ({reason}); copy it to {file} (TORCH_HOME moves "
        "the folder)"
    )
