"""What devices and compilers say when they cannot: memory in every spelling, no compiler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignment_security.common.files import UserError
from alignment_security.common.out_of_memory import is_out_of_memory
from alignment_security.models.forward import Forward

SPELLINGS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 4704000 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a memory object"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    MemoryError(),
]  # fmt: skip
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("CUDA error: device-side assert triggered"),
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
