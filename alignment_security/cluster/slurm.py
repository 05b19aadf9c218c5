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
            events.append(("EXECUTE", now, {}))
        elif int(value) in GO_ON or kind == "stopped" and int(value):
            events.append(("JOB_EVICTED", now, {"TerminatedAndRequeued": 1, "ReturnValue": value}))
        else:
            events.append(("JOB_TERMINATED", now, {"ReturnValue": int(value)}))
    return events


def is_begun(events: Sequence[Event]) -> bool:
    """Whether the last of these tasks noted no end."""
    kinds = [kind for kind, _, _ in events if kind != "JOB_AD_INFORMATION"]
    return kinds[-1:] == ["EXECUTE"]


# ---- what SLURM says -----------------------------------------------------------------------------


def tasks_in_queue(sweep: Path) -> dict[int, str] | None:
    """Number of a task -> its state for SLURM, e.g. PENDING; None where squeue cannot be asked.

    A task is of this sweep if it was submitted in its folder.
    """
    try:
        done = subprocess.run(SQUEUE, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    tasks = [line.split("|", 2) for line in done.stdout.splitlines()]
    folder = os.path.realpath(sweep)
    return {
        int(number): state
        for number, state, submitted_in in tasks
        if number.isdigit() and os.path.realpath(submitted_in) == folder
    }


def queue_events(
    events: Sequence[Event], state: str | None, sign: float, now: float
) -> list[Event]:
    """What SLURM knows about a task, as events after those that it noted.

    state   in the queue; "" if it is not there, None if nobody could be asked
    sign    when the task last wrote something
    """
    begun, kind = is_begun(events), events[-1][0] if events else ""
    if state is None:
        return [("SILENT", sign, {})] if begun and now - sign > SECONDS_OF_SILENCE else []
    if state == "PENDING":
        return [("JOB_EVICTED", sign, {})] if begun else [("SUBMIT", now, {})]
    if state == "" and begun:
        reason = "ended without a word (killed, out of memory, or its node was lost)"
    elif state == "" and kind == "JOB_EVICTED":
        reason = "stopped (cancelled?)"
    else:
        return []
    reason += "; not in SLURM's queue, submit it again"
    return [("JOB_ABORTED", sign, {"Reason": reason})]


def last_sign(noted: Path) -> float:
    """When a task last wrote something; `noted` is its file of notes."""
    files = [noted.with_suffix(ending) for ending in (".slurm", ".err", ".out")]
    return max(file.stat().st_mtime for file in files if file.is_file())
