"""The dry run: cost estimate and sanity checks of an evaluation before anything is attacked."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

import torch
from torch import Tensor, nn

from alignment_security.common.remarks import warning_lines
from alignment_security.evaluation.run import Evaluation
from alignment_security.evaluation.threats.clean import Clean
from alignment_security.evaluation.threats.threat import Cost, Execution, Threat
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_images
from alignment_security.models.forward import Forward, device_of
from alignment_security.models.loading import check_model

TIMED_BATCHES = 3


@dataclass(frozen=True)
class Speed:
    """What `measure` found on this machine.

    decode, forward, both   seconds an image: decoding in one process, a forward pass, and a pass
                            forward and backward
    batch_size              the batch size that fitted
    peak_bytes              of the GPU, else of this process
    """

    decode: float
    forward: float
    both: float
    batch_size: int
    peak_bytes: int

    def seconds(self, images: int, cost: Cost) -> float:
        """Time of an attack that costs every image so many passes."""
        forwards, backwards = cost
        forward_only = (forwards - backwards) * self.forward
        return images * (self.decode + forward_only + backwards * self.both)


# ---- measuring -----------------------------------------------------------------------------------


def measure(
    module: nn.Module, images: ImageSet, preprocessing: dict, batch_size: int, gradients: bool
) -> Speed:
    """Time decoding and passes of a module on 1 + TIMED_BATCHES batches of the image set.

    The first batch is not timed: it compiles, tunes and fills caches. Without `gradients`, `both`
    is the time of a forward pass.
    """
    device = device_of(module)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    stream = islice(stream_images(images, preprocessing), batch_size * (TIMED_BATCHES + 1))
    decoded = [image for _, image, _ in stream]
    decode = (time.perf_counter() - begin) / len(decoded)
    batches = [
        torch.stack([decoded[(first + i) % len(decoded)] for i in range(batch_size)]).to(device)
        for first in range(0, batch_size * (TIMED_BATCHES + 1), batch_size)
    ]
    counted = Forward(module, batch_size)
    forward = both = mean_seconds(counted.logits, batches) / batch_size
    if gradients:
        both = mean_seconds(lambda x: counted.gradient(x, top_logit), batches) / batch_size
    return Speed(decode, forward, both, counted.batch_size, peak_bytes(device))


def measure_evaluation(evaluation: Evaluation) -> Speed:
    """`measure` of the module that the threat of an evaluation attacks."""
    model, threat = evaluation.model, evaluation.threat
    execution = Execution(evaluation.batch_size, evaluation.precision, evaluation.compiled)
    return measure(
        threat.attacked_module(model, execution),
        evaluation.images,
        model.preprocessing,
        evaluation.batch_size,
        gradients=not isinstance(threat, Clean),
    )


def top_logit(logits: Tensor, rows: slice) -> Tensor:
    return logits.amax(1)


def mean_seconds(work: Callable, batches: list[Tensor]) -> float:
    """Mean time of work(batch), after a first batch that is not timed."""
    work(batches[0])
    begin = clock(batches[0])
    for batch in batches[1:]:
        work(batch)
    return (clock(batches[0]) - begin) / (len(batches) - 1)


def clock(x: Tensor) -> float:
    """Seconds, once the device has finished what it was asked."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- in words ------------------------------------------------------------------------------------


def describe_dry_run(evaluation: Evaluation) -> str:
    """What would run and what it would cost, a line each; nothing is written."""
    model, images, threat = evaluation.model, evaluation.images, evaluation.threat
    settings, device = model.settings, device_of(model.module)
    attack = evaluation.settings["run"]["attack"]
    first = next(iter(stream_images(images, model.preprocessing)))[1][None].to(device)
    warnings = check_model(
        model.module, first, model.n_outputs, settings["name"], threat.takes_random_models
    )
    speed = measure_evaluation(evaluation)
    weights = f"{settings['weights']}, sha256 {settings['weights_sha256'][:12]}"
    facts = {
        "model": f"{settings['name']} ({weights})",
        "preprocessing": model.preprocessing,
        "image set": f"{images.name}, {len(images)} images",
        "threat": f"{threat.name}, {attack}",
        "device": device,
        **describe_cost(threat, len(images), speed, on_gpu=device.type == "cuda"),
    }
    lines = [f"{name:14} {value}" for name, value in facts.items()]
    found = [*evaluation.remarks, *model.notes, *threat.notes, *warnings]
    return "\n".join([*lines, *warning_lines(found)])


def describe_cost(threat: Threat, images: int, speed: Speed, on_gpu: bool) -> dict[str, str]:
    """Passes, speed, time and memory of a threat over so many images."""
    least, most = threat.cost()
    shortest, longest = (duration(speed.seconds(images, cost)) for cost in (least, most))
    if least == most:
        passes, estimate = f"an image takes {cost_text(most)}", longest
    else:
        passes = (
            f"an image takes {cost_text(least)} (fooled at once) to {cost_text(most)} "
            "(never fooled)"
        )
        estimate = f"{shortest} to {longest}"
    if not isinstance(threat, Clean):
        passes += "; a misclassified one 1 forward"
    speeds = [f"{1 / speed.forward:.3g} images a second forward"]
    if most[1]:
        speeds.append(f"{1 / speed.both:.3g} forward and backward")
    batches = f"{TIMED_BATCHES} batches of {speed.batch_size}"
    speeds.append(f"{1 / speed.decode:.3g} decoded by one process ({batches})")
    whose = "the GPU" if on_gpu else "this process"
    return {
        "passes": passes,
        "speed": ", ".join(speeds),
        "estimated time": estimate,
        "peak memory": f"{speed.peak_bytes / 2**30:.2f} GiB of {whose}",
    }


def cost_text(cost: Cost) -> str:
    forwards, backwards = cost
    return f"{forwards:,} forward" + (f" and {backwards:,} backward" if backwards else "")


def duration(time_s: float) -> str:
    """h:mm:ss, with days where there are any."""
    return str(timedelta(seconds=math.ceil(time_s)))
