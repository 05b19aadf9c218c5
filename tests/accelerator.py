"""A simulated accelerator: finds operations that mix tensors of two devices, without a GPU.

Its tensors report torch.device("meta"), which autograd supports and which runs no kernels. Behind
each is a CPU tensor on which the operations are computed. As with CUDA, an operation on tensors of
both devices raises, except copies, CPU tensors as indices, and CPU tensors without dimensions.
Speed, precision and memory are the CPU's.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import FrameType
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from alignment_security.attacks.attack import to_device

DEVICE = torch.device("meta")
WAITS: list[str] = []  # operations for which the host would have waited for the device
COPIES, INDEXING = {"copy_", "_to_copy"}, {"index", "index_put", "index_put_"}


class Pretended(torch.Tensor):
    """A tensor on the simulated accelerator; `behind` is the CPU tensor with its values."""

    behind: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, behind):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            behind.shape,
            strides=behind.stride(),
            dtype=behind.dtype,
            device=DEVICE,
            storage_offset=behind.storage_offset(),
        )

    def __init__(self, behind):
        self.behind = behind

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __getitem__(self, index):
        return super().__getitem__(on_cpu(index))

    def __setitem__(self, index, value):
        super().__setitem__(on_cpu(index), value)

    def new_tensor(self, data, dtype=None):
        return Pretended(self.behind.new_tensor(data, dtype=dtype))


def on_cpu(index):
    """Lists in an index as CPU tensors; torch would turn them into real, empty meta tensors."""
    if isinstance(index, tuple):
        return tuple(on_cpu(part) for part in index)
    return torch.tensor(index, dtype=torch.long) if isinstance(index, list) else index


def check(func, args, kwargs) -> None:
    """Raise RuntimeError for an operation that CUDA would refuse."""
    name, checked = func.overloadpacket.__name__, (args, kwargs)
    if name in COPIES:
        return
    if name in INDEXING:
        checked = (args[0], args[2:])
        if not isinstance(args[0], Pretended) and any(
            isinstance(part, Pretended) for part in tree_leaves(args[1])
        ):
            raise RuntimeError(f"{func}: a CPU tensor indexed by a tensor of the accelerator")
    tensors = [part for part in tree_leaves(checked) if isinstance(part, torch.Tensor)]
    ours = [part for part in tensors if isinstance(part, Pretended)]
    if ours and any(part.dim() for part in tensors if not isinstance(part, Pretended)):
        raise RuntimeError(
            f"{func}: tensors on two devices, {[(tuple(t.shape), str(t.device)) for t in tensors]}"
        )
    if kwargs.get("generator") is not None and (ours or kwargs.get("device") == DEVICE):
        raise RuntimeError(f"{func}: a CPU generator for the accelerator")


def waits(func, args, kwargs) -> bool:
    """Whether the host waits: for a copy, or for values of the device that decide a size.

    As on CUDA, copies to the device wait, too, but for those of `to_device`, from pinned memory.
    """
    name = func.overloadpacket.__name__
    if name == "copy_":
        return isinstance(args[1], Pretended) != isinstance(args[0], Pretended)
    if name == "_to_copy" and not isinstance(args[0], Pretended):
        return kwargs.get("device") == DEVICE and not is_by_to_device()
    if not args or not isinstance(args[0], Pretended):
        return False
    if name in INDEXING:
        indices = [part for part in args[1] if part is not None]
        return any(i.dtype == torch.bool or not isinstance(i, Pretended) for i in indices)
    return name in ("_local_scalar_dense", "nonzero", "_unique2") or (
        name == "_to_copy" and kwargs.get("device", DEVICE) != DEVICE
    )


def is_by_to_device() -> bool:
    """Whether `to_device` is among the callers."""
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_code is not to_device.__code__:
        frame = frame.f_back
    return frame is not None


def run(func, args, kwargs):
    """Compute an operation on the CPU; the result is on the device where CUDA would put it."""
    check(func, args, kwargs)
    if waits(func, args, kwargs):
        WAITS.append(func.overloadpacket.__name__)
    tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
    assert all(isinstance(part, Pretended) for part in tensors if part.is_meta), (
        f"{func}: a real meta tensor"
    )
    wrapper = {id(part.behind): part for part in tensors if isinstance(part, Pretended)}

    def real(part):
        if isinstance(part, Pretended):
            return part.behind
        return torch.device("cpu") if isinstance(part, torch.device) else part

    out = func(
        *(tree_map(real, arg) for arg in args),
        **{key: tree_map(real, value) for key, value in kwargs.items()},
    )
    device = kwargs.get("device")
    if func.overloadpacket.__name__ == "copy_":
        return args[0]
    if (device is not None and torch.device(device) != DEVICE) or (device is None and not wrapper):
        return out

    def placed(part):
        if not isinstance(part, torch.Tensor):
            return part
        return wrapper[id(part)] if id(part) in wrapper else Pretended(part)

    return tree_map(placed, out)


class Mode(TorchDispatchMode):
    """Sends operations without a simulated tensor, such as torch.zeros(device=...), to `run`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextmanager
def pretended():
    """Context in which DEVICE can be used like an accelerator."""
    tensor, as_tensor, tolist = torch.tensor, torch.as_tensor, torch.Tensor.tolist

    def placed(make):
        def on_device(*args, device=None, **options):
            made = make(*args, **options)
            return made if device is None else made.to(device)

        return on_device

    def counted_tolist(values):
        if isinstance(values, Pretended):
            WAITS.append("tolist")
        return tolist(getattr(values, "behind", values))

    with (
        mock.patch.object(torch, "tensor", placed(tensor)),
        mock.patch.object(torch, "as_tensor", placed(as_tensor)),
        mock.patch.object(torch.Tensor, "tolist", counted_tolist),
        Mode(),
    ):
        yield DEVICE
