"""Tables of finished records: accuracy against eps, error under corruptions, norms per protocol."""

from __future__ import annotations

import pandas as pd

from alignment_security.analysis.results import (
    norm_means,
    read_finished_rows,
    run_budget,
)
from alignment_security.models.families import family
from alignment_security.records.metrics import (
    ALEXNET_ERRORS,
    SEVERITIES,
    accuracy_interval,
    mean_corruption_error,
)
from alignment_security.records.summary import attacked_size, size_text

CORRUPTED_SET = "imagenet-c"  # the images of AlexNet's errors


def accuracy_by_eps(run: dict) -> pd.DataFrame:
    """Accuracy over all images and its 95 % Wilson interval, a row per eps; eps 0 is clean."""
    rows = read_finished_rows(run)
    hits = {0.0: rows.drop_duplicates("image_id")["clean_correct"]}
    hits |= {eps: part["robust"] for eps, part in rows.groupby("eps") if eps != 0}
    table = []
    for eps, hit in hits.items():
        correct, n = int(hit.sum()), len(hit)
        low, high = accuracy_interval(correct, n)
        table.append(
            {
                "image_set": run["image_set"],
                "threat": run["threat"],
                "budget": run_budget(run),
                "model": run["model"],
                "family": family(run["model"]),
                "eps": eps,
                "correct": correct,
                "n": n,
                "accuracy": correct / n,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(table)


# ---- corruptions ---------------------------------------------------------------------------------


def corruption_table(runs: list[dict]) -> pd.DataFrame:
    """Top-1 error of each model, corruption type and severity of some runs."""
    rows = []
    for run in runs:
        _, kind, severity = run["threat"].rsplit("-", 2)
        rows.append(
            {
                "image_set": run["image_set"],
                "model": run["model"],
                "type": kind,
                "severity": int(severity),
                "n": run["images"],
                "error": 1 - read_finished_rows(run)["clean_correct"].mean(),
            }
        )
    return pd.DataFrame(rows)


def corruption_summary(table: pd.DataFrame) -> pd.DataFrame:
    """`metrics.mean_corruption_error` of each model (index) of a `corruption_table`.

    Relative to AlexNet where ImageNet-C was run at all five severities.
    """
    rows = {}
    for model, part in table.groupby("model"):
        errors = {
            kind: dict(zip(cells["severity"], cells["error"]))
            for kind, cells in part.groupby("type")
        }
        all_severities = all(set(cells) == set(SEVERITIES) for cells in errors.values())
        known_types = set(errors) <= set(ALEXNET_ERRORS)
        comparable = all_severities and known_types and set(part["image_set"]) == {CORRUPTED_SET}
        rows[model] = mean_corruption_error(errors, ALEXNET_ERRORS if comparable else None)
    return pd.DataFrame.from_dict(rows, orient="index")


# ---- protocols -----------------------------------------------------------------------------------


def run_head(run: dict) -> str:
    """The head that was attacked; "none" is the model's own."""
    return run["settings"]["run"].get("head", "none")


def protocol_table(runs: list[dict]) -> pd.DataFrame:
    """Mean norm and human alignment (`results.norm_means`) of minimum-norm runs, a row each."""
    rows = []
    for run in runs:
        names = {
            "image_set": run["image_set"],
            "head": run_head(run),
            "model": run["model"],
            "threat": run["threat"],
            "attack": run_budget(run),
            "size": size_text(attacked_size(run)),
        }
        rows.append(names | norm_means(read_finished_rows(run)))
    return pd.DataFrame(rows)
