"""Trace numbers of a figure back to the runs behind them: weights, settings, commits.

    python utilities.py trace figures/accuracy_vs_eps.csv

A line of a figure's table names its run in its columns: image set, threat, model, budget,
corruption. A table without such columns (a correlation is over many models) is matched by its
caption.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_text_file
from alignment_security.common.folders import glob_visible
from alignment_security.common.schema import FIRST_LINE, read_json
from alignment_security.common.text import read_text
from alignment_security.records.comparable import attack_text, comparable_runs
from alignment_security.records.record import BALL_KINDS, read_record, read_run_file
from alignment_security.records.screened import robust_estimates

# columns of a figure's table that name one fact about a run; see run_values
RUN_COLUMNS = ("image_set", "threat", "model", "budget", "attack", "head")
# columns that name `image set, threat, budget` in one cell
SOURCE_COLUMNS = ("source", "ball", "feng2025", "other")
ACCURACY_TOLERANCE = 1e-9


def print_trace(figure: Path, results_dir: Path, line: int | None = None) -> None:
    """Print the runs behind each line of a figure's table, or behind one line.

    Raises UserError when the file is no such table, and SystemExit(1) when a line has no run.
    """
    table, caption = read_figure(figure, line)
    runs = finished_runs(results_dir)
    behind = runs_behind(table, caption, runs)
    for path, lines in lines_by_run(behind).items():
        print(f"{figure}, line(s) {line_ranges(lines)}\n{describe_run(path, runs[path])}\n")
    changed = changed_numbers(figure, table, behind, runs)
    if changed:
        print("\n\n".join(changed))
    if "benchmark" in table or "score" in table:
        print_score_sources(results_dir)
    without_run = [number for number, paths in behind.items() if not paths]
    if without_run:
        print(
            f"{figure}: no finished run in {results_dir} is behind line(s) "
            f"{line_ranges(without_run)}: numbers of others, or of runs that are gone; give the "
            "--results_dir that it was drawn from",
            file=sys.stderr,
        )
        raise SystemExit(1)


def print_score_sources(results_dir: Path) -> None:
    """Print date, source and sha256 of each set of Brain-Score scores in the results folder."""
    for path in glob_visible(results_dir, "benchmark_scores/*.json"):
        facts = read_json(path, dict, "description of scores", "run setup_scores again")
        print(
            f"{path}\n  Brain-Score of {facts.get('date')}, {facts.get('source')}, "
            f"sha256 {facts.get('sha256')}"
        )


def read_figure(figure: Path, line: int | None) -> tuple[pd.DataFrame, str]:
    """(table of a figure as text, its caption).

    line   keep only this line
    The index of the table is the line number in its file. The caption is empty when it has none.
    """
    try:
        table = pd.read_csv(figure, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{figure}: not the table of a figure ({error}); python plotting.py writes one with "
            "each figure"
        ) from None
    table.index = pd.RangeIndex(FIRST_LINE, FIRST_LINE + len(table))
    if line is not None:
        if line not in table.index:
            raise UserError(
                f"{figure}: has no line {line}; its numbers are in lines {FIRST_LINE} to "
                f"{len(table) + 1}"
            )
        table = table.loc[[line]]
    caption = figure.with_suffix(".txt")
    return table, read_text(caption) if caption.exists() else ""


def finished_runs(results_dir: Path) -> dict[Path, dict]:
    """Path of the record -> content of the run file, for finished runs. Raises UserError."""
    paths = glob_visible(results_dir / "records", "*/*/*.json")
    if not paths:
        raise UserError(
            f"{results_dir / 'records'}: no records; give the --results_dir that the figure was "
            "drawn from"
        )
    runs = {path.with_suffix(".csv"): read_run_file(path) for path in paths}
    return {path: run for path, run in runs.items() if run["status"] == "done"}


# ---- which runs ----------------------------------------------------------------------------------


def run_values(run: dict, attack: str) -> dict[str, str]:
    """The value of each of RUN_COLUMNS for a run, whose attack is given in words."""
    return {
        "image_set": run["image_set"],
        "threat": run["threat"],
        "model": run["model"],
        "budget": attack,
        "attack": attack,
        "head": run["settings"]["run"].get("head", "none"),
    }


def runs_behind(table: pd.DataFrame, caption: str, runs: dict[Path, dict]) -> dict[int, list[Path]]:
    """Line -> paths of the records that agree with all of its columns that describe a run.

    A line that names no model is of the models of the summary, all or those that have scores or
    norms. Figures of earlier versions name the attack without head, seed and precision, and those
    of accuracies under attack name runs in their captions alone.
    """
    if {"type", "severity", "model"} <= set(table.columns):
        table = table.assign(threat="corruptions-" + table["type"] + "-" + table["severity"])
    columns = [name for name in RUN_COLUMNS if name in table]
    sources = [name for name in SOURCE_COLUMNS if name in table]
    if "threat" not in columns and not sources:
        runs = {
            path: run
            for path, run in runs.items()
            if run["kind"] in BALL_KINDS and caption_names(caption, run)
        }
    named = {path: run_values(run, attack_text(run)) for path, run in runs.items()}
    former = {
        path: run_values(run, str(run["settings"]["run"].get("attack")))
        for path, run in runs.items()
        if "beside" not in run
    }

    of_summary, _ = comparable_runs(runs)

    def matching(runs: dict[Path, dict], row: dict) -> list[Path]:
        return [
            path
            for path, values in runs.items()
            if (row.get("model") or path in of_summary) and is_behind(values, row, columns, sources)
        ]

    return {
        line: matching(named, row) or matching(former, row)
        for line, row in table.to_dict("index").items()
    }


def is_behind(values: dict, row: dict, columns: list[str], sources: list[str]) -> bool:
    """Whether a row of a figure's table was drawn from a run.

    values             of `run_values`
    columns, sources   those of RUN_COLUMNS and SOURCE_COLUMNS that the table has
    """
    source = ", ".join(values[name] for name in ("image_set", "threat", "attack"))
    if source in [row[name] for name in sources]:
        return values["model"] == (row.get("model") or values["model"])
    if sources and "threat" not in columns:
        return False
    return all(values[name] == row[name] for name in columns)


def caption_names(caption: str, run: dict) -> bool:
    """Whether a caption names the run's image set and budget; True without a caption."""
    names = run["image_set"], str(run["settings"]["run"].get("attack"))
    return not caption or all(name in caption for name in names)


def lines_by_run(behind: dict[int, list[Path]]) -> dict[Path, list[int]]:
    """Path of a record -> the lines drawn from it: the inverse of `runs_behind`."""
    lines: dict[Path, list[int]] = {}
    for line, paths in behind.items():
        for path in paths:
            lines.setdefault(path, []).append(line)
    return lines


def changed_numbers(
    figure: Path, table: pd.DataFrame, behind: dict[int, list[Path]], runs: dict[Path, dict]
) -> list[str]:
    """A sentence per row whose accuracy no longer matches its record.

    Only rows of one run under norm-bounded attack are compared.
    """
    if not {"eps", "accuracy"} <= set(table.columns):
        return []
    sentences = []
    for line, paths in behind.items():
        if len(paths) != 1 or runs[paths[0]]["kind"] not in BALL_KINDS:
            continue
        eps, accuracy = (
            figure_number(figure, line, name, table.loc[line, name]) for name in ("eps", "accuracy")
        )
        found = accuracy_of(read_record(paths[0]), eps)
        if abs(found - accuracy) > ACCURACY_TOLERANCE:
            sentences.append(
                f"{figure}, line {line}: accuracy {accuracy}, its record gives {found}; "
                "draw it again"
            )
    return sentences


def accuracy_of(rows: pd.DataFrame, eps: float) -> float:
    """Accuracy within eps of a record under norm-bounded attack; nan for an eps that it lacks."""
    if not eps:
        return float(rows["clean_correct"].mean())
    if "stage" in rows:
        return float(robust_estimates(rows)["robust_estimate"].get(eps, math.nan))
    return float(rows.loc[rows["eps"] == eps, "robust"].mean())


def figure_number(figure: Path, line: int, column: str, text: str) -> float:
    """A number in a figure's table. Raises UserError for a cell that is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{figure}, line {line}, column {column}: {text!r} is no number; draw it again"
        )
    return number


# ---- printing ------------------------------------------------------------------------------------


def describe_run(path: Path, run: dict) -> str:
    """A run as text: record, weights, settings, images, and code and machine of each session."""
    model, settings = run["settings"]["model"], run["settings"]["run"]
    unchanged = path.exists() and sha256_text_file(path) == run.get("record_sha256")
    note = "" if unchanged else " WHICH IT NO LONGER HAS"
    facts = [
        ("record", f"{path}, sha256 {run.get('record_sha256')}{note}"),
        ("run file", f"{path.with_suffix('.json')}"),
        (
            "model",
            f"{run['model']}, weights {model.get('weights')}, sha256 {model.get('weights_sha256')}",
        ),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("images", f"{run.get('images')} of {run['image_set']}"),
        *(("code", describe_session(session)) for session in run["sessions"]),
    ]
    return "\n".join(f"  {name:9} {value}" for name, value in facts)


def describe_session(session: dict) -> str:
    """Commit, start, device and versions of one session."""
    versions = session.get("versions", {}).items()
    return (
        f"git {session.get('git')}, {session.get('started')}, {session.get('device')}, "
        + ", ".join(f"{name} {version}" for name, version in versions)
    )


def line_ranges(lines: list[int]) -> str:
    """`2-4, 7` for 2, 3, 4, 7."""
    ranges: list[list[int]] = []  # [first] or [first, last]
    for line in lines:
        if ranges and line == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], line]
        else:
            ranges.append([line])
    return ", ".join("-".join(map(str, each)) for each in ranges)
