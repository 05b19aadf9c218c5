"""One model, one threat, one image set: from images to the rows of a record.

`evaluate` is the whole of it for a notebook. evaluate_robustness.py takes its steps one by one:
`prepare` (in `setup.requested_evaluation`), `open_record`, `fill_record`.
"""

from __future__ import annotations

import math
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from alignment_security.attacks.autoattack import masked_gradient_warnings
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.common.remarks import warning_lines
from alignment_security.common.settings import version_drift
from alignment_security.evaluation.checks import (
    check_clean,
    check_first_image,
    check_kinds,
    warn_of_guesses,
)
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.growth import may_grow
from alignment_security.evaluation.human_columns import add_human_columns
from alignment_security.evaluation.image_files import check_finished_images, check_image_files
from alignment_security.evaluation.progress import EvaluationProgress
from alignment_security.evaluation.published import compare_with_published, read_published
from alignment_security.evaluation.report import beside_remarks, first_line
from alignment_security.evaluation.saved_examples import save_examples, unsaved_examples
from alignment_security.evaluation.stream import stop_at, with_head_labels
from alignment_security.evaluation.threats.clean import Clean
from alignment_security.evaluation.threats.threat import Threat
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_bytes
from alignment_security.images.orientation import with_orientation_notes
from alignment_security.models.batch_sizes import remembered_batch_size
from alignment_security.models.fast import allow_tf32, memory_format_of, set_memory_format
from alignment_security.models.forward import device_of, session_facts, tune_process
from alignment_security.models.heads import Model, example_pixels, restrict_classes
from alignment_security.records.beside import name_of_weights, settings_beside
from alignment_security.records.norm_summary import without_norm_warnings
from alignment_security.records.record import check_rows_belong
from alignment_security.records.run import Run


class Stopped(BaseException):
    """A signal, or the end of --stop_after: the rows so far are on disk."""


def raise_stopped(*_) -> None:
    """A handler of signals (`common.process.on_stop`)."""
    raise Stopped


def evaluate(
    model: Model,
    images: ImageSet,
    threat: Threat,
    results_dir: str | Path | None = None,
    *,
    batch_size: int | str = "auto",
    overwrite: bool = False,
    **options,
) -> pd.DataFrame:
    """Evaluate a model on an image set under a threat.

    model        of `alignment_security.models.loading.load_model`
    images       of `alignment_security.images.loading.load_image_set`
    threat       `Clean()`, `AutoAttack("Linf", (1 / 255,))`, `Crossing("L2", 50)`, ...
    results_dir  write the record that evaluate_robustness.py writes, or go on with it; None keeps
                 no file
    options      fields of `Evaluation`: precision, workers, examples, stop_after, ...

    Returns a row per image (and eps) in the order of the list; results/README.md explains the
    columns. Prints its warnings. Raises UserError for a request that cannot be run, and Stopped
    after `stop_after`.
    """
    check_kinds(model, images, threat)
    if results_dir is None:
        if options.get("stop_after") is not None:
            raise UserError("stop_after needs a results_dir, where the rows so far are kept")
        with TemporaryDirectory() as folder:
            return evaluate(model, images, threat, folder, batch_size=batch_size, **options)
    evaluation = prepare(model, images, threat, batch_size, **options)
    with open_record(evaluation, results_dir, overwrite) as run:
        if not run.done:
            fill_record(evaluation, run)
        for line in [*warning_lines(run.info["warnings"]), *unsaved_examples(evaluation, run)]:
            print_line(line)
        return run.rows.reset_index(drop=True)


# ---- the steps -----------------------------------------------------------------------------------


def prepare(
    model: Model, images: ImageSet, threat: Threat, batch_size: int | str = "auto", **options
) -> Evaluation:
    """Check that model, images and threat fit together, and choose the batch size."""
    images = with_orientation_notes(images)
    device, precision = device_of(model.module), options.get("precision", "float32")
    tune_process(device, "float32")  # only the copy that an attack searches with is faster
    set_memory_format(model.module, memory_format_of(device, "float32"), example_pixels(model, 1))
    model = restrict_classes(model, images.restrict_to, images.merged)
    if options.get("published_accuracy"):
        read_published(options["published_accuracy"])  # refuse a bad table before anything runs
    threat.check(model, images)
    if batch_size == "auto":
        batch_size = remembered_batch_size(model, precision, len(images.ids))
    return Evaluation(model, images, threat, int(batch_size), **options)


def open_record(evaluation: Evaluation, results_dir: str | Path, overwrite: bool = False) -> Run:
    """The record of an evaluation, new or begun; `overwrite` starts it anew.

    Raises UserError for a finished one whose images were replaced, and as `Run`.
    """
    images, threat, settings = evaluation.images, evaluation.threat, evaluation.settings
    folder = Path(results_dir) / "records" / images.name / threat.name
    network = evaluation.model.settings
    name = name_of_weights(results_dir, network["name"], network.get("weights_sha256"))
    run = Run(
        results_dir,
        images.name,
        threat.name,
        name,
        threat.kind,
        settings,
        session_facts(device_of(evaluation.model.module), evaluation.batch_size)
        | {"examples": evaluation.examples, "example_names": evaluation.named_examples},
        overwrite,
        partial(may_grow, images) if threat.grows else None,
        settings_beside(folder, name, settings, evaluation.settings_apart),
    )
    if run.done:
        with run.closed_on_error():
            check_finished_images(run, images)
    return run


def fill_record(evaluation: Evaluation, run: Run) -> None:
    """Evaluate every image that the record lacks, and finish the record.

    Whatever ends it early leaves the rows so far and a status in the run file. Raises Stopped on a
    signal or after `stop_after`.
    """
    begin = time.monotonic()
    allowed = math.inf if evaluation.stop_after is None else evaluation.stop_after
    try:
        add_missing_rows(evaluation, run, deadline=begin + allowed)
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        status = "checkpointed" if stopped else "failed"
        spent = time.monotonic() - begin
        if run.csv.exists():  # a folder that was deleted is not made again
            with suppress(OSError):  # on a full disk the first error is the one to report
                run.save(status=status, error=repr(error)[:500], seconds=spent)
        if isinstance(error, UserError):
            run.discard_if_empty()
        raise
    eps = run.settings["run"].get("eps")
    run.finish(list(evaluation.images.ids), eps, seconds=time.monotonic() - begin, error=None)
    if isinstance(evaluation.threat, Clean):
        warn_of_guesses(run.rows.to_dict("records"), evaluation, run)
    if evaluation.threat.name == "clean":
        compare_with_published(evaluation, run)
    for warning in [
        *masked_gradient_warnings(run.rows),
        *without_norm_warnings(run.rows),
        *evaluation.threat.notes_on(run.rows),
    ]:
        run.warn(warning)


def add_missing_rows(evaluation: Evaluation, run: Run, deadline: float) -> None:
    """Append rows phase by phase. Raises Stopped when images are left at the deadline."""
    check_image_files(run, evaluation.images)
    threat: Threat | None = evaluation.threat.as_begun(run.settings["run"])
    rows = run.rows
    while threat is not None:
        run.rows = threat.own_rows(rows)
        add_rows_of_phase(replace(evaluation, threat=threat), run, deadline)
        if not threat.has_next_phase:
            break
        rows = run.read_again()
        threat = threat.next_phase(rows)


def add_rows_of_phase(evaluation: Evaluation, run: Run, deadline: float) -> None:
    """Append rows as the attack finds them. Raises Stopped when images are left at the deadline."""
    images, threat, count = evaluation.images, evaluation.threat, run.counts()

    def is_done(name: str) -> bool:
        return count[name] == threat.rows_of(name)

    check_rows_belong(run.rows, images.ids, threat.eps, run.csv)
    todo = images.take(i for i, name in enumerate(images.ids) if not is_done(name))
    begun = run.known(todo.ids)  # images with some of their eps
    announce(evaluation, todo, run)
    evaluation = evaluation.on_attacked_images(run.settings["run"])
    model, done = evaluation.model, len(images) - len(todo)
    progress = EvaluationProgress(threat, len(images), done, model.settings["name"])
    execution = evaluation.execution(log=run.warn, known_rows=begun, on_pass=progress.on_pass)
    decoded = stream_bytes(todo, model.preprocessing, evaluation.workers)
    # close the stream before a failure travels on: decoding workers would keep the process alive
    with closing(with_head_labels(decoded, model.settings["head"])) as source:
        begun_images = progress.count_images(stop_at(source, deadline))
        for rows in threat.run(model, begun_images, execution):
            write_rows(rows, evaluation, run)
            names = {row["image_id"] for row in rows}
            count.update(row["image_id"] for row in rows)
            progress.on_rows(sum(map(is_done, names)), rows)
    progress.close()
    if time.monotonic() > deadline and not all(map(is_done, images.ids)):
        raise Stopped


def announce(evaluation: Evaluation, todo: ImageSet, run: Run) -> None:
    """Check the model on some of the images, and say what will run."""
    seconds = check_before_attack(evaluation, todo, run)
    begin = first_line(evaluation, run, len(todo), seconds)
    remarks = [*evaluation.remarks, *beside_remarks(evaluation.model.settings["name"], run)]
    print_line("\n".join([begin, *remarks, *warning_lines(evaluation.images.notes)]))


def write_rows(rows: list[dict], evaluation: Evaluation, run: Run) -> None:
    """Append rows of an attack, with what people say of their images, and save examples."""
    add_human_columns(rows, evaluation, run.settings["run"])
    run.replace_old()
    save_examples(rows, evaluation, run)  # first: an image with a row is never attacked again
    run.append(rows)


def check_before_attack(evaluation: Evaluation, todo: ImageSet, run: Run) -> float | None:
    """Check the model on its first image and before an attack on a few; warnings go to the run.

    Returns the seconds that a forward pass of an image takes, None without an attack.
    """
    model, images, threat = evaluation.model, evaluation.images, evaluation.threat
    for warning in [*version_drift(), *model.notes, *images.notes, *threat.notes]:
        run.warn(warning)
    if images.class_names:
        run.save(classes=list(images.class_names))
    if not len(todo):
        return None
    allow_tf32(False)  # an earlier phase may have searched with it
    for warning in check_first_image(evaluation, todo):
        run.warn(warning)
    if isinstance(threat, Clean):
        return None
    compare_with_published(evaluation, run)
    return check_clean(evaluation, run)
