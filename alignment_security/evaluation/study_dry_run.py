"""The dry run of a study: its time and memory, from a rehearsal of a few of its models.

A rehearsed model is loaded, and a few images are attacked under each threat (`rehearsal`). The
times of the other models follow from their multiply-adds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from alignment_security.cluster.studies import Study
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.evaluation.dry_run import (
    ERRORS,
    UNFINISHED,
    duration,
    memory_text,
    time_text,
)
from alignment_security.evaluation.read_ahead import checkpoint_file
from alignment_security.evaluation.rehearsal import Rehearsal, rehearse
from alignment_security.evaluation.setup import requested_evaluation, requested_model
from alignment_security.evaluation.study import record_folder, study_requests
from alignment_security.evaluation.trial import refusals, try_record
from alignment_security.models.forward import pick_device
from alignment_security.models.heads import Model
from alignment_security.models.lists import WantedModel
from alignment_security.models.macs import multiply_adds
from alignment_security.models.names import find_entry, weights_here

MOST_REHEARSED = 3  # models: the smallest, the middle one and the largest whose weights are here
SLURM_MARGIN = 1.5  # of a time limit over the estimate, which is of a machine at rest


@dataclass(frozen=True)
class RehearsedModel:
    """A model that was rehearsed: its multiply-adds in 10^9, seconds to load it, its threats.

    threats   by the folder of their records
    """

    name: str
    gmacs: float
    load: float
    threats: Mapping[str, Rehearsal]


# ---- rehearsing ----------------------------------------------------------------------------------


def describe_study(
    study: Study, models: Sequence[WantedModel], options: Sequence[str], devices: Sequence[str]
) -> str:
    """What would run and what it would cost, a line each; nothing is written.

    A model that cannot be rehearsed, e.g. with damaged weights, is named and left out, as it would
    be in the study; so is one that its records refuse. Raises UserError where none can.
    """
    counting = tqdm(models, "multiply-adds", leave=False, disable=None)
    gmacs = {model.name: multiply_adds(model.net) if model.net else None for model in counting}
    chosen = models_to_rehearse(models, gmacs)
    if not chosen:
        raise UserError(f"{study.path}: the weights of none of its models are here to rehearse")
    rehearsals: list[RehearsedModel] = []
    others = [model.name for model in models if model not in chosen]
    for model in chosen:
        requests = study_requests(study, model, [*options, "--device", devices[0]])
        try:
            with redirect_stdout(sys.stderr):
                rehearsals.append(rehearse_model(requests, gmacs[model.name] or 0.0, others))
            others = []  # their records were looked at
        except UserError as error:
            print_line(f"{model.name}: would be refused: {error}", sys.stderr)
    if not rehearsals:
        raise UserError(f"{study.path}: none of its models can be rehearsed, for these reasons")
    return study_text(study.name, rehearsals, gmacs, devices)


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


def rehearse_model(
    requests: Sequence[argparse.Namespace], gmacs: float, others: Sequence[str] = ()
) -> RehearsedModel:
    """Load a model, and attack a few images under each threat.

    others   models that are not rehearsed, of which it is said if their records refuse a request
    """
    begin = time.perf_counter()
    bare = requested_model(requests[0], pick_device(requests[0].device))
    load = time.perf_counter() - begin
    threats = {
        record_folder(request): rehearse_threat(request, bare, others) for request in requests
    }
    return RehearsedModel(requests[0].model_name, gmacs, load, threats)


def rehearse_threat(request: argparse.Namespace, bare: Model, others: Sequence[str]) -> Rehearsal:
    began = time.perf_counter()
    print_line(f"{request.model_name}: rehearsing {record_folder(request)}")
    evaluation = requested_evaluation(request, bare)
    try_record(evaluation, request.results_dir, request.overwrite)
    if not request.overwrite:
        for refusal in refusals(evaluation, request.results_dir, others):
            print_line(refusal, sys.stderr)
    return rehearse(evaluation, began)


# ---- estimating ----------------------------------------------------------------------------------


def scaled(gmacs: float, known: Sequence[float], seconds: Sequence[float]) -> float:
    """Seconds of a pass at so many multiply-adds, from those at `known` ones, which ascend.

    Interpolated between logarithms; beyond the ends in proportion.
    """
    nearest = min(max(gmacs, known[0]), known[-1])
    between = np.exp(np.interp(np.log(nearest), np.log(known), np.log(seconds)))
    return float(between * gmacs / nearest)


def expected(folder: str, rehearsed: Sequence[RehearsedModel], gmacs: float) -> Rehearsal:
    """A threat on a model of so many multiply-adds, which is as robust as those rehearsed."""
    threats = [model.threats[folder] for model in rehearsed]
    return replace(
        threats[0],
        work=[work for threat in threats for work in threat.work],
        unit=scaled(gmacs, [m.gmacs for m in rehearsed], [threat.unit for threat in threats]),
        start=float(np.mean([threat.start for threat in threats])),
        decode=float(np.mean([threat.decode for threat in threats])),
    )


def macs_text(gmacs: float) -> str:
    """Multiply-adds with three digits: `1,820 GMACs`, `4.09 GMACs`, `0.123 MMACs`."""
    value, unit = (gmacs, "GMACs") if gmacs >= 1 else (1000 * gmacs, "MMACs")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def slurm_time(time_s: float) -> str:
    """The time limit of a task that is estimated to take so long: whole hours, with a margin."""
    return f"{math.ceil(SLURM_MARGIN * time_s / 3600):02}:00:00"


def study_text(
    name: str,
    rehearsed: Sequence[RehearsedModel],
    gmacs: Mapping[str, float | None],
    devices: Sequence[str],
) -> str:
    """The estimate, a line each.

    rehearsed   in the order of their multiply-adds
    gmacs       of every model of the study; None counts as the median
    """
    median = float(np.median([value for value in gmacs.values() if value]))
    sizes = {name: value or median for name, value in gmacs.items()}
    own = {model.name: [model] for model in rehearsed}
    load = float(np.mean([model.load for model in rehearsed]))

    def seconds_of(folder: str) -> np.ndarray:
        """(models, ERRORS)"""
        threats = [expected(folder, own.get(name, rehearsed), sizes[name]) for name in sizes]
        return np.array([[threat.seconds(errors) for errors in ERRORS] for threat in threats])

    seconds = {folder: seconds_of(folder) for folder in rehearsed[0].threats}
    of_models = load + np.sum(list(seconds.values()), axis=0)
    longest = of_models[:, ERRORS.index(0)].max()
    threats = [threat for model in rehearsed for threat in model.threats.values()]
    peak = max(threat.peak_bytes for threat in threats)
    attacked = max(len(threat.work) for threat in threats)
    names = ", ".join(f"{model.name} ({macs_text(model.gmacs)})" for model in rehearsed)
    facts = {
        "study": f"{name}: {len(sizes)} models, {macs_text(sum(sizes.values()))} in all",
        "rehearsed": f"{names}; up to {attacked} images a threat on {devices[0]}",
        **{folder.partition("/")[2]: time_text(each.sum(0)) for folder, each in seconds.items()},
        "loading": duration(load * len(sizes)),
        "estimated time": f"{time_text(of_models.sum(0) / len(devices))} with {len(devices)} "
        "process(es)",
        "longest model": f"{duration(longest)}; in a sweep on SLURM: --set slurm_time="
        f"{slurm_time(longest)}",
        "peak memory": f"{memory_text(peak, devices[0] != 'cpu')}, of the models rehearsed",
    }
    width = 1 + max(map(len, facts))
    lines = [f"{fact:{width}}{text}" for fact, text in facts.items()]
    if unfinished := sum(threat.unfinished for threat in threats):
        lines.append(f"{unfinished} images were {UNFINISHED}")
    if uncounted := sum(value is None for value in gmacs.values()):
        lines.append(f"{uncounted} models, whose multiply-adds are not known, count as the median")
    return "\n".join(lines)
