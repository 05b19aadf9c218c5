"""The folder of a training run, results/training/<name>/, and how it stays whole.

    run.json            settings, sessions, status: refused when the same name is trained with other settings
    log.csv             the learning curve, a row per --log_every steps and per epoch; no times, so that curves can be compared
    last.pth            net, optimiser, average of weights, step: written by rename, so that the last good one is always there
    model.safetensors   what was trained, at the end; `evaluate_robustness.py --checkpoint` takes this one or last.pth
    not_finite.json     the images of the step whose loss or gradient was not finite

After a kill the log is cut to the step of last.pth, and everything after it is done again in the same way.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from alignment_security.common.files import (
    UserError,
    safe_file_name,
    sha256_file,
    utc_now,
    write_atomic,
)
from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.records.record import first_difference

LOG_COLUMNS = [
    "step",
    "epoch",
    "lr",
    "loss",
    "cross_entropy",
    "harmonizer",
    "accuracy",
    "gradient_norm",
    "val_accuracy",
]
HEADER, LAST = ",".join(LOG_COLUMNS) + "\n", "last.pth"


class TrainingError(UserError):
    """A training that cannot begin or go on; the message says what mends it."""


def training_folder(results_dir, name: str) -> Path:
    return Path(results_dir) / "training" / safe_file_name(name)


class TrainingRun:
    """The open folder of one training: locked, resumable. Settings and session as in records.Run. Raises TrainingError."""

    def __init__(
        self,
        results_dir,
        name: str,
        settings: dict,
        session: dict | None = None,
        overwrite: bool = False,
    ):
        self.folder = training_folder(results_dir, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.json, self.csv, self.last, self.final, self.bad = (
            self.folder / file
            for file in ("run.json", "log.csv", LAST, "model.safetensors", "not_finite.json")
        )
        self.lock = FileLock(self.folder / "run.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(
                f"{self.folder}: another process is training it; wait or stop it"
            ) from None
        try:
            self._open(name, json.loads(json.dumps(settings)), session or {}, overwrite)
        except BaseException:
            self.lock.release()
            raise

    def _open(self, name: str, settings: dict, session: dict, overwrite: bool) -> None:
        if overwrite:
            for path in (self.json, self.csv, self.last, self.final, self.bad):
                path.unlink(missing_ok=True)
        if self.json.exists():
            self.info = read_training_run(self.json)
            if found := first_difference(self.info["settings"], settings):
                raise TrainingError(
                    f"{self.json}: begun with another recipe ({found}); train it with the old one, give "
                    "another --name, or start anew with --overwrite"
                )
        elif self.last.exists():
            raise TrainingError(
                f"{self.last}: a checkpoint without its run file; remove it or pass --overwrite"
            )
        else:
            self.info = {
                "name": name,
                "settings": settings,
                "status": "running",
                "step": 0,
                "sessions": [],
                "warnings": [],
            }
        if not self.done:
            self.info["sessions"].append(
                {
                    "started": utc_now(),
                    "pid": os.getpid(),
                    "host": os.uname().nodename,
                    "seconds": 0.0,
                    **session,
                }
            )
            self.save(status="running", error=None)

    @property
    def done(self) -> bool:
        return self.info["status"] == "done"

    def save(self, **facts) -> None:
        """Update the run file; `seconds` goes to this session, everything else to the top."""
        if "seconds" in facts:
            self.info["sessions"][-1]["seconds"] = round(facts.pop("seconds"), 3)
        self.info.update(facts)
        write_atomic(self.json, json.dumps(self.info, indent=1) + "\n")

    def cut_log(self, step: int) -> None:
        """Keep the rows up to a step; what was logged after the checkpoint is done again."""
        lines = self.csv.read_text().splitlines(keepends=True)[1:] if self.csv.exists() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
        write_atomic(self.csv, HEADER + "".join(kept))

    def log(self, row: dict) -> None:
        with open(self.csv, "a") as file:
            file.write(
                pd.DataFrame([row], columns=LOG_COLUMNS).to_csv(
                    header=False, index=False, lineterminator="\n"
                )
            )

    def checkpoint(self, state: dict) -> None:
        """Write last.pth with the recipe that it belongs to; a failure leaves the one before."""
        buffer = io.BytesIO()
        torch.save(state | {"settings": json.dumps(self.info["settings"])}, buffer)
        write_atomic(self.last, buffer.getvalue())
        self.save(step=state["step"])

    def finish(self, weights: dict[str, Tensor], **facts) -> None:
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()
        }
        write_atomic(self.final, safetensors.torch.save(tensors))
        self.save(status="done", file_sha256=sha256_file(self.final), **facts)

    def discard_if_untrained(self) -> None:
        """Take back the files of a training that never got to a checkpoint; the images of a bad step stay."""
        if not self.last.exists():
            self.json.unlink(missing_ok=True)
            self.csv.unlink(missing_ok=True)

    def close(self) -> None:
        self.lock.release()

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_training_run(path: Path) -> dict:
    """A run file as a dict. Raises TrainingError when it is not one."""
    try:
        run = json.loads(path.read_text())
        if not {"name", "settings", "status", "step", "sessions"} <= run.keys():
            raise ValueError("keys are missing")
        return run
    except (ValueError, AttributeError) as error:
        raise TrainingError(
            f"{path}: not a run file ({error}); remove its folder and train again"
        ) from None


def read_state(path: Path, settings: dict) -> dict | None:
    """What `checkpoint` wrote, on the CPU; None where there is none yet.

    Raises TrainingError for a file that cannot be read or belongs to another recipe. No code in the file is run.
    """
    if not path.is_file():
        return None
    try:
        state = load_torch_file(path)
        theirs = json.loads(state["settings"])
    except TORCH_FILE_ERRORS as error:
        raise TrainingError(
            f"{path}: not a readable checkpoint ({error_reason(error)}); remove it to train from the "
            "start, or bring back a whole one"
        ) from None
    if found := first_difference(theirs, json.loads(json.dumps(settings))):
        raise TrainingError(
            f"{path}: checkpoint of another recipe ({found}); remove it, or train it under its own --name"
        )
    return state
