"""alignment_security.analysis.results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.records.record import check_record_sha256, read_record, read_run_file


class NothingToDraw(Exception):
    """Why a figure cannot be drawn from results that are there; the command that mends it is the figure's."""


@dataclass(frozen=True, eq=False)  # a key of caches by identity
class Results:
    """Where figures find what they draw."""

    folder: Path  # results/: the summary, benchmark_scores/, records/
    runs: list[dict]  # run files, finished or not, with the record's path as `csv`
    published: Path | None = (
        None  # published numbers (PUBLISHED_DIR of .env), laid out as results/README.md says
    )
    models: tuple[str, ...] = ()  # only these, if any are named


# ---- what is drawn ---------------------------------------------------------------------------------------------


def load_results(results_dir, models: list[str] | None = None, published=None) -> Results:
    """Every run file, those of some models if `models` is given. Raises UserError when one of them has none."""
    root = Path(results_dir) / "records"
    runs = [
        read_run_file(path) | {"csv": path.with_suffix(".csv")}
        for path in sorted(root.glob("*/*/*.json"))
    ]
    have = sorted({run["model"] for run in runs})
    if have and (unknown := sorted(set(models or []) - set(have))):
        raise UserError(
            f"{root}: no record of {', '.join(unknown)}; --models takes {', '.join(have)}"
        )
    runs = [run for run in runs if not models or run["model"] in models]
    return Results(
        Path(results_dir), runs, Path(published) if published else None, tuple(models or ())
    )


def read_finished_rows(run: dict) -> pd.DataFrame:
    """Rows of a finished record. Raises UserError when the file is not the one that the run finished with."""
    check_record_sha256(run["csv"], run)
    return read_record(run["csv"])


def group_finished(runs: list[dict], kinds: tuple[str, ...], key: Callable) -> list[list[dict]]:
    """Finished runs of these kinds, those of one key together."""
    chosen = sorted(
        (run for run in runs if run["status"] == "done" and run["kind"] in kinds), key=key
    )
    return [list(group) for _, group in groupby(chosen, key)]


def run_folder(run: dict) -> tuple[str, str]:
    return run["image_set"], run["threat"]


def run_budget(run: dict) -> str:
    return run["settings"]["run"].get("attack", "not given")


def describe_runs(group: list[dict], runs: list[dict]) -> str:
    """A line of a caption: n, protocol, budget and dates of the runs drawn, and which models of the image set are not."""
    settings, (image_set, threat) = [run["settings"]["run"] for run in group], run_folder(group[0])
    values = {
        "n =": {str(run["images"]) for run in group},
        "protocol": {str(s.get("protocol")) for s in settings},
        "head": {s.get("head", "none") for s in settings} - {"none"},
        "budget": {run_budget(run) for run in group},
    }
    facts = [
        f"{len(group)} model(s)",
        *(f"{name} {' or '.join(sorted(value))}" for name, value in values.items() if value),
    ]
    days = sorted(session["started"][:10] for run in group for session in run["sessions"])
    status = {run["model"]: "not evaluated" for run in runs if run["image_set"] == image_set}
    status |= {
        run["model"]: run["status"] for run in runs if run_folder(run) == (image_set, threat)
    }
    missing = [
        f"Missing ({why}): {', '.join(model for model in status if status[model] == why)}."
        for why in dict.fromkeys(status.values())
        if why != "done"
    ]
    return (
        f"{image_set}, {threat}: {', '.join(facts)}, evaluated {' to '.join(dict.fromkeys([days[0], days[-1]]))}. "
        f"{' '.join(missing) or 'No model is missing.'}"
    )


def norm_means(rows: pd.DataFrame) -> dict[str, float]:
    """Mean and SEM of minimal norms and alignments over correctly classified images, and their numbers."""
    right = rows[(rows["clean_correct"] == 1) & (rows["success"] == 1)]
    maps = right["human_alignment"].dropna()
    return {
        "n": len(right),
        "l2": right["l2"].mean(),
        "l2_sem": right["l2"].sem(),
        "n_maps": len(maps),
        "alignment": maps.mean(),
        "alignment_sem": maps.sem(),
    }
