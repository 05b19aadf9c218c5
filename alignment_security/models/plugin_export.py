"""Write a Brain-Score plugin of a timm network: `python utilities.py export_plugin NAME --out DIR`.

The plugin has our preprocessing, in timm's terms, and the weights: by timm's name, or as a file
beside its code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from alignment_security.common.files import safe_file_name, write_atomic
from alignment_security.common.settings import IMAGENET_CLASSES, git_state
from alignment_security.common.temporary import temporary_beside
from alignment_security.models.checkpoints import own_tensors
from alignment_security.models.heads import Model, ModelError
from alignment_security.models.loaded_net import output_of
from alignment_security.models.loading import load_model
from alignment_security.models.names import split_source
from alignment_security.models.timm_nets import options_for_weights

WEIGHTS_FILE = "weights.safetensors"
LOGITS_IN_TEST = 5  # of an image, which the plugin's own test compares

INIT = """\
from brainscore_vision import model_registry
from brainscore_vision.model_helpers.brain_transformation import ModelCommitment

from .model import LAYERS, get_model

model_registry[{name}] = lambda: ModelCommitment(
    identifier={name}, activations_model=get_model(), layers=LAYERS
)
"""
MODEL = '''\
"""timm's {net}, weights {weights} (sha256 {sha256}).

Written by alignment-security, commit {commit}.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import timm
from brainscore_vision.model_helpers.activations.pytorch import PytorchWrapper
from PIL import Image
from timm.data import create_transform

BIBTEX = ""
LAYERS = {layers}
PREPROCESSING = {preprocessing}


def preprocess(paths):
    """File names -> normalised pixels (B, 3, H, W)."""
    transform = create_transform(**PREPROCESSING, is_training=False)
    return np.stack([transform(Image.open(path).convert("RGB")).numpy() for path in paths])


def get_model():
    {create}
    wrapper = PytorchWrapper(identifier={name}, model=net.eval(), preprocessing=preprocess)
    wrapper.image_size = {side}
    return wrapper
'''
FROM_TIMM = "net = timm.create_model({net!r}, pretrained=True)"
FROM_FILE = f"""net = timm.create_model({{net!r}}, num_classes={IMAGENET_CLASSES}{{options}})
    state = safetensors.torch.load_file(Path(__file__).with_name("{WEIGHTS_FILE}"))
    net.load_state_dict(state)"""
TEST = """\
import math

import brainscore_vision
import pytest
import torch


@pytest.mark.travis_slow
def test_has_identifier_and_logits():
    model = brainscore_vision.load_model({name})
    assert model.identifier == {name}
    net = model.activations_model._model.cpu()
    x = torch.linspace(-1, 1, math.prod({shape})).view(1, *{shape})
    logits = net(x)[0, :{count}].tolist()
    assert logits == pytest.approx({logits}, abs=1e-3)
"""
METADATA = """\
schema_version: "2.0"
domain: vision
models:
  {name}:
    model:
      display_name: {name}
      architecture:
        description: {net}
      parameter_count: {parameters}
      parameter_count_exact: true
      input_resolution:
        channels: 3
        height: {height}
        width: {width}
    io:
      modality: image
    provenance:
      weights_provider: {provider}
      checkpoint: {weights}
"""


def export_plugin(
    name: str, out: Path, architecture: str | None = None, checkpoint: Path | None = None
) -> Path:
    """Write the plugin of a timm network into a new folder in `out`; returns the folder.

    architecture, checkpoint   as for load_model
    Raises ModelError for a network without the 1000 ImageNet logits, or that timm does not know by
    name, and for a folder that is there.
    """
    model = load_model(name, checkpoint, architecture=architecture)
    net_name = model.settings.get("architecture", name)
    if model.n_outputs != IMAGENET_CLASSES or split_source(net_name)[0]:
        raise ModelError(
            f"{name}: a plugin is of a network that timm knows by name, with the "
            f"{IMAGENET_CLASSES} ImageNet logits"
        )
    folder = out / safe_file_name(name).replace(".", "_")
    if folder.exists():
        raise ModelError(f"{folder}: is there already; remove it, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with temporary_beside(folder) as unfinished:
        for file, content in plugin_files(model, net_name).items():
            write_atomic(unfinished / file, content)
        unfinished.rename(folder)
    return folder


def plugin_files(model: Model, net_name: str) -> dict[str, str | bytes]:
    """File name -> content of the plugin of a model."""
    net, settings = model.module.net, model.settings
    assert isinstance(net, nn.Module)
    shape = tuple(model.preprocessing["input_size"])
    logits = output_of(net, shape, settings["name"])
    is_public = settings["weights"].startswith("timm:")
    options = "".join(f", {key}={value!r}" for key, value in options_for_weights(net_name).items())
    create = (FROM_TIMM if is_public else FROM_FILE).format(net=net_name, options=options)
    values: dict[str, Any] = {
        "name": json.dumps(settings["name"]),
        "net": net_name,
        "weights": settings["weights"],
        "provider": json.dumps(settings["weights"].partition(":")[0]),
        "sha256": settings["weights_sha256"],
        "commit": git_state(),
        "layers": layer_names(net),
        "preprocessing": model.preprocessing
        | {kind: tuple(settings[kind]) for kind in ("mean", "std")},
        "create": create,
        "side": shape[1],
        "shape": shape,
        "height": shape[1],
        "width": shape[2],
        "count": LOGITS_IN_TEST,
        "logits": logits[0, :LOGITS_IN_TEST].tolist(),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    texts = {"__init__.py": INIT, "model.py": MODEL, "test.py": TEST}
    files: dict[str, str | bytes] = {
        file: template.format_map(values) for file, template in texts.items()
    }
    quoted = {key: json.dumps(values[key]) for key in ("net", "weights")}
    files["metadata.yaml"] = METADATA.format_map(values | quoted)
    if not is_public:
        files[WEIGHTS_FILE] = safetensors.torch.save(own_tensors(net.state_dict()))
    return files


def layer_names(net: nn.Module) -> list[str]:
    """The stages of a timm network, among which Brain-Score chooses a layer for each region."""
    modules = dict(net.named_modules())
    stages = [stage["module"] for stage in getattr(net, "feature_info", [])]
    found = [name for name in dict.fromkeys(stages) if name in modules]
    return found or [name for name, _ in net.named_children()]
