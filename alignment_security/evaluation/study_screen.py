"""The screen of a study: what is done, under way, left and failed, read from its states on disk."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from subprocess import Popen

from tqdm import tqdm

from alignment_security.cluster.queue import DONE, RUNNING, ModelState, StudyQueue
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line
from alignment_security.common.progress import PROGRESS_SECONDS
from alignment_security.records.record import read_run_file

REDRAWN_EVERY = 2.0  # seconds, on a terminal
UP_AND_CLEAR = "\x1b[{}F\x1b[J"  # cursor to the beginning of so many lines above


class StudyScreen:
    """States of a study's models, as text: redrawn on a terminal, elsewhere lines.

    settled   models that were done or had failed when it was last shown
    seen      (model, folder) -> when its record was first seen, and the rows that it had
    """

    def __init__(
        self, study: str, queue: StudyQueue, models: Sequence[str], requests: Mapping[str, str]
    ):
        self.study, self.queue = study, queue
        self.models, self.requests = list(models), requests
        self.on_terminal = sys.stdout.isatty()
        self.started, self.next, self.lines = time.time(), 0.0, 0
        self.settled = {state.model for state in self.states() if self.is_settled(state)}
        self.seen: dict[tuple[str, str], tuple[float, int]] = {}

    # ---- states ----------------------------------------------------------------------------------

    def states(self) -> list[ModelState]:
        return [self.queue.state(model) for model in self.models]

    def is_settled(self, state: ModelState) -> bool:
        return self.queue.is_done(state, self.requests) or self.queue.has_failed(state)

    def unsettled(self) -> list[ModelState]:
        return [state for state in self.states() if not self.is_settled(state)]

    def of_process(self, pid: int) -> list[ModelState]:
        """States of the models that a process of this machine took; others may share the folder."""
        host = socket.gethostname()
        return [state for state in self.states() if (state.host, state.pid) == (host, pid)]

    def bytes_of(self, state: ModelState) -> int:
        """Size of the records of a model."""
        files = [self.queue.run_files(state.model, folder) for folder in self.requests]
        records = [file.with_suffix(".csv") for file in sum(files, [])]
        return sum(record.stat().st_size for record in records if record.exists())

    # ---- text ------------------------------------------------------------------------------------

    def show(self, processes: Mapping[str, Popen]) -> None:
        """Show the states, if it is time."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REDRAWN_EVERY
        states = self.states()
        new = [state for state in states if state.model not in self.settled]
        new = [state for state in new if self.is_settled(state)]
        self.settled |= {state.model for state in new}
        if self.on_terminal:
            self.draw([*map(settled_text, new)], self.text(states, processes))
        elif new or time.time() - self.started > self.lines * PROGRESS_SECONDS:
            self.lines = int((time.time() - self.started) / PROGRESS_SECONDS) + 1
            print_line("\n".join([*map(settled_text, new), *self.text(states, processes)]))

    def draw(self, above: list[str], lines: list[str]) -> None:
        """Replace the lines drawn before, cut so that none wraps; `above` stays."""
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in lines]
        back = UP_AND_CLEAR.format(self.lines) if self.lines else ""
        print_line(back + "\n".join([*above, *lines]))
        self.lines = len(lines)

    def text(self, states: Sequence[ModelState], processes: Mapping[str, Popen]) -> list[str]:
        """A line of counts, and a line for each process of this machine."""
        by_pid = {
            state.pid: state for state in states if state.status == RUNNING and is_here(state)
        }
        lines = [self.counts(states)]
        for device, process in processes.items():
            state = by_pid.get(process.pid)
            lines.append(f"  {device}: {self.present(state) if state else 'loading or waiting'}")
        return lines

    def counts(self, states: Sequence[ModelState]) -> str:
        done = [state for state in states if self.queue.is_done(state, self.requests)]
        failed = [state for state in states if self.queue.has_failed(state)]
        settled = {state.model for state in [*done, *failed]}
        gone = tqdm.format_interval(time.time() - self.started)
        parts = [f"{self.study}: {len(done)} of {len(states)} models done"]
        if failed:
            parts.append(f"{len(failed)} failed")
        parts.append(f"{gone} gone")
        left = [state for state in states if state.model not in settled]
        if done and (seconds := seconds_left(done, left)) >= 1:
            parts.append(f"about {tqdm.format_interval(seconds)} left")
        return ", ".join(parts)

    def present(self, state: ModelState) -> str:
        """`resnet50: Linf on sample, 3 of 20 images, 412 an hour`"""
        _, images, threat = state.present.split("/") if state.present else ("", "", "loading")
        text = f"{state.model}: {threat}" + (f" on {images}" if images else "")
        with suppress(UserError, OSError, KeyError, IndexError):
            file = self.queue.run_files(state.model, state.present)[-1]
            run = read_run_file(file)["settings"]["run"]
            per_image = len(run.get("eps") or [0])
            with open(file.with_suffix(".csv"), "rb") as record:
                rows = sum(1 for _ in record) - 1
            text += f", {rows // per_image} of {run['images']} images"
            now = time.time()
            since, before = self.seen.setdefault((state.model, state.present), (now, rows))
            if rows > before:
                text += f", {3600 * (rows - before) / per_image / (now - since):.0f} an hour"
        return text

    def finish(self) -> None:
        """The last words: counts, and why models failed."""
        self.next = 0.0
        self.show({})
        states = self.states()
        failed = [state for state in states if self.queue.has_failed(state)]
        lines = [self.counts(states), *map(settled_text, failed)]
        if again := [state.model for state in failed if state.try_again]:
            lines.append(f"run the same command again to try {', '.join(again)} another time")
        print_line("\n".join(lines))


def seconds_left(done: Sequence[ModelState], left: Sequence[ModelState]) -> float:
    """Time to the end: each model that is left takes the mean of those that are done.

    0 where those under way have taken longer, and none is left beside them.
    """
    mean = sum(state.seconds for state in done) / len(done)
    running = [state for state in left if state.status == RUNNING]
    spent = sum(min(mean, time.time() - state.began + state.seconds) for state in running)
    return (mean * len(left) - spent) / max(1, len(running))


def is_here(state: ModelState) -> bool:
    return state.host == socket.gethostname()


def settled_text(state: ModelState) -> str:
    """A line about a model that is done or failed."""
    if state.status == DONE:
        return f"  {state.model}: done in {tqdm.format_interval(state.seconds)}"
    reasons = dict.fromkeys(state.failures.values())
    return f"  {state.model}: failed: {'; '.join(reasons)}"
