"""Merge finished records into one summary table, results/evaluation_results.csv."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError, read_bytes, write_atomic
from alignment_security.common.folders import glob_visible, left_by_tools_note, list_files
from alignment_security.common.schema import FIRST_LINE, parse_table
from alignment_security.common.tables import check_columns
from alignment_security.records.comparable import comparable_runs
from alignment_security.records.norm_summary import NORM_COLUMNS, format_norm, shown_norms
from alignment_security.records.record import (
    SCREENED_KIND,
    check_record_sha256,
    network_of,
    read_record,
    read_run_file,
)
from alignment_security.records.schemas import SUMMARY
from alignment_security.records.screened import interval_text
from alignment_security.records.summary_rows import summary_frame, summary_rows

SUMMARY_KEY = ["model", "threat", "eps", "image_set", "protocol", "attack"]
SUMMARY_NAME = "evaluation_results.csv"
LONGEST_ATTACK = 60  # letters of an attack in a line of the printed table
JOINED_NAME = "evaluation_results_scores.csv"  # with Brain-Score's scores: `utilities.py join`


class Unfinished(UserError):
    """A record whose run is not done."""


def merge_records(
    results_dir: str | Path,
    allow_partial: bool = False,
    log: Callable[[str], None] | None = None,
    log_damage: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Write results_dir/evaluation_results.csv. Parameters, returns and raises as `summarise`."""
    summary = summarise(results_dir, allow_partial, log, log_damage)
    write_atomic(Path(results_dir) / SUMMARY_NAME, summary.to_csv(index=False, lineterminator="\n"))
    return summary


def summarise(
    results_dir: str | Path,
    allow_partial: bool = False,
    log: Callable[[str], None] | None = None,
    log_damage: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """One row per model x threat x eps x image set x attack, from every finished record.

    allow_partial   summarise an unfinished record over the rows it has, and mark it `partial=1`
    log             gets a sentence for each record that is left out; None refuses them
    log_damage      gets, instead of `log`, those of records and run files that are damaged
    Raises UserError where nothing is left. Without `log` also for an unfinished or damaged record,
    and when two models of one threat and image set were evaluated with different settings.
    """
    root = Path(results_dir) / "records"
    runs, damaged = read_runs(root)
    runs, not_comparable = comparable_runs(runs, one_budget=log is None)
    left_out, rows = list(not_comparable.values()), []
    for path, run in runs.items():
        try:
            rows += _summary_rows(path, run, allow_partial)
        except Unfinished as error:
            left_out.append(str(error))
        except UserError as error:
            damaged.append(str(error))
    if (damaged or left_out) and not (log and rows):
        raise UserError([*damaged, *left_out][0])
    if log:
        for problem in left_out:
            log(f"left out: {problem}")
        for problem in damaged:
            (log_damage or log)(f"left out: {problem}")
    if not rows:
        raise UserError(f"{root}: no rows yet in any of its records; let the evaluation go on")
    summary = summary_frame(rows)
    duplicates = summary[summary.duplicated(SUMMARY_KEY)]
    if len(duplicates):
        key = duplicates.iloc[0][SUMMARY_KEY].to_dict()
        raise UserError(f"{root}: two records give {key}")
    return summary


def read_summary_table(path: Path, fix: str, required: Iterable[str] = ()) -> pd.DataFrame:
    """The table that `merge_records` wrote: exact numbers, empty cells as missing values.

    fix        the command that writes it, for messages
    required   columns that it has to have
    Raises FileNotFoundError, and UserError for a table that is cut, damaged, or has a row twice.
    """
    table = parse_table(path, read_bytes(path), SUMMARY, fix)
    check_columns(path, table, required, fix)
    key = [name for name in SUMMARY_KEY if name in table]
    is_again = table.duplicated(key) if key else pd.Series(dtype=bool)
    if is_again.any():
        line = int(is_again.to_numpy().argmax()) + FIRST_LINE
        raise UserError(f"{path}, line {line}: the row of an earlier line again; {fix}")
    return table


def read_runs(root: Path) -> tuple[dict[Path, dict], list[str]]:
    """(path -> content of the readable run files, problems of the others).

    Raises UserError when there are neither run files nor records.
    """
    runs, problems = {}, []
    paths = glob_visible(root, "*/*/*.json")
    for path in sorted(paths, key=lambda path: (path.parent, path.stem)):  # net, net+steps-100
        try:
            runs[path] = read_run_file(path)
        except UserError as error:
            problems.append(str(error))
    for path in glob_visible(root, "*/*/*.csv"):
        if not path.with_suffix(".json").exists():
            problems.append(f"{path}: a record without its run file; bring the .json, or remove it")
    if not runs and not problems:
        raise UserError(
            f"{root}: no records; `python evaluate_robustness.py --model_name NAME clean` makes "
            "the first"
        )
    return runs, problems


def notes_on(results_dir: str | Path, summary: pd.DataFrame) -> list[str]:
    """What tools left among the records, and nets that the summary counts under several names."""
    root = Path(results_dir) / "records"
    names = set(summary["model"])
    models = [
        run["settings"]["model"] | {"name": run["model"]} for run in read_runs(root)[0].values()
    ]
    known = [model for model in models if model["name"] in names]
    return [*left_by_tools_note(root, list_files(root).by_tools), *same_networks(known)]


def same_networks(models: Iterable[dict]) -> list[str]:
    """A sentence for each network of several names.

    models   settings of the models of some runs, with their names
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for model in models:
        names.setdefault(network_of(model), []).append(model["name"])
    return [
        f"{len(set(found))} names have the same weights (sha256 {network[0][:12]}): "
        f"{', '.join(sorted(set(found)))}; figures and statistics count each: keep one"
        for network, found in names.items()
        if network and len(set(found)) > 1
    ]


# ---- rows ----------------------------------------------------------------------------------------


def _summary_rows(path: Path, run: dict, allow_partial: bool) -> list[dict]:
    """The summary's rows of one record: one per eps, or one.

    path   of the run file
    """
    record, complete = path.with_suffix(".csv"), run["status"] == "done"
    if complete:
        check_record_sha256(record, run)
    elif not allow_partial or run["kind"] == SCREENED_KIND:
        raise Unfinished(
            f"{record}: unfinished run (status {run['status']}); run the same command again to "
            "finish it"
            + (", or merge with --allow_partial" if run["kind"] != SCREENED_KIND else "")
        )
    return summary_rows(run, read_record(record, torn=not complete), complete)


# ---- printing ------------------------------------------------------------------------------------


def summary_table(summary: pd.DataFrame) -> str:
    """The summary as text: one line per model x threat x eps, percentages and norms rounded."""
    shown = summary[["image_set", "threat", "model", "eps", "n"]].copy()
    eps = summary["eps"].astype(float)
    of_threat = {threat: part.unique() for threat, part in eps[eps >= 0].groupby(summary["threat"])}
    shown["eps"] = [
        format_eps(value, threat, of_threat[threat]) if value >= 0 else ""
        for value, threat in zip(eps, summary["threat"])
    ]
    corrupted = summary["threat"].str.startswith("corruptions-")
    accuracies = {"clean_acc": summary["clean_acc"].where(~corrupted)}
    if corrupted.any():
        accuracies["corrupted_acc"] = summary["clean_acc"].where(corrupted)
    if "robust_acc" in summary:
        accuracies["robust_acc"] = summary["robust_acc"]
    for column, values in accuracies.items():
        shown[column] = [f"{100 * v:.1f} %" if pd.notna(v) else "" for v in values]
    if "robust_estimate" in summary and summary["robust_estimate"].notna().any():
        shown["robust_estimate"] = [
            interval_text(row) if pd.notna(row["robust_estimate"]) else ""
            for _, row in summary.iterrows()
        ]
    for column, texts in norm_texts(summary).items():
        shown[column] = texts
    if "human_alignment" in summary:
        shown["human_alignment"] = [
            f"{v:.3f}" if pd.notna(v) else "" for v in summary["human_alignment"]
        ]
    if "n_alignment" in summary and has_other_counts(summary):
        shown["n_alignment"] = [f"{n:.0f}" if n > 0 else "" for n in summary["n_alignment"]]
    if {"size", "l2_mean"} <= set(summary):
        shown["size"] = summary["size"].where(summary["l2_mean"].notna(), "").fillna("")
    if "n_without_norm" in summary and summary["n_without_norm"].any():
        shown["without_norm"] = [
            f"{int(n)} of {of}" if n > 0 else ""
            for n, of in zip(summary["n_without_norm"], summary["clean_correct"])
        ]
    if "partial" in summary and summary["partial"].any():
        shown["state"] = ["unfinished" if partial else "" for partial in summary["partial"]]
    shown["attack"], notes = short_attacks(summary["attack"].fillna(""))
    return "\n".join([shown.to_string(index=False), *notes])


def norm_texts(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of the printed summary: mean and standard error of the norm of `shown_norms`."""
    norms, texts = shown_norms(summary), {}
    for norm, prefix in NORM_COLUMNS.items():
        is_shown = norms.eq(norm)
        for column in (f"{prefix}_mean", f"{prefix}_sem"):
            if column in summary and (norm == "L2" or (is_shown & summary[column].notna()).any()):
                texts[column] = [
                    format_norm(value, norm) if shown and pd.notna(value) else ""
                    for value, shown in zip(summary[column], is_shown)
                ]
    return texts


def short_attacks(attacks: Iterable[str]) -> tuple[list[str], list[str]]:
    """Attacks as they stand in a line of a table, and a line below it for each that is longer."""
    long = [attack for attack in dict.fromkeys(attacks) if len(attack) > LONGEST_ATTACK]
    numbers = {attack: f"({number})" for number, attack in enumerate(long, start=1)}
    short = [
        f"{attack[: LONGEST_ATTACK - 5].rstrip()}… {numbers[attack]}"
        if attack in numbers
        else attack
        for attack in attacks
    ]
    return short, [f"{number} {attack}" for attack, number in numbers.items()]


def has_other_counts(summary: pd.DataFrame) -> bool:
    """Whether a mean alignment is over other images than the mean norm beside it.

    Without a norm, as of `saliency`: than all images.
    """
    behind = summary.get("n_norm", pd.Series(float("nan"), summary.index)).fillna(summary["n"])
    compared = summary["n_alignment"]
    return bool(((compared > 0) & (compared != behind)).any())
