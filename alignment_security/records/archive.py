"""Publish a results folder as an archive that others can check, cite and read; and check one.

    python utilities.py publish --results_dir results/mine --out archive
    python utilities.py verify archive
    python utilities.py verify archive --out results/mine

An archive is a results folder, so `plotting.py --results_dir archive` draws it, with besides:

    tables/<image set>/<threat>.parquet   the records of every model
    tables/summary.parquet                evaluation_results.csv
    README.md                             a dataset card as Hugging Face reads it
    COLUMNS.md, CITATION.cff              what the columns mean, how to cite
    SHA256SUMS                            of every other file, as `sha256sum -c` takes it

The same records give the same bytes. Adversarial examples hold photographs and stay behind. An
archive without CSV has the run files and tables of the records, from which `verify` makes them;
with `--out` it writes the results folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pandas as pd

from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.folders import glob_visible, list_files
from alignment_security.common.settings import ROOT
from alignment_security.common.temporary import temporary_beside
from alignment_security.common.text import text_lines
from alignment_security.records.audit import audit
from alignment_security.records.audit_across import summary_differences
from alignment_security.records.dataset_card import dataset_card
from alignment_security.records.parquet import (
    csv_of_records,
    differing_tables,
    load_pyarrow,
    summary_of_tables,
    write_records,
    write_tables,
)
from alignment_security.records.summary import SUMMARY_NAME, read_summary_table

SUMS = "SHA256SUMS"
PUBLISH_AGAIN = "publish again"


def publish(results_dir: Path, out: Path, licence: str, with_csv: bool = True) -> int:
    """Write the archive of a results folder to a new folder; returns the number of its files.

    licence    of the records, as Hugging Face spells it: `cc-by-4.0`
    with_csv   whether it holds the records as CSV too
    Raises UserError where `out` exists or the audit of the results finds anything.
    """
    load_pyarrow()
    if out.exists():
        raise UserError(f"{out}: is there already; publish to another --out, or remove it")
    if found := audit(results_dir):
        raise UserError(
            f"{results_dir}: not published, since its audit finds {len(found)} problem(s), e.g. "
            f"{found[0]}; `python utilities.py audit {results_dir}` lists them"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as temporary:
        write_archive(results_dir, temporary, licence, with_csv)
        temporary.rename(out)
    return len(list_files(out).files)


def write_archive(results_dir: Path, out: Path, licence: str, with_csv: bool) -> None:
    """Write every file of an archive, the checksums last."""
    records, tables = results_dir / "records", out / "tables"
    copy_files(records, out / "records", "*/*/*.json")
    shutil.copyfile(results_dir / SUMMARY_NAME, out / SUMMARY_NAME)
    write_tables(records, tables)
    if with_csv:
        copy_files(records, out / "records", "*/*/*.csv")
    else:
        check_that_records_come_back(records, tables)
    summary = read_summary_table(out / SUMMARY_NAME, PUBLISH_AGAIN)
    summary.to_parquet(out / "tables" / "summary.parquet", index=False, compression="zstd")
    shutil.copyfile(ROOT / "CITATION.cff", out / "CITATION.cff")
    shutil.copyfile(ROOT / "results" / "README.md", out / "COLUMNS.md")
    (out / "README.md").write_text(dataset_card(out, summary, licence), encoding="utf-8")
    files = list_files(out).files
    lines = [f"{sha256_file(path)}  {path.relative_to(out).as_posix()}\n" for path in files]
    (out / SUMS).write_text("".join(lines), encoding="utf-8")


def check_that_records_come_back(records: Path, tables: Path) -> None:
    """Raise UserError unless the tables give every byte of the records."""
    for run_file, text in csv_of_records(records, tables):
        record = run_file.with_suffix(".csv")
        if record.read_bytes().replace(b"\r\n", b"\n") != text.encode():
            raise UserError(
                f"{record}: has columns or spellings of its own, which the tables do not hold; "
                "publish it with CSV, without --without_csv"
            )


def copy_files(folder: Path, out: Path, pattern: str) -> None:
    """Copy some files below a folder to the same places below another."""
    for path in glob_visible(folder, pattern):
        copy = out / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


# ---- checking ------------------------------------------------------------------------------------


def verify(archive: Path) -> list[str]:
    """Every problem of an archive, one line each.

    Files against SHA256SUMS first; if these are the published ones, the audit of the records, and
    the summary against the tables. Raises UserError where there is no archive.
    """
    load_pyarrow()
    if found := list(check_files(archive)):
        return found
    if glob_visible(archive, "records/*/*/*.csv"):
        return check_records(archive, archive)
    with TemporaryDirectory() as name:
        results = Path(name)
        try:
            write_results(archive, results)
        except (UserError, OSError, ValueError) as error:
            return [f"{archive / 'tables'}: {error}"]
        return check_records(archive, results)


def unpack(archive: Path, out: Path) -> None:
    """Write the results folder of an archive, with CSV, to a new folder.

    Raises UserError where `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; give another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as temporary:
        write_results(archive, temporary)
        temporary.rename(out)


def write_results(archive: Path, results: Path) -> None:
    """Write the run files, records and summary of an archive; raises as `write_records`."""
    copy_files(archive, results, "records/*/*/*.json")
    copy_files(archive, results, "records/*/*/*.csv")
    shutil.copyfile(archive / SUMMARY_NAME, results / SUMMARY_NAME)
    if not glob_visible(archive, "records/*/*/*.csv"):
        write_records(results / "records", archive / "tables", results / "records")


def check_records(archive: Path, results: Path) -> list[str]:
    """Findings of the audit, and where the tables of an archive differ.

    results   folder of the archive's records as CSV
    """
    return [*audit(results, with_examples=False), *check_tables(archive, results)]


def check_files(archive: Path) -> Iterator[str]:
    """Files that are missing, changed, or not of the archive."""
    sums = archive / SUMS
    if not sums.is_file():
        raise UserError(f"{sums}: no such file; `python utilities.py publish` writes an archive")
    listed = set()
    for number, line in enumerate(text_lines(sums), 1):
        sha256, _, name = line.partition("  ")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"{sums}, line {number}: no checksum and name of a file of the archive"
            continue
        path = archive / name
        if path in listed:
            yield f"{sums}, line {number}: names {name} a second time"
        listed.add(path)
        if path.resolve() != archive.resolve() / name:
            yield f"{path}: a link, not the file that was published"
        elif not path.is_file():
            yield f"{path}: missing"
        elif sha256_file(path) != sha256:
            yield f"{path}: not the file that was published (sha256 differs)"
    for path in list_files(archive).files:
        if path not in listed | {sums}:
            yield f"{path}: not of the archive, {SUMS} does not name it"


def check_tables(archive: Path, results: Path) -> Iterator[str]:
    """Where the parquet tables do not hold the records, or the summary is not what they give."""
    path, records, tables = archive / SUMMARY_NAME, results / "records", archive / "tables"
    written = read_summary_table(path, PUBLISH_AGAIN)
    try:
        found = list(differing_tables(records, tables))
        found += summary_differences(path, written, summary_of_tables(records, tables))
        copy = pd.read_parquet(tables / "summary.parquet")
        found += summary_differences(tables / "summary.parquet", written, copy)
    except (UserError, OSError, ValueError) as error:
        found = [f"{tables}: {error}"]
    yield from found
