"""What devices and compilers say when they cannot: memory in every spelling, no compiler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignment_security.common.files import UserError
from alignment_security.common.out_of_memory import is_out_of_memory
from alignment_security.models.forward import Forward, pick_device, tune_process
from alignment_security.trainer.distributed import join_processes

SPELLINGS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 4704000 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation after 6 plans"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/'
                 'CUDACachingAllocator.cpp":1165, please report a bug to PyTorch. '),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a memory object"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    MemoryError(),
]  # fmt: skip
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ValueError("out of memory"),
]


class Fails(nn.Module):
    """Raises an error for more than two images."""

    def __init__(self, error, most=2):
        super().__init__()
        self.error, self.most = error, most

    def forward(self, x):
        if len(x) > self.most:
            raise self.error
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize("error", SPELLINGS, ids=lambda e: str(e)[:30])
def test_out_of_memory_in_every_spelling_halves_the_batch(error):
    log: list[str] = []
    forward = Forward(Fails(error), 8, log.append)
    x = torch.rand(8, 3, 4, 4)
    assert torch.equal(forward.logits(x), x.flatten(1)[:, :3]) and forward.batch_size <= 2
    assert log and is_out_of_memory(error)
    with pytest.raises(type(error)):
        Forward(Fails(error, most=0), 8).logits(x)


@pytest.mark.parametrize("error", OTHERS, ids=lambda e: str(e)[:30])
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        Forward(Fails(error), 8).logits(torch.rand(8, 3, 4, 4))


def test_a_failed_compilation_is_one_line():
    from torch._inductor.exc import InvalidCxxCompiler

    with pytest.raises(
        UserError, match="--compile: .*leave out --compile, or install a C"
    ) as error:
        Forward(Fails(InvalidCxxCompiler(), most=0), 2).logits(torch.rand(2, 3, 4, 4))
    assert "\n" not in str(error.value)


class Detached(nn.Module):
    """Linear logits without a gradient, as of a network that calls torch.no_grad or numpy."""

    def forward(self, x):
        return x.detach().flatten(1)[:, :3]


def test_a_network_without_a_gradient_is_one_line():
    forward, x = Forward(Detached(), 2), torch.rand(2, 3, 4, 4)
    assert torch.equal(forward.logits(x), x.flatten(1)[:, :3])
    with pytest.raises(UserError, match="no gradient with respect to pixels"):
        forward.gradient(x, lambda logits, rows: logits.sum(1))


TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update it."
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel"


@pytest.mark.parametrize("reason", [TOO_OLD, NO_KERNEL], ids=["driver", "kernel"])
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_that_torch_cannot_use_is_refused(monkeypatch, name, reason):
    """NVML counts GPUs that CUDA does not reach; the CPU in their place would take days."""

    def zeros(*_, device):
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(UserError, match=f"--device {name}: {reason[:30]}.*--device cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_a_process_of_a_training_takes_no_cpu_in_the_place_of_its_gpu(monkeypatch):
    def zeros(*_, device):
        raise RuntimeError(TOO_OLD)

    monkeypatch.setenv("LOCAL_RANK", "1")  # of torchrun
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(UserError, match="--device cuda:1: The NVIDIA driver"):
        join_processes("auto")


def test_a_machine_without_a_gpu_computes_on_its_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto") == torch.device("cpu")


def test_a_process_works_on_the_gpu_of_its_model(monkeypatch):
    """Events, streams and pinned memory are of the current GPU; else `auto` timed an idle one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for device in ("cpu", "cuda", "cuda:3"):
        tune_process(torch.device(device), "float32")
    assert current == [torch.device("cuda:3")]
