"""What happened to the job of a model: events of HTCondor's log, or what SLURM's tasks noted."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignment_security.cluster.job import PROGRESS
from alignment_security.cluster.notes import date_text
from alignment_security.cluster.slurm import Event
from alignment_security.common.files import UserError

SECONDS_PER_HOUR = 3600
SAME_EVENT = 10  # seconds between an eviction and the hold or removal that is its cause


class StatusError(UserError):
    """A folder without a sweep, an unreadable event log, or HTCondor's package is missing."""


@dataclass
class CondorJob:
    """What the event log of one model says. Times are seconds since the epoch.

    The methods with a time and an event are what EVENTS does.
    """

    state: str = "waiting"
    note: str = ""
    started: float | None = None  # of the present run
    seconds: float = 0.0  # on a GPU, in earlier runs
    evictions: int = 0
    evicted_at: float = -math.inf  # the last time that was counted
    done: float | None = None  # images, as last reported
    total: float | None = None
    per_hour: float | None = None
    reported_at: float | None = None

    def queue(self, now: float, event: Mapping) -> None:
        self.state, self.note = "idle", ""

    def execute(self, now: float, event: Mapping) -> None:
        self.state, self.note, self.started = "running", "", now

    def evict(self, now: float, event: Mapping) -> None:
        """It ended and is tried again, or lost its machine.

        A job whose input never arrived did not run, and is not evicted.
        """
        self.state = "idle"
        if event.get("TerminatedAndRequeued"):
            self.note = f"{exit_text(event)}, to be tried again"
        elif self.started is not None:
            self.evictions, self.evicted_at = self.evictions + 1, now
        self._stop(now)

    def hold(self, now: float, event: Mapping) -> None:
        number = f"{event.get('Cluster', '?')}.{event.get('Proc', 0)}"
        self.state, self.note = "held", f"job {number}: {event.get('HoldReason', '')}"
        self._stop_by_hand(now)

    def remove(self, now: float, event: Mapping) -> None:
        self.state, self.note = "waiting", str(event.get("Reason", "removed"))
        self._stop_by_hand(now)

    def end(self, now: float, event: Mapping) -> None:
        """With exit status 0 it failed, too: whether it is done says its run file."""
        self.state, self.note = "failed", exit_text(event)
        self._stop(now)

    def fall_silent(self, now: float, event: Mapping) -> None:
        self.note = f"no sign since {date_text(now)}; squeue says whether it runs"
        self._stop(now)

    def report(self, now: float, event: Mapping) -> None:
        if PROGRESS[1] in event:
            self.done, self.total, self.per_hour = (float(event.get(key) or 0) for key in PROGRESS)
            self.reported_at = now

    def _stop(self, now: float) -> None:
        """Add the present run, if there is one, to `seconds`."""
        if self.started is not None:
            self.seconds += now - self.started
            self.started = None

    def _stop_by_hand(self, now: float) -> None:
        """Stop it, and count no eviction: HTCondor notes one just before."""
        self._stop(now)
        if now - self.evicted_at < SAME_EVENT:
            self.evictions, self.evicted_at = self.evictions - 1, -math.inf

    def gpu_hours(self, now: float) -> float:
        """Hours on a GPU until now, in all runs."""
        running = now - self.started if self.started is not None else 0
        return (self.seconds + running) / SECONDS_PER_HOUR

    def hours_left(self, now: float) -> float | None:
        """Hours until all images are done at the reported rate; None before the first report."""
        if not self.total or not self.per_hour:
            return None
        hours = (self.total - (self.done or 0)) / self.per_hour
        if self.state == "running" and self.reported_at:
            hours -= (now - self.reported_at) / SECONDS_PER_HOUR
        return max(0.0, hours)


# event of HTCondor, or SILENT of SLURM -> what it means for the job; others say nothing about it
EVENTS = {
    "SUBMIT": CondorJob.queue,
    "JOB_RELEASED": CondorJob.queue,
    "EXECUTE": CondorJob.execute,
    "JOB_EVICTED": CondorJob.evict,
    "SHADOW_EXCEPTION": CondorJob.evict,
    "JOB_RECONNECT_FAILED": CondorJob.evict,
    "JOB_HELD": CondorJob.hold,
    "JOB_ABORTED": CondorJob.remove,
    "JOB_TERMINATED": CondorJob.end,
    "JOB_AD_INFORMATION": CondorJob.report,
    "SILENT": CondorJob.fall_silent,
}


# ---- event logs ----------------------------------------------------------------------------------


def read_events(path: Path) -> list[Event]:
    """The complete events of EVENTS in a log.

    Raises StatusError when the file is no event log, or when htcondor is not installed.
    """
    try:
        import htcondor2
    except ImportError as error:
        raise StatusError(
            f"{path}: reading event logs needs htcondor, which cannot be imported ({error}); "
            "`pip install -r requirements-htcondor.txt`"
        ) from None
    try:
        return [
            (event.type.name, float(event.timestamp), event)
            for event in htcondor2.JobEventLog(str(path)).events(stop_after=0)
            if event.type.name in EVENTS
        ]
    except (htcondor2.HTCondorException, OSError) as error:
        raise StatusError(f"{path}: not an event log of HTCondor ({error})") from None


def follow_events(events: Iterable[Event]) -> CondorJob:
    """The state of a model after these events.

    After several submissions it is the state of the last job; GPU time is summed over all.
    """
    job = CondorJob()
    for kind, now, event in events:
        EVENTS[kind](job, now, event)
    return job


def exit_text(event: Mapping) -> str:
    """How a job ended; empty for exit status 0."""
    if not event.get("TerminatedNormally", True):
        return f"killed by signal {event.get('TerminatedBySignal', '?')}"
    status = event.get("ReturnValue")
    killed = " (killed, most often for its memory)" if status == 128 + signal.SIGKILL else ""
    return "" if status == 0 else f"exit status {status}{killed}"
