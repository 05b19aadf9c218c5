"""A sweep on SLURM: its batch files beside those of HTCondor, and what its tasks note.

One array a kind of GPU (`--set slurm_gpus=...`), one task a model. The tasks write into the sweep's
own results folder, which has to be on a disk that all nodes see.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from alignment_security.cluster.job import PROGRESS
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import UserError
from alignment_security.common.text import text_lines

TEMPLATE_FILE = "slurm.sbatch"
SLURM_FILE = "slurm_settings.sh"
# settings of a sweep -> variable in SLURM_FILE, default
VARIABLES = {
    "staging": ("STAGING_DIR", ""),
    "image": ("IMAGE", ""),
    "git_commit": ("GIT_COMMIT", ""),
    "python": ("PYTHON", "python3"),
    "use_container": ("USE_CONTAINER", "true"),
    "device": ("DEVICE", "cuda"),
    "chunk_seconds": ("CHUNK_SECONDS", ""),
    "retries": ("RETRIES", "3"),
}
DEFAULT_TIME = "04:00:00"
GO_ON = (CHECKPOINTED, 128 + signal.SIGTERM)  # exit statuses of a task that was told to stop
MAX_TASKS = 200  # of an array at once
# number, state and folder of the tasks in the queue
SQUEUE = ["squeue", "--noheader", "--array", "--format=%K|%T|%Z"]
# number and state of jobs, also of those that left the queue
SACCT = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State"]
# state that ended a task -> what helps; the options override the lines of a batch file
REMEDIES = {
    "OUT_OF_MEMORY": "the machine's memory was too small; `sbatch --mem=...` asks for more",
    "TIMEOUT": "it took too long to stop; `sbatch --time=...` asks for more time",
    "NODE_FAIL": "its node was lost",
}
SECONDS_OF_SILENCE = 3600.0  # a program that runs writes a line to its error file once a minute
Event = tuple[str, float, Mapping]  # kind, seconds since the epoch, attributes
GPU = re.compile(r"([A-Za-z0-9._:=-]+)@(\d+)")  # GRES@MB


def gpu_kinds(text: str) -> list[tuple[str, int]]:
    """`gpu:a100:1@40000,gpu:h100:1@80000` as (what --gres asks for, its MB), smallest first.

    Raises UserError.
    """
    kinds = [GPU.fullmatch(word) for word in text.split(",")]
    if None in kinds:
        raise UserError(
            f"--set slurm_gpus={text}: write GRES@MB,..., e.g. gpu:a100:1@40000,gpu:h100:1@80000"
        )
    return sorted(((kind[1], int(kind[2])) for kind in kinds if kind), key=lambda kind: kind[1])


def tasks_of_kinds(memory_mb: Sequence[int], kinds: Sequence[tuple[str, int]]) -> dict[str, list]:
    """GRES -> numbers of the tasks, from 1, for which it is the smallest with enough memory.

    A model that needs more than the largest gets the largest: its batches are smaller there.
    """
    tasks: dict[str, list[int]] = {}
    for number, needed in enumerate(memory_mb, start=1):
        fitting = [gres for gres, memory in kinds if memory >= needed] or [kinds[-1][0]]
        tasks.setdefault(fitting[0], []).append(number)
    return tasks


def ranges(numbers: Iterable[int]) -> str:
    """`1-3,7` for 1, 2, 3, 7: as --array has it."""
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    parts = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{part[0]}-{part[-1]}" if part[1:] else str(part[0]) for part in parts)


def batch_files(models: pd.DataFrame, settings: dict[str, str], template: str) -> dict[str, str]:
    """Name -> text of the batch files: one a kind of GPU, `sweep.sbatch` where there is one kind.

    models   with gpu_memory_mb, in the order of models.txt
    """
    on_cpu = settings.get("device") == "cpu"
    kinds = gpu_kinds(settings.get("slurm_gpus", "gpu:1@0"))
    memory = [int(needed) for needed in models["gpu_memory_mb"]]
    files = {}
    for gres, numbers in tasks_of_kinds(memory, kinds).items():
        options = {
            "array": f"{ranges(numbers)}%{MAX_TASKS}",
            "time": settings.get("slurm_time", DEFAULT_TIME),
            "cpus-per-task": settings.get("cpus", "4"),
            "mem": settings.get("memory", "16GB").removesuffix("B"),
        }
        if not on_cpu:
            options["gres"] = gres
        lines = [f"#SBATCH --{name}={value}\n" for name, value in options.items()]
        lines += [f"#SBATCH {word}\n" for word in settings.get("slurm_options", "").split()]
        kind = re.sub(r"[^A-Za-z0-9]+", "-", gres.removeprefix("gpu:"))
        name = "sweep.sbatch" if len(kinds) == 1 else f"sweep-{kind}.sbatch"
        shell, rest = template.split("\n", 1)
        files[name] = f"{shell}\n{''.join(lines)}{rest}"
    return files


def slurm_settings_text(settings: dict[str, str]) -> str:
    lines = [
        f"{variable}={shlex.quote(settings.get(name, default))}\n"
        for name, (variable, default) in VARIABLES.items()
    ]
    return "# made by `python utilities.py make_sweep`\n" + "".join(lines)


# ---- what the tasks note -------------------------------------------------------------------------


def task_events(path: Path) -> list[Event]:
    """What a model's tasks noted, as the events of an HTCondor job (`status.follow_events`).

    A task that was killed has no end: it was evicted, and its hours end where the next begins.
    """
    events: list[Event] = []
    for line in text_lines(path):
        words = line.split()
        if len(words) != 3:  # a line that a dying task left unfinished
            continue
        kind, now, value = words[0], float(words[1]), words[2]
        if kind == "progress":
            values = dict(zip(PROGRESS, value.split("/")))
            events.append(("JOB_AD_INFORMATION", now, values))
        elif kind == "begin":
            if is_begun(events):
                events.append(("JOB_EVICTED", now, {}))
            events.append(("EXECUTE", now, {"JobId": value}))
        elif int(value) in GO_ON or kind == "stopped" and int(value):
            events.append(("JOB_EVICTED", now, {"TerminatedAndRequeued": 1, "ReturnValue": value}))
        else:
            events.append(("JOB_TERMINATED", now, {"ReturnValue": int(value)}))
    return events


def is_begun(events: Sequence[Event]) -> bool:
    """Whether the last of these tasks noted no end."""
    kinds = [kind for kind, _, _ in events if kind != "JOB_AD_INFORMATION"]
    return kinds[-1:] == ["EXECUTE"]


def is_stopped(events: Sequence[Event]) -> bool:
    """Whether the last of these tasks ended without being done, and might go on."""
    return [kind for kind, _, _ in events][-1:] == ["JOB_EVICTED"]


# ---- what SLURM says -----------------------------------------------------------------------------


def tasks_in_queue(sweep: Path) -> dict[int, str] | None:
    """Number of a task -> its state for SLURM, e.g. PENDING; None where squeue cannot be asked.

    A task is of this sweep if it was submitted in its folder.
    """
    lines = answer_of(SQUEUE)
    if lines is None:
        return None
    tasks = [line.split("|", 2) for line in lines]
    folder = os.path.realpath(sweep)
    return {
        int(number): state
        for number, state, submitted_in in tasks
        if number.isdigit() and os.path.realpath(submitted_in) == folder
    }


def answer_of(command: Sequence[str]) -> list[str] | None:
    """The lines that a command of SLURM prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()


def ends_of_tasks(tasks: Sequence[Sequence[Event]]) -> dict[str, str]:
    """Job of a task -> the state that it ended in, e.g. OUT_OF_MEMORY; {} without accounting.

    tasks   what each has noted; those that noted their own end are not asked about
    """
    jobs = [job_of(events) for events in tasks if is_begun(events) or is_stopped(events)]
    lines = (answer_of([*SACCT, f"--jobs={','.join(jobs)}"]) or []) if jobs else []
    states = [line.partition("|") for line in lines]
    return {job: state.split()[0] for job, _, state in states if state}  # "CANCELLED by 1000"


def job_of(events: Sequence[Event]) -> str:
    """SLURM's number of the last of these tasks; "" where none began."""
    jobs = [event["JobId"] for kind, _, event in events if kind == "EXECUTE"]
    return jobs[-1] if jobs else ""


def queue_events(
    events: Sequence[Event], state: str | None, sign: float, now: float, ends: Mapping[str, str]
) -> list[Event]:
    """What SLURM knows about a task, as events after those that it noted.

    state   in the queue; "" if it is not there, None if nobody could be asked
    sign    when the task last wrote something
    ends    states that tasks ended in (`ends_of_tasks`)
    """
    begun = is_begun(events)
    if state is None:
        return [("SILENT", sign, {})] if begun and now - sign > SECONDS_OF_SILENCE else []
    if state == "PENDING":
        return [("JOB_EVICTED", sign, {})] if begun else [("SUBMIT", now, {})]
    ended = ends.get(job_of(events), "")
    if state == "" and begun:
        what = "ended without a word (killed, out of memory, or its node was lost)"
        reason = ": ".join(filter(None, [ended, REMEDIES.get(ended)])) or what
    elif state == "" and is_stopped(events):
        reason = f"stopped ({ended or 'cancelled?'})"
    else:
        return []
    reason += "; not in SLURM's queue, submit it again"
    return [("JOB_ABORTED", sign, {"Reason": reason})]


def last_sign(noted: Path) -> float:
    """When a task last wrote something; `noted` is its file of notes."""
    files = [noted.with_suffix(ending) for ending in (".slurm", ".err", ".out")]
    return max(file.stat().st_mtime for file in files if file.is_file())
