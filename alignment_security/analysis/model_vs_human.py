"""Error consistency and shape bias of trials of model-vs-human: `utilities.py model_vs_human`.

A trial is an image that a person or a network sorted into one of 16 categories. The CSVs are those
of bethgelab/model-vs-human (Geirhos et al. 2021): raw-data/<dataset>/<dataset>_<subject>_*.csv.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.folders import glob_visible
from alignment_security.common.tables import check_columns, read_table

TRIAL_COLUMNS = ["subj", "object_response", "category", "condition", "imagename"]
FIX = "write the trials as model-vs-human does"
HUMAN = "subject-"  # what names of people begin with
CUE_CONFLICT = "cue-conflict"
DATASETS = "error_consistency_datasets"  # how many a mean is over; no score
# Datasets that are averaged over conditions, and the conditions that are left out: images without
# manipulation, or with human accuracy below 0.2. Source: bethgelab/model-vs-human,
# modelvshuman/plotting/plot.py, EXCLUDE_CONDITIONS
LEFT_OUT = {
    "colour": ["cr"],
    "contrast": ["c100", "c03", "c01"],
    "high-pass": ["inf", "0.55", "0.45", "0.4"],
    "low-pass": ["0", "15", "40"],
    "phase-scrambling": ["0", "150", "180"],
    "power-equalisation": ["0"],
    "false-colour": ["True"],
    "rotation": ["0"],
    "eidolonI": ["1-10-10", "64-10-10", "128-10-10"],
    "eidolonII": ["1-3-10", "32-3-10", "64-3-10", "128-3-10"],
    "eidolonIII": ["1-0-10", "16-0-10", "32-0-10", "64-0-10", "128-0-10"],
    "uniform-noise": ["0.0", "0.6", "0.9"],
}


# ---- measures ------------------------------------------------------------------------------------


def error_consistency(correct: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa of two observers' errors on the same trials, both (n,) bool; 1 if all agree.

    Agreement beyond that of independent observers of their accuracies (Geirhos et al. 2020,
    equations 1 to 3).
    """
    observed = np.mean(correct == other)
    if observed == 1:
        return 1.0
    p, q = np.mean(correct), np.mean(other)
    expected = p * q + (1 - p) * (1 - q)
    return float((observed - expected) / (1 - expected))


def shape_bias(trials: pd.DataFrame) -> float:
    """Share of shapes among the answers that are the shape or the texture (Geirhos et al. 2019).

    trials   of `read_trials`, with shapes as `category`; those of equal shape and texture do not
             count. nan if no answer is one of the two
    """
    texture = trials["imagename"].map(texture_category)
    conflict = trials["category"] != texture
    shapes = (conflict & (trials["object_response"] == trials["category"])).sum()
    textures = (conflict & (trials["object_response"] == texture)).sum()
    return float(shapes / (shapes + textures)) if shapes + textures else np.nan


def texture_category(image_name: str) -> str:
    """The texture of a cue-conflict image: `bird` of `0001_cue_dog10-bird2.png`."""
    styles = image_name.rpartition("_")[2].partition(".")[0]
    return "".join(letter for letter in styles.rpartition("-")[2] if not letter.isdigit())


# ---- trials --------------------------------------------------------------------------------------


def read_trials(folder: Path) -> pd.DataFrame:
    """Every trial below <folder>/<dataset>/: TRIAL_COLUMNS, dataset, image and correct.

    `image` is the name without the prefix that differs between observers. Raises UserError.
    """
    files = glob_visible(folder, "*/*.csv")
    if not files:
        raise UserError(f"{folder}: no trials in it, {folder}/<dataset>/*.csv")
    parts = []
    for path in files:
        table = read_table(path, [], FIX)
        table.columns = table.columns.str.lower()
        check_columns(path, table, TRIAL_COLUMNS, FIX)
        parts.append(table[TRIAL_COLUMNS].assign(dataset=path.parent.name))
    trials = pd.concat(parts, ignore_index=True)
    trials["condition"] = trials["condition"].map(as_condition)
    trials["image"] = trials["imagename"].map(image_of)
    trials["correct"] = trials["object_response"] == trials["category"]
    key = ["dataset", "subj", "condition", "image"]
    again = trials[trials.duplicated(key)]
    if len(again):
        first = again.iloc[0]
        raise UserError(f"{folder}/{first.dataset}: {first.subj} has {first.imagename} twice")
    return trials


def as_condition(text: str) -> str:
    """A condition in one spelling: `0.60` and `0.6` are the same, and so are `true` and `True`."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.casefold()


def image_of(image_name: str) -> str:
    """The part of an image's name that all observers share.

    n02951358_5952.JPEG of `0000_cl_s01_bw_boat_40_n02951358_5952.JPEG`, else what is after the
    last underscore.
    """
    parts = image_name.split("_")
    is_imagenet = len(parts) > 1 and parts[-2].startswith("n0")
    return "_".join(parts[-2:]) if is_imagenet else parts[-1]


# ---- scores --------------------------------------------------------------------------------------


def model_scores(trials: pd.DataFrame) -> pd.DataFrame:
    """A row per network: error consistency with people, and shape bias.

    Error consistency is averaged over conditions, then people, then datasets, as in the benchmark
    of model-vs-human (`format_benchmark_df`). Raises UserError where observers saw other images.
    """
    pairs = [
        {"model": model, "dataset": dataset, "kappa": np.mean(kappas)}
        for dataset, part in trials.groupby("dataset")
        for model, kappas in consistencies(part, str(dataset)).items()
    ]
    if not pairs:
        raise UserError(f"no trials of both people ({HUMAN}...) and networks in one dataset")
    table = pd.DataFrame(pairs).groupby("model")["kappa"].agg(["mean", "size"])
    table.columns = pd.Index(["error_consistency", DATASETS])
    of_networks = trials[~trials["subj"].str.startswith(HUMAN)]
    conflict = of_networks[of_networks["dataset"] == CUE_CONFLICT]
    biases = {name: shape_bias(part) for name, part in conflict.groupby("subj")}
    return table.assign(shape_bias=pd.Series(biases, dtype=float))


def consistencies(trials: pd.DataFrame, dataset: str) -> dict[str, list[float]]:
    """For each network, its mean error consistency over conditions with each person."""
    if dataset in LEFT_OUT:
        left_out = {as_condition(text) for text in LEFT_OUT[dataset]}
        trials = trials[~trials["condition"].isin(left_out)]
    else:
        trials = trials.assign(condition="")
    answers = trials.pivot(index=["condition", "image"], columns="subj", values="correct")
    people = [name for name in answers if name.startswith(HUMAN)]
    networks = [name for name in answers if not name.startswith(HUMAN)]
    if not people:
        return {}
    found: dict[str, list[float]] = {name: [] for name in networks}
    for network, person in product(networks, people):
        both = answers[[network, person]].dropna(how="all")
        if both.isna().to_numpy().any():
            raise UserError(f"{dataset}: {network} and {person} did not see the same images")
        kappas = [
            error_consistency(part[network].to_numpy(bool), part[person].to_numpy(bool))
            for _, part in both.groupby("condition")
        ]
        found[network].append(float(np.mean(kappas)))
    return found


def write_model_scores(folder: Path, out: Path) -> None:
    """Write `model_scores` of a folder of trials, a table for `join --scores`."""
    scores = model_scores(read_trials(folder))
    write_atomic(out, scores.to_csv(lineterminator="\n"))
    print(scores.to_string())
    print(out)
