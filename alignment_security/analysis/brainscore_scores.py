"""alignment_security.analysis.brainscore_scores."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import (
    FAILED,
    LEADERBOARD,
    MERGED_SCORES,
    NOT_RUN,
    benchmark_columns,
    drop_repeats,
    leaf_benchmarks,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.brainscore_registry import (
    NAME_COLUMNS,
    find_package,
    package_version,
    read_registry,
)
from alignment_security.common.files import UserError, write_atomic

# ---- setup_scores -----------------------------------------------------------------------------------------


def newest_scores(folder: Path) -> Path:
    """The newest CSV or ZIP in a folder that `setup_scores` did not write itself."""
    files = [
        file
        for file in folder.glob("*")
        if file.suffix.lower() in (".csv", ".zip") and not file.name.startswith(MERGED_SCORES)
    ]
    if not files:
        raise UserError(
            f"no scores in {folder}: open {LEADERBOARD}, press the button that exports the CSV and "
            f"put the file there (.csv or .zip), or pass scores_path=FILE"
        )
    return max(files, key=lambda file: (file.stat().st_mtime, file.name))


def iso_date(date: str | datetime.date) -> str:
    try:
        return datetime.date.fromisoformat(str(date)).isoformat()
    except ValueError as error:
        raise UserError(f"date={date}: write the day of the download as YYYY-MM-DD") from error


def cell_counts(cells: pd.DataFrame, shape: int) -> dict:
    """{benchmark: n_scored, n_failed, n_not_run} over models; the last two None in shape 3, which hides them."""
    failed, empty = cells.isin(FAILED).sum(), cells.isin(NOT_RUN).sum()
    return {
        name: {
            "n_scored": int(len(cells) - failed[name] - empty[name]),
            "n_failed": None if shape == 3 else int(failed[name]),
            "n_not_run": None if shape == 3 else int(empty[name]),
        }
        for name in cells
    }


def describe_merge(
    registry: pd.DataFrame, scores: pd.DataFrame, merged: pd.DataFrame, stripped: dict
) -> dict:
    """What the sidecar says of a merge (`merged` has a column `line`): counts, groups, who matched, who did not."""
    benchmarks, keys = benchmark_columns(scores), registry["model_registry_name"]
    leaves, joins = leaf_benchmarks(benchmarks), scores["model_name"].isin(keys)
    match = [
        {
            "model_registry_name": name,
            "score_name": stripped.get(line, name),
            "match": "stripped" if line in stripped else "exact",
        }
        for name, line in zip(merged["model_name"], merged["line"])
    ]
    counts = {
        "registry_keys": len(keys),
        "plugins": registry["og_model_name"].nunique(),
        "score_rows": len(scores),
        "score_rows_joined": int(joins.sum()),
        "score_rows_joined_exactly": int(joins.drop(list(stripped)).sum()),
        "models": len(merged),
        "benchmarks": len(benchmarks),
        "leaves": len(leaves),
    }
    return {
        "counts": counts,
        "aggregates": [name for name in benchmarks if name not in leaves],
        "leaves": leaves,
        "match": match,
        "unmatched_scores": sorted(set(scores["model_name"]) - set(keys)),
        "unmatched_registry": sorted(set(keys) - set(scores["model_name"])),
    }


def merge_leaderboard(
    package_path: str | Path | None = None,
    scores_path: str | Path | None = None,
    results_dir: str | Path = "results",
    date: str | None = None,
) -> pd.DataFrame:
    """Join leaderboard scores with Brain-Score's model registry; write and return the table, one row per model.

    package_path: site-packages, an unpacked wheel, a checkout or the package; None finds the installed one.
    scores_path: CSV or ZIP; None takes the newest in results_dir/benchmark_scores. date: day of the download.
    A score joins the registry key that equals its name, spaces around it aside; the .json tells which, per row.
    Columns: og_model_name (plugin folder), model_registry_name, timm_name ("" where it cannot be told),
    model_name and layers (the first paper's scripts drop both by name), benchmarks (floats; nan for failed and
    for not run). Raises UserError before anything is written. Source: kyangl/alignment-security, utilities.py.
    """
    folder, package = Path(results_dir) / "benchmark_scores", find_package(package_path)
    path = Path(scores_path) if scores_path else newest_scores(folder)
    scores, facts = read_leaderboard(path)
    facts |= {"date": iso_date(date)} if date else {}
    registry, report = read_registry(package)
    kept, repeated = drop_repeats(scores)
    merged = registry.drop_duplicates("model_registry_name").merge(
        kept.rename_axis("line").reset_index(), left_on="model_registry_name", right_on="model_name"
    )
    if merged.empty:
        raise UserError(
            f"{path}: none of its models is registered in {package}; pass the vision leaderboard"
        )
    benchmarks = benchmark_columns(scores)
    account = describe_merge(registry, scores, merged, facts["stripped_names"])
    sidecar = (
        facts
        | {"package_version": package_version(package)}
        | account
        | report
        | {
            "repeated_names": repeated,
            "benchmarks": cell_counts(merged[benchmarks], facts["shape"]),
        }
    )
    table = pd.concat(
        [merged[[*NAME_COLUMNS, "model_name", "layers"]], score_numbers(merged[benchmarks])], axis=1
    )
    names_file = Path(results_dir) / "model_names_translated.csv"
    write_atomic(names_file, registry.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / f"{MERGED_SCORES}.csv", table.to_csv(index=False, lineterminator="\n"))
    write_atomic(
        folder / f"{MERGED_SCORES}.json", json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    )
    print(
        f"{path.name}: {len(table)} of {len(registry)} registered models have scores on {len(benchmarks)} "
        f"benchmarks ({len(account['leaves'])} leaves); what did not join: {folder / MERGED_SCORES}.json"
    )
    return table


# ---- comparing snapshots, joining results -----------------------------------------------------------------


def print_comparison(table: pd.DataFrame) -> None:
    """Counts by status, and the benchmarks and models that moved most often, by how much."""
    print(table["status"].value_counts().to_string())
    moved = table[table["status"] == "moved"]
    for key in ("benchmark", "model") if len(moved) else ():
        moves = moved.groupby(key)["difference"].agg(["count", "mean", "min", "max"])
        print(f"\n{moves.sort_values('count', ascending=False).head(10).round(3).to_string()}")


def compare_scores(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Two leaderboard files or merged tables: `model, benchmark, score_a, score_b, difference (b - a), status`.

    status: moved, same, only_a or only_b (no score in the other); what neither scored has no row. Names that
    differ by the lab prefix (`tong.Coggan2024...`; shape 3 drops it) are one benchmark, called as in `a`. Where
    one file has fewer decimals, scores that may round alike are the same; the site gives scores from 1 up one
    decimal, others three (brain-score.web, mv.sql). Before and after 2026-01-13 a ceiling differs (vision #2169).
    """
    sides, decimals, called = [], [], dict[str, str]()
    for path, label in ((a, "score_a"), (b, "score_b")):
        scores, _ = drop_repeats(read_leaderboard(path)[0])
        benchmarks = benchmark_columns(scores)
        decimals.append(
            max(len(cell.partition(".")[2]) for name in benchmarks for cell in scores[name])
        )
        short = {name: re.sub(r"^[^.A-Z]+\.", "", name) for name in benchmarks}
        called = called or {short[name]: name for name in benchmarks}
        table = score_numbers(scores[benchmarks]).rename(
            columns={name: called.get(short[name], name) for name in short}
        )
        table.insert(0, "model", scores["model_name"])
        sides.append(table.melt("model", var_name="benchmark", value_name=label).dropna())
    key = ["model", "benchmark"]
    both = sides[0].merge(sides[1], how="outer", on=key).sort_values(key, ignore_index=True)
    both["difference"] = both["score_b"] - both["score_a"]
    large = both[["score_a", "score_b"]].max(axis=1) >= 1
    rounding = large.map({True: 0.06, False: sum(0.5 * 10.0**-n for n in decimals)})
    moved = both["difference"].abs() > rounding * (decimals[0] != decimals[1]) + 1e-9
    both["status"] = (
        moved.map({True: "moved", False: "same"})
        .mask(both["score_b"].isna(), "only_a")
        .mask(both["score_a"].isna(), "only_b")
    )
    print_comparison(both)
    return both
