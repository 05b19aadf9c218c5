"""What an evaluation says: its first line, and the report of its record."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from alignment_security.common.eps import format_eps
from alignment_security.common.remarks import warning_lines
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.progress import expected_time
from alignment_security.records.names import record_stem
from alignment_security.records.norm_summary import (
    NORM_COLUMNS,
    alignment_summary,
    format_norm,
    minimised_norm,
)
from alignment_security.records.record import SALIENCY_KIND
from alignment_security.records.run import Run
from alignment_security.records.screened import interval_text, robust_estimates
from alignment_security.records.summary_rows import attacked_size, size_text


def first_line(evaluation: Evaluation, run: Run, todo: int, seconds: float | None) -> str:
    """What will run: the model, how many images, the attack, the device, and the expected time.

    seconds   that a forward pass of an image takes, where it was measured
    """
    images, threat = evaluation.images, evaluation.threat
    count = f"{todo} images" if todo == len(images) else f"{todo} of {len(images)} images"
    attack = run.settings["run"]["attack"]
    eps = ", ".join(format_eps(radius, threat.name, threat.eps) for radius in threat.eps)
    session = run.info["sessions"][-1]
    parts = [
        f"{evaluation.model.settings['name']}: {count} of {images.name}",
        threat.phase,
        threat.name if attack == "none" else f"{threat.name}, {attack}",
        f"eps {eps}" if eps else "",
        f"{session['device']}, batches of {session['batch_size']}",
        expected_time(threat, todo, seconds),
    ]
    return "; ".join(filter(None, parts))


def beside_remarks(name: str, run: Run) -> Iterator[str]:
    """Sentences where a record is not called after its model, `name`, alone."""
    beside = run.info.get("beside", {})
    if run.info["model"] != name:
        yield f"{name} has records of other weights here; these are {run.info['model']}"
    if beside:
        first = run.csv.with_name(f"{record_stem(run.info['model'])}.csv")
        values = ", ".join(f"{setting} {value}" for setting, value in beside.items())
        yield f"{first} has other settings and stays; {run.csv.name} is the record of {values}"


def already_done_text(run: Run) -> str:
    """The first line where nothing is computed."""
    begun = run.info["sessions"][-1]["started"]
    return (
        f"{run.info['model']}: evaluated on {begun}, read from its record; --overwrite does it anew"
    )


def report_text(run: Run) -> str:
    """What a finished record says: clean accuracy, a line per eps or the norms, warnings, path."""
    rows, settings = run.rows, run.settings["run"]
    correct = rows[rows["clean_correct"] == 1]
    lines = [accuracy_text(correct, run)]
    if "robust" in rows:
        for eps, accuracy in robust_texts(rows).items():
            radius = format_eps(eps, run.info["threat"], rows["eps"].unique())
            lines.append(f"  eps {radius}: robust accuracy {accuracy}")
    if "success" in rows:
        lines.append(f"  {norm_text(correct, run)}")
    if "human_map" in settings:
        compared = rows if run.info["kind"] == SALIENCY_KIND else correct
        maps = f"(maps: {settings['human_map']})"
        lines.append(f"  human alignment: {alignment_text(compared)} {maps}")
    return "\n".join([*lines, *warning_lines(run.info["warnings"]), f"  {run.csv}"])


def accuracy_text(correct: pd.DataFrame, run: Run) -> str:
    """`resnet50 on sample (n = 20), head animate: clean accuracy 95.0%; crossing 100 steps`"""
    n, n_correct = run.rows["image_id"].nunique(), correct["image_id"].nunique()
    head = run.settings["run"].get("head", "none")
    behind = "" if head == "none" else f", head {head}"
    _, corrupted, corruption = run.info["threat"].partition("corruptions-")
    accuracy = f"accuracy under {corruption}" if corrupted else "clean accuracy"
    attack = "" if run.info["kind"] == "clean" else f"; {run.settings['run']['attack']}"
    where = f"{run.info['model']} on {run.info['image_set']} (n = {n}){behind}"
    return f"{where}: {accuracy} {n_correct / n:.1%}{attack}"


def robust_texts(rows: pd.DataFrame) -> dict[float, str]:
    """Robust accuracy by eps; of a screened record with its interval."""
    if "stage" in rows:
        return {eps: interval_text(found) for eps, found in robust_estimates(rows).iterrows()}
    return {eps: f"{share:.1%}" for eps, share in rows.groupby("eps")["robust"].mean().items()}


def norm_text(correct: pd.DataFrame, run: Run) -> str:
    """Mean and median minimal norm of the correctly classified images, or why there are none.

    Records of L1 of earlier versions have the L2 norm of the smallest L1 perturbation only.
    """
    norm = minimised_norm(run.info["threat"])
    name = f"minimal {norm} norm"
    if NORM_COLUMNS[norm] not in correct:
        name, norm = f"L2 norm of the smallest {norm} perturbation", "L2"
    norms = correct.loc[correct["success"] == 1, NORM_COLUMNS[norm]]
    if correct.empty:
        return f"{name}: none, since no image is classified correctly"
    if norms.empty:
        return f"{name}: none found of {len(correct)} images"
    mean, median = (format_norm(value, norm, 4) for value in (norms.mean(), norms.median()))
    size = size_text(attacked_size(run.info))
    return f"{name}: mean {mean}, median {median} over {len(norms)} images ({size})"


def alignment_text(compared: pd.DataFrame) -> str:
    """Mean human alignment of the images that have one."""
    found = alignment_summary(compared)
    if not found["n_alignment"]:
        return "none, since no image was compared"
    return f"mean {found['human_alignment']:.4f} over {found['n_alignment']} images"
