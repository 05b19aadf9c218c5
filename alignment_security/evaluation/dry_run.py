"""What a run would cost, and whether its model sees what it should, before anything is attacked."""

from __future__ import annotations

import math
import resource
import time
from datetime import timedelta
from itertools import islice

import torch
from torch import nn

from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_images
from alignment_security.models.forward import Forward, device_of
from alignment_security.models.heads import Model
from alignment_security.models.loading import check_model

TIMED = 3  # batches
Cost = tuple[
    float, float
]  # rows through the model of one image: forward, and of these backward too


# ---- passes ----------------------------------------------------------------------------------------------------


def passes_of(run: dict) -> tuple[Cost, Cost]:
    """(least, most) passes of one image that the model classifies correctly, by a run's settings; a wrong one takes 1.

    The least is an attack whose first point fools; the most is one that nothing fools, at any eps. Each finding is
    confirmed by one more pass. pyautoattack and foolbox are counted as they run (libraries.py).
    """
    protocol, steps = run["protocol"], run.get("steps", 0)
    if protocol == "clean":
        return (1, 0), (1, 0)
    if protocol == "autoattack":
        return (3, 1 if run["attacks"][0] != "square" else 0), autoattack_ceiling(run)
    if protocol == "cw":
        steps *= run["binary_search_steps"]
    if (
        protocol == "deepfool"
    ):  # a backward pass for each candidate class; it ends with the first point that fools
        return (run["candidates"], run["candidates"] - 1), (
            steps * run["candidates"] + 3,
            steps * run["candidates"],
        )
    return (steps + 3, steps), (steps + 3, steps)


def autoattack_ceiling(run: dict) -> Cost:
    """AutoAttack on an image that nothing fools: every attack at every eps, but FAB, which does not depend on eps, once."""
    steps, targets = run["steps"], run["targets"]
    own = {
        "apgd-ce": (steps + 1, steps),
        "apgd-t": (targets * (steps + 1), targets * steps),
        "fab-t": (targets * 2 * steps, targets * 2 * steps),
        "square": (run["queries"] + 1, 0),
    }
    theirs = {
        "apgd-ce": (steps + 5, steps + 1),
        "apgd-t": (targets * (steps + 3) + 1, targets * (steps + 1)),
        "fab-t": (targets * (2 * steps + 4) + 1, targets * steps),
        "square": (run["queries"] + 6, 0),
    }
    reference, levels = run["engine"] == "reference", len(run["eps"])
    rungs = math.ceil(math.log2(levels + 1)) if run["ladder"] == "bisect" else levels
    costs = [
        [
            count * (1 if name == "fab-t" and not reference else rungs)
            for count in (theirs if reference else own)[name]
        ]
        for name in run["attacks"]
    ]
    return 2 + sum(forward for forward, _ in costs), sum(backward for _, backward in costs)


# ---- time and memory -------------------------------------------------------------------------------------------


def measure(
    module: nn.Module, images: ImageSet, preprocessing: dict, batch_size: int, gradients: bool
) -> dict:
    """Seconds an image for decoding (one process), a forward pass, and a pass forward and backward (`forward` where no
    gradient is asked for); the batch size that fitted; peak bytes: of the GPU, else of this process.

    The first of 1 + TIMED batches is not timed: it compiles, tunes and fills caches.
    """
    device = device_of(module)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    x = [
        image
        for _, image, _ in islice(stream_images(images, preprocessing), batch_size * (TIMED + 1))
    ]
    decode = (time.perf_counter() - begin) / len(x)
    batches = [
        torch.stack([x[(at + i) % len(x)] for i in range(batch_size)]).to(device)
        for at in range(0, batch_size * (TIMED + 1), batch_size)
    ]
    passes = Forward(module, batch_size)
    forward = both = seconds(passes.logits, batches) / batch_size
    if gradients:
        both = (
            seconds(lambda x: passes.gradient(x, lambda logits, rows: logits.amax(1)), batches)
            / batch_size
        )
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {
        "decode": decode,
        "forward": forward,
        "both": both,
        "batch_size": passes.batch_size,
        "peak": peak,
    }


def seconds(work, batches: list[torch.Tensor]) -> float:
    """Mean time of work(batch), after a first one that is not timed."""
    for i, batch in enumerate(batches):
        if i <= 1:
            begin = clock(batch)
        work(batch)
    return (clock(batches[0]) - begin) / (len(batches) - 1)


def clock(x: torch.Tensor) -> float:
    """Now, when the device has done what it was asked."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def cost_of(run: dict, n: int, cost: dict, on_gpu: bool) -> dict[str, str]:
    """Passes, speed, time and memory of a run over n images, as `measure` found them, in words."""
    least, most = passes_of(run)
    low, high = (
        duration(
            n * (cost["decode"] + (forward - backward) * cost["forward"] + backward * cost["both"])
        )
        for forward, backward in (least, most)
    )
    speed = [
        f"{1 / cost['forward']:.3g} images a second forward",
        f"{1 / cost['both']:.3g} forward and backward",
        f"{1 / cost['decode']:.3g} decoded by one process ({TIMED} batches of {cost['batch_size']})",
    ]
    passes = (
        f"an image takes {cost_text(most)}"
        if least == most
        else f"an image takes {cost_text(least)} (fooled at once) to {cost_text(most)} (never fooled)"
    )
    return {
        "passes": passes
        + ("" if run["protocol"] == "clean" else "; a misclassified one 1 forward"),
        "speed": ", ".join(speed if most[1] else speed[::2]),
        "estimated time": high if least == most else f"{low} to {high}",
        "peak memory": f"{cost['peak'] / 2**30:.2f} GiB of {'the GPU' if on_gpu else 'this process'}",
    }


def describe_dry_run(
    model: Model, images: ImageSet, threat: str, run: dict, module: nn.Module, batch_size: int
) -> str:
    """What would be run and what it would cost; the model is checked as it would be, and nothing is written.

    module: what the attack runs, a fast copy of the model or itself.
    """
    settings, device = model.settings, device_of(model.module)
    first = next(iter(stream_images(images, model.preprocessing)))[1][None].to(device)
    warnings = [*model.notes, *check_model(model.module, first, model.n_outputs, settings["name"])]
    cost = measure(
        module, images, model.preprocessing, batch_size, gradients=run["protocol"] != "clean"
    )
    lines = {
        "model": f"{settings['name']} ({settings['weights']}, sha256 {settings['weights_sha256'][:12]})",
        "preprocessing": model.preprocessing,
        "image set": f"{images.name}, {len(images)} images",
        "threat": f"{threat}, {run['attack']}",
        "device": device,
        **cost_of(run, len(images), cost, device.type == "cuda"),
    }
    return "\n".join(
        [
            *(f"{name:14} {value}" for name, value in lines.items()),
            *(f"  warning: {line}" for line in warnings),
        ]
    )


def cost_text(cost: Cost) -> str:
    return f"{cost[0]:,} forward" + (f" and {cost[1]:,} backward" if cost[1] else "")


def duration(time_s: float) -> str:
    """h:mm:ss, with days where there are any."""
    return str(timedelta(seconds=math.ceil(time_s)))
