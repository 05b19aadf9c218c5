"""How far a sweep on HTCondor is, from its event logs and run files: `python utilities.py sweep_status`.

done      its run file says so                     running   with rate and time left, as its job last told
held      with HTCondor's reason                   failed    with the last line of its error file
idle      in the queue                             waiting   not in the queue (yet, or taken out)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, write_atomic
from alignment_security.records.record import read_run_file

STATES = ["done", "running", "idle", "held", "failed", "waiting"]
PROGRESS = ("ChirpImagesDone", "ChirpImagesTotal", "ChirpImagesPerHour")
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
}  # events that are read
NOTE_WIDTH = 150


class StatusError(UserError):
    """A folder that holds no sweep; the message names it."""


@dataclass
class CondorJob:
    """What the event log of one model says. Times are seconds since the epoch."""

    state: str = "waiting"
    note: str = ""
    started: float | None = None  # of the present run
    seconds: float = 0.0  # on a GPU, in runs that are over
    evictions: int = 0
    done: float | None = None  # images, as the job last told; at `told`
    total: float | None = None
    per_hour: float | None = None
    told: float | None = None

    def stop(self, now: float) -> None:
        if self.started is not None:
            self.seconds += now - self.started
            self.started = None


# ---- event logs ----------------------------------------------------------------------------------


def read_events(path: Path) -> list[tuple[str, float, Mapping]]:
    """(type, time, attributes) of the KINDS of events in a log, whole ones only. Raises StatusError for what is no event log."""
    import htcondor2

    try:
        return [
            (event.type.name, float(event.timestamp), event)
            for event in htcondor2.JobEventLog(str(path)).events(stop_after=0)
            if event.type.name in EVENT_KINDS
        ]
    except (htcondor2.HTCondorException, OSError) as error:
        raise StatusError(f"{path}: not an event log of HTCondor ({error})") from None


def follow_events(events: Iterable[tuple[str, float, Mapping]]) -> CondorJob:
    """The state of a model after these events: of its last job where it was submitted more than once; GPU time of all."""
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
            job.stop(now)
            job.state, job.note = "failed", exit_text(event)
        elif kind == "JOB_AD_INFORMATION" and PROGRESS[1] in event:
            job.done, job.total, job.per_hour = (float(event.get(name) or 0) for name in PROGRESS)
            job.told = now
    return job


def exit_text(event: Mapping) -> str:
    """How a job ended: `` for status 0, which its run file has to confirm."""
    if not event.get("TerminatedNormally", True):
        return f"killed by signal {event.get('TerminatedBySignal', '?')}"
    status = event.get("ReturnValue")
    return "" if status == 0 else f"exit status {status}"


# ---- a sweep -------------------------------------------------------------------------------------


def sweep_models(sweep: Path) -> list[tuple[str, str]]:
    """(name, slug) of the sweep's models."""
    try:
        rows = [line.split(", ") for line in (sweep / "models.txt").read_text().splitlines()]
        return [(name, slug) for name, slug, _ in rows]
    except (OSError, ValueError):
        raise StatusError(
            f"{sweep}: not a folder of `python utilities.py make_sweep` (no models.txt)"
        ) from None


def run_files(sweep: Path) -> dict[str, dict]:
    """Slug -> run file, of the records that came home; one that cannot be read counts as not there."""
    found = {}
    for path in sorted((sweep / "results" / "records").glob("*/*/*.json")):
        try:
            found[path.stem] = read_run_file(path)
        except UserError:
            continue
    return found


def last_line(path: Path) -> str:
    """The last line of a job's error file that is not empty."""
    try:
        return next(
            (
                line
                for line in reversed(path.read_text(errors="replace").splitlines())
                if line.strip()
            ),
            "",
        )
    except OSError:
        return ""


def model_status(sweep: Path, name: str, slug: str, run: dict | None, now: float) -> dict:
    """A row of the table: model, state, images, images an hour, hours left, GPU hours used, note."""
    log = sweep / "logs" / f"{slug}.log"
    job = follow_events(read_events(log) if log.is_file() else [])
    used = (job.seconds + (now - job.started if job.started is not None else 0)) / 3600
    row = {
        "model": name,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "per_hour": job.per_hour,
        "left": None,
        "used": used,
        "note": job.note,
        "evictions": job.evictions,
    }
    if (
        run is not None
        and run["status"] == "done"
        and job.state in ("failed", "waiting")
        and not job.note
    ):
        seconds = sum(session["seconds"] for session in run["sessions"])
        return row | {
            "state": "done",
            "done": run["images"],
            "total": run["images"],
            "note": "",
            "per_hour": 3600 * run["images"] / seconds if seconds else None,
            "left": 0.0,
        }
    if job.state == "failed":
        why = last_line(sweep / "logs" / f"{slug}.err") or str((run or {}).get("error") or "")
        return row | {
            "note": ": ".join(part for part in (job.note or "no finished record", why) if part)
        }
    if job.total and job.per_hour:
        row["left"] = max(
            0.0,
            (job.total - (job.done or 0)) / job.per_hour
            - ((now - (job.told or now)) / 3600 if job.state == "running" else 0),
        )
    return row


def status_table(sweep: Path, now: float | None = None) -> pd.DataFrame:
    """A row a model: model, state, done and total images, per_hour, hours left, GPU hours used, note, evictions."""
    runs, now = run_files(sweep), time.time() if now is None else now
    rows = [
        model_status(sweep, name, slug, runs.get(slug), now) for name, slug in sweep_models(sweep)
    ]
    return pd.DataFrame(rows).astype(
        dict.fromkeys(("done", "total", "per_hour", "left", "used"), float)
    )


def expected_hours(table: pd.DataFrame) -> float | None:
    """GPU hours still to come: what running models told, and for the others the mean of those that are done; None
    before anything is known. Failed models count as not coming."""
    coming = table[~table["state"].isin(["done", "failed"])]
    typical = table.loc[table["state"] == "done", "used"].mean()
    if pd.isna(typical):
        typical = (table["used"] + table["left"]).mean()
    left = (
        coming["left"].fillna(max(typical, 0.0)).sum()
        if not pd.isna(typical)
        else coming["left"].sum(min_count=len(coming))
    )
    return None if pd.isna(left) else float(left)


def hours_text(value: float) -> str:
    """`3:05` for 3 hours and 5 minutes; empty where it is not known."""
    return (
        "" if pd.isna(value) else f"{int(value * 60 + 0.5) // 60}:{int(value * 60 + 0.5) % 60:02d}"
    )


def status_text(table: pd.DataFrame) -> str:
    """The table and its sums, to read."""
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "state": table["state"],
            "images": [
                "" if pd.isna(t) else f"{d:.0f}/{t:.0f}"
                for d, t in zip(table["done"], table["total"])
            ],
            "images/h": ["" if pd.isna(r) else f"{r:.4g}" for r in table["per_hour"]],
            "left h:mm": [
                hours_text(left) if state == "running" else ""
                for left, state in zip(table["left"], table["state"])
            ],
            "GPU h:mm": [hours_text(used) for used in table["used"]],
            "evicted": [str(n or "") for n in table["evictions"]],
            "note": ["  " + " ".join(note.split())[:NOTE_WIDTH] for note in table["note"]],
        }
    )
    counts = [f"{n} {state}" for state in STATES if (n := int((table["state"] == state).sum()))]
    expected = expected_hours(table)
    order = table["state"].map(STATES.index).sort_values(kind="stable").index
    return (
        shown.loc[order].to_string(index=False, justify="left")
        + f"\n\n{len(table)} models: {', '.join(counts)}\n"
        f"GPU hours (h:mm): {hours_text(table['used'].sum())} used, "
        f"{'not known yet' if expected is None else hours_text(expected)} still expected\n"
    )


def print_status(sweep: Path, out: Path | None = None) -> pd.DataFrame:
    """Print the status of a sweep, and write it to `out`."""
    table = status_table(sweep)
    text = status_text(table)
    print(text, end="")
    if out:
        write_atomic(out, text)
    return table
