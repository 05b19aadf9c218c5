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

# events that are read; the others say nothing about the state
EVENT_KINDS = {
    "SUBMIT",
    "EXECUTE",
    "JOB_EVICTED",
    "SHADOW_EXCEPTION",
    "JOB_RECONNECT_FAILED",
    "JOB_HELD",
    "JOB_RELEASED",
    "JOB_ABORTED",
    "JOB_TERMINATED",
    "JOB_AD_INFORMATION",
}
SECONDS_PER_HOUR = 3600
SAME_EVENT = 10  # seconds between an eviction and the hold or removal that is its cause


class StatusError(UserError):
    """A folder without a sweep, an unreadable event log, or HTCondor's package is missing."""


@dataclass
class CondorJob:
    """What the event log of one model says. Times are seconds since the epoch."""

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

    def stop(self, now: float) -> None:
        """Add the present run, if there is one, to `seconds`."""
        if self.started is not None:
            self.seconds += now - self.started
            self.started = None

    def evict(self, now: float) -> None:
        """Count an eviction; a job whose input never arrived did not run."""
        if self.started is not None:
            self.evictions, self.evicted_at = self.evictions + 1, now
        self.stop(now)

    def was_no_eviction(self, now: float) -> None:
        """It was held or removed: HTCondor notes an eviction just before."""
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


# ---- event logs ----------------------------------------------------------------------------------


def read_events(path: Path) -> list[Event]:
    """The complete events of EVENT_KINDS in a log.

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
            if event.type.name in EVENT_KINDS
        ]
    except (htcondor2.HTCondorException, OSError) as error:
        raise StatusError(f"{path}: not an event log of HTCondor ({error})") from None


def follow_events(events: Iterable[Event]) -> CondorJob:
    """The state of a model after these events.

    After several submissions it is the state of the last job; GPU time is summed over all.
    """
    job = CondorJob()
    for kind, now, event in events:
        if kind == "SUBMIT":
            job.state, job.note = "idle", ""
        elif kind == "EXECUTE":
            job.state, job.note, job.started = "running", "", now
        elif kind == "JOB_EVICTED" and event.get("TerminatedAndRequeued"):
            job.stop(now)
            job.state, job.note = "idle", f"{exit_text(event)}, to be tried again"
        elif kind in ("JOB_EVICTED", "SHADOW_EXCEPTION"):
            job.state = "idle"
            job.evict(now)
        elif kind == "JOB_HELD":
            job.stop(now)
            job.was_no_eviction(now)
            number = f"{event.get('Cluster', '?')}.{event.get('Proc', 0)}"
            job.state, job.note = "held", f"job {number}: {event.get('HoldReason', '')}"
        elif kind == "JOB_RELEASED":
            job.state, job.note = "idle", ""
        elif kind == "JOB_ABORTED":
            job.stop(now)
            job.was_no_eviction(now)
            job.state, job.note = "waiting", str(event.get("Reason", "removed"))
        elif kind == "SILENT":
            job.stop(now)
            job.note = f"no sign since {date_text(now)}; squeue says whether it runs"
        elif kind == "JOB_TERMINATED":
            # with exit status 0 too: model_status asks the run file whether it is done
            job.stop(now)
            job.state, job.note = "failed", exit_text(event)
        elif kind == "JOB_AD_INFORMATION" and PROGRESS[1] in event:
            job.done, job.total, job.per_hour = (float(event.get(name) or 0) for name in PROGRESS)
            job.reported_at = now
    return job


def exit_text(event: Mapping) -> str:
    """How a job ended; empty for exit status 0."""
    if not event.get("TerminatedNormally", True):
        return f"killed by signal {event.get('TerminatedBySignal', '?')}"
    status = event.get("ReturnValue")
    killed = " (killed, most often for its memory)" if status == 128 + signal.SIGKILL else ""
    return "" if status == 0 else f"exit status {status}{killed}"
