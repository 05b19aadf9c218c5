"""Brain-Score: its leaderboard files, and the key that joins them with its model registry and with our results.

    python -c "from utilities import setup_scores; setup_scores()"      or    python utilities.py setup_scores
    python utilities.py compare_scores may.csv june.zip

`setup_scores` writes results/model_names_translated.csv, results/benchmark_scores/<MERGED>.csv and, beside it, a
.json that lists all that was repeated, did not match or could not be read.
"""
from __future__ import annotations

import codecs
import csv
import datetime
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from alignment_security.analysis.brainscore_registry import NAMES, find_package, package_version, read_registry
from alignment_security.records.run import RecordError, sha256_file, write_atomic

# The leaderboard's averages: parents in brain-score.org's benchmark tree, the columns that the first paper's
# plotting drops before its t-SNE. No CSV marks them: a group added after 2025-05 has to be added here.
AGGREGATES = frozenset([
    "average_vision", "neural_vision", "behavior_vision", "engineering_vision", "V1", "V2", "V4", "IT",
    "Marques2020", "V1-orientation", "V1-receptive_field_size", "V1-response_magnitude",
    "V1-response_selectivity", "V1-spatial_frequency", "V1-surround_modulation", "V1-texture_modulation",
    "Geirhos2021-error_consistency", "Geirhos2021-top1", "Maniquet2024", "Ferguson2024", "Baker2022", "BMD2024",
    "ImageNet-C-top1", "Hermann2020"])
NOT_BENCHMARKS = {*NAMES, "model_name", "model", "model_id", "rank", "layers", "filtered_score"}
FAILED, NOT_RUN = ["X"], ["", "null"]   # "null": a score that the site's JavaScript export does not have
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
MAX_BYTES = 64 * 2**20                  # of one file, unpacked; the 2025-05-07 leaderboard has 0.3 MB
LEADERBOARD = "https://www.brain-score.org/vision/leaderboard"
AGAIN = f"download it again from {LEADERBOARD}"
MERGED = "benchmark_scores_registry_merged"
OTHER_WEIGHTS = "the scores under this name are of Brain-Score's own net, the result of timm's"


# ---- leaderboard files ------------------------------------------------------------------------------------

def benchmark_columns(scores: pd.DataFrame) -> list[str]:
    """Columns of a score table that are benchmarks: not names, rank, model_id or layers."""
    return [column for column in scores.columns if column.lower().replace(" ", "_") not in NOT_BENCHMARKS]


def leaf_benchmarks(columns: Iterable[str]) -> list[str]:
    """Those of some benchmark columns that are measured, not averages of others (AGGREGATES)."""
    return [column for column in columns if column not in AGGREGATES]


def read_bounded(file: IO[bytes], where: Path) -> bytes:
    """All bytes of an open file; RecordError past MAX_BYTES, before more is read or unpacked."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RecordError(f"{where}: larger than {MAX_BYTES // 2**20} MiB, which no leaderboard is; {AGAIN}")
    return data


def leaderboard_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The one leaderboard in a ZIP; RecordError if there is not one, or an entry would leave the folder."""
    found = []
    for member in archive.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in str(name):
            raise RecordError(f"{path}: its entry {member.filename!r} leaves the folder; {AGAIN}")
        found += [member] if name.suffix.lower() == ".csv" and name.name != "plugin-info.csv" else []
    if len(found) != 1 or found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RecordError(f"{path}: {len(found)} CSVs beside plugin-info.csv, not one leaderboard.csv; {AGAIN}")
    return found[0]


def read_text(path: Path) -> str:
    """Text of a CSV, or of the CSV in a ZIP; UTF-8, or UTF-16 with its mark. Nothing is unpacked to disk."""
    try:
        with open(path, "rb") as file:
            data = read_bounded(file, path)
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                with archive.open(leaderboard_member(archive, path)) as file:
                    data = read_bounded(file, path)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise RecordError(f"{path}, line {line}: neither UTF-8 nor marked UTF-16; save it as UTF-8") from error
    except RecordError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:     # ValueError: a damaged ZIP
        raise RecordError(f"{path}: {error}; {AGAIN}") from error
    if "\0" in text:
        raise RecordError(f"{path}: zero bytes in the text (UTF-16 without its mark?); save it as UTF-8")
    if text.lstrip().startswith("<"):
        raise RecordError(f"{path}: a web page, not a CSV; use the export button of {LEADERBOARD}")
    return text


def read_table(path: Path) -> tuple[list[str], pd.DataFrame]:
    """The leading `#` lines, and all cells as text with the file's line numbers as index."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    comments, rows, header = [], {}, list[str]()
    try:
        for cells in filter(None, reader):
            if not header and cells[0].startswith("#"):
                comments.append(",".join(cells))
            elif not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                raise RecordError(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} "
                                  f"column names, cut off or edited; {AGAIN}")
            else:
                rows[reader.line_num] = cells
    except csv.Error as error:
        raise RecordError(f"{path}, line {reader.line_num}: {error}; {AGAIN}") from error
    wrong = [repr(name) for name, count in Counter(header).items() if count > 1 or not name]
    if wrong:
        raise RecordError(f"{path}: repeated or empty column names {', '.join(wrong[:5])}; keep one of each")
    return comments, pd.DataFrame(list(rows.values()), list(rows), header, dtype=object)


def model_column(path: Path, columns: list[str]) -> tuple[str, int]:
    """Name of the model column, and which of the three shapes of leaderboard file has such a header."""
    known = {column.lower().replace(" ", "_"): column for column in columns}
    if "model_name" in known:
        return known["model_name"], 2 if {"model_id", "rank"} & set(known) else 1
    if {"model", "model_id"} <= set(known):
        return known["model"], 3
    raise RecordError(f"{path}: neither model_name nor Model and Model ID in its header "
                      f"({', '.join(columns)[:80] or 'nothing'}); {AGAIN}")


def check_cells(path: Path, table: pd.DataFrame, column: str) -> None:
    """RecordError naming line and column for a second header, a row without a model, a cell that is no score."""
    for line, name in table[column].items():
        if name.strip() in ("", column):
            what = "a second header" if name.strip() else "no model name"
            raise RecordError(f"{path}, line {line}, column {column}: {what}; delete that line")
    for benchmark in benchmark_columns(table):
        for line, cell in table[benchmark].items():
            if cell not in FAILED + NOT_RUN and not NUMBER.fullmatch(cell):
                raise RecordError(f"{path}, line {line}, column {benchmark}: {cell!r} is no score; write a "
                                  f"number without thousands or decimal commas, X (failed) or nothing (not run)")


def read_scores(path: str | Path) -> tuple[pd.DataFrame, dict]:
    """A leaderboard file, CSV or ZIP: `model_name, layers, <benchmarks>` as checked text, and facts about it.

    Shape 1: `model_name[, layers]` (the site until 2025-08); 2: with `model_id` and `rank` (its test dump); 3:
    `Rank, Model, Model ID` under `#` lines, short benchmark names, failed cells empty, two decimals (since).
    """
    path = Path(path)
    comments, table = read_table(path)
    column, shape = model_column(path, list(table.columns))
    check_cells(path, table, column)
    benchmarks = benchmark_columns(table)
    if table.empty or not benchmarks:
        raise RecordError(f"{path}: {len(table)} models and {len(benchmarks)} benchmarks; {AGAIN}")
    dates = re.findall(r"\d{4}-\d\d-\d\d", " ".join(comments))      # the first is that of `# Generated on`
    stripped = {line: name for line, name in table[column].items() if name != name.strip()}
    names = {"model_name": table[column].str.strip(), "layers": table.get("layers", "")}
    facts = {"source": path.name, "sha256": sha256_file(path), "date": dates[0] if dates else None,
             "shape": shape, "comments": comments, "stripped_names": stripped}
    return pd.concat([pd.DataFrame(names, table.index), table[benchmarks]], axis=1), facts


def drop_repeats(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[dict]]:
    """One row per model name, that with most scores (the first of equals), and a report of repeated names."""
    scored = (~scores[benchmark_columns(scores)].isin(FAILED + NOT_RUN)).sum(axis=1)
    keep, repeated = [], []
    for name, lines in scores.groupby("model_name", sort=False).groups.items():
        counts = scored[lines]
        keep.append(counts.idxmax())
        if len(lines) > 1:
            alone = (counts == counts.max()).sum() == 1
            repeated.append({"model_name": name, "kept_line": int(counts.idxmax()),
                             "reason": "most scores" if alone else "first of those with most scores",
                             "scores_by_line": {int(line): int(count) for line, count in counts.items()}})
    return scores.loc[sorted(keep)], repeated


def to_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """Scores as floats, nan where there is none."""
    return cells.mask(cells.isin(FAILED + NOT_RUN)).astype(float)


# ---- setup_scores -----------------------------------------------------------------------------------------

def newest_scores(folder: Path) -> Path:
    """The newest CSV or ZIP in a folder that `setup_scores` did not write itself."""
    files = [file for file in folder.glob("*")
             if file.suffix.lower() in (".csv", ".zip") and not file.name.startswith(MERGED)]
    if not files:
        raise RecordError(f"no scores in {folder}: open {LEADERBOARD}, press the button that exports the CSV and "
                          f"put the file there (.csv or .zip), or pass scores_path=FILE")
    return max(files, key=lambda file: (file.stat().st_mtime, file.name))


def iso_date(date: str | datetime.date) -> str:
    try:
        return datetime.date.fromisoformat(str(date)).isoformat()
    except ValueError as error:
        raise RecordError(f"date={date}: write the day of the download as YYYY-MM-DD") from error


def cell_counts(cells: pd.DataFrame, shape: int) -> dict:
    """{benchmark: n_scored, n_failed, n_not_run} over models; the last two None in shape 3, which hides them."""
    failed, empty = cells.isin(FAILED).sum(), cells.isin(NOT_RUN).sum()
    return {name: {"n_scored": int(len(cells) - failed[name] - empty[name]),
                   "n_failed": None if shape == 3 else int(failed[name]),
                   "n_not_run": None if shape == 3 else int(empty[name])} for name in cells}


def describe_merge(registry: pd.DataFrame, scores: pd.DataFrame, merged: pd.DataFrame, stripped: dict) -> dict:
    """What the sidecar says of a merge (`merged` has a column `line`): counts, groups, who matched, who did not."""
    benchmarks, keys = benchmark_columns(scores), registry["model_registry_name"]
    leaves, joins = leaf_benchmarks(benchmarks), scores["model_name"].isin(keys)
    match = [{"model_registry_name": name, "score_name": stripped.get(line, name),
              "match": "stripped" if line in stripped else "exact"}
             for name, line in zip(merged["model_name"], merged["line"])]
    counts = {"registry_keys": len(keys), "plugins": registry["og_model_name"].nunique(),
              "score_rows": len(scores), "score_rows_joined": int(joins.sum()),
              "score_rows_joined_exactly": int(joins.drop(list(stripped)).sum()), "models": len(merged),
              "benchmarks": len(benchmarks), "leaves": len(leaves)}
    return {"counts": counts, "aggregates": [name for name in benchmarks if name not in leaves],
            "leaves": leaves, "match": match, "unmatched_scores": sorted(set(scores["model_name"]) - set(keys)),
            "unmatched_registry": sorted(set(keys) - set(scores["model_name"]))}


def setup_scores(package_path: str | Path | None = None, scores_path: str | Path | None = None,
                 results_dir: str | Path = "results", date: str | None = None) -> pd.DataFrame:
    """Join leaderboard scores with Brain-Score's model registry; write and return the table, one row per model.

    package_path: site-packages, an unpacked wheel, a checkout or the package; None finds the installed one.
    scores_path: CSV or ZIP; None takes the newest in results_dir/benchmark_scores. date: day of the download.
    A score joins the registry key that equals its name, spaces around it aside; the .json tells which, per row.
    Columns: og_model_name (plugin folder), model_registry_name, timm_name ("" where it cannot be told),
    model_name and layers (the first paper's scripts drop both by name), benchmarks (floats; nan for failed and
    for not run). Raises RecordError before anything is written. Source: kyangl/alignment-security, utilities.py.
    """
    folder, package = Path(results_dir) / "benchmark_scores", find_package(package_path)
    path = Path(scores_path) if scores_path else newest_scores(folder)
    scores, facts = read_scores(path)
    facts |= {"date": iso_date(date)} if date else {}
    registry, report = read_registry(package)
    kept, repeated = drop_repeats(scores)
    merged = registry.drop_duplicates("model_registry_name").merge(
        kept.rename_axis("line").reset_index(), left_on="model_registry_name", right_on="model_name")
    if merged.empty:
        raise RecordError(f"{path}: none of its models is registered in {package}; pass the vision leaderboard")
    benchmarks = benchmark_columns(scores)
    account = describe_merge(registry, scores, merged, facts["stripped_names"])
    sidecar = facts | {"package_version": package_version(package)} | account | report | {
        "repeated_names": repeated, "benchmarks": cell_counts(merged[benchmarks], facts["shape"])}
    table = pd.concat([merged[[*NAMES, "model_name", "layers"]], to_numbers(merged[benchmarks])], axis=1)
    names_file = Path(results_dir) / "model_names_translated.csv"
    write_atomic(names_file, registry.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / f"{MERGED}.csv", table.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / f"{MERGED}.json", json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    print(f"{path.name}: {len(table)} of {len(registry)} registered models have scores on {len(benchmarks)} "
          f"benchmarks ({len(account['leaves'])} leaves); what did not join: {folder / MERGED}.json")
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
        scores, _ = drop_repeats(read_scores(path)[0])
        benchmarks = benchmark_columns(scores)
        decimals.append(max(len(cell.partition(".")[2]) for name in benchmarks for cell in scores[name]))
        short = {name: re.sub(r"^[^.A-Z]+\.", "", name) for name in benchmarks}
        called = called or {short[name]: name for name in benchmarks}
        table = to_numbers(scores[benchmarks]).rename(columns={name: called.get(short[name], name) for name in short})
        table.insert(0, "model", scores["model_name"])
        sides.append(table.melt("model", var_name="benchmark", value_name=label).dropna())
    key = ["model", "benchmark"]
    both = sides[0].merge(sides[1], how="outer", on=key).sort_values(key, ignore_index=True)
    both["difference"] = both["score_b"] - both["score_a"]
    large = both[["score_a", "score_b"]].max(axis=1) >= 1
    rounding = large.map({True: 0.06, False: sum(0.5 * 10.0**-n for n in decimals)})
    moved = both["difference"].abs() > rounding * (decimals[0] != decimals[1]) + 1e-9
    both["status"] = moved.map({True: "moved", False: "same"}).mask(both["score_b"].isna(), "only_a").mask(
        both["score_a"].isna(), "only_b")
    print_comparison(both)
    return both


def candidates(name: str, scores: pd.DataFrame, weights: str = "") -> tuple[list[str], str]:
    """Registry names that a result's model name may stand for, and by which rule (or why it may not).

    weights: where the result's weights came from (`timm:...`, `brainscore:...`), "" where that is not known.
    """
    keys, timm = scores["model_registry_name"], scores["timm_name"]
    alike = (timm != "") & (timm.str.partition(".")[0] == name.partition(".")[0])
    untagged = ("." not in name) | ~timm.str.contains(".", regex=False)
    same, own = keys == name, timm == ""
    if weights.startswith(("timm:", "pypi:")) and (same & own).any():
        return [], OTHER_WEIGHTS
    for rule, hit in (("registry name", same), ("timm name", alike & (timm == name)),
                      ("timm name without tag", alike & untagged)):
        if hit.any():
            return list(keys[hit]), rule
    return [], "no scores under this name"


def join_scores(scores: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every row of `results` (column `model`: a registry or timm name) with the scores of its model.

    Tried in turn: the registry name; the timm name; the timm name where one of the two has no tag (`.in1k`), if
    only one model on either side fits. Two different tags are different weights and never join; nor does a result with
    timm's weights (column `weights`, where there is one) join a net of that name that is Brain-Score's own.
    Returns (joined: results' columns, `match`, scores' columns; unmatched: `side, model, reason`).
    """
    if "model" not in results or not set(NAMES[1:]) <= set(scores) or {*scores, "match"} & set(results):
        raise RecordError(f"joining needs results with a column model and none of {', '.join(NAMES)}, match or "
                          f"the benchmarks, and scores as setup_scores writes them")
    scores = scores.assign(timm_name=scores["timm_name"].fillna("").astype(str))
    weights = dict(zip(results["model"], results["weights"].fillna("").astype(str))) if "weights" in results else {}
    names = {name: candidates(str(name).strip(), scores, weights.get(name, "")) for name in results["model"].unique()}
    claims = Counter(keys[0] for keys, _ in names.values() if len(keys) == 1)
    matched, unmatched = {}, []
    for name, (keys, rule) in names.items():
        if len(keys) == 1 and (claims[keys[0]] == 1 or rule != "timm name without tag"):
            matched[name] = (keys[0], rule)
        else:
            reason = f"ambiguous {rule}: {', '.join(keys)}" if keys else rule
            unmatched.append(("results", name, reason))
    used = {key for key, _ in matched.values()}
    unmatched += [("scores", key, "no results under this name or its timm name")
                  for key in scores["model_registry_name"] if key not in used]
    link = pd.DataFrame([(name, *match) for name, match in matched.items()], columns=["model", NAMES[1], "match"])
    joined = results.merge(link, on="model").merge(scores, on=NAMES[1], validate="many_to_one")
    return joined, pd.DataFrame(unmatched, columns=["side", "model", "reason"])
