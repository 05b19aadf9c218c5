"""Rows of the summary: what one record says of its model, at each eps.

`summary.summarise` gathers them from every record.
"""

from __future__ import annotations

import math

import pandas as pd

from alignment_security.records.comparable import attack_text
from alignment_security.records.norm_summary import alignment_summary, norm_summary
from alignment_security.records.record import SALIENCY_KIND, SCREENED_KIND, VERDICT_KINDS
from alignment_security.records.screened import robust_estimates

SUMMARY_ORDER = ["image_set", "threat", "model", "eps"]


def summary_rows(run: dict, rows: pd.DataFrame, complete: bool) -> list[dict]:
    """The summary's rows of the rows of one record; see `_summary_row`."""
    if rows.empty:
        return []
    if "eps" not in rows:
        return [_summary_row(run, None, rows, complete)]
    found = [_summary_row(run, eps, group, complete) for eps, group in rows.groupby("eps")]
    if run["kind"] == SCREENED_KIND:
        estimates = robust_estimates(rows).to_dict("records")
        return [row | estimate for row, estimate in zip(found, estimates)]
    return found


def summary_frame(rows: list[dict]) -> pd.DataFrame:
    """Rows of the summary in its order."""
    return pd.DataFrame(rows).sort_values(SUMMARY_ORDER, kind="stable", ignore_index=True)


def _summary_row(run: dict, eps: float | None, rows: pd.DataFrame, complete: bool) -> dict:
    """One row of the summary: accuracies in [0, 1], norms in pixel units, and provenance.

    rows       of one record, at one eps where it has several
    complete   whether the run is finished
    """
    settings = run["settings"]["run"]
    correct = rows[rows["clean_correct"] == 1]
    row = {
        "model": run["model"],
        "threat": run["threat"],
        "eps": eps,
        "image_set": run["image_set"],
        "protocol": settings.get("protocol"),
        "attack": attack_text(run) or None,
        "n": len(rows),
        "clean_correct": len(correct),
        "clean_acc": len(correct) / len(rows),
    }
    row |= _clean_accuracies(rows)
    if run["kind"] in VERDICT_KINDS:
        row |= {"robust": int(rows["robust"].sum()), "robust_acc": rows["robust"].mean()}
    size = attacked_size(run)
    row["size"] = size_text(size)
    if "success" in rows:
        row |= norm_summary(correct)
        row["l2_per_pixel"] = per_pixel(row["l2_mean"], size)
    elif run["kind"] == SALIENCY_KIND:
        row |= alignment_summary(rows)  # of all images, as Fel et al. 2022
    for column in ("forwards", "backwards"):
        if column in rows:
            row[f"{column}_per_image"] = rows[column].sum() / len(rows)
    model, sessions = run["settings"]["model"], run["sessions"]
    return row | {
        "partial": int(not complete),
        "weights": model.get("weights"),
        "weights_sha256": model.get("weights_sha256"),
        "group": model.get("group"),
        "list_sha256": settings.get("list_sha256"),
        "head": settings.get("head", "none"),
        "seed": settings.get("seed"),
        "git": _of_all_sessions(sessions, "git"),
        "device": _of_all_sessions(sessions, "device"),
        "seconds": sum(session["seconds"] for session in sessions),
    }


def _of_all_sessions(sessions: list[dict], name: str) -> str | None:
    """The distinct values of a fact of the sessions, in order, joined by ` + `."""
    values = [str(session[name]) for session in sessions if session.get(name)]
    return " + ".join(dict.fromkeys(values)) or None


def _clean_accuracies(rows: pd.DataFrame) -> dict:
    """Accuracies on other labels than top-1, for the columns that have values."""
    accuracies = {}
    for column in ("clean_top5", "clean_real"):
        if column in rows and rows[column].notna().any():
            accuracies[column] = rows[column].mean()
    if "clean_multilabel" in rows and rows["clean_multilabel"].notna().any():
        # mean over classes, as in Shankar et al. 2020
        accuracies["clean_multilabel"] = rows.groupby("label")["clean_multilabel"].mean().mean()
    return accuracies


# ---- sizes ---------------------------------------------------------------------------------------


def attacked_size(run: dict) -> tuple[int, int] | None:
    """(height, width) of the images that a run attacked; None for a run file without it.

    Norms of images of different sizes are not of the same pixels: compare them per pixel.
    """
    settings = run["settings"]
    if geometry := settings["run"].get("geometry"):
        side = int(geometry.split()[0])  # `224 px, ...`
        return side, side
    input_size = settings["model"].get("preprocessing", {}).get("input_size")
    return tuple(input_size[1:]) if input_size else None


def size_text(size: tuple[int, int] | None) -> str | None:
    """`224x224`; None without a size."""
    return f"{size[0]}x{size[1]}" if size else None


def per_pixel(l2: float, size: tuple[int, int] | None) -> float | None:
    """An L2 norm over sqrt(3 H W): the root of the mean squared change of a channel of a pixel."""
    return l2 / math.sqrt(3 * size[0] * size[1]) if size else None
