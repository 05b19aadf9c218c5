"""The requests of a study: each of its models under each of its threats."""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from alignment_security.cluster.queue import StudyQueue, Turn
from alignment_security.cluster.studies import Study, StudyLine
from alignment_security.common.command_line import Last, Parser
from alignment_security.common.exit_status import status_of_all
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.evaluation.options import parse_args, single_requests, threat_from_args
from alignment_security.evaluation.protocols import THREATS
from alignment_security.evaluation.read_ahead import checkpoint_file, read_ahead
from alignment_security.evaluation.run import Stopped
from alignment_security.evaluation.setup import (
    requested_data_dir,
    requested_image_set,
    requested_maps,
    requested_slice,
)
from alignment_security.images.class_folders import implied_classes
from alignment_security.images.human_maps import check_maps
from alignment_security.images.image_sets import ImageSet, existing_folder
from alignment_security.images.loading import has_imagenet_order
from alignment_security.models.forward import pick_device
from alignment_security.models.heads import IMAGENET_CLASSES
from alignment_security.models.lists import WantedModel

STUDY_BEGAN = "STUDY_BEGAN"  # variable of the environment
# options, and what is derived from the model's name, that change no row of a record
HOW_IT_RUNS = {
    "architecture",
    "batch_size",
    "checkpoint",
    "compile",
    "data_dir",
    "device",
    "dry_run",
    "model_name",
    "models",
    "results_dir",
    "source",
    "stop_after",
    "workers",
}
# options that choose the images of a request
CHOOSE_IMAGES = (
    "dataset",
    "data_dir",
    "class_order",
    "slice",
    "subset",
    "corruption_type",
    "corruption_severity",
)


def study_requests(
    study: Study, model: WantedModel, options: Sequence[str]
) -> list[argparse.Namespace]:
    """What evaluate_robustness.py is asked for a model: a request for each threat and corruption.

    options   of the command line; they override those of the study
    Raises UserError, which names the line that is wrong.
    """
    requests: list[argparse.Namespace] = []
    for line in study.threats:
        if not set(line.words) & set(THREATS):
            reason = f"{' '.join(line.words)}: names no threat of {', '.join(THREATS)}"
            raise study.error(line, reason)
        with errors_of_line(study, line):
            args = parse_args(["--model_name", model.name, *line.words, *options])
        if not args.chtc:  # a staged model brings its net and its weights
            set_weights(args, model)
        requests += single_requests(args)
    return requests


def set_weights(args: argparse.Namespace, model: WantedModel) -> None:
    """Ask for the net and the weights that the list names."""
    if model.net is None:
        args.source = model.source
    elif model.net != model.name:
        args.architecture = model.net
    args.checkpoint = checkpoint_file(model) or args.checkpoint


def split_study(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """(value of --study, those of --model_name, other words) of a command line."""
    parser = Parser(prog="evaluate_robustness.py", add_help=False)
    parser.add_argument("--study")
    parser.add_argument("--model_name", nargs="+", action=Last, default=[])
    known, options = parser.parse_known_args(argv)
    return known.study, known.model_name, options


def chosen_models(study: Study, names: Sequence[str], options: Sequence[str]) -> list[WantedModel]:
    """Models of the study by name, or all of them; staged ones need no list."""
    if not names:
        return study.models
    if "--chtc" in options:
        return [WantedModel(name, name) for name in names]
    listed = {model.name: model for model in study.models}
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise study.error(study.models_line, f"the list has no model {unknown[0]}")
    return [listed[name] for name in names]


@contextmanager
def errors_of_line(study: Study, line: StudyLine) -> Iterator[None]:
    """Name the line in a UserError, and in the error with which the parser would exit."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit:
        reason = said.getvalue().strip().removeprefix("error: ")
        raise study.error(line, reason) from None
    except UserError as error:
        raise study.error(line, str(error)) from None


def record_folder(request: argparse.Namespace) -> str:
    """The folder of a request's record, below the results folder."""
    return f"records/{request.dataset}/{threat_from_args(request).name}"


def described_requests(requests: Sequence[argparse.Namespace]) -> dict[str, str]:
    """Folder of the record -> everything that the request asks for, but for how it is run.

    Images are told by their list: machines may have them in other folders, and a folder may get
    others.
    """
    described: dict[str, str] = {}
    lists: dict[tuple, str] = {}  # values of CHOOSE_IMAGES -> list_sha256, which takes a second
    for request in requests:
        chosen = tuple(str(vars(request)[name]) for name in CHOOSE_IMAGES)
        if chosen not in lists:
            lists[chosen] = requested_slice(request, study_images(request)).list_sha256
        facts = {name: value for name, value in vars(request).items() if name not in HOW_IT_RUNS}
        facts["list_sha256"] = lists[chosen]
        described[record_folder(request)] = " ".join(
            f"{name}={value}" for name, value in sorted(facts.items()) if value not in (None, False)
        )
    return described


def study_images(request: argparse.Namespace) -> ImageSet:
    """The images of a request, before any model is there to be asked for its classes."""
    classes = IMAGENET_CLASSES
    if not has_imagenet_order(request.dataset):
        folder = existing_folder(request.dataset, requested_data_dir(request))
        classes = implied_classes(folder, request.class_order)
    return requested_image_set(request, classes)


# ---- before the first model ----------------------------------------------------------------------


def check_study(study: Study, options: Sequence[str]) -> None:
    """Refuse what every model would refuse: a wrong line, images or maps that are not there.

    Raises UserError, which names the line.
    """
    lines: dict[str, StudyLine] = {}
    for line in study.threats:
        alone = Study(study.path, study.models_line, (line,))
        for request in study_requests(alone, study.models[0], options):
            earlier = lines.setdefault(folder := record_folder(request), line)
            if earlier is not line:
                raise study.error(
                    line,
                    f"{folder} is of line {earlier.number} too; put one of them into another study",
                )
            with errors_of_line(study, line):
                check_images(request)


def check_images(request: argparse.Namespace) -> None:
    """Raise DataError for images that are not there, and for human maps that are none of theirs.

    Whether own classes are those of a model is checked with each model.
    """
    images = requested_maps(request, study_images(request))
    if images.maps:
        check_maps(requested_slice(request, images))


# ---- the queue -----------------------------------------------------------------------------------


def take_turns(
    study: Study,
    models: Sequence[WantedModel],
    options: Sequence[str],
    evaluate: Callable[[list[argparse.Namespace], Turn], int],
) -> int:
    """Evaluate the models that no other process has taken; returns 0, or a failed one's status.

    An error that `evaluate` raises ends this process; the model's state says so.
    """
    by_name = {model.name: model for model in models}
    first = study_requests(study, models[0], options)
    queue = StudyQueue(first[0].results_dir, study.name, began(), first[0].overwrite)
    begin = time.monotonic()
    statuses: list[int] = []
    wanted = described_requests(first)
    for turn in queue.turns(list(by_name), wanted):
        pick_device(first[0].device)  # a broken GPU takes no model
        with turn:
            if following := queue.following(turn.state.model, list(by_name), wanted):
                read_ahead(by_name[following])
            requests = study_requests(study, by_name[turn.state.model], options)
            shorten(requests, time.monotonic() - begin)
            statuses.append(evaluate(requests, turn))
    if not statuses:
        print_line(f"{study.name}: no model is left to evaluate")
        return 0
    return status_of_all(statuses)


def shorten(requests: Sequence[argparse.Namespace], seconds: float) -> None:
    """Take seconds off --stop_after. Raises Stopped where nothing is left of it."""
    for request in requests:
        if request.stop_after is not None:
            request.stop_after -= seconds
            if request.stop_after <= 0:
                raise Stopped


def began() -> float:
    """When the study was started, in seconds since the epoch: its command hands it on."""
    return float(os.environ.get(STUDY_BEGAN) or time.time())
