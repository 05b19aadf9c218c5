"""Stages of benchmarks/gpu.py about bare passes: the floor under every attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from alignment_security.models.fast import BFloat16
from benchmarks.gpu_stage import Rows, Stage, rate, shape_of, unless_out_of_memory

Pass = Callable[[], Tensor]


def floor(stage: Stage) -> Rows:
    """Images per second forward, and forward + backward to the image, without any attack."""
    for batch in stage.size.batches:
        for name in stage.size.nets:
            x, fast = torch.rand(batch, *shape_of(name), device=stage.device), stage.fast(name)
            yield f"{name}, batch {batch}, plain float32", rates(stage, stage.net(name), x)
            yield f"{name}, batch {batch}, float32", rates(stage, fast, x)
            if not stage.on_gpu:
                continue
            with flags(tf32=True):
                yield f"{name}, batch {batch}, tf32", rates(stage, fast, x)
            yield f"{name}, batch {batch}, bf16", rates(stage, BFloat16(fast), x)
            if batch == min(stage.size.batches):  # launches cost nothing in large batches
                yield f"{name}, batch {batch}, float32 as a CUDA graph", graph_rates(stage, fast, x)
            fast.to(memory_format=torch.channels_last)
            yield f"{name}, batch {batch}, float32 channels_last", rates(stage, fast, x)


def first_passes(stage: Stage) -> Rows:
    """Seconds of the first and second pass of a new size of batch, float32, by memory format."""
    for name in stage.size.engine_nets:
        for format in (torch.contiguous_format, torch.channels_last):
            net = stage.fast(name).to(memory_format=format)
            for batch in stage.size.new_batches:
                x = torch.rand(batch, *shape_of(name), device=stage.device)
                first, second = (stage.seconds(partial(gradient, net, x)) for _ in range(2))
                yield f"{name}, {format}, batch {batch}", {"first": first, "second": second}


def floor_tuned(stage: Stage) -> Rows:
    """The same in float32 with cuDNN's benchmark mode, and the seconds that tuning took."""
    batch = stage.size.batches[-1]
    for name in stage.size.nets if stage.on_gpu else ():
        x, fast = torch.rand(batch, *shape_of(name), device=stage.device), stage.fast(name)
        with flags(benchmark=True):
            spent = first_seconds(stage, fast, x)
            yield f"{name}, batch {batch}, tuned", rates(stage, fast, x) | {"tuning_seconds": spent}


def floor_compiled(stage: Stage) -> Rows:
    """The same after torch.compile, with the seconds that compiling took."""
    batch = stage.size.batches[-1]
    for name in stage.size.compiled:
        x = torch.rand(batch, *shape_of(name), device=stage.device)
        for precision in ("float32", "bf16"):
            net = stage.fast(name, precision)
            net.compile()
            spent = first_seconds(stage, net, x)
            yield (
                f"{name}, batch {batch}, {precision} compiled",
                rates(stage, net, x) | {"compile_seconds": spent},
            )


@contextmanager
def flags(tf32: bool = False, benchmark: bool = False) -> Iterator[None]:
    """A context with TF32 or cuDNN's benchmark mode on; both are off afterwards."""
    set_flags(tf32, benchmark)
    try:
        yield
    finally:
        set_flags(False, False)


def set_flags(tf32: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark


def logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Gradient of the largest logits at x: (B, C, H, W)."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(net(leaf).amax(1).sum(), leaf)[0]


def first_seconds(stage: Stage, net: nn.Module, x: Tensor) -> float | str:
    """Of the first gradient of a network."""
    return unless_out_of_memory(stage.seconds, partial(gradient, net, x))


def rates(stage: Stage, net: nn.Module, x: Tensor) -> dict:
    """Images per second of both passes; an A100 with 40 GB holds not every batch of 256."""
    passes = {"forward": logits, "both": gradient}
    return {
        key: unless_out_of_memory(rate, stage, partial(run, net, x), len(x))
        for key, run in passes.items()
    }


def graph_rates(stage: Stage, net: nn.Module, x: Tensor) -> dict:
    """Both passes replayed as CUDA graphs: no launch costs."""
    return {
        key: unless_out_of_memory(graph_rate, stage, partial(run, net, x), len(x))
        for key, run in (("forward", logits), ("both", gradient))
    }


def graph_rate(stage: Stage, run: Pass, images: int) -> float:
    return rate(stage, captured(run).replay, images)


def captured(run: Pass) -> torch.cuda.CUDAGraph:
    """A call as a CUDA graph, after three calls on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
