"""alignment_security.records.summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.settings import format_eps
from alignment_security.records.record import (
    check_record_sha256,
    first_difference,
    read_record,
    read_run_file,
)

SUMMARY_KEY = ["model", "threat", "eps", "image_set", "protocol"]
SUMMARY_NAME = "evaluation_results.csv"


# ---- merge ---------------------------------------------------------------------------------------


def merge_records(results_dir, allow_partial: bool = False) -> pd.DataFrame:
    """Write results_dir/evaluation_results.csv; returns and raises as `summarise`."""
    summary = summarise(results_dir, allow_partial)
    write_atomic(Path(results_dir) / SUMMARY_NAME, summary.to_csv(index=False, lineterminator="\n"))
    return summary


def summarise(results_dir, allow_partial: bool = False) -> pd.DataFrame:
    """One row per model x threat x eps x image set x protocol, of every finished record under results_dir/records.

    Raises UserError on an unfinished or damaged record (with allow_partial it is summarised over the rows it has and marked
    `partial=1`), and when two models of one threat and image set were run with different settings.
    """
    root = Path(results_dir) / "records"
    paths = sorted(root.glob("*/*/*.json"))
    if not paths:
        raise UserError(
            f"{root}: no records; `python evaluate_robustness.py --model_name NAME clean` makes the first"
        )
    orphans = [
        path for path in sorted(root.glob("*/*/*.csv")) if not path.with_suffix(".json").exists()
    ]
    if orphans:
        raise UserError(
            f"{orphans[0]}: a record without its run file ({len(orphans)} such); bring the .json or remove it"
        )
    runs = {path: read_run_file(path) for path in paths}
    for path, other, found in differing_runs(runs):
        raise UserError(
            f"{path}: not comparable with {other.name}, whose settings differ ({found}); evaluate one of "
            "them again with --overwrite"
        )
    summary = pd.DataFrame(
        [row for path, run in runs.items() for row in _summary_rows(path, run, allow_partial)]
    )
    if summary.empty:
        raise UserError(f"{root}: no rows yet in any of its records; let the evaluation go on")
    summary = summary.sort_values(
        ["image_set", "threat", "model", "eps"], kind="stable", ignore_index=True
    )
    if summary.duplicated(SUMMARY_KEY).any():
        raise UserError(
            f"{root}: two records give {summary[summary.duplicated(SUMMARY_KEY)].iloc[0][SUMMARY_KEY].to_dict()}"
        )
    return summary


def differing_runs(runs: dict[Path, dict]) -> Iterator[tuple[Path, Path, str]]:
    """(run file, another of its folder, how their settings differ). Models of one folder are compared with each other:
    their images, seed and budget have to be the same."""
    first: dict[Path, Path] = {}
    for path, run in runs.items():
        other = first.setdefault(path.parent, path)
        if found := first_difference(runs[other]["settings"]["run"], run["settings"]["run"]):
            yield path, other, found


def _summary_rows(path: Path, run: dict, allow_partial: bool) -> list[dict]:
    record, complete = path.with_suffix(".csv"), run["status"] == "done"
    if not complete and not allow_partial:
        raise UserError(
            f"{record}: unfinished run (status {run['status']}); run the same command again to finish it, or "
            "merge with --allow_partial"
        )
    if complete:
        check_record_sha256(record, run)
    rows = read_record(record, torn=not complete)
    if rows.empty:
        return []
    groups = rows.groupby("eps") if "eps" in rows else [(None, rows)]
    return [_summary_row(run, eps, group, complete) for eps, group in groups]


def _summary_row(run: dict, eps: float | None, rows: pd.DataFrame, complete: bool) -> dict:
    settings = run["settings"]["run"]
    correct = rows[rows["clean_correct"] == 1]
    row = {
        "model": run["model"],
        "threat": run["threat"],
        "eps": eps,
        "image_set": run["image_set"],
        "protocol": settings.get("protocol"),
        "attack": settings.get("attack"),
        "n": len(rows),
        "clean_correct": len(correct),
        "clean_acc": len(correct) / len(rows),
    }
    for column in ("clean_top5", "clean_real"):
        if column in rows and rows[column].notna().any():
            row[column] = rows[column].mean()
    if (
        "clean_multilabel" in rows and rows["clean_multilabel"].notna().any()
    ):  # mean over classes: Shankar et al. 2020
        row["clean_multilabel"] = rows.groupby("label")["clean_multilabel"].mean().mean()
    if "robust" in rows:
        row |= {"robust": int(rows["robust"].sum()), "robust_acc": rows["robust"].mean()}
    if "success" in rows:
        row |= _norm_summary(correct)
    for column in ("forwards", "backwards"):
        if column in rows:
            row[f"{column}_per_image"] = rows[column].sum() / len(rows)
    sessions = run["sessions"]
    model = run["settings"]["model"]
    return row | {
        "partial": int(not complete),
        "weights": model.get("weights"),
        "weights_sha256": model.get("weights_sha256"),
        "list_sha256": settings.get("list_sha256"),
        "seed": settings.get("seed"),
        "git": sessions[-1].get("git"),
        "device": sessions[-1].get("device"),
        "seconds": sum(s["seconds"] for s in sessions),
    }


def _norm_summary(correct: pd.DataFrame) -> dict:
    """Perturbation Tolerance: mean minimal norm over correctly classified images, its SEM and what it stands on."""
    norms, maps = correct.loc[correct["success"] == 1], correct["human_alignment"].dropna()
    return {
        "n_norm": len(norms),
        "success_rate": correct["success"].mean(),
        "l2_mean": norms["l2"].mean(),
        "l2_sem": norms["l2"].sem(),
        "l2_median": norms["l2"].median(),
        "linf_mean": norms["linf"].mean(),
        "linf_median": norms["linf"].median(),
        "human_alignment": maps.mean(),
        "human_alignment_sem": maps.sem(),
        "n_alignment": len(maps),
    }


def summary_table(summary) -> str:
    """The summary as a table to read: a line per model x threat x eps, percent and norms rounded."""
    shown = summary[["image_set", "threat", "model", "eps", "n"]].copy()
    shown["eps"] = [format_eps(eps) if eps >= 0 else "" for eps in summary["eps"].astype(float)]
    for column in ("clean_acc", "robust_acc"):
        if column in summary:
            shown[column] = [f"{100 * v:.1f} %" if pd.notna(v) else "" for v in summary[column]]
    for column in ("l2_mean", "l2_sem", "human_alignment"):
        if column in summary:
            shown[column] = [f"{v:.3f}" if pd.notna(v) else "" for v in summary[column]]
    shown["attack"] = summary["attack"].fillna("")
    return shown.to_string(index=False)
