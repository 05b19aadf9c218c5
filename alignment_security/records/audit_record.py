"""Checks of one finished record by itself: its images, settings, counts and examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.common.verdicts import STANDARD_BUDGET
from alignment_security.records.adversarial_examples import example_norms, example_path
from alignment_security.records.norm_summary import minimised_norm
from alignment_security.records.record import (
    BALL_KINDS,
    CLEAN_COLUMNS,
    SALIENCY_KIND,
    SCREENED_KIND,
    check_complete,
    check_record_sha256,
    read_record,
)

EVALUATE_AGAIN = "evaluate it again with --overwrite"
FINISH_IT = "run the same command again to finish it"
LEAVE_OUT = "leave this record out: remove its .csv and .json, and merge again"
BINARY_CLASSES = 2  # of a head
EXAMPLE_RTOL = 1e-6  # of the norms of an example against those of its row
BALL_CHECKED = ["eps", "robust", "adv_pred", "broken_by", "from_eps", "linf", "l2"]
OWN_NORMS = ("crossing", "fmn")  # protocols that this project implements
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
    def norm(self) -> str:
        """Of an attack: "L2", "Linf" or "L1"."""
        return self.settings.get("norm", minimised_norm(self.run["threat"]))

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


# ---- classes and counts --------------------------------------------------------------------------


def check_clean(record: Record) -> Iterator[str]:
    """Clean predictions that agree with the labels, the same in every row of an image."""
    rows = record.rows
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
    of_image = ["label", "clean_pred"]
    first = rows.groupby("image_id")[of_image].transform("first")
    yield from wrong_rows(
        (rows[of_image] != first).any(axis=1),
        rows,
        "the label or the clean prediction is not that of the image's other rows",
    )
    classes, columns = class_count(record), [*of_image, *({"adv_pred"} & set(rows))]
    yield from wrong_rows(
        (rows[columns] >= classes).any(axis=1), rows, f"a class is none of the {classes}"
    )


def class_count(record: Record) -> int:
    """How many classes the labels and predictions of a record may be."""
    if record.settings.get("head", "none") != "none":
        return BINARY_CLASSES
    return len(record.run.get("classes", [])) or IMAGENET_CLASSES


def check_counts(record: Record) -> Iterator[str]:
    """Passes of every row; an attack of ours goes backward only where it went forward."""
    rows = record.rows
    counts = [name for name in ("forwards", "backwards") if name in rows]
    for column in counts:
        yield from wrong_rows(rows[column].isna(), rows, f"the count of {column} is missing")
    is_ours = record.run["kind"] in BALL_KINDS or record.settings.get("protocol") in OWN_NORMS
    if is_ours and len(counts) == 2 and rows[counts].notna().all(axis=None):
        passes = rows.groupby("image_id")[counts].transform("sum")
        yield from wrong_rows(
            passes["backwards"] > passes["forwards"],
            rows,
            "an image has more backward than forward passes",
        )


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


# ---- other files ---------------------------------------------------------------------------------


# ---- examples ------------------------------------------------------------------------------------


def check_examples(record: Record) -> Iterator[str]:
    """Every example that the sessions were asked to save is there, and has the norms of a row."""
    owed = examples_owed(record)
    missing = [name for name in owed if not example_path(record.path, name).exists()]
    if missing:
        sessions = record.run["sessions"]
        asked = min(session.get("examples", 0) for session in sessions)
        named = sorted(names_asked(record))
        yield (
            f"{len(missing)} of its adversarial examples are missing, e.g. of {missing[0]}; bring "
            f"them back, or {EVALUATE_AGAIN} --examples {' '.join([str(asked), *named])}"
        )
    for name in owed:
        if name not in missing:
            yield from check_example(record, name)


def check_example(record: Record, name: str) -> Iterator[str]:
    """A row of the image has the norms of its example."""
    try:
        l2, linf = example_norms(example_path(record.path, name))
    except UserError as error:
        yield str(error)
        return
    norms = record.rows.loc[record.rows["image_id"] == name, ["l2", "linf"]]
    if not np.isclose(norms, (l2, linf), rtol=EXAMPLE_RTOL, atol=0).all(axis=1).any():
        yield (
            f"no row of {name} has the norms of its saved example (l2 {l2:.6g}, linf {linf:.6g}); "
            f"{EVALUATE_AGAIN}"
        )


def examples_owed(record: Record) -> list[str]:
    """The images of which the sessions were asked to save an example.

    They save the first `examples` images of the list that were fooled, and `example_names`.
    """
    asked = min(session.get("examples", 0) for session in record.run["sessions"])
    named = names_asked(record)
    if not (asked or named) or "l2" not in record.rows:
        return []
    listed = list(dict.fromkeys(record.rows["image_id"]))
    fooled = set(record.rows.loc[record.rows["l2"] > 0, "image_id"])
    chosen = [*listed[:asked], *(name for name in listed[asked:] if name in named)]
    return [name for name in chosen if name in fooled]


def names_asked(record: Record) -> set[str]:
    """Images that every session named in --examples."""
    sessions = record.run["sessions"]
    return set.intersection(*(set(session.get("example_names", [])) for session in sessions))
