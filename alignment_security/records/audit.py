"""What would not stand up in review: a finished results folder checked again from its files alone, and figures traced back.

    python utilities.py audit [results/]                     a line per finding: file, what is wrong, what mends it
    python utilities.py audit results/ --reattack 20         and 20 kept examples put before their models once more
    python utilities.py trace figures/accuracy_vs_eps.csv    the runs, weights, settings and commits behind a figure's numbers

Exit status of audit: 0 nothing found, 1 findings, 2 the request is wrong. Only --reattack needs torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.locked_run import json_round_trip
from alignment_security.common.verdicts import EPS_ATOL, EPS_RTOL, STANDARD_BUDGET
from alignment_security.records.record import (
    CLEAN_COLUMNS,
    check_complete,
    check_record_sha256,
    first_difference,
    read_record,
    read_run_file,
)
from alignment_security.records.summary import SUMMARY_KEY, SUMMARY_NAME, differing_runs, summarise

EVALUATE_AGAIN = "evaluate it again with --overwrite"
FINISH_IT = "run the same command again to finish it"
MERGE_AGAIN = "run `python utilities.py merge` again"
STANDARD = json_round_trip(STANDARD_BUDGET)
NEEDED_COLUMNS = {
    "clean": [],
    "ball": ["eps", "robust", "adv_pred", "broken_by", "from_eps", "linf", "l2"],
    "minimum_norm": ["success", "adv_pred", "l2", "linf", "human_alignment_raw", "human_alignment"],
}


class Record(NamedTuple):
    """A finished run whose record is the one it finished with."""

    path: Path  # of the record
    run: dict
    rows: pd.DataFrame

    @property
    def settings(self) -> dict:
        return self.run["settings"]["run"]

    @property
    def model(self) -> dict:
        return self.run["settings"]["model"]


def audit(results_dir) -> list[str]:
    """Everything that would not stand up in review, a line each. Raises UserError where there is no record at all."""
    root = Path(results_dir) / "records"
    runs, found = read_runs(root)
    whole = []
    for path, run in runs.items():
        try:
            record = finished_record(path.with_suffix(".csv"), run)
            lines = [f"{record.path}: {line}" for line in check_record(record)]
            whole.append(record)
        except UserError as error:
            lines = [str(error)]
        found += lines
    found += [
        f"{path}: not comparable with {other.name}, whose settings differ ({what}); evaluate one of them again with "
        "--overwrite"
        for path, other, what in differing_runs(runs)
    ]
    return list(
        dict.fromkeys(
            [
                *found,
                *check_models(whole),
                *check_lists(whole),
                *check_code(root, whole),
                *check_summary(Path(results_dir)),
            ]
        )
    )


def read_runs(root: Path) -> tuple[dict[Path, dict], list[str]]:
    """Run files that can be read, and what there is to say of the others."""
    runs, found = {}, []
    for path in sorted(root.glob("*/*/*.json")):
        try:
            runs[path] = read_run_file(path)
        except UserError as error:
            found.append(str(error))
    found += [
        f"{path}: a record without its run file; bring the .json, or remove it"
        for path in sorted(root.glob("*/*/*.csv"))
        if not path.with_suffix(".json").exists()
    ]
    if not runs and not found:
        raise UserError(
            f"{root}: no records; `python evaluate_robustness.py --model_name NAME clean` makes the first"
        )
    return runs, found


def finished_record(path: Path, run: dict) -> Record:
    """Raises UserError for a run that is not finished, and for a record that changed since or lacks columns."""
    if run["status"] != "done":
        raise UserError(f"{path}: unfinished (status {run['status']}); {FINISH_IT}")
    check_record_sha256(path, run)
    rows = read_record(path)
    if missing := [
        name
        for name in [*CLEAN_COLUMNS, *NEEDED_COLUMNS.get(run["kind"], [f"of kind {run['kind']}"])]
        if name not in rows
    ]:
        raise UserError(f"{path}: has no column {', '.join(missing)}; {EVALUATE_AGAIN}")
    return Record(path, run, rows)


# ---- one record ----------------------------------------------------------------------------------


def check_record(record: Record) -> Iterator[str]:
    """What is wrong with one record by itself: sentences without its path."""
    yield from check_images(record)
    yield from check_settings(record)
    yield from wrong_rows(
        record.rows["clean_correct"] != (record.rows["clean_pred"] == record.rows["label"]),
        record.rows,
        "clean_correct is not clean_pred == label",
    )
    yield from {"clean": lambda _: [], "ball": check_ball, "minimum_norm": check_norms}[
        record.run["kind"]
    ](record)
    for warning in [
        text for text in record.run["warnings"] if "batch size is now" not in text
    ]:  # which changes no verdict
        yield f"its run warned: {warning}; mend the cause and {EVALUATE_AGAIN}, or report it"


def wrong_rows(
    wrong: pd.Series, rows: pd.DataFrame, what: str, remedy: str = EVALUATE_AGAIN
) -> Iterator[str]:
    """One sentence about the rows where `wrong` is true, with the first of them; none where there is no such row."""
    if wrong.any():
        first = rows[wrong].iloc[0]
        where = (
            f"{first['image_id']} at eps {first['eps']:.6g}" if "eps" in rows else first["image_id"]
        )
        yield f"{wrong.sum()} row(s) where {what}, e.g. {where}; {remedy}"


def check_images(record: Record) -> Iterator[str]:
    """Every image once (at every eps), as many as were asked for, and they are those of the list."""
    rows, settings = record.rows, record.settings
    names = list(dict.fromkeys(rows["image_id"]))
    try:
        check_complete(rows, names, settings.get("eps"), record.path)
    except UserError as error:
        yield str(error).removeprefix(f"{record.path}: ")
    if {len(names), record.run.get("images")} != {settings.get("images")}:
        yield f"{len(names)} images, its settings say {settings.get('images')}, its run {record.run.get('images')}; {EVALUATE_AGAIN}"
    if not settings.get("list_sha256"):
        yield f"no sha256 of its image list; {EVALUATE_AGAIN}"
    elif (
        settings.get("head", "none") == "none"
        and record_list_sha256(rows) != settings["list_sha256"]
    ):
        yield f"its images and labels are not those of the list that its settings name (list_sha256 differs); {EVALUATE_AGAIN}"


def record_list_sha256(rows: pd.DataFrame) -> str:
    """image_sets.ImageSet.list_sha256 of the images of a finished record, which are in the order of the list."""
    pairs = rows.drop_duplicates("image_id")[["image_id", "label"]]
    return hashlib.sha256(
        "".join(f"{name} {label}\n" for name, label in pairs.to_numpy()).encode()
    ).hexdigest()


def check_settings(record: Record) -> Iterator[str]:
    """Weights that can be told, a budget that bears its own name, a seed."""
    settings, attack = record.settings, str(record.settings.get("attack"))
    if not record.model.get("weights_sha256"):
        yield f"no sha256 of its weights; {EVALUATE_AGAIN}"
    standard = all(settings.get(name) == value for name, value in STANDARD.items())
    if "autoattack" in attack.lower() and not standard:
        less = ", ".join(
            f"{name} {settings.get(name)}"
            for name, value in STANDARD.items()
            if settings.get(name) != value
        )
        yield f"a budget called {attack!r} that is not AutoAttack's ({less}); {EVALUATE_AGAIN}, or never call it AutoAttack"
    if record.run["kind"] != "clean" and settings.get("seed") is None:
        yield f"no seed; {EVALUATE_AGAIN}"


def check_ball(record: Record) -> Iterator[str]:
    """Verdicts that fit together, norms inside their balls, accuracy that falls with eps."""
    rows, settings = record.rows, record.settings
    norm, by = (
        settings.get("norm", record.run["threat"].split("-")[0]),
        rows["broken_by"].fillna(""),
    )
    robust, correct = rows["robust"] == 1, rows["clean_correct"] == 1
    broken = correct & (rows["robust"] == 0) & (rows["eps"] > 0)
    yield from wrong_rows(
        ~rows["robust"].isin([0, 1]) | (robust & ~correct),
        rows,
        "a misclassified image counts as robust",
    )
    yield from wrong_rows(robust & (by != ""), rows, "a robust image was broken by something")
    yield from wrong_rows(
        broken & ~by.isin(settings.get("attacks", STANDARD["attacks"])),
        rows,
        "no attack of the budget broke the image",
    )
    yield from wrong_rows(
        broken & ~(rows["adv_pred"] != rows["label"]), rows, "the adversarial class is the label"
    )
    yield from wrong_rows(
        broken & ~(rows[norm.lower()] <= rows["eps"] * (1 + EPS_RTOL) + EPS_ATOL),
        rows,
        f"the {norm} norm is not within eps",
    )
    yield from wrong_rows(
        broken & (rows["from_eps"] > rows["eps"] * (1 + EPS_RTOL)),
        rows,
        "an image breaks at eps for having broken at a larger one",
    )
    yield from wrong_rows(
        robust & (rows["from_eps"] < rows["eps"] * (1 - EPS_RTOL)),
        rows,
        "an image is robust at eps for being so at a smaller one",
    )
    yield from impossible_norms(rows)
    ordered = rows.sort_values(["image_id", "eps"])
    rises = (ordered["robust"].diff() > 0) & (ordered["image_id"] == ordered["image_id"].shift())
    yield from wrong_rows(rises, ordered, "an image is robust that is broken at a smaller eps")


def check_norms(record: Record) -> Iterator[str]:
    """Norms of correctly classified images that were fooled, and of no other; alignments that are correlations."""
    rows = record.rows
    success, correct = rows["success"] == 1, rows["clean_correct"] == 1
    yield from wrong_rows(success & ~correct, rows, "a misclassified image has a minimal norm")
    yield from wrong_rows(
        success & ~(rows["l2"] > 0), rows, "an image was fooled by no perturbation"
    )
    yield from wrong_rows(
        success & ~(rows["adv_pred"] != rows["label"]), rows, "the adversarial class is the label"
    )
    yield from wrong_rows(
        ~success & rows["l2"].notna(), rows, "an image that was not fooled has a norm"
    )
    yield from wrong_rows(
        correct & ~success,
        rows,
        "no norm was found for a correctly classified image, so that the mean leaves "
        "out the hardest",
        "give it more --steps, or report the success rate",
    )
    yield from impossible_norms(rows)
    raw, ceiling = rows["human_alignment_raw"], record.settings.get("human_ceiling")
    off = (raw / ceiling - rows["human_alignment"]).abs() > 1e-9 if ceiling else raw.notna()
    yield from wrong_rows(
        (raw.abs() > 1) | off, rows, "the alignment is no correlation over its ceiling"
    )


def impossible_norms(rows: pd.DataFrame) -> Iterator[str]:
    """No pixel changes by more than 1, nor by more than all of them together."""
    yield from wrong_rows(
        (rows["linf"] > 1 + EPS_ATOL) | (rows["linf"] > rows["l2"] * (1 + EPS_RTOL) + EPS_ATOL),
        rows,
        "linf is above 1 or above l2",
    )


# ---- records together ----------------------------------------------------------------------------


def check_models(whole: list[Record]) -> Iterator[str]:
    """One name is one model: the same weights and preprocessing under every threat, and the same clean predictions."""
    first: dict[str, Record] = {}
    for record in whole:
        other = first.setdefault(record.run["model"], record)
        a, b = ({k: v for k, v in r.model.items() if k != "head"} for r in (other, record))
        if found := first_difference(a, b):
            yield f"{record.path}: not the model of {other.path} though it bears its name ({found}); evaluate one of them again"
    seen: dict[tuple, tuple[Record, pd.Series]] = {}
    for record in whole:
        s, rows = record.settings, record.rows.drop_duplicates("image_id")
        same_pixels = (
            record.run["image_set"],
            s.get("head"),
            s.get("precision"),
            s.get("pixels"),
            str(s.get("corruption")),
        )
        mine = rows.set_index("image_id")["clean_pred"]
        other, theirs = seen.setdefault((record.run["model"], *same_pixels), (record, mine))
        both = pd.concat([theirs, mine], axis=1, join="inner", keys=["theirs", "mine"])
        if len(wrong := both[both["theirs"] != both["mine"]]):
            yield (
                f"{record.path}: {len(wrong)} of {len(both)} clean predictions differ from those of {other.path}, e.g. "
                f"{wrong.index[0]}; evaluate both again on one machine"
            )


def check_lists(whole: list[Record]) -> Iterator[str]:
    """Runs of one image set and slice have one list, whatever the threat (records.mixed sees to models of one threat)."""
    first: dict[tuple, Record] = {}
    for record in whole:
        key = (
            record.run["image_set"],
            str(record.settings.get("slice")),
            str(record.settings.get("corruption")),
        )
        other = first.setdefault(key, record)
        if (
            record.settings.get("list_sha256") != other.settings.get("list_sha256")
            and record.path.parent != other.path.parent
        ):
            yield f"{record.path}: another image list than {other.path}, of the same set and slice; evaluate one of them again"


def check_code(root: Path, whole: list[Record]) -> Iterator[str]:
    """Commits and versions: every session by code that a commit holds, and the same for all that is compared."""
    commits: dict[Path, dict[str, Path]] = {}
    for record in whole:
        for session in record.run["sessions"]:
            git = session.get("git") or "unknown"
            if git == "unknown" or git.endswith("-dirty"):
                yield f"{record.path}: made by code that no commit holds (git {git}); commit (or set GIT_COMMIT) and {EVALUATE_AGAIN}"
            versions = " ".join(
                f"{name} {version}" for name, version in session.get("versions", {}).items()
            )
            for folder, fact in (
                (record.path.parent, f"git {git.removesuffix('-dirty')}"),
                (root, versions or "versions unknown"),
            ):
                commits.setdefault(folder, {}).setdefault(fact, record.path)
    for folder, facts in commits.items():
        (fact, path), *others = facts.items()
        for other, at in others:
            a, b = differing(fact, other)
            yield (
                f"{folder}: {path.name} was made with {a}, {at.name} with {b}; name both in the paper, or evaluate one of "
                "them again"
            )


def differing(a: str, b: str) -> tuple[str, str]:
    """The `name value` pairs of two texts that are not in both."""
    pairs = [dict(zip(text.split()[::2], text.split()[1::2])) for text in (a, b)]
    names = [name for name in {**pairs[0], **pairs[1]} if pairs[0].get(name) != pairs[1].get(name)]
    mine, theirs = (
        ", ".join(f"{name} {pair.get(name, 'not recorded')[:12]}" for name in names)
        for pair in pairs
    )
    return mine, theirs


# ---- the summary ---------------------------------------------------------------------------------


def check_summary(results_dir: Path) -> Iterator[str]:
    """The summary is what the records give today. Says nothing where they cannot be summarised: that is found elsewhere."""
    path = results_dir / SUMMARY_NAME
    try:
        fresh = summarise(results_dir, allow_partial=True)
    except UserError:
        return
    try:
        written = pd.read_csv(path, dtype={"model": str}, float_precision="round_trip")
    except (OSError, ValueError) as error:
        yield f"{path}: {'missing' if isinstance(error, FileNotFoundError) else f'not a table ({error})'}; {MERGE_AGAIN}"
        return
    if missing := [name for name in SUMMARY_KEY if name not in written]:
        yield f"{path}: no column {', '.join(missing)}; {MERGE_AGAIN}"
        return
    keyed = [
        table.astype({"eps": float}).fillna({"eps": -1.0}).set_index(SUMMARY_KEY)
        for table in (written, fresh)
    ]
    for a, b, what in (
        (*keyed, "a row that no record gives"),
        (*keyed[::-1], "no row for a record"),
    ):
        for key in a.index.difference(b.index)[:1]:
            yield f"{path}: {what} ({' '.join(map(str, key[:2]))}); {MERGE_AGAIN}"
    yield from changed_cells(path, *keyed)


def changed_cells(path: Path, written: pd.DataFrame, fresh: pd.DataFrame) -> Iterator[str]:
    """A sentence per column of the summary in which some cell is not what its record gives."""
    common = written.index.intersection(fresh.index)
    written, fresh = (table[~table.index.duplicated()].loc[common] for table in (written, fresh))
    for name in [name for name in written if name in fresh]:
        a, b = written[name], fresh[name]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            same = np.isclose(a.astype(float), b.astype(float), rtol=1e-12, atol=0, equal_nan=True)
        else:
            same = (a.astype(str) == b.astype(str)) | (a.isna() & b.isna())
        if not same.all():
            at = int(np.argmin(same))
            whose = " ".join(map(str, common[at][:2]))
            yield f"{path}: {name} of {whose} is {a.iloc[at]}, its record gives {b.iloc[at]}; {MERGE_AGAIN}"
