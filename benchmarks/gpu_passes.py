"""Stages of benchmarks/gpu.py about bare passes: the floor under every attack."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from alignment_security.models.fast import BFloat16
from benchmarks.gpu_stage import Rows, Stage, rate, shape_of

Pass = Callable[[], Tensor]


def floor(stage: Stage) -> Rows:
    """Images per second forward, and forward + backward to the image, without any attack."""
    for batch in stage.size.batches:
        for name in stage.size.nets:
            x = torch.rand(batch, *shape_of(name), device=stage.device)
            for variant, (net, tf32) in variants(stage, name).items():
                with allow_tf32(tf32):
                    yield f"{name}, batch {batch}, {variant}", rates(stage, net, x)
            if stage.on_gpu:
                yield f"{name}, batch {batch}, float32 as a CUDA graph", graph_rates(stage, name, x)


def floor_compiled(stage: Stage) -> Rows:
    """The same after torch.compile, with the seconds that compiling took."""
    batch = stage.size.batches[-1]
    for name in stage.size.compiled:
        x = torch.rand(batch, *shape_of(name), device=stage.device)
        for precision in ("float32", "bf16"):
            net = stage.fast(name, precision)
            net.compile()
            spent = stage.seconds(partial(gradient, net, x))
            yield (
                f"{name}, batch {batch}, {precision} compiled",
                rates(stage, net, x) | {"compile_seconds": spent},
            )


def variants(stage: Stage, name: str) -> dict[str, tuple[nn.Module, bool]]:
    """(network, whether TF32 is on) by what is changed."""
    plain = stage.net(name)
    channels_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fast = stage.fast(name)
    found = {
        "float32": (plain, False),
        "float32 channels_last": (channels_last, False),
        "float32 as attacked": (fast, False),
    }
    if stage.on_gpu:
        found |= {"tf32": (fast, True), "bf16": (BFloat16(fast), False)}
    return found


class allow_tf32:
    """A context with TF32 on or off."""

    def __init__(self, allowed: bool):
        self.allowed = allowed

    def __enter__(self):
        self._set(self.allowed)

    def __exit__(self, *error):
        self._set(False)

    def _set(self, allowed: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Gradient of the largest logits at x: (B, C, H, W)."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(net(leaf).amax(1).sum(), leaf)[0]


def rates(stage: Stage, net: nn.Module, x: Tensor) -> dict:
    return {
        "forward": rate(stage, lambda: logits(net, x), len(x)),
        "both": rate(stage, lambda: gradient(net, x), len(x)),
    }


def graph_rates(stage: Stage, name: str, x: Tensor) -> dict:
    """Both passes replayed as CUDA graphs: no launch costs."""
    net = stage.fast(name)
    return {
        key: rate(stage, captured(partial(run, net, x)).replay, len(x))
        for key, run in (("forward", logits), ("both", gradient))
    }


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
