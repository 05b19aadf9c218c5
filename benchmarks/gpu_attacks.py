"""Stages of benchmarks/gpu.py about attacks: equal verdicts, the engine's share, the reference."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from nets import attack_rows
from torch import Tensor, nn

from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.minimum_norm import MinimumNormAttack, run_minimum_norm
from alignment_security.models.fast import WithoutTF32
from alignment_security.models.forward import Forward, auto_batch_size
from benchmarks.gpu_passes import flags
from benchmarks.gpu_stage import LITE0, Rows, Stage, shape_of
from benchmarks.measure import Image, compare, measured, reference

CLASSES = 1000
APGD = ("apgd-ce", "apgd-t")
PARITY_EPS = [0.25 / 255, 0.5 / 255, 1 / 255]
TINY_EPS = 1e-5  # nothing breaks: every image takes every step
SYNCHRONIZES = "called a synchronizing CUDA operation"

Run = Callable[..., pd.DataFrame]  # (module, images, batch_size=) -> rows


# ---- equal on both devices -----------------------------------------------------------------------


def parity(stage: Stage) -> Rows:
    """The same photographs on the device and on the CPU: verdicts and norms."""
    images = stage.photographs(stage.size.parity)
    steps = stage.size.steps
    budget = replace(stage.size.budget, queries=100)
    runs = {
        "Linf, three eps": bounded(PARITY_EPS, budget),
        "L2 crossing": minimal(BoundaryCrossing("L2", steps)),
        "Linf crossing": minimal(BoundaryCrossing("Linf", steps)),
        "L2 fmn": minimal(FMN("L2", steps)),
    }
    here, cpu = stage.fast(LITE0), Stage(torch.device("cpu"), stage.size).fast(LITE0)
    for name, run in runs.items():
        begin = time.perf_counter()
        rows = run(here, images, batch_size=len(images))
        seconds = time.perf_counter() - begin
        there = run(cpu, images, batch_size=8)
        spent = {"seconds": seconds, "seconds_cpu": time.perf_counter() - begin - seconds}
        yield name, difference(rows, there) | spent


def bounded(eps: list[float], budget: Budget) -> Run:
    """AutoAttack with a budget in Linf."""
    ball = {"norm": "Linf", "eps": eps, "budget": budget}
    return partial(attack_rows, run_autoattack, n_outputs=CLASSES, **ball)


def minimal(attack: MinimumNormAttack) -> Run:
    """A minimum-norm attack."""
    return partial(attack_rows, run_minimum_norm, attack=attack, n_outputs=CLASSES)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict:
    """Equal verdicts, and how far the norms of two runs on the same images are from each other."""
    key, verdict = ("eps", "robust") if "eps" in ours else ("label", "success")
    both = ours.merge(theirs, on=["image_id", key], suffixes=("", "_other"))
    found: dict[str, float] = {
        "pairs": len(both),
        "equal": int((both[verdict] == both[f"{verdict}_other"]).sum()),
    }
    if verdict == "success":
        relative = (both["l2"] / both["l2_other"] - 1).abs()
        found |= {
            "mean_l2": float(both["l2"].mean()),
            "mean_l2_other": float(both["l2_other"].mean()),
            "within_1e-3": int((relative < 1e-3).sum()),
            "within_2_percent": int((relative < 0.02).sum()),
            "largest_difference": float(relative.max()),
        }
    return found


# ---- the engine's share --------------------------------------------------------------------------


def engine(stage: Stage) -> Rows:
    """Time of bare passes over the engine's time for as many, at the batch size `auto` chooses."""
    steps, queries = stage.size.engine_steps, stage.size.engine_queries
    for name in stage.size.engine_nets:
        net = stage.fast(name)
        begin = time.perf_counter()
        batch = min(auto_batch_size(net, shape_of(name), stage.device), stage.size.largest_batch)
        yield f"{name}, auto", {"batch": batch, "seconds": time.perf_counter() - begin}
        images = stage.random_images(name, batch + batch // 8)
        runs = {
            "apgd-ce": bounded([TINY_EPS], Budget(("apgd-ce",), steps)),
            "apgd-t": bounded([TINY_EPS], Budget(("apgd-t",), steps, targets=1)),
            "fab-t": bounded([TINY_EPS], Budget(("fab-t",), steps, targets=1)),
            "square": bounded([TINY_EPS], Budget(("square",), queries=queries)),
            "crossing": minimal(BoundaryCrossing("L2", steps)),
            "fmn": minimal(FMN("L2", steps)),
        }
        for attack, run in runs.items():
            yield f"{name}, {attack}", share(stage, net, images, run, batch)


class Watched(nn.Module):
    """A network that notes the size of each batch, and the rows that go back through it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.forwards: list[int] = []
        self.backwards: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        logits = self.net(x)
        if logits.requires_grad:
            self.backwards.append(len(x))
        return logits


def share(stage: Stage, net: nn.Module, images: list[Image], run: Run, batch: int) -> dict:
    """One run that warms up, one that is timed, and the same batches without an attack."""
    watched = Watched(net)
    synchronizations = count_synchronizations(lambda: run(watched, images, batch_size=batch), stage)
    engine = stage.seconds(lambda: run(net, images, batch_size=batch))
    x = torch.rand(max(watched.forwards), *images[0][1].shape, device=stage.device)
    bare = stage.seconds(lambda: same_batches(net, watched, x))
    return {
        "share": bare / engine,
        "engine_seconds": engine,
        "passes_per_second": (sum(watched.forwards) + sum(watched.backwards)) / engine,
        "distinct_batch_sizes": len(set(watched.forwards)),
        "synchronizations_per_pass": synchronizations and synchronizations / len(watched.forwards),
    }


def same_batches(net: nn.Module, watched: Watched, x: Tensor) -> None:
    """Forward and backward passes of the sizes that were watched, of the first rows of x."""
    forward = Forward(net, len(x))
    backwards = list(watched.backwards)
    for size in watched.forwards:
        if backwards and backwards[0] == size:
            backwards.pop(0)
            forward.gradient(x[:size], lambda logits, rows: logits.amax(1))
        else:
            forward.logits(x[:size])


def count_synchronizations(run: Callable[[], object], stage: Stage) -> int | None:
    """How often the host waited for the device; None on a CPU."""
    if not stage.on_gpu:
        run()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONIZES in str(warning.message) for warning in caught)


# ---- against pyautoattack ------------------------------------------------------------------------


def survivors(stage: Stage) -> Rows:
    """pyautoattack against ours: photographs that break at once, and images that nothing breaks."""
    photographs = stage.photographs(stage.size.survivors)
    fast, plain = stage.fast(LITE0), stage.net(LITE0)
    settings = {
        "Lite0, 1/255, all break": (fast, plain, photographs, 1 / 255),
        "Lite0, 0.02/255, all survive": (fast, plain, photographs, 0.02 / 255),
    }
    if stage.on_gpu:
        noise = stage.random_images("resnet50", 64)
        settings["ResNet-50, 64 images of noise, all survive"] = (
            stage.fast("resnet50"),
            stage.net("resnet50"),
            noise,
            TINY_EPS,
        )
    for name, (ours, theirs, images, eps) in settings.items():
        yield name, against_pyautoattack(stage, ours, theirs, images, eps)


def against_pyautoattack(stage, ours, theirs, images: list[Image], eps: float) -> dict:
    """Wall time and passes of both, once warm: each runs a small budget first."""
    budget = stage.size.budget
    small = Budget(steps=2, targets=1, queries=2)
    bounded([eps], small)(ours, images, batch_size=len(images))
    reference(theirs, images[:2], [eps], CLASSES, small)
    options = {"n_outputs": CLASSES, "batch_size": len(images)}
    rows, cost = measured(
        run_autoattack, ours, images, norm="Linf", eps=[eps], budget=budget, **options
    )
    found = compare(rows, cost, *reference(theirs, images, [eps], CLASSES, budget))
    keys = ("images", "passes_ratio", "seconds_ratio", "agreement")
    return {key: found[key] for key in keys} | {
        "seconds": found["ours"]["seconds"],
        "seconds_pyautoattack": found["pyautoattack"]["seconds"],
    }


# ---- precision -----------------------------------------------------------------------------------


def precision(stage: Stage) -> Rows:
    """Search in TF32 and bf16 with confirmation in float32, against search in float32."""
    images = stage.photographs(stage.size.photographs)
    exact, batch = WithoutTF32(stage.net(LITE0)), min(len(images), 256)
    runs = {
        "Linf, three eps": bounded(PARITY_EPS, replace(stage.size.budget, attacks=APGD)),
        "L2 crossing": minimal(BoundaryCrossing("L2", stage.size.steps)),
    }
    for name, run in runs.items():
        base: pd.DataFrame | None = None
        for kind in ("float32", "tf32", "bf16"):
            net = stage.fast(LITE0, kind)
            begin = time.perf_counter()
            with flags(tf32=kind == "tf32"):
                rows = run(net, images, batch_size=batch, exact=exact)
            spent = {"seconds": time.perf_counter() - begin}
            base = rows if base is None else base
            yield f"{name}, {kind}", difference(rows, base) | spent
