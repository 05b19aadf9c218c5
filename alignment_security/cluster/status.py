"""Progress of a sweep, from event logs and run files (`utilities.py sweep_status`).

State of a model:

    done      its run file says so
    running   with images per hour and time left, as the job last reported
    idle      in the queue
    held      with HTCondor's reason
    failed    with the last line of its error file
    waiting   not in the queue: not yet submitted, or removed
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from alignment_security.cluster.queue import statuses_of_models
from alignment_security.cluster.slurm import Event, task_events
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.folders import glob_visible
from alignment_security.common.text import last_line, text_lines
from alignment_security.records.names import without_weights
from alignment_security.records.record import readable_run_files

STATES = ["done", "running", "idle", "held", "failed", "waiting"]
# attributes that cluster.job.report_progress sets
PROGRESS = ("ChirpImagesDone", "ChirpImagesTotal", "ChirpImagesPerHour")
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
NOTE_WIDTH = 150  # characters
SECONDS_PER_HOUR = 3600


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
    done: float | None = None  # images, as last reported
    total: float | None = None
    per_hour: float | None = None
    reported_at: float | None = None

    def stop(self, now: float) -> None:
        """Add the present run, if there is one, to `seconds`."""
        if self.started is not None:
            self.seconds += now - self.started
            self.started = None

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
            job.stop(now)
            job.state, job.evictions = "idle", job.evictions + 1
        elif kind == "JOB_HELD":
            job.stop(now)
            job.state, job.note = "held", str(event.get("HoldReason", ""))
        elif kind == "JOB_RELEASED":
            job.state, job.note = "idle", ""
        elif kind == "JOB_ABORTED":
            job.stop(now)
            job.state, job.note = "waiting", str(event.get("Reason", "removed"))
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
    return "" if status == 0 else f"exit status {status}"


# ---- a sweep -------------------------------------------------------------------------------------


def sweep_models(sweep: Path) -> list[tuple[str, str]]:
    """(name, slug) of the sweep's models; the slug names their files. Raises StatusError."""
    try:
        rows = [line.split(", ") for line in text_lines(sweep / "models.txt")]
        return [(name, slug) for name, slug, _ in rows]
    except (OSError, ValueError):
        raise StatusError(
            f"{sweep}: not a folder of `python utilities.py make_sweep` (no models.txt)"
        ) from None


def run_files(sweep: Path) -> dict[str, list[dict]]:
    """Model -> run files of the records that jobs returned; unreadable ones are left out.

    All records of a model count (records.names).
    """
    found: dict[str, list[dict]] = {}
    paths = glob_visible(sweep / "results" / "records", "*/*/*.json")
    for _, run in readable_run_files(paths):
        found.setdefault(without_weights(run["model"]), []).append(run)
    return found


def model_status(
    sweep: Path, name: str, slug: str, runs: list[dict], in_study: str, now: float
) -> dict:
    """A row of the table that `status_table` returns.

    runs       run files of the model's records, as far as they came back
    in_study   its status in a study: a threat that was not begun has no run file
    """
    job = follow_events(events_of(sweep, slug))
    row = {
        "model": name,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "per_hour": job.per_hour,
        "left": None,
        "used": job.gpu_hours(now),
        "note": job.note,
        "evictions": job.evictions,
    }
    ended_cleanly = job.state in ("failed", "waiting") and not job.note
    is_done = runs and in_study == "done" and all(run["status"] == "done" for run in runs)
    if is_done and ended_cleanly:
        return row | _done_columns(runs)
    if job.state == "failed":
        return row | {"note": _failure_note(sweep, slug, job, runs)}
    return row | {"left": job.hours_left(now)}


def events_of(sweep: Path, slug: str) -> list[Event]:
    """The events of a model on HTCondor, else on SLURM; [] for a model that was never submitted."""
    log = sweep / "logs" / f"{slug}.log"
    if log.is_file():
        return read_events(log)
    noted = log.with_name(f"{slug}.slurm")
    return task_events(noted) if noted.is_file() else []


def _done_columns(runs: list[dict]) -> dict:
    """Columns of a model whose run files say that it is done; images of all its threats."""
    images = sum(run["images"] for run in runs)
    seconds = sum(session["seconds"] for run in runs for session in run["sessions"])
    return {
        "state": "done",
        "done": images,
        "total": images,
        "per_hour": SECONDS_PER_HOUR * images / seconds if seconds else None,
        "left": 0.0,
        "note": "",
    }


def _failure_note(sweep: Path, slug: str, job: CondorJob, runs: list[dict]) -> str:
    """How a failed job ended, and the last line of its error file or the error of its run file."""
    ending = job.note or "no finished record"
    error_in_run = next((str(run["error"]) for run in runs if run.get("error")), "")
    reason = last_line(sweep / "logs" / f"{slug}.err") or error_in_run
    return f"{ending}: {reason}" if reason else ending


def status_table(sweep: Path, now: float | None = None) -> pd.DataFrame:
    """The state of every model of a sweep, one row each.

    now   seconds since the epoch; default: the clock
    Columns: model, state; done and total images; per_hour; left, the hours until it is done; used,
    its GPU hours; note; evictions. Raises StatusError.
    """
    runs, in_study = run_files(sweep), statuses_of_models(sweep / "results")
    if now is None:
        now = time.time()
    rows = [
        model_status(sweep, name, slug, runs.get(name, []), in_study.get(slug, "done"), now)
        for name, slug in sweep_models(sweep)
    ]
    numbers = ("done", "total", "per_hour", "left", "used")
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def expected_hours(table: pd.DataFrame) -> float | None:
    """GPU hours still to come; None before anything is known.

    Running models: the time left that they reported. Others: the mean of the models that are done,
    else of those that reported. Failed models do not count.
    """
    coming = table[~table["state"].isin(["done", "failed"])]
    typical = table.loc[table["state"] == "done", "used"].mean()
    if pd.isna(typical):
        typical = (table["used"] + table["left"]).mean()
    if pd.isna(typical):
        hours = coming["left"].sum(min_count=len(coming))
    else:
        hours = coming["left"].fillna(max(typical, 0.0)).sum()
    return None if pd.isna(hours) else float(hours)


# ---- printing ------------------------------------------------------------------------------------


def hours_text(hours: float) -> str:
    """`3:05` for 3 hours and 5 minutes; empty for nan."""
    if pd.isna(hours):
        return ""
    minutes = int(hours * 60 + 0.5)
    return f"{minutes // 60}:{minutes % 60:02d}"


def _images_text(done: float, total: float) -> str:
    return "" if pd.isna(total) else f"{done:.0f}/{total:.0f}"


def status_text(table: pd.DataFrame) -> str:
    """The table of `status_table` and its sums as text, sorted by state."""
    time_left = table["left"].where(table["state"] == "running")
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "state": table["state"],
            "images": [_images_text(*pair) for pair in zip(table["done"], table["total"])],
            "images/h": ["" if pd.isna(rate) else f"{rate:.4g}" for rate in table["per_hour"]],
            "left h:mm": [hours_text(hours) for hours in time_left],
            "GPU h:mm": [hours_text(hours) for hours in table["used"]],
            "evicted": [str(count or "") for count in table["evictions"]],
            "note": ["  " + " ".join(note.split())[:NOTE_WIDTH] for note in table["note"]],
        }
    )
    order = table["state"].map(STATES.index).sort_values(kind="stable").index
    return shown.loc[order].to_string(index=False, justify="left") + "\n\n" + _sums_text(table)


def _sums_text(table: pd.DataFrame) -> str:
    """Models in each state, and GPU hours used and expected."""
    counts = table["state"].value_counts()
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)
    expected = expected_hours(table)
    expected_text = "not known yet" if expected is None else hours_text(expected)
    return (
        f"{len(table)} models: {states}\n"
        f"GPU hours (h:mm): {hours_text(table['used'].sum())} used, {expected_text} still "
        "expected\n"
    )


def print_status(sweep: Path, out: Path | None = None) -> pd.DataFrame:
    """Print the status of a sweep, and write it to the file `out` if one is given."""
    table = status_table(sweep)
    text = status_text(table)
    print(text, end="")
    if out:
        write_atomic(out, text)
    return table
