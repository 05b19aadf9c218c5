"""The dry run: cost estimate and sanity checks of an evaluation before anything is attacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from alignment_security.common.remarks import warning_lines
from alignment_security.evaluation.checks import check_first_image
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.rehearsal import LONGEST, Rehearsal, rehearse
from alignment_security.evaluation.threats.clean import Clean
from alignment_security.evaluation.threats.threat import Cost, Threat
from alignment_security.evaluation.trial import try_record
from alignment_security.models.forward import device_of

ERRORS = (-1, 0, 1)  # standard errors of the mean passes of an image
UNFINISHED = f"not finished after {LONGEST:.0f} s (they count with the most passes)"


def describe_dry_run(
    evaluation: Evaluation, results_dir: str | Path, overwrite: bool = False
) -> str:
    """What would run and what it would cost, a line each; nothing is written.

    Raises UserError where the records of the results folder refuse the run.
    """
    record = try_record(evaluation, results_dir, overwrite)
    model, images, threat = evaluation.model, evaluation.images, evaluation.threat
    settings, device = model.settings, device_of(model.module)
    attack = evaluation.settings["run"]["attack"]
    warnings = check_first_image(evaluation, images)
    weights = f"{settings['weights']}, sha256 {settings['weights_sha256'][:12]}"
    facts = {
        "model": f"{settings['name']} ({weights})",
        "preprocessing": model.preprocessing,
        "image set": f"{images.name}, {len(images)} images",
        "threat": f"{threat.name}, {attack}",
        "record": record,
        "device": device,
        **describe_cost(threat, rehearse(evaluation), on_gpu=device.type == "cuda"),
    }
    lines = [f"{name:14} {value}" for name, value in facts.items()]
    found = [*evaluation.remarks, *model.notes, *images.notes, *threat.notes, *warnings]
    return "\n".join([*lines, *warning_lines(found)])


def describe_cost(threat: Threat, rehearsal: Rehearsal, on_gpu: bool) -> dict[str, str]:
    """Passes, speed, time and memory of a threat."""
    least, most = threat.cost()
    passes = f"an image takes {cost_text(most)}"
    if least != most:
        passes = (
            f"an image takes {cost_text(least)} (fooled at once) to {cost_text(most)} "
            "(never fooled)"
        )
    if not isinstance(threat, Clean):
        passes += "; a misclassified one 1 forward"
    speed = f"{1 / rehearsal.unit:.3g} forward passes a second, half as many backward"
    if rehearsal.decode:
        speed += f"; {1 / rehearsal.decode:.3g} images decoded by one process"
    left = f", of which {rehearsal.unfinished} {UNFINISHED}" if rehearsal.unfinished else ""
    seconds = [rehearsal.seconds(errors) for errors in ERRORS]
    return {
        "passes": passes,
        "rehearsed": f"{len(rehearsal.work)} images{left}; {speed}",
        "estimated time": time_text(seconds),
        "peak memory": memory_text(rehearsal.peak_bytes, on_gpu),
    }


def cost_text(cost: Cost) -> str:
    forwards, backwards = cost
    return f"{forwards:,} forward" + (f" and {backwards:,} backward" if backwards else "")


def duration(time_s: float) -> str:
    """h:mm:ss, with days where there are any."""
    return str(timedelta(seconds=math.ceil(time_s)))


def time_text(seconds: Sequence[float]) -> str:
    """`0:02:40 (0:02:00 to 0:03:20)`, of the times at ERRORS."""
    least, expected, most = map(duration, seconds)
    return expected if least == most else f"{expected} ({least} to {most})"


def memory_text(n_bytes: int, on_gpu: bool) -> str:
    return f"{n_bytes / 2**30:.2f} GiB of {'a GPU' if on_gpu else 'this process'}"
