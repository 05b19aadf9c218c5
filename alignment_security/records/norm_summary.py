"""What a record of minimal norms says of a model: means, medians, and the images left out."""

from __future__ import annotations

import math

import pandas as pd

WITHOUT_NORM, AT_FLOOR = "have no norm", "at the floor of their attack"  # in warnings of a run
NORM_COLUMNS = {"L2": "l2", "Linf": "linf", "L1": "l1"}  # norm -> column of records
NEAR_FLOOR = 1.1  # a norm of at most so many times the floor may be of a nearer boundary


def minimised_norm(threat: str) -> str:
    """The norm that an attack for minimal norms makes small: L2, Linf or L1.

    threat   its name, which begins with its norm; L2 where it does not
    """
    norm = threat.split("-")[0]
    return norm if norm in NORM_COLUMNS else "L2"


def shown_norms(summary: pd.DataFrame) -> pd.Series:
    """The norm by which each row of a summary is shown: the one that its attack made small.

    L1 records of earlier versions have the L2 norm only, which stands in for it.
    """
    minimised = summary["threat"].map(minimised_norm)
    l1_mean = summary.get("l1_mean", pd.Series(math.nan, summary.index))
    return minimised.mask(minimised.eq("L1") & l1_mean.isna(), "L2")


def format_norm(value: float, norm: str, digits: int = 3) -> str:
    """A norm as text: Linf in 255ths, the others in pixel units of [0, 1]."""
    return f"{255 * value:.{digits}f}/255" if norm == "Linf" else f"{value:.{digits}f}"


def norm_summary(correct: pd.DataFrame) -> dict:
    """Perturbation Tolerance: mean minimal norm, its SEM, and the number of images behind it.

    correct   rows of correctly classified images; norms are averaged over those that were fooled

    The medians over all take a norm that was not found as infinite; they are missing where that is
    the middle one. L1 norms are in records of attacks that make them small.
    """
    fooled = correct.loc[correct["success"] == 1]
    columns = [column for column in NORM_COLUMNS.values() if column in correct]
    norms = correct[columns].astype(float).where(correct["success"] == 1, math.inf)
    median = norms.median().replace(math.inf, math.nan)
    of_l1 = _sizes(fooled, "l1") | {"l1_median_all": median["l1"]} if "l1" in correct else {}
    return {
        "n_norm": len(fooled),
        "success_rate": correct["success"].mean(),
        **_sizes(fooled, "l2"),
        **_sizes(fooled, "linf"),
        "n_without_norm": len(correct) - len(fooled),
        "l2_median_all": median["l2"],
        "linf_median_all": median["linf"],
        **of_l1,
        **alignment_summary(correct),
    }


def _sizes(fooled: pd.DataFrame, column: str) -> dict:
    norms = fooled[column]
    return {
        f"{column}_mean": norms.mean(),
        f"{column}_sem": norms.sem(),
        f"{column}_median": norms.median(),
    }


def alignment_summary(rows: pd.DataFrame) -> dict:
    """Mean agreement with human maps, its SEM, and the number of images that have one."""
    alignment = rows["human_alignment"].dropna()
    return {
        "human_alignment": alignment.mean(),
        "human_alignment_sem": alignment.sem(),
        "n_alignment": len(alignment),
    }


def without_norm_warnings(rows: pd.DataFrame) -> list[str]:
    """A sentence about correctly classified images without a norm; none where there is none."""
    if "success" not in rows:
        return []
    correct = rows[rows["clean_correct"] == 1]
    missing = correct.loc[correct["success"] != 1, "image_id"]
    if missing.empty:
        return []
    return [
        f"{len(missing)} of {len(correct)} correctly classified images {WITHOUT_NORM}, e.g. "
        f"{missing.iloc[0]}: the mean leaves out what may be the most robust images; the medians "
        "over all (l2_median_all) take these norms as infinite"
    ]


def norm_floor(settings: dict) -> float:
    """The L2 norm below which an attack finds none, however near the boundary is; 0: no floor.

    settings   of a run. DDN's first ball has radius init_epsilon and shrinks by gamma a step.
    """
    if settings.get("protocol") != "ddn":
        return 0.0
    shrinks = max(0, settings["steps"] - 3)
    return settings["init_epsilon"] * (1 - settings["gamma"]) ** shrinks


def floor_warnings(rows: pd.DataFrame, settings: dict) -> list[str]:
    """A sentence about images whose norm is the attack's floor; none where there is none.

    settings   of the run
    """
    floor = norm_floor(settings)
    if "success" not in rows or not floor:
        return []
    correct = rows[rows["clean_correct"] == 1]
    near = correct[(correct["success"] == 1) & (correct["l2"] <= NEAR_FLOOR * floor)]
    if near.empty:
        return []
    return [
        f"{len(near)} of {len(correct)} correctly classified images have norms {AT_FLOOR}, e.g. "
        f"{near['image_id'].iloc[0]}: {settings['steps']} steps find none below {floor:.2g}, "
        "however near the boundary is; give it more --steps"
    ]


def second_attempt_warnings(rows: pd.DataFrame, steps: int) -> list[str]:
    """A sentence about images with a norm of a second attempt; none where there is none.

    rows    of an attack that makes a backward pass in each of its steps
    steps   of an attempt; the second begins on a line to another image (attacks.line_search)
    """
    correct = rows[rows["clean_correct"] == 1]
    twice = correct[(correct["backwards"] > steps) & (correct["success"] == 1)]
    if twice.empty:
        return []
    return [
        f"{len(twice)} of {len(correct)} correctly classified images: the attack found no norm in "
        f"{steps} steps and began again on a line to another image, e.g. "
        f"{twice['image_id'].iloc[0]}; their norms are in the mean and may be far above the "
        "minimum: give it more --steps"
    ]
