"""The dry run of a study: its time and memory, from a rehearsal of a few of its models.

A rehearsed model is loaded, its passes are timed at the batch size of the study, and a few images
are attacked under each threat, which says how many passes an image takes. The passes of the other
models are timed by their multiply-adds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from alignment_security.cluster.studies import Study
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.evaluation.dry_run import Speed, duration, measure_evaluation
from alignment_security.evaluation.protocols import threat_from_args
from alignment_security.evaluation.read_ahead import checkpoint_file
from alignment_security.evaluation.run import evaluate, prepare
from alignment_security.evaluation.setup import requested_images, requested_model
from alignment_security.evaluation.study import record_folder, study_requests
from alignment_security.images.slices import take_slice
from alignment_security.models.forward import pick_device
from alignment_security.models.heads import Model, with_head
from alignment_security.models.lists import WantedModel
from alignment_security.models.macs import multiply_adds
from alignment_security.models.names import find_entry, weights_here

MOST_REHEARSED = 3  # models: the smallest, the middle one and the largest whose weights are here
ATTACKED = 8  # images of each threat
SLURM_MARGIN = 1.5  # of a time limit over the estimate, which is of a machine at rest


@dataclass(frozen=True)
class ThreatRehearsal:
    """What a threat takes of a model.

    images               of the study
    forwards, backwards  passes an image, mean over the attacked ones
    workers              processes that decode
    """

    images: int
    forwards: float
    backwards: float
    speed: Speed
    workers: int


@dataclass(frozen=True)
class Rehearsal:
    """A model that was rehearsed: its multiply-adds in 10^9, seconds to load it, its threats."""

    name: str
    gmacs: float
    load: float
    threats: Mapping[str, ThreatRehearsal]


# ---- rehearsing ----------------------------------------------------------------------------------


def describe_study(
    study: Study, models: Sequence[WantedModel], options: Sequence[str], devices: Sequence[str]
) -> str:
    """What would run and what it would cost, a line each; nothing is written.

    A model that cannot be rehearsed, e.g. with damaged weights, is named and left out, as it would
    be in the study. Raises UserError where none can.
    """
    counting = tqdm(models, "multiply-adds", leave=False, disable=None)
    gmacs = {model.name: multiply_adds(model.net) if model.net else None for model in counting}
    chosen = models_to_rehearse(models, gmacs)
    if not chosen:
        raise UserError(f"{study.path}: the weights of none of its models are here to rehearse")
    rehearsals = []
    for model in chosen:
        requests = study_requests(study, model, [*options, "--device", devices[0]])
        try:
            with redirect_stdout(sys.stderr):
                rehearsals.append(rehearse(requests, gmacs[model.name] or 0.0))
        except UserError as error:
            print_line(f"{model.name}: cannot be rehearsed: {error}", sys.stderr)
    if not rehearsals:
        raise UserError(f"{study.path}: none of its models can be rehearsed, for these reasons")
    return study_text(study.name, rehearsals, list(gmacs.values()), devices)


def models_to_rehearse(
    models: Sequence[WantedModel], gmacs: Mapping[str, float | None]
) -> list[WantedModel]:
    """The smallest, the middle and the largest of the models whose weights are here."""
    here = [model for model in models if gmacs[model.name] and is_here(model)]
    here.sort(key=lambda model: gmacs[model.name] or 0.0)
    places = np.linspace(0, len(here) - 1, min(MOST_REHEARSED, len(here)))
    return [here[round(place)] for place in places]


def is_here(model: WantedModel) -> bool:
    """Whether the weights can be loaded without a network connection."""
    if file := checkpoint_file(model):
        return file.is_file()
    return weights_here(find_entry(model.net or ""))


def rehearse(requests: Sequence[argparse.Namespace], gmacs: float) -> Rehearsal:
    """Load a model, time its passes and attack a few images under each threat."""
    begin = time.perf_counter()
    bare = requested_model(requests[0], pick_device(requests[0].device))
    load = time.perf_counter() - begin
    threats = {record_folder(request): rehearse_threat(request, bare) for request in requests}
    return Rehearsal(requests[0].model_name, gmacs, load, threats)


def rehearse_threat(request: argparse.Namespace, bare: Model) -> ThreatRehearsal:
    model, threat = with_head(bare, request.head), threat_from_args(request)
    images, _ = requested_images(request, model)
    options = {"precision": request.precision, "compiled": request.compile}
    evaluation = prepare(model, images, threat, request.batch_size, **options)
    speed = measure_evaluation(evaluation)
    few = take_slice(images, 0, ATTACKED)
    rows = evaluate(model, few, threat, batch_size=evaluation.batch_size, **options)
    _, passes = threat.cost()
    if "forwards" in rows:
        passes = tuple(rows[name].sum() / len(few) for name in ("forwards", "backwards"))
    return ThreatRehearsal(len(images), *passes, speed, request.workers)


# ---- estimating ----------------------------------------------------------------------------------


def scaled(gmacs: float, known: Sequence[float], seconds: Sequence[float]) -> float:
    """Seconds of a pass at so many multiply-adds, from those at `known` ones, which ascend.

    Interpolated between logarithms; beyond the ends in proportion.
    """
    nearest = min(max(gmacs, known[0]), known[-1])
    between = np.exp(np.interp(np.log(nearest), np.log(known), np.log(seconds)))
    return float(between * gmacs / nearest)


def threat_seconds(folder: str, rehearsals: Sequence[Rehearsal], gmacs: float) -> float:
    """Time of a threat on a model of so many multiply-adds."""
    threats = [rehearsal.threats[folder] for rehearsal in rehearsals]
    known = [rehearsal.gmacs for rehearsal in rehearsals]
    forward = scaled(gmacs, known, [threat.speed.forward for threat in threats])
    both = scaled(gmacs, known, [threat.speed.both for threat in threats])
    forwards = float(np.mean([threat.forwards for threat in threats]))
    backwards = float(np.mean([threat.backwards for threat in threats]))
    compute = (forwards - backwards) * forward + backwards * both
    decode = float(np.mean([threat.speed.decode for threat in threats]))
    workers = threats[0].workers
    image = max(compute, decode / workers) if workers else compute + decode
    return threats[0].images * image


def macs_text(gmacs: float) -> str:
    """Multiply-adds with three digits: `1,820 GMACs`, `4.09 GMACs`, `0.123 MMACs`."""
    value, unit = (gmacs, "GMACs") if gmacs >= 1 else (1000 * gmacs, "MMACs")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def slurm_time(time_s: float) -> str:
    """The time limit of a task that is estimated to take so long: whole hours, with a margin."""
    return f"{math.ceil(SLURM_MARGIN * time_s / 3600):02}:00:00"


def study_text(
    name: str,
    rehearsals: Sequence[Rehearsal],
    gmacs: Sequence[float | None],
    devices: Sequence[str],
) -> str:
    """The estimate, a line each.

    rehearsals   in the order of their multiply-adds
    gmacs        of every model of the study; None counts as the median
    """
    median = float(np.median([value for value in gmacs if value]))
    sizes = [value or median for value in gmacs]
    seconds = {
        folder: [threat_seconds(folder, rehearsals, size) for size in sizes]
        for folder in rehearsals[0].threats
    }
    load = float(np.mean([rehearsal.load for rehearsal in rehearsals]))
    of_models = load + np.sum(list(seconds.values()), axis=0)
    peak = max(t.speed.peak_bytes for rehearsal in rehearsals for t in rehearsal.threats.values())
    whose = "this process" if devices[0] == "cpu" else "a GPU"
    rehearsed = [f"{rehearsal.name} ({macs_text(rehearsal.gmacs)})" for rehearsal in rehearsals]
    facts = {
        "study": f"{name}: {len(sizes)} models, {macs_text(sum(sizes))} in all",
        "rehearsed": f"{', '.join(rehearsed)}; {ATTACKED} images a threat on {devices[0]}",
        **{folder.partition("/")[2]: duration(sum(each)) for folder, each in seconds.items()},
        "loading": duration(load * len(sizes)),
        "estimated time": f"{duration(of_models.sum() / len(devices))} with {len(devices)} "
        "process(es)",
        "longest model": f"{duration(of_models.max())}; in a sweep on SLURM: --set slurm_time="
        f"{slurm_time(of_models.max())}",
        "peak memory": f"{peak / 2**30:.2f} GiB of {whose}, of the models rehearsed",
    }
    width = 1 + max(map(len, facts))
    lines = [f"{fact:{width}}{text}" for fact, text in facts.items()]
    uncounted = sum(value is None for value in gmacs)
    if uncounted:
        lines.append(f"{uncounted} models, whose multiply-adds are not known, count as the median")
    return "\n".join(lines)
