"""Read Brain-Score leaderboard files: CSV or ZIP, of any of their three shapes, cell by cell."""

from __future__ import annotations

import codecs
import csv
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from alignment_security.analysis.brainscore_plugin_info import (
    PLUGIN_INFO,
    PluginInfo,
    read_plugin_info,
)
from alignment_security.analysis.brainscore_registry import INPUT_COLUMN, NAME_COLUMNS
from alignment_security.common.files import UserError, sha256_file

# The leaderboard's averages: parents in brain-score.org's benchmark tree. Hoak 2025's plotting
# drops them before its t-SNE. Of groups that were added after 2025-05, PLUGIN_INFO alone tells.
AGGREGATES = frozenset(
    [
        "average_vision",
        "neural_vision",
        "behavior_vision",
        "engineering_vision",
        "V1",
        "V2",
        "V4",
        "IT",
        "Marques2020",
        "V1-orientation",
        "V1-receptive_field_size",
        "V1-response_magnitude",
        "V1-response_selectivity",
        "V1-spatial_frequency",
        "V1-surround_modulation",
        "V1-texture_modulation",
        "Geirhos2021-error_consistency",
        "Geirhos2021-top1",
        "Maniquet2024",
        "Ferguson2024",
        "Baker2022",
        "BMD2024",
        "ImageNet-C-top1",
        "Hermann2020",
    ]
)
# left out of every analysis: Hoak 2025's plotting.py drops it by name
LEFT_OUT = "Kar2019-ost"
NOT_BENCHMARKS = {
    *NAME_COLUMNS,
    INPUT_COLUMN,
    "model_name",
    "model",
    "model_id",
    "rank",
    "layers",
    "filtered_score",
}
FAILED_CELLS = ["X"]
NOT_RUN_CELLS = ["", "null"]  # "null": no score, in the site's JavaScript export
ZIP_START = b"PK"
# what reading a damaged file or ZIP raises
DAMAGED_FILE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
MAX_BYTES = 64 * 2**20  # of one file, unpacked; the 2025-05-07 leaderboard has 0.3 MB
LEADERBOARD = "https://www.brain-score.org/vision/leaderboard"
DOWNLOAD_AGAIN = f"download it again from {LEADERBOARD}"
SCORES_FOLDER, MERGED_SCORES = "benchmark_scores", "benchmark_scores_registry_merged"


# ---- leaderboard files ---------------------------------------------------------------------------


def benchmark_columns(scores: pd.DataFrame) -> list[str]:
    """Columns of a score table that are benchmarks: not names, rank, model_id or layers."""
    return [column for column in scores.columns if column_key(column) not in NOT_BENCHMARKS]


def column_key(column: str) -> str:
    """A column's name in one spelling: `Model ID` and `model_id` are the same."""
    return column.lower().replace(" ", "_")


def leaf_benchmarks(columns: Iterable[str]) -> list[str]:
    """The benchmark columns that are measured, not averages of others (AGGREGATES)."""
    return [column for column in columns if column not in AGGREGATES]


def read_bounded(file: IO[bytes], where: Path) -> bytes:
    """All bytes of an open file. Raises UserError past MAX_BYTES, without unpacking more."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        size = f"{MAX_BYTES // 2**20} MiB"
        raise UserError(f"{where}: larger than {size}, which no leaderboard is; {DOWNLOAD_AGAIN}")
    return data


def leaderboard_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The leaderboard in a ZIP: its only CSV other than PLUGIN_INFO.

    Raises UserError if there is none or there are several, or if an entry has an unsafe path.
    """
    found = []
    for member in archive.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in str(name):
            raise UserError(
                f"{path}: its entry {member.filename!r} leaves the folder; {DOWNLOAD_AGAIN}"
            )
        if name.suffix.lower() == ".csv" and name.name != PLUGIN_INFO:
            found.append(member)
    if len(found) != 1 or found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{path}: {len(found)} CSVs beside {PLUGIN_INFO}, not one leaderboard.csv; "
            f"{DOWNLOAD_AGAIN}"
        )
    return found[0]


def read_leaderboard_text(path: Path) -> str:
    """Text of a CSV, or of the CSV in a ZIP; UTF-8, or UTF-16 with a byte order mark.

    Nothing is unpacked to disk. Raises UserError for a file that is not a leaderboard's CSV.
    """
    try:
        data = read_leaderboard_bytes(path)
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: neither UTF-8 nor marked UTF-16; save it as UTF-8"
        ) from error
    except DAMAGED_FILE as error:
        raise UserError(f"{path}: {error}; {DOWNLOAD_AGAIN}") from error
    if "\0" in text:
        raise UserError(
            f"{path}: zero bytes in the text (UTF-16 without its mark?); save it as UTF-8"
        )
    if text.lstrip().startswith("<"):
        raise UserError(f"{path}: a web page, not a CSV; use the export button of {LEADERBOARD}")
    return text


def read_leaderboard_bytes(path: Path) -> bytes:
    """Bytes of a CSV, or of the leaderboard in a ZIP."""
    with open(path, "rb") as file:
        data = read_bounded(file, path)
    if not data.startswith(ZIP_START):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        with archive.open(leaderboard_member(archive, path)) as file:
            return read_bounded(file, path)


def read_info(path: Path) -> PluginInfo:
    """What PLUGIN_INFO in a ZIP says; nothing for a CSV, and for a ZIP without it or a bad one."""
    with suppress(*DAMAGED_FILE, csv.Error), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if PurePosixPath(member).name == PLUGIN_INFO:
                with archive.open(member) as file:
                    return read_plugin_info(read_bounded(file, path).decode("utf-8-sig"))
    return PluginInfo()


def read_leaderboard_table(path: Path) -> tuple[list[str], pd.DataFrame]:
    """The leading `#` lines, and all cells as text, indexed by the line numbers of the file."""
    text = read_leaderboard_text(path)
    delimiter = separator(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    comments: list[str] = []
    header: list[str] = []
    rows: dict[int, list[str]] = {}
    try:
        for cells in filter(None, reader):
            if not header and cells[0].startswith("#"):
                comments.append(",".join(cells))
            elif not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} "
                    f"column names, cut off, edited or with decimal commas; {DOWNLOAD_AGAIN}"
                )
            else:
                rows[reader.line_num] = cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {DOWNLOAD_AGAIN}") from error
    wrong = [repr(name) for name, count in Counter(header).items() if count > 1 or not name]
    if wrong:
        raise UserError(
            f"{path}: repeated or empty column names {', '.join(wrong[:5])}; keep one of each"
        )
    return comments, pd.DataFrame(list(rows.values()), list(rows), header, dtype=object)


def separator(path: Path, text: str) -> str:
    """What separates the names of the header, a comma or a tab. Raises UserError for semicolons."""
    header = next((line for line in text.splitlines() if line and not line.startswith("#")), "")
    if header.count(";") > header.count(","):
        raise UserError(
            f"{path}: semicolons between its columns, as spreadsheets of languages with decimal "
            f"commas write it; {DOWNLOAD_AGAIN} and leave it as it is"
        )
    return "\t" if header.count("\t") > header.count(",") else ","


def model_column(path: Path, columns: list[str]) -> tuple[str, int]:
    """Name of the model column, and the shape (1 to 3) of leaderboard file with such a header."""
    known = {column_key(column): column for column in columns}
    if "model_name" in known:
        return known["model_name"], 2 if {"model_id", "rank"} & set(known) else 1
    if {"model", "model_id"} <= set(known):
        return known["model"], 3
    raise UserError(
        f"{path}: neither model_name nor Model and Model ID in its header "
        f"({', '.join(columns)[:80] or 'nothing'}); {DOWNLOAD_AGAIN}"
    )


def check_cells(path: Path, table: pd.DataFrame, column: str) -> None:
    """Check that every row names a model and that every cell is a score, X or empty.

    Raises UserError with the line and column of the first that does not.
    """
    for line, name in table[column].items():
        if name.strip() in ("", column):
            what = "a second header" if name.strip() else "no model name"
            raise UserError(f"{path}, line {line}, column {column}: {what}; delete that line")
    for benchmark in benchmark_columns(table):
        for line, cell in table[benchmark].items():
            if cell not in FAILED_CELLS + NOT_RUN_CELLS and not NUMBER.fullmatch(cell):
                raise UserError(
                    f"{path}, line {line}, column {benchmark}: {cell!r} is no score; write a "
                    f"number without thousands or decimal commas, X (failed) or nothing (not run)"
                )


def read_leaderboard(path: str | Path) -> tuple[pd.DataFrame, dict]:
    """A leaderboard file as checked text (`model_name, layers`, benchmarks), and facts about it.

    path   CSV, or ZIP with one, of any shape:
           1: `model_name[, layers]` (the site until 2025-08)
           2: with `model_id` and `rank` (the site's test dump)
           3: `Rank, Model, Model ID` under `#` lines, short benchmark names, failed cells empty,
              two decimals (since then)
    Averages that AGGREGATES does not know are left out (`unknown_parents`; PluginInfo.parents finds
    them), and `metadata` has what PLUGIN_INFO says of each model, by line. Raises UserError with
    file, line and column for anything else.
    """
    path = Path(path)
    comments, table = read_leaderboard_table(path)
    column, shape = model_column(path, list(table.columns))
    check_cells(path, table, column)
    info = read_info(path)
    parents = [name for name in info.parents(benchmark_columns(table)) if name not in AGGREGATES]
    benchmarks = [name for name in benchmark_columns(table) if name not in parents]
    if table.empty or not benchmarks:
        raise UserError(
            f"{path}: {len(table)} models and {len(benchmarks)} benchmarks; {DOWNLOAD_AGAIN}"
        )
    dates = re.findall(r"\d{4}-\d\d-\d\d", " ".join(comments))  # the first: `# Generated on`
    facts = {
        "source": path.name,
        "sha256": sha256_file(path),
        "date": dates[0] if dates else None,
        "shape": shape,
        "comments": comments,
        "stripped_names": {
            line: name for line, name in table[column].items() if name != name.strip()
        },
    }
    names = {"model_name": table[column].str.strip(), "layers": table.get("layers", "")}
    facts |= {"unknown_parents": parents, "metadata": model_metadata(info, table, column)}
    return pd.concat([pd.DataFrame(names, table.index), table[benchmarks]], axis=1), facts


def model_metadata(info: PluginInfo, table: pd.DataFrame, column: str) -> dict[int, dict]:
    """{line: metadata of its model}, for the models that have some; `column` has their names."""
    ids = next((name for name in table if column_key(name) == "model_id"), column)
    rows = zip(table.index, table[ids], table[column])
    found = {int(line): info.metadata(key, name) for line, key, name in rows}
    return {line: metadata for line, metadata in found.items() if metadata}


def drop_repeats(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[dict]]:
    """One row per model name, and a report of the names that were repeated.

    The row with most scores is kept, the first of several.
    """
    scored = (~scores[benchmark_columns(scores)].isin(FAILED_CELLS + NOT_RUN_CELLS)).sum(axis=1)
    keep, repeated = [], []
    for name, lines in scores.groupby("model_name", sort=False).groups.items():
        counts = scored[lines]
        keep.append(counts.idxmax())
        if len(lines) == 1:
            continue
        has_most_alone = (counts == counts.max()).sum() == 1
        repeated.append(
            {
                "model_name": name,
                "kept_line": int(counts.idxmax()),
                "reason": "most scores" if has_most_alone else "first of those with most scores",
                "scores_by_line": {int(line): int(count) for line, count in counts.items()},
            }
        )
    return scores.loc[sorted(keep)], repeated


def score_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """Checked scores as floats; nan for failed and for not run."""
    return cells.mask(cells.isin(FAILED_CELLS + NOT_RUN_CELLS)).astype(float)
