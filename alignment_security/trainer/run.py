"""The folder of a training run, results/training/<name>/.

    run.json            settings, sessions, status; a training resumes only with equal settings
    log.csv             the learning curve: a row per --log_every steps and per epoch. It holds no
                        times, so two curves can be compared byte for byte
    last.pth            net, optimiser, averaged weights, step; replaced by rename, so the last
                        good checkpoint always exists
    model.safetensors   the trained weights, written at the end; `evaluate_robustness.py
                        --checkpoint` takes this file or last.pth
    not_finite.json     the images of the step whose loss or gradient was not finite

When an interrupted training resumes, the log is cut to the step of last.pth, and the later steps
are repeated with the same result.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from alignment_security.common.files import UserError, safe_file_name, sha256_file, write_atomic
from alignment_security.common.locked_run import LockedRun, json_round_trip
from alignment_security.common.text import read_text
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
HEADER = ",".join(LOG_COLUMNS) + "\n"
LAST = "last.pth"
TRAINING_RUN_KEYS = {"name", "settings", "status", "step", "sessions"}


class TrainingError(UserError):
    """A training run that cannot begin or resume."""


def training_folder(results_dir: str | Path, name: str) -> Path:
    return Path(results_dir) / "training" / safe_file_name(name)


class TrainingRun(LockedRun):
    """The open folder of one training run: locked, resumable.

    settings, session, overwrite   as in records.run.Run
    Raises TrainingError when another process holds the folder or the settings differ.
    """

    def __init__(
        self,
        results_dir: str | Path,
        name: str,
        settings: dict,
        session: dict | None = None,
        overwrite: bool = False,
    ):
        self.folder = training_folder(results_dir, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.csv = self.folder / "log.csv"
        self.last = self.folder / LAST
        self.final = self.folder / "model.safetensors"
        self.bad = self.folder / "not_finite.json"
        super().__init__(self.folder / "run.json", self.folder / "run.lock")
        with self.closed_on_error():
            if overwrite:
                for path in (self.json, self.csv, self.last, self.final, self.bad):
                    path.unlink(missing_ok=True)
            self.info = self._resume_or_begin(name, json_round_trip(settings))
            if not self.done:
                self.start_session(session)
                self.save(status="running", error=None)

    def busy_error(self) -> TrainingError:
        return TrainingError(f"{self.folder}: another process is training it; wait or stop it")

    def _resume_or_begin(self, name: str, settings: dict) -> dict:
        """Content of the run file: the existing one, if its settings are equal, or a new one."""
        if self.json.exists():
            info = read_training_run(self.json)
            if difference := first_difference(info["settings"], settings):
                raise TrainingError(
                    f"{self.json}: begun with another recipe ({difference}); train it with the old "
                    "one, give another --name, or start anew with --overwrite"
                )
            return info
        if self.last.exists():
            raise TrainingError(
                f"{self.last}: a checkpoint without its run file; remove it or pass --overwrite"
            )
        new = {"status": "running", "step": 0, "sessions": [], "warnings": []}
        return {"name": name, "settings": settings} | new

    def cut_log(self, step: int) -> None:
        """Remove the rows after a step: training repeats what was logged after the checkpoint."""
        lines = read_text(self.csv).splitlines(keepends=True)[1:] if self.csv.exists() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
        write_atomic(self.csv, HEADER + "".join(kept))

    def log(self, row: dict) -> None:
        """Append a row to the learning curve; columns that `row` lacks stay empty."""
        table = pd.DataFrame([row], columns=LOG_COLUMNS)
        with open(self.csv, "a", encoding="utf-8") as file:
            file.write(table.to_csv(header=False, index=False, lineterminator="\n"))

    def checkpoint(self, state: dict) -> None:
        """Write last.pth and the recipe it belongs to; on failure the previous one remains."""
        buffer = io.BytesIO()
        torch.save(state | {"settings": json.dumps(self.info["settings"])}, buffer)
        write_atomic(self.last, buffer.getvalue())
        self.save(step=state["step"])

    def finish(self, weights: dict[str, Tensor], **facts) -> None:
        """Write model.safetensors and mark the run done; `facts` go to the run file."""
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()
        }
        write_atomic(self.final, safetensors.torch.save(tensors))
        self.save(status="done", file_sha256=sha256_file(self.final), **facts)

    def discard_if_untrained(self) -> None:
        """Delete the files of a training without a checkpoint, except the images of a bad step."""
        if not self.last.exists():
            self.json.unlink(missing_ok=True)
            self.csv.unlink(missing_ok=True)


def read_training_run(path: Path) -> dict:
    """The run file as a dict. Raises TrainingError when it is not a run file."""
    try:
        run = json.loads(read_text(path))
        if not TRAINING_RUN_KEYS <= run.keys():
            raise ValueError("keys are missing")
        return run
    except (ValueError, AttributeError) as error:
        raise TrainingError(
            f"{path}: not a run file ({error}); remove its folder and train again"
        ) from None


def read_state(path: Path, settings: dict) -> dict | None:
    """The state that `checkpoint` wrote, on the CPU; None when the file does not exist.

    Raises TrainingError for a file that cannot be read or belongs to another recipe. No code in the
    file runs.
    """
    if not path.is_file():
        return None
    try:
        state = load_torch_file(path)
        saved_settings = json.loads(state["settings"])
    except TORCH_FILE_ERRORS as error:
        raise TrainingError(
            f"{path}: not a readable checkpoint ({error_reason(error)}); remove it to train from "
            "the start, or bring back a whole one"
        ) from None
    if difference := first_difference(saved_settings, json_round_trip(settings)):
        raise TrainingError(
            f"{path}: checkpoint of another recipe ({difference}); remove it, or train it under "
            "its own --name"
        )
    return state
