"""From the numbers in a figure's CSV to the runs, weights, settings and commits behind them (`utilities.py trace FIGURE.csv`).

A line of a figure's table names what it was drawn from in its columns: image set, threat, model, budget, corruption. What it
leaves open (a correlation is over many models) is narrowed by the caption beside it, and by nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_file
from alignment_security.records.record import read_record, read_run_file

# column of a figure's table -> what it is of a run; `threat` can also stand as corruption type and severity
RUN_VALUES = {
    "image_set": lambda run: run["image_set"],
    "threat": lambda run: run["threat"],
    "model": lambda run: run["model"],
    "budget": lambda run: str(run["settings"]["run"].get("attack")),
    "attack": lambda run: str(run["settings"]["run"].get("attack")),
    "head": lambda run: run["settings"]["run"].get("head", "none"),
}
SOURCE_COLUMNS = (
    "source",
    "ball",
    "feng2025",
    "other",
)  # columns that say `image set, threat, budget` in one cell
UNDER_ATTACK = ("ball",)  # correlations and maps of models are of accuracies under attack


def print_trace(figure: Path, results_dir: Path, line: int | None = None) -> None:
    """Print the runs behind each line of a figure's table. Raises UserError for a file that is no such table, and
    SystemExit(1) where some line has no run behind it."""
    table, caption = read_figure(figure, line)
    runs = finished_runs(results_dir)
    behind = runs_behind(table, caption, runs)
    for path, lines in grouped(behind).items():
        print(f"{figure}, line(s) {shortened(lines)}\n{describe_run(path, runs[path])}\n")
    print("\n".join(changed_numbers(figure, table, behind, runs)), end="")
    scores = (
        sorted(results_dir.glob("benchmark_scores/*.json"))
        if "benchmark" in table or "score" in table
        else []
    )
    for path in scores:
        facts = json.loads(path.read_text())
        print(
            f"{path}\n  Brain-Score of {facts.get('date')}, {facts.get('source')}, sha256 {facts.get('sha256')}"
        )
    lost = [at for at, paths in behind.items() if not paths]
    if lost:
        print(
            f"{figure}: no finished run in {results_dir} is behind line(s) {shortened(lost)}: numbers of others, or of runs that "
            "are gone; give the --results_dir that it was drawn from",
            file=sys.stderr,
        )
        raise SystemExit(1)


def read_figure(figure: Path, line: int | None) -> tuple[pd.DataFrame, str]:
    """The table of a figure as text, indexed by the line of its file, and its caption (empty where there is none)."""
    try:
        table = pd.read_csv(figure, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{figure}: not the table of a figure ({error}); python plotting.py writes one beside each"
        ) from None
    table.index = pd.RangeIndex(2, len(table) + 2)
    if line is not None and line not in table.index:
        raise UserError(
            f"{figure}: has no line {line}; its numbers are in lines 2 to {len(table) + 1}"
        )
    caption = figure.with_suffix(".txt")
    return table if line is None else table.loc[
        [line]
    ], caption.read_text() if caption.exists() else ""


def finished_runs(results_dir: Path) -> dict[Path, dict]:
    """Finished runs by the path of their record."""
    runs = {
        path.with_suffix(".csv"): read_run_file(path)
        for path in sorted((results_dir / "records").glob("*/*/*.json"))
    }
    if not runs:
        raise UserError(
            f"{results_dir / 'records'}: no records; give the --results_dir that the figure was drawn from"
        )
    return {path: run for path, run in runs.items() if run["status"] == "done"}


# ---- which runs ----------------------------------------------------------------------------------


def runs_behind(table: pd.DataFrame, caption: str, runs: dict[Path, dict]) -> dict[int, list[Path]]:
    """Line -> the records that agree with every column of it that says something of a run."""
    if {"type", "severity", "model"} <= set(table.columns):
        table = table.assign(threat="corruptions-" + table["type"] + "-" + table["severity"])
    known, sources = (
        [name for name in RUN_VALUES if name in table],
        [name for name in SOURCE_COLUMNS if name in table],
    )
    if "threat" not in known and not sources:
        runs = {
            path: run
            for path, run in runs.items()
            if run["kind"] in UNDER_ATTACK and named_in(caption, run)
        }

    def behind(run: dict, row: dict) -> bool:
        source = ", ".join(RUN_VALUES[name](run) for name in ("image_set", "threat", "attack"))
        if source in [row[name] for name in sources]:
            return run["model"] == row.get("model", run["model"])
        return ("threat" in known or not sources) and all(
            RUN_VALUES[name](run) == row[name] for name in known
        )

    return {
        line: [path for path, run in runs.items() if behind(run, row)]
        for line, row in table.to_dict("index").items()
    }


def named_in(caption: str, run: dict) -> bool:
    """Whether a caption speaks of a run's image set and budget; of any run where there is no caption."""
    return not caption or all(
        str(name) in caption for name in (run["image_set"], run["settings"]["run"].get("attack"))
    )


def grouped(behind: dict[int, list[Path]]) -> dict[Path, list[int]]:
    found: dict[Path, list[int]] = {}
    for line, paths in behind.items():
        for path in paths:
            found.setdefault(path, []).append(line)
    return found


def changed_numbers(
    figure: Path, table: pd.DataFrame, behind: dict[int, list[Path]], runs: dict[Path, dict]
) -> list[str]:
    """Lines whose accuracy at an eps is not that of the only record behind them: drawn before it was made again."""
    lines = []
    for line, paths in behind.items():
        row = table.loc[line]
        if (
            len(paths) == 1
            and {"eps", "accuracy"} <= set(row.index)
            and runs[paths[0]]["kind"] == "ball"
        ):
            rows = read_record(paths[0])
            at = (
                rows[rows["eps"] == float(row["eps"])]["robust"]
                if float(row["eps"])
                else rows["clean_correct"]
            )
            if abs(at.mean() - float(row["accuracy"])) > 1e-9:
                lines.append(
                    f"{figure}, line {line}: accuracy {row['accuracy']}, its record gives {at.mean()}; draw it again\n"
                )
    return lines


# ---- what is said of a run -----------------------------------------------------------------------


def describe_run(path: Path, run: dict) -> str:
    """A run in a few lines: its record, weights, attack, images, and each session's code and machine."""
    model, settings = run["settings"]["model"], run["settings"]["run"]
    same = path.exists() and sha256_file(path) == run.get("record_sha256")
    facts = {
        "record": f"{path}, sha256 {run.get('record_sha256')}{'' if same else ' WHICH IT NO LONGER HAS'}",
        "run file": path.with_suffix(".json"),
        "model": f"{run['model']}, weights {model.get('weights')}, sha256 {model.get('weights_sha256')}",
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "images": f"{run.get('images')} of {run['image_set']}",
    }
    sessions = [
        f"git {s.get('git')}, {s.get('started')}, {s.get('device')}, "
        + ", ".join(f"{name} {version}" for name, version in s.get("versions", {}).items())
        for s in run["sessions"]
    ]
    return "\n".join(
        [
            *(f"  {name:9} {value}" for name, value in facts.items()),
            *(f"  {'code':9} {text}" for text in sessions),
        ]
    )


def shortened(lines: list[int]) -> str:
    """`2-4, 7` for 2, 3, 4, 7."""
    spans: list[list[int]] = []
    for line in lines:
        if spans and line == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], line]
        else:
            spans.append([line])
    return ", ".join("-".join(map(str, span)) for span in spans)
