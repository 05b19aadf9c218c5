"""Checks of one finished record by itself: its images, settings, verdicts and norms."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.remarks import is_remark
from alignment_security.common.verdicts import (
    EPS_ATOL,
    EPS_RTOL,
    STANDARD_BUDGET,
    inside_ball,
)
from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.ceiling import check_ceiling
from alignment_security.records.norm_summary import AT_FLOOR, WITHOUT_NORM, floor_warnings
from alignment_security.records.record import (
    BALL_KINDS,
    CLEAN_COLUMNS,
    SALIENCY_KIND,
    SCREENED_KIND,
    check_complete,
    check_record_sha256,
    read_record,
)
from alignment_security.records.screened import SAMPLE, SCREENED, TOP, choice_of
from alignment_security.records.summary_rows import attacked_size

EVALUATE_AGAIN = "evaluate it again with --overwrite"
FINISH_IT = "run the same command again to finish it"
LEAVE_OUT = "leave this record out: remove its .csv and .json, and merge again"
CHANNELS = 3
L2_RTOL = 1e-3  # examples and norms may be rounded differently
ALIGNMENT_TOLERANCE = 1e-9  # of human_alignment against human_alignment_raw / ceiling
BALL_CHECKED = ["eps", "robust", "adv_pred", "broken_by", "from_eps", "linf", "l2"]
WITHOUT_SEED = ("clean", SALIENCY_KIND)  # kinds of run that draw no random number
# kind of a run -> columns that its checks read, besides CLEAN_COLUMNS
NEEDED_COLUMNS = {
    "clean": [],
    "ball": BALL_CHECKED,
    "ball_rand": [*BALL_CHECKED, "draws", "wrong_share", "wrong_low", "wrong_high"],
    SCREENED_KIND: [*BALL_CHECKED, "screen_norm", "stage"],
    SALIENCY_KIND: ["human_alignment_raw", "human_alignment"],
    "minimum_norm": ["success", "adv_pred", "l2", "linf", "human_alignment_raw", "human_alignment"],
}


class Record(NamedTuple):
    """A finished record that is unchanged since its run finished."""

    path: Path  # of the CSV
    run: dict  # content of the run file
    rows: pd.DataFrame

    @property
    def settings(self) -> dict:
        """Settings of the run: image list, attack, eps, seed."""
        return self.run["settings"]["run"]

    @property
    def model(self) -> dict:
        """Settings of the model: weights, preprocessing."""
        return self.run["settings"]["model"]


def finished_record(path: Path, run: dict) -> Record:
    """The record at `path`.

    Raises UserError when its run is unfinished, its bytes have changed, or a column is missing.
    """
    if run["status"] != "done":
        there = path if path.exists() else path.with_suffix(".json")
        raise UserError(
            f"{there}: unfinished (status {run['status']}); {FINISH_IT}, or {LEAVE_OUT}"
        )
    check_record_sha256(path, run)
    if run["kind"] not in NEEDED_COLUMNS:
        raise UserError(f"{path}: unknown kind of record {run['kind']!r}; {EVALUATE_AGAIN}")
    rows = read_record(path)
    needed = [*CLEAN_COLUMNS, *NEEDED_COLUMNS[run["kind"]]]
    missing = [name for name in needed if name not in rows]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}; {EVALUATE_AGAIN}")
    return Record(path, run, rows)


def check_record(record: Record) -> Iterator[str]:
    """Findings about one record, as sentences without its path."""
    rows = record.rows
    yield from check_images(record)
    yield from check_settings(record)
    yield from wrong_rows(
        rows["clean_correct"] != (rows["clean_pred"] == rows["label"]),
        rows,
        "clean_correct is not clean_pred == label",
    )
    if "clean_top5" in rows:
        yield from wrong_rows(
            (rows["clean_correct"] == 1) & (rows["clean_top5"] == 0),
            rows,
            "a label is the first prediction and not among the first five",
        )
    for column in {"forwards", "backwards"} & set(rows):
        yield from wrong_rows(rows[column].isna(), rows, f"the count of {column} is missing")
    if record.run["kind"] in BALL_KINDS:
        yield from check_ball(record)
        if "wrong_low" in record.rows:
            yield from check_shares(record.rows)
        if record.run["kind"] == SCREENED_KIND:
            yield from check_sample(record)
    elif record.run["kind"] == "minimum_norm":
        yield from check_norms(record)
    for warning in record.run["warnings"]:
        of_norms = WITHOUT_NORM in warning or AT_FLOOR in warning  # check_norms finds these
        if not is_remark(warning) and not of_norms:
            yield f"its run warned: {warning}; fix the cause and {EVALUATE_AGAIN}, or {LEAVE_OUT}"


def wrong_rows(
    wrong: pd.Series, rows: pd.DataFrame, problem: str, fix: str = EVALUATE_AGAIN
) -> Iterator[str]:
    """One sentence about the rows where `wrong` is true, naming the first; none if no row is."""
    if wrong.any():
        first = rows[wrong].iloc[0]
        example = first["image_id"]
        if "eps" in rows:
            example = f"{example} at eps {first['eps']:.6g}"
        yield f"{wrong.sum()} row(s) where {problem}, e.g. {example}; {fix}"


# ---- images and settings -------------------------------------------------------------------------


def check_images(record: Record) -> Iterator[str]:
    """Every image once (at every eps), as many as requested, and the images of the list."""
    rows, settings = record.rows, record.settings
    names = list(dict.fromkeys(rows["image_id"]))
    try:
        check_complete(rows, names, settings.get("eps"), record.path)
    except UserError as error:
        yield str(error).removeprefix(f"{record.path}: ")
    in_settings, in_run = settings.get("images"), record.run.get("images")
    if not len(names) == in_settings == in_run:
        yield (
            f"{len(names)} images, its settings say {in_settings}, its run {in_run}; "
            f"{EVALUATE_AGAIN}"
        )
    has_own_labels = settings.get("head", "none") == "none"  # other heads relabel the images
    if not settings.get("list_sha256"):
        yield f"no sha256 of its image list; {EVALUATE_AGAIN}"
    elif has_own_labels and record_list_sha256(rows) != settings["list_sha256"]:
        yield (
            "its images and labels are not those of the list that its settings name (list_sha256 "
            f"differs); {EVALUATE_AGAIN}"
        )


def record_list_sha256(rows: pd.DataFrame) -> str:
    """ImageSet.list_sha256 of the images of a finished record, whose rows are in list order."""
    pairs = rows.drop_duplicates("image_id")[["image_id", "label"]]
    lines = [f"{image_id} {label}\n" for image_id, label in pairs.to_numpy()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_settings(record: Record) -> Iterator[str]:
    """Known weights, a correctly named budget, a recorded seed."""
    settings, attack = record.settings, str(record.settings.get("attack"))
    if not record.model.get("weights_sha256"):
        yield f"no sha256 of its weights; {EVALUATE_AGAIN}"
    if "autoattack" in attack.lower():
        differences = [
            f"{name} {settings.get(name)}"
            for name, value in STANDARD_BUDGET.items()
            if settings.get(name) != value
        ]
        if differences:
            yield (
                f"a budget called {attack!r} that is not AutoAttack's ({', '.join(differences)}); "
                f"{EVALUATE_AGAIN}, or never call it AutoAttack"
            )
    if record.run["kind"] not in WITHOUT_SEED and settings.get("seed") is None:
        yield f"no seed; {EVALUATE_AGAIN}"


# ---- verdicts and norms --------------------------------------------------------------------------


def check_ball(record: Record) -> Iterator[str]:
    """Consistent verdicts, norms within eps, accuracy that falls with eps."""
    rows, settings = record.rows, record.settings
    norm = settings.get("norm", record.run["threat"].split("-")[0])
    attacks = [*settings.get("attacks", STANDARD_BUDGET["attacks"]), *settings.get("screen", [])]
    broken_by = rows["broken_by"].fillna("")
    robust, correct = rows["robust"] == 1, rows["clean_correct"] == 1
    broken = correct & (rows["robust"] == 0) & (rows["eps"] > 0)
    # `~(a <= b)` and `~(a != b)` are true for a missing value too
    other_norm = "l2" if norm == "Linf" else "linf"
    outside = ~inside_ball(rows[norm.lower()], rows["eps"])
    # a point with a small norm also decides smaller eps, unless these came first
    from_larger = settings.get("ladder") == "ascending"
    from_larger &= rows["from_eps"] > rows["eps"] * (1 + EPS_RTOL)
    from_smaller = rows["from_eps"] < rows["eps"] * (1 - EPS_RTOL)
    checks = [
        (
            ~rows["robust"].isin([0, 1]) | (robust & ~correct),
            "a misclassified image counts as robust",
        ),
        (robust & (broken_by != ""), "a robust image was broken by something"),
        (broken & ~broken_by.isin(attacks), "no attack of the budget broke the image"),
        (broken & (rows["adv_pred"] == rows["label"]), "the adversarial class is the label"),
        (broken & rows["adv_pred"].isna(), "the adversarial class is missing"),
        (broken & outside, f"the {norm} norm is not within eps"),
        (broken & rows[other_norm].isna(), "a norm of a broken image is missing"),
        (~broken & rows["linf"].notna(), "an image that was not broken has a norm"),
        (rows["from_eps"].isna(), "the eps that decided the verdict is missing"),
        (broken & from_larger, "an image breaks at eps for having broken at a larger one"),
        (robust & from_smaller, "an image is robust at eps for being so at a smaller one"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)
    yield from impossible_norms(record)
    ordered = rows.sort_values(["image_id", "eps"])
    same_image = ordered["image_id"] == ordered["image_id"].shift()
    rises = same_image & (ordered["robust"].diff() > 0)
    if "stage" in ordered:  # the full budget may break an image at a smaller eps alone
        rises &= ordered["stage"] != SCREENED
    yield from wrong_rows(rises, ordered, "an image is robust that is broken at a smaller eps")


def check_shares(rows: pd.DataFrame) -> Iterator[str]:
    """Of a random network: broken only where more than half of the draws are wrong."""
    broken = (rows["robust"] == 0) & ((rows["eps"] > 0) | (rows["clean_correct"] == 0))
    inside = rows["wrong_share"].between(rows["wrong_low"], rows["wrong_high"])
    checks = [
        (broken & ~(rows["wrong_low"] > 0.5), "broken, though half of the draws may be right"),
        (broken & ~inside, "the share of wrong draws is outside its interval"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)


def check_sample(record: Record) -> Iterator[str]:
    """Of a screened record: the full budget went to the images that its rows imply, and no other.

    Its seed, the verdicts of the screen and the norms of the walks decide which these are.
    """
    rows = record.rows
    known = rows["stage"].isin([SCREENED, TOP, SAMPLE])
    yield from wrong_rows(~known, rows, "the stage is none of a screened record")
    chosen = choice_of(rows, record.settings.get("seed") or 0)
    keys = zip(rows["image_id"], rows["eps"])
    implied = pd.Series([chosen.get(key, SCREENED) for key in keys], rows.index)
    yield from wrong_rows(
        rows["stage"] != implied, rows, "another image was sampled than the rows imply"
    )
    lies = (rows["stage"] == SCREENED) & (rows["robust"] == 1)
    lies &= rows["screen_norm"] <= rows["eps"]
    yield from wrong_rows(lies, rows, "an image stands whose walk broke it")


def check_norms(record: Record) -> Iterator[str]:
    """Norms exactly for the correctly classified images that were fooled; valid alignments."""
    rows = record.rows
    success, correct = rows["success"] == 1, rows["clean_correct"] == 1
    checks = [
        (success & ~correct, "a misclassified image has a minimal norm"),
        (success & ~(rows["l2"] > 0), "an image was fooled by no perturbation"),
        (success & (rows["adv_pred"] == rows["label"]), "the adversarial class is the label"),
        (success & correct & rows["adv_pred"].isna(), "the adversarial class is missing"),
        (~success & rows["l2"].notna(), "an image that was not fooled has a norm"),
    ]
    for wrong, problem in checks:
        yield from wrong_rows(wrong, rows, problem)
    yield from wrong_rows(
        correct & ~success,
        rows,
        "no norm was found for a correctly classified image, so that the mean leaves out the "
        "hardest",
        "give it more --steps, or report the success rate",
    )
    yield from floor_warnings(rows, record.settings)
    yield from impossible_norms(record)
    yield from check_ceiling(record.settings)
    raw, ceiling = rows["human_alignment_raw"], record.settings.get("human_ceiling")
    if ceiling:
        wrong_ratio = (raw / ceiling - rows["human_alignment"]).abs() > ALIGNMENT_TOLERANCE
    else:
        wrong_ratio = raw.notna()
    yield from wrong_rows(
        (raw.abs() > 1) | wrong_ratio, rows, "the alignment is no correlation over its ceiling"
    )


def impossible_norms(record: Record) -> Iterator[str]:
    """No pixel changes by more than 1; Linf <= L2 <= Linf sqrt(values of an image)."""
    rows, size = record.rows, attacked_size(record.run)
    values = CHANNELS * size[0] * size[1] if size else math.inf
    above_1 = rows["linf"] > 1 + EPS_ATOL
    above_l2 = rows["linf"] > rows["l2"] * (1 + EPS_RTOL) + EPS_ATOL
    yield from wrong_rows(above_1 | above_l2, rows, "linf is above 1 or above l2")
    too_long = rows["l2"] > rows["linf"] * math.sqrt(values) * (1 + L2_RTOL) + EPS_ATOL
    yield from wrong_rows(too_long, rows, "l2 is larger than linf in every value of the image")


# ---- other files ---------------------------------------------------------------------------------


def check_examples(record: Record) -> Iterator[str]:
    """Every example that the sessions were asked to save is there.

    They save the first `examples` images of the list that were fooled, and `example_names`.
    """
    sessions = record.run["sessions"]
    asked = min(session.get("examples", 0) for session in sessions)
    named = set.intersection(*(set(session.get("example_names", [])) for session in sessions))
    if not (asked or named) or "l2" not in record.rows:
        return
    listed = list(dict.fromkeys(record.rows["image_id"]))
    ids = [*listed[:asked], *(name for name in listed[asked:] if name in named)]
    fooled = record.rows.loc[record.rows["l2"] > 0, "image_id"]
    missing = [
        image_id
        for image_id in ids
        if image_id in set(fooled) and not example_path(record.path, image_id).exists()
    ]
    if missing:
        yield (
            f"{len(missing)} of its adversarial examples are missing, e.g. of {missing[0]}; bring "
            f"them back, or {EVALUATE_AGAIN} --examples {' '.join([str(asked), *sorted(named)])}"
        )
