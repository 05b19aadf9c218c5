"""One session of a training: stop requests, opening and resuming its run, what it leaves behind."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignment_security.common.files import UserError
from alignment_security.common.process import on_stop, print_line
from alignment_security.common.remarks import warning_lines
from alignment_security.common.settings import version_drift
from alignment_security.common.torch_files import error_reason
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.orientation import orientation_notes, with_orientation_notes
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.records.training import read_training_log
from alignment_security.trainer.distributed import broadcast, rank
from alignment_security.trainer.learner import Learner, bare_net, resume
from alignment_security.trainer.run import (
    LAST,
    TrainingError,
    TrainingRun,
    read_state,
    training_folder,
)


class StopRequest:
    """Call it to ask: has SIGTERM or SIGHUP arrived, or have `after` seconds passed?"""

    def __init__(self, after: float | None):
        self.deadline = time.monotonic() + (math.inf if after is None else after)
        self.signalled = False
        on_stop(self.on_signal)

    def on_signal(self, *_) -> None:
        self.signalled = True

    def __call__(self) -> bool:
        return self.signalled or time.monotonic() > self.deadline


@contextmanager
def open_run(
    results_dir: str | Path, name: str, settings: dict, facts: dict, overwrite: bool
) -> Iterator[TrainingRun | None]:
    """Rank 0 opens the run and holds its lock; the other ranks get None. All ranks raise its error.

    settings   what changes the weights; facts: what is recorded about this session
    """
    run = failed = None
    if rank() == 0:
        try:
            run = TrainingRun(results_dir, name, settings, facts, overwrite)
        except (UserError, OSError) as error:
            failed = error
    if failed := broadcast(failed):
        raise failed
    try:
        yield run
    finally:
        if run:
            run.close()


@dataclass
class Session:
    """How a session ended: the status for the run file."""

    status: str = "failed"


@contextmanager
def record_session(run: TrainingRun | None) -> Iterator[Session]:
    """Save the session's status and seconds in the run file, whatever happens.

    A UserError before the first checkpoint removes the files of the run.
    """
    session, begin = Session(), time.monotonic()
    try:
        yield session
    except UserError:
        if run:
            run.discard_if_untrained()
        raise
    finally:
        if run and run.json.exists():
            run.save(status=session.status, seconds=time.monotonic() - begin)


def resume_from_checkpoint(
    learner: Learner,
    run: TrainingRun | None,
    results_dir: str | Path,
    name: str,
    settings: dict,
    overwrite: bool,
) -> None:
    """Load the last checkpoint, if there is one, and cut the log to its step.

    overwrite   begin anew: leave the last checkpoint alone
    Raises TrainingError for a checkpoint that cannot be read, has other settings or does not fit.
    """
    path = training_folder(results_dir, name) / LAST
    state = None if overwrite else read_state(path, settings)
    if state:
        try:
            resume(learner, state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{path}: does not fit this training ({error_reason(error)}); bring back its own, "
                "or remove it to train from the start"
            ) from None
    if run:
        run.cut_log(learner.step)
        known = run.info["warnings"]
        known += [warning for warning in version_drift() if warning not in known]


def note_images(
    run: TrainingRun | None, sets: list[ImageSet], validation: ImageSet | None = None
) -> None:
    """Record the classes in the order of the outputs, and what is to be said of the image lists."""
    if run is None:
        return
    notes = [note for images in map(with_orientation_notes, sets) for note in images.notes]
    if validation is not None:
        notes += orientation_notes(validation)
    if notes:
        print_line("\n".join(warning_lines(notes)))
    known = run.info["warnings"]
    known += [note for note in dict.fromkeys(notes) if note not in known]
    names = [list(images.class_names) for images in sets if images.class_names]
    run.save(**({"classes": names[0]} if names else {}))


def save_weights(run: TrainingRun | None, learner: Learner) -> None:
    """Write model.safetensors and mark the run as done."""
    if run:
        net = bare_net(learner.trained)
        run.finish(net.state_dict(), weights_sha256=weights_sha256(net))


def report(run: TrainingRun) -> str:
    """The last row of the log, the warnings, and the file of the weights, as lines of text."""
    last = read_training_log(run.csv).iloc[-1].dropna()
    values = [f"{name} {value:.4g}" for name, value in last.items()]
    warnings = [f"  warning: {warning}" for warning in run.info["warnings"]]
    return "\n".join([f"{run.info['name']}: {', '.join(values)}", *warnings, f"  {run.final}"])
