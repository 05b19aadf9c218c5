"""The queue of a study: processes, also on several machines, that share a results folder.

    RESULTS/studies/<study>/<model>.json    how far the model is: a `ModelState`
    RESULTS/studies/<study>/<model>.lock    held by the process that evaluates the model

No server: a process takes the first model that is not done and whose lock is free. The kernel
releases the lock of a process that died. The rows are in the records alone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.folders import glob_visible
from alignment_security.common.temporary import temporary_beside
from alignment_security.common.text import read_text
from alignment_security.records.names import run_files_of_model
from alignment_security.records.record import check_record_sha256, read_run_file

SECONDS_TO_WAIT = 1.0  # before a look at the models that other processes hold
PROBE_BYTES = 2**20  # that the results folder has to take before a study begins
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


def check_results_folder(results_dir: str | Path) -> None:
    """Write a file of PROBE_BYTES and remove it. Raises OSError, which names the folder."""
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder / "probe") as probe, open(probe, "xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def statuses_of_models(results_dir: Path) -> dict[str, str]:
    """File name of a model -> its status in the studies of a results folder."""
    found = {}
    for path in glob_visible(results_dir / "studies", "*/*.json"):
        with suppress(OSError, ValueError, UserError):  # half-copied: as if it were not there
            found[path.stem] = str(json.loads(read_text(path)).get("status"))
    return found


@dataclass
class ModelState:
    """How far a model of a study is.

    requests   folder of a record, below the results folder -> what is asked for there
    present    the folder of the present request
    failures   folder -> reason
    try_again  whether the same request may succeed another time, where one failed
    run_files  of the model's records when it was done, below the results folder
    began      of the present or last process; ended, when it left the model; seconds since epoch
    seconds    that processes spent on the model
    """

    model: str
    requests: dict[str, str] = field(default_factory=dict)
    status: str = STOPPED
    present: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    try_again: bool = False
    run_files: list[str] = field(default_factory=list)
    host: str = ""
    pid: int = 0
    began: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0


class StudyQueue:
    """The states of a study's models in a results folder.

    since       seconds since the epoch; a model that failed before is tried again
    overwrite   so is one that was done before
    """

    def __init__(self, results_dir: str | Path, study: str, since: float, overwrite: bool = False):
        self.results_dir, self.since, self.overwrite = Path(results_dir), since, overwrite
        self.folder = self.results_dir / "studies" / safe_file_name(study)

    def path(self, model: str) -> Path:
        return self.folder / f"{safe_file_name(model)}.json"

    def state(self, model: str) -> ModelState:
        """The state on disk; a new one where there is none, or a damaged one."""
        try:
            return ModelState(**json.loads(read_text(self.path(model))))
        except (OSError, UserError, ValueError, TypeError):
            return ModelState(model)

    def save(self, state: ModelState) -> None:
        write_atomic(self.path(state.model), json.dumps(asdict(state), indent=1) + "\n")

    def is_done(self, state: ModelState, requests: Mapping[str, str]) -> bool:
        """Whether these requests are done; with a record that was deleted they are not.

        Which of the records of a folder the request is of is not known here: none may be gone. Only
        the files that the state names are looked at, since to list a folder for each model takes
        seconds.
        """
        if state.status != DONE or state.requests != requests:
            return False
        if self.overwrite and state.ended < self.since:
            return False
        run_files = [Path(name) for name in state.run_files]
        if not set(requests) <= {path.parent.as_posix() for path in run_files}:
            return False
        files = [path.with_suffix(ending) for path in run_files for ending in (".json", ".csv")]
        return all((self.results_dir / file).is_file() for file in files)

    def is_intact(self, state: ModelState) -> bool:
        """Whether the records of a model that is done are the files that its runs finished with."""
        try:
            for name in state.run_files:
                run_file = self.results_dir / name
                check_record_sha256(run_file.with_suffix(".csv"), read_run_file(run_file))
        except UserError:
            return False
        return True

    def has_failed(self, state: ModelState) -> bool:
        """Whether the model failed in this run."""
        return state.status == FAILED and state.ended >= self.since

    def run_files(self, model: str, folder: str) -> list[Path]:
        """Run files of a model in a folder of records, the one written last at the end."""
        found = run_files_of_model(self.results_dir / folder, model)
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def all_run_files(self, state: ModelState) -> list[str]:
        """Run files of a model in the folders of its requests, below the results folder."""
        found = [path for folder in state.requests for path in self.run_files(state.model, folder)]
        return [path.relative_to(self.results_dir).as_posix() for path in found]

    def fail(self, state: ModelState, reason: str) -> None:
        """Write that a model failed, in the place of a process that can no longer say so."""
        state.failures[state.present], state.status, state.ended = reason, FAILED, time.time()
        state.try_again = True
        self.save(state)

    def following(
        self, model: str, models: Sequence[str], requests: Mapping[str, str]
    ) -> str | None:
        """The model that is probably taken next on this machine: the first one free after `model`.

        Nothing is locked: a process of another machine may take it.
        """
        place = models.index(model) + 1
        for name in [*models[place:], *models[: place - 1]]:
            state = self.state(name)
            settled = self.is_done(state, requests) or self.has_failed(state)
            if state.status != RUNNING and not settled:
                return name
        return None

    def turns(self, models: Sequence[str], requests: Mapping[str, str]) -> Iterator[Turn]:
        """Turns of the models that are left, until none is.

        Waits for models that other processes hold, and takes them over if these stop.
        """
        left = list(models)
        while left:
            for model in list(left):
                with self._turn(model, requests) as turn:
                    if turn is None:
                        continue
                    state = turn.state
                    done = self.is_done(state, requests) and self.is_intact(state)
                    if not (done or self.has_failed(state)):
                        check_results_folder(self.results_dir)
                        yield turn
                    left.remove(model)
            if left:
                time.sleep(SECONDS_TO_WAIT)

    @contextmanager
    def _turn(self, model: str, requests: Mapping[str, str]) -> Iterator[Turn | None]:
        """Hold a model's lock; None while another process holds it."""
        # filelock, which an environment for figures alone does not have
        from filelock import Timeout

        from alignment_security.common.locked_run import lock_file

        try:
            lock = lock_file(self.path(model).with_suffix(".lock"), timeout=0)
        except Timeout:
            yield None
            return
        try:
            yield Turn(self, self.state(model), dict(requests))
        finally:
            lock.release()


class Turn:
    """A model in the hands of this process, as a context: how it ends is written to its state."""

    def __init__(self, queue: StudyQueue, state: ModelState, requests: dict[str, str]):
        self.queue, self.state, self.requests = queue, state, requests

    def __enter__(self) -> Turn:
        state = self.state
        state.requests, state.failures, state.try_again = self.requests, {}, False
        state.status, state.present = RUNNING, ""
        state.host, state.pid, state.began = socket.gethostname(), os.getpid(), time.time()
        self.queue.save(state)
        return self

    def begin(self, folder: str) -> None:
        """Note which request is evaluated now, by the folder of its record."""
        self.state.present = folder
        self.queue.save(self.state)

    def fail(self, reason: str, try_again: bool = True) -> None:
        """Note why the present request is not done, and whether another try may help."""
        self.state.failures[self.state.present] = reason
        self.state.try_again |= try_again

    def __exit__(self, kind, error, traceback) -> None:
        state = self.state
        if isinstance(error, Exception):
            self.fail(f"{type(error).__name__}: {error}")
        unfinished = error is not None and not isinstance(error, Exception)
        state.status = STOPPED if unfinished else FAILED if state.failures else DONE
        state.run_files = self.queue.all_run_files(state) if state.status == DONE else []
        state.ended = time.time()
        state.seconds += state.ended - state.began
        self.queue.save(state)
