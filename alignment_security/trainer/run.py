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
from alignment_security.common.schema import check_shape
from alignment_security.common.text import read_text
from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.models.checkpoints import METADATA_KEY, RECIPE_FACTS, own_tensors
from alignment_security.records.record import first_difference
from alignment_security.records.schemas import TRAINING_LOG
from alignment_security.records.training import read_training_log, read_training_run

LOG_COLUMNS = list(TRAINING_LOG)
HEADER = ",".join(LOG_COLUMNS) + "\n"
LAST = "last.pth"
# what `checkpoint` writes
STATE = {"state_dict": dict, "ema": (dict, type(None)), "optimizer": dict, "step": int}
STATE |= {"window": [[float]], "settings": str}


def widened(line: str) -> str:
    """A line of a log, with empty cells for the columns that it was begun without."""
    return line.rstrip("\r\n") + "," * (HEADER.count(",") - line.count(",")) + "\n"


class TrainingError(UserError):
    """A training run that cannot begin or resume."""


def training_folder(results_dir: str | Path, name: str) -> Path:
    return Path(results_dir) / "training" / safe_file_name(name)


class TrainingRun(LockedRun):
    """The open folder of one training run: locked, resumable.

    settings, session   as in records.run.Run
    overwrite           begin anew; what an earlier training left stays until this one has its first
                        checkpoint
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
            self.replaces_old = overwrite
            self._curve = HEADER  # rows that wait for the first checkpoint, with `overwrite`
            self.info = self._resume_or_begin(name, json_round_trip(settings))
            if not self.done:
                self.start_session(session)
                self.save(status="running", error=None)

    def busy_error(self) -> TrainingError:
        return TrainingError(f"{self.folder}: another process is training it; wait or stop it")

    def _resume_or_begin(self, name: str, settings: dict) -> dict:
        """Content of the run file: the existing one, if its settings are equal, or a new one."""
        if self.json.exists() and not self.replaces_old:
            info = read_training_run(self.json)
            if difference := first_difference(info["settings"], settings):
                raise TrainingError(
                    f"{self.json}: begun with another recipe ({difference}); train it with the old "
                    "one, give another --name, or start anew with --overwrite"
                )
            self._check_final(info)
            return info
        if self.last.exists() and not self.replaces_old:
            raise TrainingError(
                f"{self.last}: a checkpoint without its run file; remove it or pass --overwrite"
            )
        new = {"status": "running", "step": 0, "sessions": [], "warnings": []}
        return {"name": name, "settings": settings} | new

    def _check_final(self, info: dict) -> None:
        """A training whose weights are gone is not done: last.pth gives them again."""
        if info["status"] != "done":
            return
        if not self.final.exists():
            info["status"] = "running"
        elif sha256_file(self.final) != info.get("file_sha256"):
            raise TrainingError(
                f"{self.final}: not the weights that the training finished with (sha256 differs); "
                f"remove it, and the same command writes them again from {self.last.name}"
            )

    def cut_log(self, step: int) -> None:
        """Remove the rows after a step: training repeats what was logged after the checkpoint."""
        if self.replaces_old:
            return
        kept = []
        if self.csv.exists():
            steps = read_training_log(self.csv, torn=True)["step"]
            lines = read_text(self.csv).splitlines(keepends=True)[1:]
            kept = [widened(line) for line, logged in zip(lines, steps) if logged <= step]
        elif step:
            self.info["warnings"].append(f"log.csv was gone at step {step}: the curve begins there")
        write_atomic(self.csv, HEADER + "".join(kept))

    def log(self, row: dict) -> None:
        """Append a row to the learning curve; columns that `row` lacks stay empty."""
        table = pd.DataFrame([row], columns=LOG_COLUMNS)
        line = table.to_csv(header=False, index=False, lineterminator="\n")
        if self.replaces_old:
            self._curve += line
            return
        with open(self.csv, "a", encoding="utf-8") as file:
            file.write(line)

    def _replace_old(self) -> None:
        """Put this training in the place of an earlier one, its run file first."""
        for path in (self.json, self.last, self.final, self.bad):
            path.unlink(missing_ok=True)
        self.replaces_old = False
        write_atomic(self.csv, self._curve)

    def checkpoint(self, state: dict) -> None:
        """Write last.pth and the recipe it belongs to; on failure the previous one remains."""
        buffer = io.BytesIO()
        torch.save(state | {"settings": json.dumps(self.info["settings"])}, buffer)
        if self.replaces_old:
            self._replace_old()
        write_atomic(self.last, buffer.getvalue())
        self.save(step=state["step"])

    def finish(self, weights: dict[str, Tensor], **facts) -> None:
        """Write model.safetensors, with how it was trained, and mark the run done.

        weights   the state dict
        facts     for the run file
        """
        recipe = self.info["settings"]["run"]
        facts_of_recipe = {name: recipe[name] for name in RECIPE_FACTS if name in recipe}
        metadata = {METADATA_KEY: json.dumps(facts_of_recipe)}
        write_atomic(self.final, safetensors.torch.save(own_tensors(weights), metadata))
        self.save(status="done", file_sha256=sha256_file(self.final), **facts)

    def discard_if_untrained(self) -> None:
        """Delete the files of a training without a checkpoint, except the images of a bad step."""
        if not self.replaces_old and not self.last.exists():
            self.json.unlink(missing_ok=True)
            self.csv.unlink(missing_ok=True)


def read_state(path: Path, settings: dict) -> dict | None:
    """The state that `checkpoint` wrote, on the CPU; None when the file does not exist.

    Raises TrainingError for a file that cannot be read or belongs to another recipe. No code in the
    file runs.
    """
    if not path.is_file():
        return None
    try:
        state = load_torch_file(path)
        check_shape(state, STATE, "the checkpoint")
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
