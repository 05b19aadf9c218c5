"""Run a study on this machine (`utilities.py run_study`): a process per GPU, and one screen.

The processes are `evaluate_robustness.py --study`, which share the queue of the study. One that
dies is replaced: its model goes on, and has failed only where a second process dies without a new
row.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from alignment_security.cluster.queue import RUNNING, StudyQueue, check_results_folder
from alignment_security.cluster.studies import Study, read_study
from alignment_security.common.command_line import default_workers
from alignment_security.common.exit_status import CHECKPOINTED, FAILED, INTERRUPTED, status_of_all
from alignment_security.common.files import UserError
from alignment_security.common.locked_run import lock_file
from alignment_security.common.process import on_stop, print_line
from alignment_security.common.settings import ROOT
from alignment_security.common.text import last_line
from alignment_security.evaluation.run import Stopped, raise_stopped
from alignment_security.evaluation.study import (
    STUDY_BEGAN,
    check_study,
    chosen_models,
    described_requests,
    split_study,
    study_requests,
)
from alignment_security.evaluation.study_dry_run import describe_study
from alignment_security.evaluation.study_screen import StudyScreen

LOOKS = 0.5  # seconds between two looks at the processes
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MIG = "MIG-"  # CUDA_VISIBLE_DEVICES names parts of a GPU so, and shows a process the first one only


def run_study(name: str, words: Sequence[str]) -> int:
    """Evaluate the models of a study under its threats; returns an exit status.

    words   of the command line: options of evaluate_robustness.py
    Raises UserError or OSError, before any model is loaded, for what every model would refuse.
    """
    study = read_study(name)
    _, names, options = split_study(words)
    models = chosen_models(study, names, options)
    check_study(study, options)
    devices = devices_of(study_requests(study, models[0], options)[0])
    shared = ["--workers", str(default_workers(len(devices)))]  # options that follow override it
    words, options = [*shared, *words], [*shared, *options]
    first = study_requests(study, models[0], options)
    if first[0].dry_run:
        print(describe_study(study, models, options, list(map(torch_name, devices))))
        return 0
    queue = StudyQueue(first[0].results_dir, study.name, time.time(), first[0].overwrite)
    check_place(queue, devices)
    screen = StudyScreen(study.name, queue, [m.name for m in models], described_requests(first))
    return StudyProcesses(study, list(words), queue, screen).run(devices)


def devices_of(request: argparse.Namespace) -> list[str]:
    """The device of each process: every GPU with --device auto, the CPU where there is none."""
    if request.device != "auto":
        return [request.device]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if visible[0].startswith(MIG):
        return visible
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]


def torch_name(device: str) -> str:
    """What torch calls a device of `devices_of` in the process that sees no other part of a GPU."""
    return "cuda:0" if device.startswith(MIG) else device


def check_place(queue: StudyQueue, devices: Sequence[str]) -> None:
    """Raise OSError where no results can be written, and UserError without locks for processes."""
    check_results_folder(queue.results_dir)
    lock = lock_file(queue.folder / ".lock")
    if not lock.is_locked and len(devices) > 1:
        raise UserError(
            f"{queue.results_dir}: no locks on its file system, which several processes need; give "
            "another --results_dir, or run one process with --device cuda:0"
        )
    lock.release()


class StudyProcesses:
    """The processes of a study on this machine.

    deaths   (model, bytes of its records) at which a process died, and (device, models left)
    """

    def __init__(self, study: Study, words: list[str], queue: StudyQueue, screen: StudyScreen):
        self.study, self.words, self.queue, self.screen = study, words, queue, screen
        self.processes: dict[str, subprocess.Popen] = {}
        self.deaths: set[tuple[str, int]] = set()
        self.statuses: list[int] = []

    def run(self, devices: Sequence[str]) -> int:
        """Start a process for each device, and replace those that die, until none is left to do."""
        on_stop(raise_stopped)
        try:
            for device in devices:
                self.start(device)
            while self.processes:
                time.sleep(LOOKS)
                self.look()
                self.screen.show(self.processes)
        except (Stopped, KeyboardInterrupt) as stopped:
            self.end()
            print_line("stopped: run the same command again to go on", sys.stderr)
            return CHECKPOINTED if isinstance(stopped, Stopped) else INTERRUPTED
        except BaseException:
            self.end()
            raise
        self.screen.finish()
        return status_of_all(self.statuses)

    def log(self, device: str) -> Path:
        host = os.uname().nodename
        return self.queue.folder / f"{host}-{re.sub('[:/]', '', device)}.log"

    def start(self, device: str) -> None:
        script = str(ROOT / "evaluate_robustness.py")
        command = [sys.executable, script, "--study", str(self.study.path), *self.words]
        variables = {STUDY_BEGAN: str(self.queue.since)}
        if device.startswith(MIG):
            variables["CUDA_VISIBLE_DEVICES"] = device
        with open(self.log(device), "ab") as log:
            self.processes[device] = subprocess.Popen(
                [*command, "--device", torch_name(device)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | variables,
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on
                preexec_fn=end_with_parent,
            )

    def look(self) -> None:
        """Take note of processes that ended, and replace those that died."""
        for device, process in list(self.processes.items()):
            status = process.poll()
            if status is None:
                continue
            del self.processes[device]
            if status in (CHECKPOINTED, INTERRUPTED) or not self.screen.unsettled():
                self.statuses.append(status)
                continue
            self.statuses.append(FAILED)
            self.after_death(device, process.pid, status)

    def after_death(self, device: str, pid: int, status: int) -> None:
        """Start another process; not for one that never took a model, as on a broken GPU.

        Raises UserError where it was the last, and OSError where nothing can be written.
        """
        check_results_folder(self.queue.results_dir)
        own = self.screen.of_process(pid)
        if not own:
            reason = last_line(self.log(device)) or ending(status)
            text = f"{device}: the process ended before its first model: {reason}"
            if not self.processes:
                raise UserError(text)
            print_line(text, sys.stderr)
            return
        running = [state for state in own if state.status == RUNNING]
        for state in running:
            if self.is_second(state.model, self.screen.bytes_of(state)):
                reason = f"its process died twice without a new row ({ending(status)})"
                self.queue.fail(state, reason)
        if not running and self.is_second(device, len(self.screen.unsettled())):
            raise UserError(f"{device}: the processes end ({ending(status)}) and models are left")
        self.start(device)

    def is_second(self, what: str, progress: int) -> bool:
        """Whether a process died at this before, with no more progress."""
        known = (what, progress) in self.deaths
        self.deaths.add((what, progress))
        return known

    def end(self) -> None:
        """Stop the processes as their own SIGTERM does, and wait for them."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()


def ending(status: int) -> str:
    """How a process ended: `exit status 1`, or `signal 9`, of a machine out of memory."""
    if status >= 0:
        return f"exit status {status}"
    out_of_memory = ", perhaps as the machine had no memory" if status == -signal.SIGKILL else ""
    return f"signal {-status}{out_of_memory}"


def end_with_parent() -> None:
    """Have this process get SIGTERM when its parent dies, by kill -9 too; Linux alone has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
