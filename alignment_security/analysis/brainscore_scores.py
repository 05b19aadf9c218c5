"""Brain-Score scores of registered models: `setup_scores`, and the comparison of two snapshots.

    python -c "from utilities import setup_scores; setup_scores()"
    python utilities.py setup_scores                     the same
    python utilities.py compare_scores may.csv june.zip  what moved between two leaderboards

`setup_scores` writes results/model_names_translated.csv, the scores
results/benchmark_scores/<MERGED_SCORES>.csv and a .json with the facts of the merge: every row that
was repeated, did not match or could not be read.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import (
    FAILED_CELLS,
    LEADERBOARD,
    LEFT_OUT,
    MERGED_SCORES,
    NOT_RUN_CELLS,
    SCORES_FOLDER,
    benchmark_columns,
    drop_repeats,
    leaf_benchmarks,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.brainscore_plugin_info import without_lab
from alignment_security.analysis.brainscore_registry import (
    INPUT_COLUMN,
    NAME_COLUMNS,
    find_package,
    package_version,
    read_registry,
)
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.folders import glob_visible

NAMES_FILE = "model_names_translated.csv"
HIDES_FAILED = 3  # the shape of leaderboard file in which failed cells are empty
# the site gives scores from 1 up with one decimal (brain-score.web, mv.sql)
LARGE_SCORE, LARGE_ROUNDING = 1, 0.06
FLOAT_ERROR = 1e-9


# ---- setup_scores --------------------------------------------------------------------------------


def newest_scores(folder: Path) -> Path:
    """The newest CSV or ZIP in a folder that is not an output of `setup_scores`."""
    files = [
        file
        for file in glob_visible(folder, "*")
        if file.suffix.lower() in (".csv", ".zip") and not file.name.startswith(MERGED_SCORES)
    ]
    if not files:
        raise UserError(
            f"no scores in {folder}: open {LEADERBOARD}, press the button that exports the CSV and "
            f"put the file there (.csv or .zip), or give --scores_path FILE"
        )
    return max(files, key=lambda file: (file.stat().st_mtime, file.name))


def iso_date(date: str | datetime.date) -> str:
    """A date as YYYY-MM-DD. Raises UserError if it is none."""
    try:
        return datetime.date.fromisoformat(str(date)).isoformat()
    except ValueError as error:
        raise UserError(f"--date {date}: write the day of the download as YYYY-MM-DD") from error


def cell_counts(cells: pd.DataFrame, shape: int) -> dict[str, dict[str, int | None]]:
    """{benchmark: n_scored, n_failed, n_not_run} over models.

    The last two are None for a file of shape 3, in which both are empty cells.
    """
    failed, empty = cells.isin(FAILED_CELLS).sum(), cells.isin(NOT_RUN_CELLS).sum()
    hidden = shape == HIDES_FAILED
    return {
        name: {
            "n_scored": int(len(cells) - failed[name] - empty[name]),
            "n_failed": None if hidden else int(failed[name]),
            "n_not_run": None if hidden else int(empty[name]),
        }
        for name in cells
    }


def describe_merge(
    registry: pd.DataFrame, scores: pd.DataFrame, merged: pd.DataFrame, stripped: dict[int, str]
) -> dict:
    """Facts of a merge: counts, groups of benchmarks, which models matched and which did not.

    registry   every registered model
    scores     the leaderboard, indexed by the lines of its file
    merged     the models that have both, with their `line`
    stripped   line -> model name, where that has spaces around it
    """
    registered = registry["model_registry_name"]
    is_registered = scores["model_name"].isin(registered)
    exactly = is_registered.drop(list(stripped))
    benchmarks = benchmark_columns(scores)
    leaves = leaf_benchmarks(benchmarks)
    matches = [
        {
            "model_registry_name": name,
            "score_name": stripped.get(line, name),
            "match": "stripped" if line in stripped else "exact",
        }
        for name, line in zip(merged["model_name"], merged["line"])
    ]
    return {
        "counts": {
            "registry_keys": len(registered),
            "plugins": registry["og_model_name"].nunique(),
            "score_rows": len(scores),
            "score_rows_joined": int(is_registered.sum()),
            "score_rows_joined_exactly": int(exactly.sum()),
            "models": len(merged),
            "benchmarks": len(benchmarks),
            "leaves": len(leaves),
        },
        "aggregates": [name for name in benchmarks if name not in leaves],
        "leaves": leaves,
        "match": matches,
        "unmatched_scores": sorted(set(scores["model_name"]) - set(registered)),
        "unmatched_registry": sorted(set(registered) - set(scores["model_name"])),
    }


def merge_leaderboard(
    package_path: str | Path | None = None,
    scores_path: str | Path | None = None,
    results_dir: str | Path = "results",
    date: str | None = None,
) -> pd.DataFrame:
    """Join leaderboard scores with Brain-Score's model registry; write and return the table.

    package_path   site-packages, an unpacked wheel, a checkout or the package; None: the installed
                   one
    scores_path    CSV or ZIP; None: the newest in results_dir/benchmark_scores
    date           day of the download
    A score joins the registry key that equals its name without spaces around it; the .json gives
    the match of each row. Columns, a row per model: og_model_name (plugin folder),
    model_registry_name, timm_name ("" if unknown), model_name and layers (Hoak 2025's scripts drop
    both by name), benchmarks (floats; nan for failed and for not run). Raises UserError before
    anything is written. Source: kyangl/alignment-security, utilities.py.
    """
    folder, package = Path(results_dir) / SCORES_FOLDER, find_package(package_path)
    path = Path(scores_path) if scores_path else newest_scores(folder)
    scores, facts = read_leaderboard(path)
    if date:
        facts["date"] = iso_date(date)
    registry, report = read_registry(package)
    kept, repeated = drop_repeats(scores)
    merged = join_registry(registry, kept)
    if merged.empty:
        raise UserError(
            f"{path}: none of its models is registered in {package}; pass the vision leaderboard"
        )
    benchmarks = benchmark_columns(scores)
    merge_facts = describe_merge(registry, scores, merged, facts["stripped_names"])
    names = merged[[*NAME_COLUMNS, "model_name", "layers"]]
    table = pd.concat([names, score_numbers(merged[benchmarks])], axis=1)
    inputs = registry.set_index("model_registry_name")[INPUT_COLUMN]
    metadata = facts.pop("metadata", {})
    lines = zip(merged["model_registry_name"], merged["line"])
    sidecar = {
        **facts,
        "models": {name: metadata[line] for name, line in lines if line in metadata},
        "package_version": package_version(package),
        **merge_facts,
        **report,
        "repeated_names": repeated,
        "plugin_inputs": inputs[inputs != ""].to_dict(),
        "benchmarks": cell_counts(merged[benchmarks], facts["shape"]),
    }
    write_merge(Path(results_dir), registry, table, sidecar)
    print(
        f"{path.name}: {len(table)} of {len(registry)} registered models have scores on "
        f"{len(benchmarks)} columns: {counted_benchmarks(benchmarks)}; what did not join: "
        f"{folder / MERGED_SCORES}.json"
    )
    if parents := facts.get("unknown_parents"):
        print(f"left out: {len(parents)} averages that are new ({', '.join(parents)})")
    return table


def write_merge(folder: Path, registry: pd.DataFrame, scores: pd.DataFrame, facts: dict) -> None:
    """Write the names of registered models, the scores of those that have some, and the facts."""
    path = folder / SCORES_FOLDER / f"{MERGED_SCORES}.csv"
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    write_atomic(folder / NAMES_FILE, registry.to_csv(index=False, lineterminator="\n"))
    write_atomic(path, scores.to_csv(index=False, lineterminator="\n"))
    write_atomic(path.with_suffix(".json"), f"{text}\n")


def counted_benchmarks(columns: list[str]) -> str:
    """`105 benchmarks, 24 averages of them and Kar2019-ost, which ...`, as analyses count them."""
    leaves = leaf_benchmarks(columns)
    averages = len(columns) - len(leaves)
    if LEFT_OUT not in leaves:
        return f"{len(leaves)} benchmarks and {averages} averages of them"
    return (
        f"{len(leaves) - 1} benchmarks, {averages} averages of them, and {LEFT_OUT}, which is left "
        "out of figures as in Hoak 2025's code"
    )


def join_registry(registry: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Registered models with their scores, and the `line` of the leaderboard file."""
    return registry.drop_duplicates("model_registry_name").merge(
        scores.rename_axis("line").reset_index(),
        left_on="model_registry_name",
        right_on="model_name",
    )


# ---- comparison ----------------------------------------------------------------------------------


def compare_scores(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Compare the scores of two leaderboard files or merged tables; print a summary.

    Returns `model, benchmark, score_a, score_b, difference (b - a), status`. status: moved, same,
    only_a or only_b (no score in the other file); a pair without any score has no row.

    Names that differ by the lab prefix (`tong.Coggan2024...`; shape 3 drops it) are one benchmark,
    named as in `a`. If one file has fewer decimals, scores that may round alike are the same. A
    ceiling changed on 2026-01-13 (brain-score/vision #2169).
    """
    key = ["model", "benchmark"]
    first, decimals_a = scores_by_model(a, "score_a")
    second, decimals_b = scores_by_model(b, "score_b")
    names = {without_lab(name): name for name in first["benchmark"].unique()}
    second["benchmark"] = [names.get(without_lab(name), name) for name in second["benchmark"]]
    both = first.dropna().merge(second.dropna(), how="outer", on=key)
    both = both.sort_values(key, ignore_index=True)
    both["difference"] = both["score_b"] - both["score_a"]

    rounding = np.zeros(len(both))
    if decimals_a != decimals_b:
        is_large = both[["score_a", "score_b"]].max(axis=1) >= LARGE_SCORE
        half_units = 0.5 * 10.0**-decimals_a + 0.5 * 10.0**-decimals_b
        rounding = np.where(is_large, LARGE_ROUNDING, half_units)
    moved = both["difference"].abs() > rounding + FLOAT_ERROR
    both["status"] = np.select(
        [both["score_a"].isna(), both["score_b"].isna(), moved],
        ["only_b", "only_a", "moved"],
        "same",
    )
    print_comparison(both)
    return both


def scores_by_model(path: str | Path, label: str) -> tuple[pd.DataFrame, int]:
    """`model, benchmark, {label}` of a leaderboard file, and the most decimals of its scores."""
    scores, _ = drop_repeats(read_leaderboard(path)[0])
    benchmarks = benchmark_columns(scores)
    decimals = max(len(cell.partition(".")[2]) for name in benchmarks for cell in scores[name])
    table = score_numbers(scores[benchmarks])
    table.insert(0, "model", scores["model_name"])
    return table.melt("model", var_name="benchmark", value_name=label), decimals


def print_comparison(table: pd.DataFrame) -> None:
    """Print counts by status, and the benchmarks and models that moved most often, by how much."""
    print(table["status"].value_counts().to_string())
    moved = table[table["status"] == "moved"]
    if moved.empty:
        return
    for key in ("benchmark", "model"):
        moves = moved.groupby(key)["difference"].agg(["count", "mean", "min", "max"])
        print(f"\n{moves.sort_values('count', ascending=False).head(10).round(3).to_string()}")
