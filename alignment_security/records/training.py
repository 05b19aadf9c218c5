"""The run file and the learning curve of a training, read without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError, read_bytes, safe_file_name
from alignment_security.common.schema import parse_table, read_json
from alignment_security.common.tables import check_columns
from alignment_security.records.schemas import ADDED_TO_TRAINING_LOG, TRAINING_LOG, TRAINING_RUN

TRAIN_AGAIN = "bring back the one of this training, or train again with --overwrite"


def read_training_run(path: Path) -> dict:
    """The run file of a training, results/training/<name>/run.json.

    Raises UserError for one that is missing, damaged, or of another training than its folder.
    """
    try:
        run = read_json(path, TRAINING_RUN, "run file of a training", TRAIN_AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {TRAIN_AGAIN}") from None
    if safe_file_name(run["name"]) != path.parent.name:
        raise UserError(f"{path}: is of the training {run['name']!r}; {TRAIN_AGAIN}")
    if not run["sessions"]:
        raise UserError(f"{path}: has no session; {TRAIN_AGAIN}")
    return run


def read_training_log(path: Path, torn: bool = False) -> pd.DataFrame:
    """The learning curve of a training, results/training/<name>/log.csv.

    torn   leave out a last line without a line end, as a killed process may leave one
    Raises UserError for one that is missing, damaged, or lacks a column. Columns that an earlier
    version did not write are empty.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {TRAIN_AGAIN}") from None
    if torn:
        data = data[: data.rfind(b"\n") + 1]
    rows = parse_table(path, data, TRAINING_LOG, TRAIN_AGAIN)
    added = {name: np.nan for name in ADDED_TO_TRAINING_LOG if name not in rows}
    rows = rows.assign(**added)
    check_columns(path, rows, TRAINING_LOG, TRAIN_AGAIN)
    return rows
