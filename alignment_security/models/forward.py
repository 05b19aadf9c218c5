"""What the scripts that work on a device share: exit status, where image sets lie, the device, and facts of a process."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from alignment_security.common.files import UserError
from alignment_security.common.settings import git_state, installed_versions

CPU_BATCH, FIRST_CUDA_BATCH, LARGEST_BATCH = 8, 32, 1024


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters (or buffers) lie; the CPU when it has none."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


# ---- passes ----------------------------------------------------------------------------------------------------


class Forward:
    """A model run in chunks of at most `batch_size` rows, halved when the device is out of memory. Counts rows."""

    def __init__(
        self, module: nn.Module, batch_size: int, log: Callable[[str], None] = lambda message: None
    ):
        self.module, self.batch_size, self.log = module, batch_size, log
        self.forwards = self.backwards = 0

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) float32 without a graph."""
        with torch.no_grad():
            return self._chunks(x, lambda part, rows: self.module(part).float())

    def gradient(self, x: Tensor, loss: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the gradient of each row's loss at x (B, C, H, W); no gradient reaches the weights."""
        out: list[Tensor] = []

        def one(part: Tensor, rows: slice) -> Tensor:
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                logits = self.module(leaf).float()
                (grad,) = torch.autograd.grad(loss(logits, rows).sum(), leaf)
            out.append(logits.detach())
            return grad

        grad = self._chunks(x, one, out)
        self.backwards += len(x)
        return (out[0] if len(out) == 1 else torch.cat(out)), grad

    def _chunks(self, x: Tensor, evaluate, done: list | None = None) -> Tensor:
        parts, begin = [], 0
        while begin < len(x):
            rows = slice(begin, begin + self.batch_size)
            try:
                parts.append(evaluate(x[rows], rows))
            except torch.OutOfMemoryError:
                if done is not None:
                    del done[len(parts) :]
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, min(self.batch_size, len(x)) // 2)
                self.log(f"out of device memory: batch size is now {self.batch_size}")
                torch.cuda.empty_cache() if x.is_cuda else None
                continue
            begin = rows.stop
        self.forwards += len(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def auto_batch_size(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """The largest power of two that fits forward and backward and still gains 5 % in images per second.

    On a CPU time is linear in the batch, and a small one stays in its caches: CPU_BATCH.
    """
    if device.type != "cuda":
        return CPU_BATCH
    best, rate, size = 1, 0.0, FIRST_CUDA_BATCH
    while size <= LARGEST_BATCH:
        try:
            now = _probe(module, torch.rand(size, *shape, device=device))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
            if size <= best or rate:
                break
            continue
        if now < 1.05 * rate:
            break
        best, rate, size = size, now, size * 2
    return best


def _probe(module: nn.Module, x: Tensor) -> float:
    passes, begin, end = Forward(module, len(x)), torch.cuda.Event(True), torch.cuda.Event(True)
    passes.gradient(x, lambda logits, rows: logits.amax(1))
    begin.record()
    passes.gradient(x, lambda logits, rows: logits.amax(1))
    end.record()
    torch.cuda.synchronize()
    return len(x) / begin.elapsed_time(end)


def tune_process(device: torch.device, precision: str) -> None:
    """Process-wide settings.

    glibc gives large tensors back to the kernel after every layer and pays a page fault for each page when it takes
    them again: on two CPU cores EfficientNet-Lite0 at batch 32 took 3 to 6 times as long for it.
    """
    if device.type == "cpu" and platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def session_facts(device: torch.device, batch_size: int) -> dict:
    """What was true of this process; kept per session, not compared."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})"
    )
    return {
        "git": git_state(),
        "device": name,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "versions": installed_versions(),
        "argv": sys.argv[1:],
    }
