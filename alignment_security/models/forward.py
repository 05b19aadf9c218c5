"""Run a model on a device: passes in chunks, batch size, choice of the device, process settings.

Process-wide state. Apart from random seeds, the project changes these settings of the process:

    tune_process           glibc's malloc thresholds, the TF32 flags, CUDA's current GPU
    fast.fast_copy         the TF32 flags, on for precision `tf32`
    fast.WithoutTF32       switches TF32 off during its forward pass, then restores the flags
    name_the_user          when the package is imported: USER and HOME of a uid that has none
    brainscore.load_plugin sets BS_INSTALL_DEPENDENCIES=no in the environment unless it is set
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from alignment_security.common.files import UserError
from alignment_security.common.out_of_memory import ONE_IMAGE, is_out_of_memory
from alignment_security.common.settings import VERSION, git_state, installed_versions
from alignment_security.models.fast import allow_tf32

CPU_BATCH, FIRST_CUDA_BATCH, LARGEST_BATCH = 8, 32, 1024
LEAST_GAIN = 1.05  # a doubled batch must be this many times as fast, in images per second
# A network sees at most so many sizes of batch (`batch_shapes`), and none below SMALLEST_SHAPE:
# on CPUs, kernels for one or two rows round differently.
SHAPES, SMALLEST_SHAPE = 6, 4
# On a CPU, images of so many pixels and more go through the network CPU_ROWS at a time. On one core
# that took 0.97 to 1.08 times as long as 8 at a time (5 networks, 128 to 224 pixels a side).
CPU_ROWS, LARGE_IMAGE = 4, 128 * 128
NO_GRADIENT = (
    "the network's logits have no gradient with respect to pixels, which this threat needs; take "
    "torch.no_grad and detach out of its forward pass (`clean` needs no gradient)"
)
GPU_HELP = (
    "docs/running.md has the torch for an older driver or card, and --device cpu does without it"
)
COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
# glibc, malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def device_of(module: nn.Module) -> torch.device:
    """Device of the module's parameters or buffers; the CPU if it has none."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


# ---- passes --------------------------------------------------------------------------------------


def batch_shapes(batch_size: int) -> list[int]:
    """Sizes of the batches that reach a network, ascending; the last one is batch_size."""
    shapes = [batch_size]
    while len(shapes) < SHAPES and shapes[0] // 2 >= SMALLEST_SHAPE:
        shapes.insert(0, shapes[0] // 2)
    return shapes


def next_shape(shapes: Sequence[int], rows: int) -> int:
    """Size of the next batch for so many rows: the next larger of `shapes`, or the next smaller.

    The larger one is filled up with idle rows. If they would be more than an eighth of the largest
    size, the smaller one is taken, and the other rows are left to further batches.

    shapes   sizes of the batches that reach a network, ascending
    """
    larger = next((shape for shape in shapes if shape >= rows), shapes[-1])
    smaller = max((shape for shape in shapes if shape <= rows), default=larger)
    most_idle = max(shapes[-1] // 8, shapes[0])
    return larger if larger - rows <= most_idle else smaller


def filled_rows(shapes: Sequence[int], rows: int) -> int:
    """Rows that reach a network, idle ones included, for so many rows.

    shapes   sizes of the batches that reach it, ascending
    """
    full, left = divmod(rows, shapes[-1])
    filled = full * shapes[-1]
    while left > 0:
        shape = next_shape(shapes, left)
        filled, left = filled + shape, left - shape
    return filled


class Forward:
    """Runs a model's forward and backward passes in chunks of at most `batch_size` rows.

    Each chunk has one of `batch_shapes`, filled up with idle rows. So kernels are chosen for a few
    sizes only, and the logits of an image do not depend on how many others are with it, as far as
    the kernels of these sizes agree.

    On a CPU, every chunk of large images has `cpu_rows` rows, whatever `batch_size` is. There the
    logits and gradients of an image depend on nothing but the image and the number of threads.

    When the device is out of memory, chunks are halved and `log` is called with a message.

    cpu_rows    rows of a pass over large images on a CPU
    draws       passes of each row of x: one, but for a random network (`draws.DrawnForward`)
    """

    draws = 1

    def __init__(
        self,
        module: nn.Module,
        batch_size: int,
        log: Callable[[str], None] = lambda message: None,
        cpu_rows: int = CPU_ROWS,
    ):
        self.module, self.batch_size, self.log = module, batch_size, log
        self.cpu_rows = cpu_rows

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) float32 of images x (B, C, H, W), without a graph."""

        def chunk_logits(part: Tensor, rows: slice) -> tuple[Tensor]:
            return (self.module(self._with_idle_rows(part))[: len(part)].float(),)

        with torch.no_grad():
            (logits,) = self._in_chunks(x, chunk_logits)
        return logits

    def gradient(self, x: Tensor, loss: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, K) float32 and the gradient (B, C, H, W) of each image's loss at x.

        loss   (logits of a chunk, its rows in x as a slice) -> losses (rows,)

        The weights get no gradient. Raises UserError where the logits have none with respect to x.
        """

        def chunk_gradient(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = self._with_idle_rows(part).detach().requires_grad_()
                logits = self.module(leaf)[: len(part)].float()
                if not logits.requires_grad:
                    raise UserError(NO_GRADIENT)
                (gradient,) = torch.autograd.grad(loss(logits, rows).sum(), leaf)
            return logits.detach(), gradient[: len(part)]

        logits, gradient = self._in_chunks(x, chunk_gradient)
        return logits, gradient

    def split_pays(self, x: Tensor, with_gradient: int) -> bool:
        """Whether a gradient for some of the rows, apart from the others, costs less than for all.

        A backward pass costs about two forward passes.
        """
        others = len(x) - with_gradient
        if not others:
            return False
        apart = 3 * self._filled(x, with_gradient) + self._filled(x, others)
        return apart < 3 * self._filled(x, len(x))

    def shapes(self, x: Tensor) -> list[int]:
        """Sizes of the chunks of x that reach the network, ascending."""
        if x.device.type == "cpu" and x.shape[-2:].numel() >= LARGE_IMAGE:
            return [self.cpu_rows]
        return batch_shapes(self.batch_size)

    def _filled(self, x: Tensor, rows: int) -> int:
        return filled_rows(self.shapes(x), rows)

    def _with_idle_rows(self, part: Tensor) -> Tensor:
        """The rows (b, C, H, W), and copies of the last one up to the next of their shapes."""
        idle = next_shape(self.shapes(part), len(part)) - len(part)
        return torch.cat([part, part[-1:].expand(idle, *part.shape[1:])]) if idle else part

    def _in_chunks(
        self, x: Tensor, evaluate: Callable[[Tensor, slice], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """Call evaluate(part of x, its rows) for consecutive parts; returns its tensors, joined.

        A part that is out of memory is split in halves. Raises the device's error, with the note
        ONE_IMAGE, for a part of one row.
        """
        results: list[tuple[Tensor, ...]] = []
        begin = 0
        while begin < len(x):
            rows = slice(begin, begin + next_shape(self.shapes(x), len(x) - begin))
            try:
                results.append(evaluate(x[rows], rows))
            except (RuntimeError, MemoryError) as error:
                refuse_failed_compilation(error)
                if not is_out_of_memory(error):
                    raise
                failed = rows.stop - begin
                if failed == 1:
                    error.add_note(ONE_IMAGE)
                    raise
                self.batch_size = min(self.batch_size, failed // 2)
                self.cpu_rows = min(self.cpu_rows, failed // 2)
                self.log(f"out of device memory: batch size is now {self.batch_size}")
                if x.is_cuda:
                    torch.cuda.empty_cache()
                continue
            begin = rows.stop
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*results)]


def refuse_failed_compilation(error: Exception) -> None:
    """Raise UserError if the error is one of torch.compile, most often a missing compiler."""
    if type(error).__module__.startswith(COMPILER_MODULES):
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--compile: torch.compile fails here ({type(error).__name__}: {reason[:200]}); leave "
            "out --compile, or install a C++ compiler and Python's headers (g++, python3-dev)"
        ) from None


def auto_batch_size(
    module: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    images: int = LARGEST_BATCH,
) -> int:
    """The largest power of two at which forward and backward fit into memory and still gain speed.

    No larger than it takes to hold all `images`. On a CPU time is linear in the batch size, and a
    small batch stays in the caches: CPU_BATCH.
    """
    if device.type != "cuda":
        return CPU_BATCH
    best, best_speed, size = 1, 0.0, FIRST_CUDA_BATCH
    while size <= LARGEST_BATCH and (size == FIRST_CUDA_BATCH or size < 2 * images):
        try:
            speed = _probe_speed(module, torch.rand(size, *shape, device=device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            size //= 2
            if best_speed > 0 or size <= best:  # a smaller batch has worked, or 1 is left
                break
            continue
        if speed < LEAST_GAIN * best_speed:
            break
        best, best_speed, size = size, speed, size * 2
    return best


def _probe_speed(module: nn.Module, x: Tensor) -> float:
    """Images per millisecond in forward and backward on a GPU, measured after a warm-up pass.

    Raises torch.OutOfMemoryError where they do not fit at once.
    """

    def refuse(message: str) -> None:
        raise torch.OutOfMemoryError(message)

    forward = Forward(module, len(x), refuse)
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    forward.gradient(x, lambda logits, rows: logits.amax(1))
    begin.record()
    forward.gradient(x, lambda logits, rows: logits.amax(1))
    end.record()
    torch.cuda.synchronize()
    return len(x) / begin.elapsed_time(end)


# ---- device and process --------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """The device that --device names; `auto` is the GPU if the machine has one, else the CPU.

    Raises UserError for a device that does not exist or does not work. `auto` takes no CPU in the
    place of a GPU that torch cannot use: it would need days for what takes minutes.
    """
    try:
        # NVML counts GPUs that torch cannot use, too
        found = "cuda" if torch.cuda.device_count() else "cpu"
        device = torch.device(found if name == "auto" else name)
    except RuntimeError:
        raise UserError(f"--device {name}: no device; auto, cpu, cuda, or cuda:1, ...") from None
    try:
        (torch.zeros(1, device=device) + 1).item()  # a kernel; and meta holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if device.type == "cuda":
            reason += f"; {GPU_HELP}"
        raise UserError(f"--device {name}: {reason}") from None
    return device


def tune_process(device: torch.device, precision: str) -> None:
    """Set the process-wide settings that the speed and precision of passes depend on.

    CPU, Linux   glibc keeps freed memory. By default it returns large tensors to the kernel after
                 every layer and pays a page fault per page to get them back: on two CPU cores
                 EfficientNet-Lite0 at batch size 32 took 3 to 6 times as long.
    GPU          becomes CUDA's current one, of which events, streams and pinned memory are.
    both         TF32 is on for precision `tf32`, and off for all others.

    cuDNN's benchmark mode stays off: it took 13 s for each size of batch of EfficientNet-Lite0 in
    float32 on an H200, longer than most attacks.
    """
    if device.type == "cpu" and platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    allow_tf32(precision == "tf32")


def session_facts(device: torch.device, batch_size: int) -> dict:
    """Facts of this process for the run file: recorded per session, never compared."""
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = f"{device.type} ({platform.machine()})"
    return {
        "version": VERSION,
        "git": git_state(),
        "device": device_name,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "versions": installed_versions(),
        "argv": sys.argv[1:],
    }
