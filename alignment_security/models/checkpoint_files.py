"""Read a checkpoint file: every tensor in it, by the path of names that leads to it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from alignment_security.common.file_kinds import (
    SAFETENSORS,
    TORCHSCRIPT,
    foreign_kind,
    weights_format,
)
from alignment_security.common.files import TryAgain
from alignment_security.common.folders import list_files
from alignment_security.common.out_of_memory import reading_into_memory
from alignment_security.common.text import some_of
from alignment_security.common.torch_files import error_reason, load_torch_file
from alignment_security.models.heads import ModelError

IN_DICT = "/"  # between the key of a dict and the names in it; modules are joined by "."
WEIGHTS_ENDINGS = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
NORMALISATION = ("mean", "std")  # keys whose three numbers are tensors to us
MAX_DEPTH = 6  # of dicts in dicts; a pickle may hold itself


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file in safetensors' or torch's format, whatever its name says.

    Names in dicts are joined: {"state_dict": {"fc.bias": x}} gives {"state_dict/fc.bias": x}. Code
    in the file runs only with `trust`. Raises ModelError for a file that is missing or unreadable,
    that needs to run code, or that holds no tensors under names.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path}: a folder, no checkpoint; {_advice_on_folder(path)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        kind = foreign_kind(path)
        file_format = weights_format(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    if kind is not None:
        raise ModelError(f"{path}: not a readable checkpoint, but {kind}")
    if file_format == TORCHSCRIPT:
        raise ModelError(
            f"{path}: a TorchScript program, which is code; load it with torch.jit.load where you "
            "trust it, and save its state_dict()"
        )
    tensors = _flatten(_load_file(path, file_format, trust))
    if not tensors:
        raise ModelError(
            f"{path}: holds no state dict (a dict of names and tensors, or one inside a dict)"
        )
    return tensors


def _advice_on_folder(path: Path) -> str:
    if (path / ".metadata").is_file():
        return (
            "torch.distributed wrote it in parts: join them with `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} net.pth`"
        )
    files = list_files(path, lambda file: file.suffix in WEIGHTS_ENDINGS).files
    names = [str(file.relative_to(path)) for file in files]
    return f"give a file in it ({some_of(names, 3) or 'none'})"


def _load_file(path: Path, file_format: str | None, trust: bool) -> object:
    """What is in the file. Raises ModelError."""
    try:
        if file_format == SAFETENSORS:
            with reading_into_memory(path):
                return safetensors.torch.load_file(path)
        return load_torch_file(path, trust)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path}: needs the code that it was saved with ({error}); install it, or save the "
            "state dict alone"
        ) from None
    except TryAgain:
        raise
    except Exception as error:  # an unpickler may raise anything on bytes that are no pickle
        code = re.search(r"nsupported.*?GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code and not trust:
            raise ModelError(
                f"{path}: holds more than tensors ({code[1]}), and loading that runs code from "
                "the file; pass --trust_checkpoint if you trust its author"
            ) from None
        reason = f"it is cut off or damaged ({error_reason(error)})"
        if not file_format:
            reason = "it is no file of torch or safetensors"
        raise ModelError(
            f"{path}: not a readable checkpoint, {reason}; compare its size and sha256 with its "
            "source, and download it again if they differ"
        ) from None


def _is_triple(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(isinstance(number, float | int) for number in value)


def _flatten(loaded: object, depth: int = 0) -> dict[str, Tensor]:
    """Tensors under text keys in dicts and modules, by their joined names; others are skipped."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if not isinstance(loaded, dict) or depth > MAX_DEPTH:
        return {}
    found: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            found[key] = value
        elif key in NORMALISATION and _is_triple(value):
            found[key] = torch.tensor(value)
        else:
            inside = _flatten(value, depth + 1)
            found |= {f"{key}{IN_DICT}{name}": tensor for name, tensor in inside.items()}
    return found
