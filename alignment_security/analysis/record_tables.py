"""Tables of finished records: accuracy against eps, error under corruptions, norms per protocol."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alignment_security.analysis.results import (
    read_finished_rows,
    run_budget,
    run_columns,
)
from alignment_security.common.verdicts import AUTOATTACK
from alignment_security.models.families import family
from alignment_security.records.metrics import (
    ALEXNET_ERRORS,
    SEVERITIES,
    accuracy_interval,
    mean_corruption_error,
)
from alignment_security.records.norm_summary import norm_summary
from alignment_security.records.record import SCREENED_KIND
from alignment_security.records.screened import robust_estimates
from alignment_security.records.summary_rows import attacked_size, size_text

VERDICTS = ("robust", *AUTOATTACK, "misclassified")  # of an image at an eps
CORRUPTED_SET = "imagenet-c"  # the images of AlexNet's errors
NOT_ALEXNETS = "AlexNet's errors are of other"
# what figures call a mean -> its column of the summary
NORM_MEANS = {
    "n": "n_norm",
    "l2": "l2_mean",
    "l2_sem": "l2_sem",
    "linf": "linf_mean",
    "linf_sem": "linf_sem",
    "n_maps": "n_alignment",
    "alignment": "human_alignment",
    "alignment_sem": "human_alignment_sem",
}


def accuracy_by_eps(run: dict) -> pd.DataFrame:
    """Accuracy over all images and its 95 % Wilson interval, a row per eps; eps 0 is clean.

    Of a screened record the accuracy is an estimate, with its own interval and without `correct`.
    """
    rows = read_finished_rows(run)
    names = run_columns(run) | {"family": family(run["model"])}
    clean = rows.drop_duplicates("image_id")["clean_correct"]
    table = [names | {"eps": 0.0} | counted_accuracy(clean)]
    if run["kind"] == SCREENED_KIND:
        for eps, found in robust_estimates(rows).iterrows():
            estimate = {
                "accuracy": found["robust_estimate"],
                "low": found["robust_low"],
                "high": found["robust_high"],
            }
            table.append(names | {"eps": eps, "n": len(clean)} | estimate)
        return pd.DataFrame(table).astype({"correct": "Int64"})
    for eps, part in rows.groupby("eps"):
        if eps != 0:
            table.append(names | {"eps": eps} | counted_accuracy(part["robust"]))
    return pd.DataFrame(table)


def counted_accuracy(hits: pd.Series) -> dict:
    """Share of the images that are hits, with its 95 % Wilson interval."""
    correct, n = int(hits.sum()), len(hits)
    low, high = accuracy_interval(correct, n)
    return {"correct": correct, "n": n, "accuracy": correct / n, "low": low, "high": high}


def verdicts_by_eps(run: dict) -> pd.DataFrame:
    """How many images were robust, broken by each attack, or misclassified, a row per eps.

    With robust accuracy's 95 % Wilson interval `low, high`. Its columns are VERDICTS.
    """
    table = []
    for eps, part in read_finished_rows(run).groupby("eps"):
        verdicts = part["broken_by"].fillna("").replace({"": "robust", "clean": "misclassified"})
        counts = {verdict: int((verdicts == verdict).sum()) for verdict in VERDICTS}
        low, high = accuracy_interval(counts["robust"], len(part))
        names = run_columns(run) | {"eps": eps, "n": len(part)}
        table.append(names | counts | {"low": low, "high": high})
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


def tables_by_severities(table: pd.DataFrame) -> list[pd.DataFrame]:
    """A `corruption_table` in parts whose cells, a model and a type, have the same severities."""
    severities = table.groupby(["model", "type"])["severity"].transform(
        lambda cell: " ".join(map(str, sorted(cell)))
    )
    return [part.reset_index(drop=True) for _, part in table.groupby(severities)]


def corruption_summary(table: pd.DataFrame) -> pd.DataFrame:
    """`mean_corruption_error` of each model (index) of a part of `tables_by_severities`.

    Columns mean_error, types, cells; relative_error, over AlexNet's, of the types that it has;
    mce, the same if these are all 15 types of ImageNet-C, else nan, and no_mce says why.
    """
    rows = {}
    for model, part in table.groupby("model"):
        errors = {
            kind: dict(zip(cells["severity"], cells["error"]))
            for kind, cells in part.groupby("type")
        }
        of_both = {kind: cells for kind, cells in errors.items() if kind in ALEXNET_ERRORS}
        reason = no_mce(part, of_both)
        relative = np.nan
        if of_both and not reason.startswith(NOT_ALEXNETS):
            relative = mean_corruption_error(of_both, ALEXNET_ERRORS)["mce"]
        rows[model] = mean_corruption_error(errors) | {
            "relative_error": relative,
            "mce": np.nan if reason else relative,
            "no_mce": reason,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def no_mce(part: pd.DataFrame, errors: dict[str, dict]) -> str:
    """Why a model has no mCE, "" if it has one.

    part     its rows of a `corruption_table`
    errors   of the types that AlexNet's errors have: type -> severity -> error
    """
    missing = len(ALEXNET_ERRORS) - len(errors)
    if set(part["image_set"]) != {CORRUPTED_SET}:
        return f"{NOT_ALEXNETS} images: {CORRUPTED_SET}'s"
    if set(part["severity"]) != set(SEVERITIES):
        return f"{NOT_ALEXNETS} severities: all five"
    return f"{missing} of ImageNet-C's {len(ALEXNET_ERRORS)} types are missing" if missing else ""


# ---- protocols -----------------------------------------------------------------------------------


def protocol_table(runs: list[dict]) -> pd.DataFrame:
    """Mean norm and human alignment (`norm_means`) of minimum-norm runs, a row each.

    `protocol` names the budget too if a protocol was run with several.
    """
    budgets = pd.DataFrame({"threat": [run["threat"] for run in runs]})
    budgets = budgets.assign(attack=list(map(run_budget, runs))).drop_duplicates()
    several = set(budgets.loc[budgets["threat"].duplicated(), "threat"])
    rows = []
    for run in runs:
        names = {
            "image_set": run["image_set"],
            "head": run["settings"]["run"].get("head", "none"),
            "model": run["model"],
            "threat": run["threat"],
            "attack": run_budget(run),
            "protocol": protocol_name(run, several),
            "size": size_text(attacked_size(run)),
        }
        rows.append(names | norm_means(read_finished_rows(run)))
    return pd.DataFrame(rows)


def protocol_name(run: dict, several: set[str]) -> str:
    """`crossing`; of a threat in `several`, with its budget: `crossing, crossing 50 steps`."""
    name = run["threat"].removeprefix("L2-")
    return f"{name}, {run_budget(run)}" if run["threat"] in several else name


def norm_means(rows: pd.DataFrame) -> dict[str, float]:
    """Mean and standard error of the minimal norms and of human alignment in a record's rows.

    Over correctly classified images: `l2, l2_sem, linf, linf_sem` of the `n` that an attack fooled
    (Perturbation Tolerance), `alignment, alignment_sem` of the `n_maps` with a human map.
    """
    means = norm_summary(rows[rows["clean_correct"] == 1])
    return {name: means[column] for name, column in NORM_MEANS.items()}
