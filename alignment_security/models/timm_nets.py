"""Build timm's networks: what the hub answers, and data configurations that cannot be right."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
from collections.abc import Sequence
from numbers import Real
from typing import Any

import safetensors
import timm
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data import resolve_model_data_config
from timm.data.transforms import str_to_pil_interp
from timm.models._efficientnet_builder import BN_EPS_TF_DEFAULT
from torch import nn

from alignment_security.common.files import TryAgain
from alignment_security.common.out_of_memory import reading_into_memory
from alignment_security.models.heads import ModelError

HUB_UNREACHABLE = (LocalEntryNotFoundError, HfHubHTTPError, OSError)
DAMAGED_FILE = (safetensors.SafetensorError, pickle.UnpicklingError, EOFError)
NO_SUCH_NET = (RuntimeError, ValueError, KeyError, TypeError, AssertionError)
LOCAL_DIR = "local-dir:"
CACHE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
TRANSIENT_ANSWERS = (408, 425, 429, 500, 502, 503, 504)  # HTTP; others stay as they are
FORBIDDEN, NOT_FOUND = (401, 403), (404, 410)
PREPROCESSING_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode")
CROP_MODES = ("center", "squash", "border")  # of timm's create_transform
LARGEST_SIDE, LARGEST_CROP = 4096, 2.0
# architecture -> options with which timm builds it for its weights, and leaves out for random ones
OPTIONS_FOR_WEIGHTS = {"fbnetc_100": {"bn_eps": BN_EPS_TF_DEFAULT}}

if "HF_HUB_VERBOSITY" not in os.environ:  # a line for each try of a minute; the error says it all
    hub_logging.set_verbosity_error()


class HubBusy(ModelError, TryAgain):
    """The hub answered that it is overloaded or limits requests; later it may answer."""


# ---- networks ------------------------------------------------------------------------------------


def create_net(name: str, pretrained: bool, num_classes: int | None = None) -> nn.Module:
    """timm's network of that name, with num_classes outputs if given, else as many as it has.

    It is the one of timm's weights whether it has them or not: those of a checkpoint may be they.
    Raises ModelError if it or its weights cannot be loaded.
    """
    options = {"num_classes": num_classes, **options_for_weights(name)}
    try:
        with reading_into_memory(name):
            return timm.create_model(name, pretrained=pretrained, **options)
    except DAMAGED_FILE as error:
        raise ModelError(_damaged_weights(name, error)) from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{name}: its config.json is no JSON ({error})") from None
    except HUB_UNREACHABLE as error:
        raise hub_error(name, error, _download_command(name)) from None
    except NO_SUCH_NET as error:
        reason = f"{str(error).partition(chr(10))[0]}"
        if not pretrained:
            raise ModelError(f"{name}: {type(error).__name__}: {reason}") from None
        raise ModelError(_damaged_weights(name, error)) from None


def options_for_weights(name: str) -> dict[str, Any]:
    """Options of timm's create_model beside the number of classes, for a network of that name."""
    return OPTIONS_FOR_WEIGHTS.get(name.removeprefix("timm/").partition(".")[0], {})


def hub_error(
    name: str, error: BaseException, download: str, or_else: str = ", or pass --checkpoint FILE"
) -> ModelError:
    """The error about weights that could not be fetched, from what the hub answered.

    download   the command that fetches them
    or_else    another way to have weights
    """
    if name.startswith(LOCAL_DIR):
        return ModelError(f"{name}: cannot be read ({str(error).partition(chr(10))[0]})")
    if isinstance(error, OSError) and error.errno in CACHE_ERRORS:
        return ModelError(
            f"{name}: the cache {error.filename} cannot be written ({error.strerror}); set HF_HOME "
            "(and TORCH_HOME) to a folder that can"
        )
    answer = hub_answer(error)
    if answer in TRANSIENT_ANSWERS:
        return HubBusy(f"{name}: the hub answers {answer}, too many requests or overloaded; wait")
    if answer in FORBIDDEN:
        return ModelError(
            f"{name}: the hub answers {answer}: its weights are gated or private; accept their "
            f"licence on huggingface.co and run `hf auth login`{or_else}"
        )
    if answer in NOT_FOUND:
        return ModelError(
            f"{name}: the hub answers {answer}: it has no such repository, revision or file; check "
            f"the name{or_else}"
        )
    said = f"the hub answers {answer}" if answer else "the hub is out of reach"
    return ModelError(
        f"{name}: its weights are not in the local cache and {said} ({type(error).__name__}); on a "
        f"machine with network run {download} and copy $HF_HOME here{or_else}"
    )


def hub_answer(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, which libraries wrap into others; None without one."""
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None) or getattr(error, "code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _damaged_weights(name: str, error: Exception) -> str:
    """Message about cached weights that cannot be loaded, most often half a download."""
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
    if name.startswith(LOCAL_DIR):
        return f"{name}: its weights do not fit its config.json, or are damaged ({reason})"
    return (
        f"{name}: its file in the cache cannot be loaded ({reason}); "
        "remove its folder from $HF_HOME/hub (default ~/.cache/huggingface/hub) and run "
        f"{_download_command(name)}"
    )


def _download_command(name: str) -> str:
    return f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"`"


def with_classes(net: nn.Module, name: str, classes: int) -> nn.Module:
    """timm's network `name` with `classes` outputs and the weights of `net`.

    The classifier gets random weights. Raises ModelError where more than the classifier differs.
    """
    fresh = create_net(name, pretrained=False, num_classes=classes)
    if fresh.num_classes != classes:
        raise ModelError(f"{name}: timm cannot build it with {classes} classes")
    old, new = net.state_dict(), fresh.state_dict()
    if old.keys() != new.keys() and net.num_classes != 0:
        name_of_one = min(old.keys() ^ new.keys())
        raise ModelError(f"{name}: with {classes} classes it has other layers ({name_of_one})")
    same = {key: x for key, x in old.items() if key in new and new[key].shape == x.shape}
    fresh.load_state_dict(new | same)
    return fresh.to(next(iter(old.values())).device)


def label_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the outputs of timm's network in a module, where its configuration has them."""
    configs = (getattr(part, "pretrained_cfg", None) for part in module.modules())
    config = next(filter(None, configs), None)
    names = config.get("label_names") if isinstance(config, dict) else None
    return tuple(map(str, names or ()))


# ---- data configuration --------------------------------------------------------------------------


def data_config(net: nn.Module, name: str, overlay: dict | None = None) -> dict:
    """Mean, std and preprocessing of a network; `overlay` replaces values. Raises ModelError."""
    config = resolve_model_data_config(net) | (overlay or {})
    check_data_config(config, name)
    return config


def preprocessing_of(config: dict) -> dict:
    """The part of a data configuration that makes pixels, for timm's create_transform.

    Crop mode `border` pads with the mean.
    """
    keys = (*PREPROCESSING_KEYS, "mean") if config["crop_mode"] == "border" else PREPROCESSING_KEYS
    return {key: config[key] for key in keys}


def check_data_config(config: dict, name: str) -> None:
    """Raise ModelError for a configuration that no network for pixels in [0, 1] has."""
    problem = _normalisation_problem(config) or _preprocessing_problem(config)
    if problem:
        raise ModelError(f"{name}: {problem}; correct it where the network's configuration is kept")


def _normalisation_problem(config: dict) -> str:
    for kind in ("mean", "std"):
        values: Any = config.get(kind)
        if not _are_numbers(values, 3):
            return f"its {kind} is {values!r}, not three numbers"
        if max(values) > 1:
            return (
                f"its {kind} {tuple(values)} is in levels of 255, pixels are in [0, 1]: divide by "
                "255"
            )
    if min(config["mean"]) < 0:
        return f"its mean {tuple(config['mean'])} is negative, pixels are in [0, 1]"
    if min(config["std"]) <= 0:
        return f"its std {tuple(config['std'])} has to be positive"
    return ""


def _preprocessing_problem(config: dict) -> str:
    size: Any = config.get("input_size")
    crop: Any = config.get("crop_pct")
    if not _are_numbers(size, 3) or any(side != int(side) or side < 1 for side in size):
        return f"its input_size is {size!r}, not channels, height and width"
    if size[0] != 3 or max(size) > LARGEST_SIDE:
        return f"its input_size {tuple(size)} is not of three channels and at most {LARGEST_SIDE}"
    if not _are_numbers([crop], 1) or not 0 < crop <= LARGEST_CROP:
        return f"its crop_pct is {crop!r}, not a share of the image"
    if config.get("crop_mode") not in CROP_MODES:
        return f"its crop_mode is {config.get('crop_mode')!r}, timm has {', '.join(CROP_MODES)}"
    try:
        str_to_pil_interp(config.get("interpolation"))
    except (KeyError, TypeError, AttributeError):
        return (
            f"its interpolation is {config.get('interpolation')!r}, which is for training or "
            "unknown; write bilinear or bicubic"
        )
    return ""


def _are_numbers(values: Any, count: int) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return False
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)
