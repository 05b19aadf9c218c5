"""What the stages of benchmarks/gpu.py share: how much to measure, networks, images, timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from alignment_security.attacks.autoattack import Budget
from alignment_security.common.out_of_memory import is_out_of_memory
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.fast import fast_copy
from alignment_security.models.heads import PixelModel
from alignment_security.models.loading import load_model
from benchmarks.measure import Image, correct_images

# (name of a row, its values) as they become known
Rows = Iterator[tuple[str, Any]]

LITE0 = "tf_efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults are those of the committed file.

    nets, batches        of the bare passes; compiled: those that torch.compile is tried on
    new_batches          of `first_passes`
    seconds              of one measurement of bare passes
    engine_nets, engine_steps, engine_queries, largest_batch   of the engine's share
    budget               where a smaller one than AutoAttack's has to do
    photographs          at most, of `precision`, `survivors` and `parity`
    steps                of the minimum-norm attacks
    memory_batches       of `memory`; memory_limit_mib: where the device is made to run out
    training             (network, batch size) pairs
    """

    nets: tuple[str, ...] = ("resnet50", "vit_base_patch16_224", "convnext_tiny", LITE0)
    batches: tuple[int, ...] = (32, 256)
    compiled: tuple[str, ...] = ("resnet50", "vit_base_patch16_224")
    seconds: float = 0.4
    engine_nets: tuple[str, ...] = (LITE0, "resnet50")
    new_batches: tuple[int, ...] = (24, 48, 96, 192)
    engine_steps: int = 50
    engine_queries: int = 200
    largest_batch: int = 128
    budget: Budget = Budget(steps=20, targets=3, queries=500)
    photographs: int = 100
    survivors: int = 20
    parity: int = 8
    steps: int = 50
    memory_batches: tuple[int, ...] = (64, 256, 1024)
    memory_limit_mib: int = 6 * 1024
    training: tuple[tuple[str, int], ...] = (("resnet50", 64), ("vit_tiny_patch16_224", 64))


FULL = Size()
QUICK = Size(
    nets=("test_resnet", "test_vit"),
    batches=(2,),
    compiled=(),
    seconds=0.01,
    engine_nets=("test_resnet",),
    new_batches=(1,),
    engine_steps=2,
    engine_queries=3,
    largest_batch=4,
    budget=Budget(steps=2, targets=1, queries=3),
    photographs=2,
    survivors=2,
    parity=2,
    steps=5,
    memory_batches=(2,),
    training=(("test_resnet", 2),),
)


@dataclass
class Stage:
    """The device, how much to measure on it, and the photographs."""

    device: torch.device
    size: Size
    image_dir: Path | None = None
    nets: dict[str, nn.Module] = field(default_factory=dict)  # by name, made once

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def net(self, name: str) -> nn.Module:
        """Pixels -> logits: Lite0 with its weights, any other timm network with random ones."""
        if name not in self.nets:
            self.nets[name] = make_net(name).to(self.device)
        return self.nets[name]

    def fast(self, name: str, precision: str = "float32") -> nn.Module:
        """The copy of a network that the evaluator attacks."""
        example = torch.rand(2, *shape_of(name), device=self.device)
        return fast_copy(self.net(name), example, precision)

    def photographs(self, count: int) -> list[Image]:
        """Photographs that Lite0 classifies correctly, of the first `count`."""
        preprocessing = load_model(LITE0).preprocessing
        folder = self.image_dir
        images = load_image_set("photographs", str(folder)) if folder else load_image_set("sample")
        found = list(islice(stream_images(images, preprocessing), count))
        return correct_images(self.net(LITE0), found, str(self.device))

    def random_images(self, name: str, count: int) -> list[Image]:
        """Noise, labelled with the classes that the network gives it."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(count, *shape_of(name), generator=generator)
        with torch.no_grad():
            labels = [
                int(label)
                for part in x.split(64)
                for label in self.net(name)(part.to(self.device)).argmax(1)
            ]
        return [(f"noise{i:04d}", x[i], labels[i]) for i in range(count)]

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Wall-clock time of a call, with all that it leaves the device to do."""
        self.synchronize()
        begin = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - begin


def make_net(name: str) -> nn.Module:
    """A network in eval mode whose weights want no gradient."""
    if name == LITE0:
        return load_model(name).module
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False)
    return PixelModel(net, IMAGENET_MEAN, IMAGENET_STD).eval().requires_grad_(False)


def shape_of(name: str) -> tuple[int, int, int]:
    """(3, H, W) of a network's images."""
    return timm.get_pretrained_cfg(name).input_size


def unless_out_of_memory(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure` returns; on a device with too little memory for it, these words."""
    try:
        return measure(*arguments)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return "out of memory"


def rate(stage: Stage, step: Callable[[], Any], images: int) -> float:
    """Images per second of a step, after two steps that are not counted."""
    step(), step()
    steps, spent = 1, stage.seconds(step)
    while spent < stage.size.seconds:
        more = max(1, round((stage.size.seconds - spent) / (spent / steps)))
        spent += stage.seconds(partial(repeat, step, more))
        steps += more
    return images * steps / spent


def repeat(step: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        step()
