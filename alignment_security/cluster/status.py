"""Progress of a sweep, from event logs and run files (`utilities.py sweep_status`).

State of a model:

    done      its run file says so
    running   with images per hour and time left, as the job last reported
    idle      in the queue
    held      with HTCondor's reason
    failed    with the first error of its last try
    waiting   not in the queue: not yet submitted, removed, or killed
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from alignment_security.cluster.events import (
    SECONDS_PER_HOUR,
    CondorJob,
    StatusError,
    follow_events,
    read_events,
)
from alignment_security.cluster.notes import date_text, reason_of_failure, shortened
from alignment_security.cluster.queue import statuses_of_models
from alignment_security.cluster.slurm import (
    Event,
    ends_of_tasks,
    last_sign,
    queue_events,
    task_events,
    tasks_in_queue,
)
from alignment_security.common.files import write_atomic
from alignment_security.common.folders import glob_visible
from alignment_security.common.text import text_lines
from alignment_security.records.names import without_weights
from alignment_security.records.record import readable_run_files

STATES = ["done", "running", "idle", "held", "failed", "waiting"]

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
    name: str, events: list[Event], error_file: Path, runs: list[dict], in_study: str, now: float
) -> dict:
    """A row of the table that `status_table` returns.

    runs       run files of the model's records, as far as they came back
    in_study   its status in a study: a threat that was not begun has no run file
    """
    job = follow_events(events)
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
        return row | {"note": _failure_note(error_file, job, runs)}
    return row | {"left": job.hours_left(now)}


def events_of_models(sweep: Path, slugs: list[str], now: float) -> list[list[Event]]:
    """The events of each model on HTCondor, else on SLURM; [] for one that was never submitted."""
    logs = [sweep / "logs" / f"{slug}.log" for slug in slugs]
    notes = [log.with_suffix(".slurm") for log in logs]
    noted = [task_events(file) if file.is_file() else [] for file in notes]
    in_queue = tasks_in_queue(sweep)
    states = [None if in_queue is None else in_queue.get(k, "") for k in range(1, len(logs) + 1)]
    ends = ends_of_tasks([events for events, state in zip(noted, states) if state == ""])
    found = []
    for log, file, events, state in zip(logs, notes, noted, states):
        if log.is_file():
            found.append(read_events(log))
            continue
        sign = last_sign(file) if file.is_file() else now
        found.append(events + queue_events(events, state, sign, now, ends))
    return found


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


def _failure_note(error_file: Path, job: CondorJob, runs: list[dict]) -> str:
    """How a failed job ended, and the reason in its error file or the error of its run file."""
    ending = job.note or "no finished record"
    error_in_run = next((str(run["error"]) for run in runs if run.get("error")), "")
    reason = reason_of_failure(error_file) or error_in_run
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
    models = sweep_models(sweep)
    rows = []
    for (name, slug), events in zip(models, events_of_models(sweep, [s for _, s in models], now)):
        error_file = sweep / "logs" / f"{slug}.err"
        of_model = (runs.get(name, []), in_study.get(slug, "done"))
        rows.append(model_status(name, events, error_file, *of_model, now))
    numbers = ("done", "total", "per_hour", "left", "used")
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def expected_hours(table: pd.DataFrame) -> float | None:
    """GPU hours still to come; None before anything is known.

    Running models: the time left that they reported. Others: the mean of the models that are done,
    else of those that reported. Failed models do not count, nor those that were done before the
    sweep, without a job.
    """
    coming = table[~table["state"].isin(["done", "failed"])]
    typical = table.loc[(table["state"] == "done") & (table["used"] > 0), "used"].mean()
    if pd.isna(typical):
        typical = (coming["used"] + coming["left"]).mean()
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
            "note": [
                "  " + shortened(note, keep_end=state == "held")
                for note, state in zip(table["note"], table["state"])
            ],
        }
    )
    order = table["state"].map(STATES.index).sort_values(kind="stable").index
    return shown.loc[order].to_string(index=False, justify="left") + "\n\n" + _sums_text(table)


def _sums_text(table: pd.DataFrame) -> str:
    """Models in each state, and GPU hours used and expected."""
    counts = table["state"].value_counts()
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)
    expected = expected_hours(table)
    coming = "the rest is not known yet"
    if expected is not None:
        coming = f"{hours_text(expected)} still expected"
    return (
        f"{len(table)} models: {states}\n"
        f"GPU hours (h:mm): {hours_text(table['used'].sum())} used, {coming}\n"
    )


def print_status(sweep: Path, out: Path | None = None) -> pd.DataFrame:
    """Print the status of a sweep, and write it to the file `out` if one is given."""
    table = status_table(sweep)
    text = f"{date_text(time.time())}\n{status_text(table)}"
    print(text, end="")
    if out:
        write_atomic(out, text)
    return table
