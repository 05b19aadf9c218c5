"""Our summary as the table that Hoak 2025's plotting script reads (`merge --format hoak2025`).

Source of the columns: kyangl/alignment-security@3bafa26, evaluate_robustness.py (writes) and
plotting.py, load_robust_results (reads). That script turns every column but those that it drops by
name into `COLUMN Linf EPS`, so the table has exactly its columns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_join import candidates
from alignment_security.analysis.brainscore_leaderboard import MERGED_SCORES, SCORES_FOLDER
from alignment_security.analysis.brainscore_registry import REGISTRY_NAME, TIMM_NAME
from alignment_security.analysis.hoak2025_accuracies import HOAK2025_TABLE, STUDY_KEY
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.process import print_line
from alignment_security.common.tables import read_table
from alignment_security.models.lists import read_model_list
from alignment_security.records.summary import SUMMARY_NAME

# A results folder for the script. Not our own, whose table of this name is the paper's.
HOAK2025_FOLDER = "hoak2025"
THREAT, PROTOCOL = "Linf", "autoattack"
# An accuracy cannot be negative. An empty column would not do: the script drops empty columns, and
# its t-SNE then fails to drop this one by name.
NOT_MEASURED = -1
MAX_NAMED = 3


def write_hoak2025(summary: pd.DataFrame, results_dir: Path) -> Path:
    """Write results_dir/hoak2025, a results folder for the script; returns the table's path.

    A row per model and eps, under the model's key in Brain-Score's registry. A model that
    Brain-Score does not have is left out, with a note: the script joins by that key, and would give
    a network of one's own the scores of another. Raises UserError where the summary has no accuracy
    under AutoAttack in L-infinity, or several that are not comparable.
    """
    attacked = attacked_rows(summary, results_dir / SUMMARY_NAME)
    keys, left_out = registry_keys(attacked)
    rows = attacked.assign(key=attacked["model"].map(keys)).dropna(subset="key")
    if rows.empty:
        raise UserError(
            f"{results_dir / SUMMARY_NAME}: none of its {len(left_out)} models is Brain-Score's "
            f"({left_out[0]}); evaluate plugins with --source brainscore"
        )
    twice = rows[rows.duplicated(["key", "eps"], keep=False)]
    if len(twice):
        names = " and ".join(sorted(set(twice.loc[twice["key"] == twice["key"].iloc[0], "model"])))
        raise UserError(f"{names}: one model of Brain-Score; keep the records of one of them")
    if left_out:
        print_line(f"note: left out of the table: {'; '.join(left_out)}", sys.stderr)
    path = results_dir / HOAK2025_FOLDER / HOAK2025_TABLE
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, hoak2025_table(rows).to_csv(index=False, lineterminator="\n"))
    write_scores(results_dir / SCORES_FOLDER / f"{MERGED_SCORES}.csv", path.parent)
    return path


def write_scores(path: Path, folder: Path) -> None:
    """Copy the table of `setup_scores`, if there is one, without the column that the script lacks.

    The script takes every column but those that it drops by name for a number.
    """
    if not path.exists():
        return
    scores = read_table(path, [REGISTRY_NAME], "make it again with setup_scores")
    text = scores.drop(columns=TIMM_NAME, errors="ignore").to_csv(index=False, lineterminator="\n")
    (folder / SCORES_FOLDER).mkdir(exist_ok=True)
    write_atomic(folder / SCORES_FOLDER / path.name, text)


def attacked_rows(summary: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The finished rows under AutoAttack in L-infinity, all measured alike. Raises UserError."""
    columns = [*summary, *(name for name in ("robust_acc", *STUDY_KEY) if name not in summary)]
    summary = summary.reindex(columns=columns)
    rows = summary[
        (summary["threat"] == THREAT)
        & (summary["protocol"] == PROTOCOL)
        & (summary["partial"] == 0)
        & summary["robust_acc"].notna()
    ]
    if rows.empty:
        raise UserError(
            f"{path}: no finished accuracy under AutoAttack; `python evaluate_robustness.py "
            "--model_name NAME Linf --eps 0.001 0.5/255 1/255` makes one"
        )
    studies = rows[STUDY_KEY].drop_duplicates()
    if len(studies) > 1:
        differing = [name for name in STUDY_KEY if studies[name].nunique(dropna=False) > 1]
        raise UserError(
            f"{path}: {len(studies)} studies that are not comparable (their {', '.join(differing)} "
            "differ), and the format holds one; keep the records of each in a --results_dir of its "
            "own"
        )
    return rows


def registry_keys(rows: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """({model: its key in Brain-Score's registry}, a sentence about each model without one)."""
    listed = read_model_list("brainscore")
    nets = listed["weights"].where(listed["weights"].str.startswith("timm:"), "")
    registry = pd.DataFrame(
        {REGISTRY_NAME: listed["name"], TIMM_NAME: nets.str.removeprefix("timm:")}
    )
    keys, left_out = {}, []
    columns = ["model", "weights", "weights_sha256"]
    for name, weights, sha256 in rows[columns].fillna("").drop_duplicates().itertuples(index=False):
        if weights.startswith("brainscore:"):
            keys[name] = name
            continue
        found, rule = candidates(name, weights, sha256, registry)
        if len(found) == 1:
            keys[name] = found[0]
        else:
            left_out.append(f"{name} ({f'ambiguous {rule}' if found else rule})")
    return keys, left_out


def hoak2025_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of Hoak 2025's scripts; accuracies in [0, 1], eps in pixel units of [0, 1]."""
    table = pd.DataFrame(
        {
            "Model Name": rows["key"],
            "Threat Model": rows["threat"],
            "Epsilon": rows["eps"],
            "Top-1 Accuracy": rows["robust_acc"],
            "Top-5 Accuracy": NOT_MEASURED,
            "Top-1 Subset Clean Accuracy": rows["clean_acc"],
            "Top-5 Subset Clean Accuracy": NOT_MEASURED,
        }
    )
    return table.sort_values(["Model Name", "Epsilon"])
