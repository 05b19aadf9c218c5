"""Our accuracies as RobustBench's model_info files (`merge --format robustbench`).

Source of the keys: RobustBench/robustbench@78fcc9e, model_info/imagenet/Linf/*.json; values are
texts there, accuracies in percent with at most two decimals (robustbench/utils.py, update_json).
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.process import print_line
from alignment_security.common.settings import ROOT
from alignment_security.common.text import read_text, text_lines
from alignment_security.common.verdicts import STANDARD_NAME
from alignment_security.records.summary import SUMMARY_NAME

IMAGE_SET, THREAT, EPS = "robustbench", "Linf", 4 / 255
FOLDER = Path("robustbench", "model_info", "imagenet", THREAT)
# None: not in a record, to be filled in by hand
MODEL_INFO = {
    "link": None,
    "name": None,
    "authors": None,
    "additional_data": None,
    "number_forward_passes": 1,
    "dataset": "imagenet",
    "venue": None,
    "architecture": None,
    "eps": "4/255",
    "clean_acc": None,
    "reported": None,
    "autoattack_acc": None,
    "unreliable": None,
}


def write_robustbench(summary: pd.DataFrame, results_dir: Path) -> Path:
    """Write results_dir/robustbench/model_info/imagenet/Linf/MODEL.json; returns that folder.

    A file per model with AutoAttack's standard budget at eps 4/255 on RobustBench's 5000 images.
    What was filled in by hand in an older file stays. Raises UserError without such a model.
    """
    against = [reasons_against(row) for _, row in summary.iterrows()]
    rows = summary[[not reasons for reasons in against]]
    nearest: dict[str, list[str]] = {}  # model without such a row -> reasons against its best one
    for model, reasons in sorted(zip(summary["model"], against), key=lambda found: len(found[1])):
        nearest.setdefault(model, reasons)
    left_out = [f"{model} ({', '.join(why)})" for model, why in sorted(nearest.items()) if why]
    if rows.empty:
        raise UserError(
            f"{results_dir / SUMMARY_NAME}: no model that RobustBench could compare"
            f"{': ' + '; '.join(left_out) if left_out else ''}; `python evaluate_robustness.py "
            "--model_name NAME --dataset robustbench --data_dir DIR Linf --eps 4/255` makes one"
        )
    if left_out:
        print_line(f"note: not for RobustBench: {'; '.join(left_out)}", sys.stderr)
    folder = results_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    infos = {folder / f"{safe_file_name(row['model'])}.json": row for _, row in rows.iterrows()}
    texts = {path: model_info_text(path, row) for path, row in infos.items()}
    for path, text in texts.items():
        write_atomic(path, text)
    return folder


def reasons_against(row: pd.Series) -> list[str]:
    """Why RobustBench could not compare a row of the summary; [] if it can."""
    reasons = []
    if row["image_set"] != IMAGE_SET:
        reasons.append(f"images of {row['image_set']}")
    elif row["list_sha256"] != list_sha256():
        reasons.append(f"{row['n']} images, not its 5000")
    if row["threat"] != THREAT:
        reasons.append(f"threat {row['threat']}")
    else:
        if row["attack"] != STANDARD_NAME:
            reasons.append(str(row["attack"]))
        if not np.isclose(float(row["eps"]), EPS):
            reasons.append(f"eps {format_eps(row['eps'], THREAT)}")
    if row["partial"]:
        reasons.append("unfinished")
    return reasons


@cache
def list_sha256() -> str:
    """The `list_sha256` of a record of all 5000 images."""
    lines = text_lines(ROOT / "lists" / "images" / f"{IMAGE_SET}.txt")
    listed = "".join(f"{line}\n" for line in lines if not line.startswith("#"))
    return hashlib.sha256(listed.encode()).hexdigest()


def model_info_text(path: Path, row: pd.Series) -> str:
    """The JSON of a model; keys that a record does not know keep the value of the file `path`."""
    info = MODEL_INFO | (read_model_info(path) if path.exists() else {})
    for key, column in (("clean_acc", "clean_acc"), ("autoattack_acc", "robust_acc")):
        info[key] = str(round(100 * row[column], 2))
    return json.dumps(info, indent=2) + "\n"


def read_model_info(path: Path) -> dict:
    """An older file. Raises UserError for one that is no JSON object."""
    try:
        info = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); mend or remove it") from None
    if not isinstance(info, dict):
        raise UserError(f"{path}: no JSON object; mend or remove it")
    return info
