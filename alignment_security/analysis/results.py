"""Results that figures and tables are made from: run files, records, the summary.

`load_results` finds it all in a results folder. Nothing here draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.records.comparable import (
    attack_text,
    comparable_runs,
    distinguishing_settings,
    run_folder,
)
from alignment_security.records.record import check_record_sha256, read_record, read_run_file
from alignment_security.records.summary import SUMMARY_NAME, read_summary_table

REQUIRED_COLUMNS = ["model", "threat", "image_set", "protocol", "attack", "n", "clean_acc"]
SUMMARY_COLUMNS = [
    *REQUIRED_COLUMNS,
    "eps",
    "robust",
    "robust_acc",
    "robust_estimate",
    "robust_low",
    "robust_high",
    "l2_mean",
    "l2_sem",
    "l2_per_pixel",
    "linf_mean",
    "linf_sem",
    "l1_mean",
    "l1_sem",
    "human_alignment",
    "human_alignment_sem",
    "n_norm",
    "n_alignment",
    "partial",
    "weights",
    "weights_sha256",
    "group",
    "size",
    "head",
    "list_sha256",
]


class NothingToDraw(Exception):
    """The results lack what a figure needs; plotting.py adds the command that makes it."""


@dataclass(frozen=True, eq=False)
class Results:
    """Where figures find their data.

    Two objects are equal only if they are the same object: `norm_tables` and `studies` cache what
    they read per object, since several figures need it. After a change on disk, load them anew.
    """

    folder: Path  # results/: the summary, benchmark_scores/, records/
    runs: list[dict]  # run files, finished or not, with the record's path as `csv`
    published: Path | None = None  # public numbers, laid out as results/README.md says
    models: tuple[str, ...] = ()  # only these; empty: all
    image_sets: tuple[str, ...] = ()
    threats: tuple[str, ...] = ()
    images: tuple[str, ...] = ()  # photographs that figures of examples show
    problems: tuple[str, ...] = ()  # of the run files that cannot be read
    # record -> why the summary leaves it out: it is not comparable with the others
    not_comparable: dict[Path, str] = field(default_factory=dict)

    def has(self, model: str, image_set: str, threat: str) -> bool:
        """Whether results of this model, image set and threat are asked for."""
        asked = zip((model, image_set, threat), (self.models, self.image_sets, self.threats))
        return all(not wanted or name in wanted for name, wanted in asked)

    @property
    def evaluated(self) -> set[str]:
        """The models that have a run."""
        return {run["model"] for run in self.runs}

    def asked_for(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table with `model, image_set, threat` that are asked for."""
        names = zip(table["model"], table["image_set"], table["threat"])
        return table[[self.has(*name) for name in names]]


# ---- reading -------------------------------------------------------------------------------------


def load_results(
    results_dir: str | Path,
    models: list[str] | None = None,
    published: str | Path | None = None,
    image_sets: list[str] | None = None,
    threats: list[str] | None = None,
    images: list[str] | None = None,
) -> Results:
    """Read every run file of a results folder, or those of some models, image sets and threats.

    One that cannot be read is left out, with its error in `problems`. Raises UserError if a name
    that is asked for has no record while others have.
    """
    root = Path(results_dir) / "records"
    runs, problems = [], []
    for path in glob_visible(root, "*/*/*.json"):
        try:
            runs.append(read_run_file(path) | {"csv": path.with_suffix(".csv")})
        except UserError as error:
            problems.append(str(error))
    check_recorded(root, {run["model"] for run in runs}, "--models", models)
    check_recorded(root, {run["image_set"] for run in runs}, "--image_set", image_sets)
    check_recorded(root, {run["threat"] for run in runs}, "--threat", threats)
    wanted = Results(
        folder=Path(results_dir),
        runs=[],
        published=Path(published) if published else None,
        models=tuple(models or ()),
        image_sets=tuple(image_sets or ()),
        threats=tuple(threats or ()),
        images=tuple(images or ()),
        problems=tuple(problems),
    )
    shown = [run for run in runs if wanted.has(run["model"], run["image_set"], run["threat"])]
    _, left_out = comparable_runs({run["csv"].with_suffix(".json"): run for run in runs})
    reasons = {run["csv"]: left_out.get(run["csv"].with_suffix(".json")) for run in shown}
    not_comparable = {csv: reason for csv, reason in reasons.items() if reason}
    return replace(wanted, runs=shown, not_comparable=not_comparable)


def check_recorded(root: Path, recorded: set[str], option: str, names: list[str] | None) -> None:
    """Raise UserError if a name that an option asks for has no record while others have."""
    unknown = sorted(set(names or []) - recorded)
    if recorded and unknown:
        there = ", ".join(sorted(recorded))
        raise UserError(f"{root}: no record of {', '.join(unknown)}; {option} takes {there}")


def read_summary(results: Results) -> pd.DataFrame:
    """results/evaluation_results.csv with SUMMARY_COLUMNS, a row per model, threat and eps.

    Only what is asked for; empty if there is no file. Raises UserError for a damaged file.
    """
    path = results.folder / SUMMARY_NAME
    if not path.exists():
        return pd.DataFrame(columns=SUMMARY_COLUMNS)
    fix = f"`python utilities.py merge --results_dir {results.folder}` writes it"
    table = read_summary_table(path, fix, REQUIRED_COLUMNS)
    missing = [column for column in SUMMARY_COLUMNS if column not in table]
    table[missing] = np.nan
    return results.asked_for(table)


def robust_rows(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of the summary with a counted robust accuracy at an eps above 0, of finished records."""
    counted = summary["robust_acc"].notna() & summary["eps"].gt(0) & summary["partial"].ne(1)
    return summary[counted]


def stale_records(results: Results) -> list[str]:
    """Names of finished records that the summary lacks, or summarises as they were before.

    A record that was evaluated again has other seconds. What `merge` leaves out, as not comparable
    or damaged, is not stale. Empty without a summary.
    """
    path = results.folder / SUMMARY_NAME
    if not path.exists():
        return []
    summary = read_summary_table(path, "merge again")
    if "seconds" not in summary:
        return []
    keys = ["image_set", "threat", "model", "attack"]
    names = summary[keys].fillna("").itertuples(index=False, name=None)
    known = dict(zip(names, summary["seconds"]))
    stale = []
    for run in results.runs:
        key = run["image_set"], run["threat"], run["model"], attack_text(run)
        seconds = sum(session["seconds"] for session in run["sessions"])
        is_known = math.isclose(known.get(key, -1.0), seconds)
        if run["status"] == "done" and not is_known and run["csv"] not in results.not_comparable:
            with suppress(UserError):
                read_finished_rows(run)
                stale.append(str(run["csv"]))
    return stale


def read_finished_rows(run: dict) -> pd.DataFrame:
    """Rows of a finished record. Raises UserError if the file is not the one it finished with."""
    check_record_sha256(run["csv"], run)
    return read_record(run["csv"])


# ---- runs ----------------------------------------------------------------------------------------


def group_finished(runs: list[dict], kinds: tuple[str, ...], key: Callable) -> list[list[dict]]:
    """Finished runs of some kinds ("clean", "ball", "minimum_norm"), grouped by key(run)."""
    finished = [run for run in runs if run["status"] == "done" and run["kind"] in kinds]
    return [list(group) for _, group in groupby(sorted(finished, key=key), key)]


def run_budget(run: dict) -> str:
    """The attack and its budget in words, with a head, seed or precision that is unusual."""
    return attack_text(run) or "not given"


def panel_budget(run: dict, groups: list[list[dict]]) -> str:
    """The budget of a run's panel, and the settings that distinguish it from the others.

    groups   the runs of all panels
    """
    return ", ".join([run_budget(run), *distinguishing_settings(run, groups)])


def runs_of(results: Results, key: tuple[str, str, str]) -> dict[str, dict]:
    """The finished runs behind rows of the summary, by model; none where the summary is alone.

    key   image set, threat and attack of the rows
    """
    return {
        run["model"]: run
        for run in results.runs
        if run["status"] == "done"
        and (*run_folder(run), run_budget(run)) == key
        and run["csv"] not in results.not_comparable
    }


def runs_of_rows(results: Results, rows: pd.DataFrame) -> list[dict]:
    """`runs_of` rows of the summary that have one image set, threat and attack."""
    image_set, threat, attack = rows.iloc[0][["image_set", "threat", "attack"]]
    models = set(rows["model"])
    found = runs_of(results, (image_set, threat, attack))
    return [run for model, run in found.items() if model in models]


def run_columns(run: dict) -> dict[str, str]:
    """The columns by which a row of a figure's table names its run."""
    return {
        "image_set": run["image_set"],
        "threat": run["threat"],
        "budget": run_budget(run),
        "model": run["model"],
    }
