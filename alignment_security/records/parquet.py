"""Records as parquet: a file per image set and threat, a row group per model.

pandas.read_parquet("Linf.parquet") gives the rows of every model, with `model` and the columns of
the records. Of a record beside the model's first, `model` is `net+steps-100`. Needs pyarrow
(requirements-publish.txt), which figures and evaluations do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible
from alignment_security.common.schema import NUMBER, WHOLE
from alignment_security.records.names import record_name
from alignment_security.records.record import (
    RECORD_COLUMNS,
    check_record_sha256,
    read_record,
    read_run_file,
    rows_to_csv,
)
from alignment_security.records.schemas import RECORD
from alignment_security.records.summary_rows import summary_frame, summary_rows

ZSTD_LEVEL = 9
ROWS_OF_A_GROUP = 2**20  # the most rows of a model that are compressed together
# few different values; the other texts differ in every image, the other numbers in every row
REPEATED = ["model", "eps", "from_eps", "broken_by", "stage"]
SUMMARISED = [
    "label",
    "clean_correct",
    "clean_top5",
    "clean_real",
    "clean_multilabel",
    "eps",
    "robust",
    "stage",
    "success",
    "l2",
    "linf",
    "l1",
    "human_alignment",
    "forwards",
    "backwards",
]
# that hold whole numbers, or fractions where an attack shares the passes of a batch
SHARED = [name for name, column in RECORD.items() if column.shared]


def load_pyarrow() -> Any:
    """pyarrow with its parquet module. Raises UserError without it."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(
            "publish and verify need pyarrow: pip install -r requirements-publish.txt"
        ) from None
    return pyarrow


# ---- writing -------------------------------------------------------------------------------------


def write_tables(records: Path, folder: Path) -> None:
    """Write folder/<image set>/<threat>.parquet for every folder of records.

    records   the folder `records` of a results folder whose audit finds nothing
    """
    by_threat: dict[Path, list[Path]] = {}
    for run_file in glob_visible(records, "*/*/*.json"):
        by_threat.setdefault(run_file.parent.relative_to(records), []).append(run_file)
    for threat, run_files in by_threat.items():
        (folder / threat.parent).mkdir(parents=True, exist_ok=True)
        write_table(run_files, folder / f"{threat}.parquet")


def write_table(run_files: list[Path], path: Path) -> None:
    """Write the records of some models to one parquet file, a row group each."""
    pyarrow = load_pyarrow()
    columns, fractions = record_columns(run_files), columns_of_fractions(run_files)
    types = {name: pyarrow.float64() for name in fractions}
    schema = pyarrow.schema(
        [(name, types.get(name) or column_type(name)) for name in ["model", *columns]]
    )
    with pyarrow.parquet.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[name for name in REPEATED if name in schema.names],
        column_encoding={
            name: column_encoding(NUMBER if name in fractions else RECORD[name].kind)
            for name in columns
            if name not in REPEATED
        },
    ) as writer:
        for run_file in run_files:
            writer.write_table(record_table(run_file, schema), ROWS_OF_A_GROUP)


def record_table(run_file: Path, schema: Any) -> Any:
    """The rows of a record as a pyarrow.Table with the columns of a schema, `model` first."""
    pyarrow = load_pyarrow()
    options = pyarrow.csv.ConvertOptions(
        column_types={field.name: field.type for field in schema},
        include_columns=schema.names[1:],
        include_missing_columns=True,
        strings_can_be_null=True,
    )
    table = pyarrow.csv.read_csv(run_file.with_suffix(".csv"), convert_options=options)
    name = record_name(read_run_file(run_file))
    model = pyarrow.array([name] * table.num_rows, pyarrow.string())
    return table.add_column(0, schema.field("model"), model)


def record_columns(run_files: list[Path]) -> list[str]:
    """The columns of some records, in the order of RECORD."""
    found: set[str] = set()
    for run_file in run_files:
        with open(run_file.with_suffix(".csv"), encoding="utf-8") as file:
            found |= set(file.readline().strip().split(","))
    return [name for name in RECORD if name in found]


def column_type(name: str) -> Any:
    """The type of a column: text, float64, or the smallest whole number that holds it."""
    pyarrow = load_pyarrow()
    column = RECORD.get(name)
    if column is None or column.kind not in (WHOLE, NUMBER):
        return pyarrow.string()
    if column.kind == NUMBER:
        return pyarrow.float64()
    return pyarrow.int8() if column.high == 1 else pyarrow.int64()


def columns_of_fractions(run_files: list[Path]) -> set[str]:
    """The columns that have a fraction in some record, of those that may (SHARED)."""
    found: set[str] = set()
    for run_file in run_files:
        rows = read_record(run_file.with_suffix(".csv"))
        found |= {name for name in SHARED if name in rows and has_fractions(rows[name])}
    return found


def has_fractions(values: pd.Series) -> bool:
    return bool((values.dropna() % 1).any())


def column_encoding(kind: str) -> str:
    """What makes a column small for zstd: bytes of equal place, differences, common beginnings."""
    if kind == NUMBER:
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if kind == WHOLE else "DELTA_BYTE_ARRAY"


# ---- reading -------------------------------------------------------------------------------------


def summary_of_tables(records: Path, folder: Path) -> pd.DataFrame:
    """The summary that the tables give.

    records   the run files, for the budget and provenance of each row
    Raises UserError as `tables_of_records`.
    """
    rows: list[dict] = []
    for _, run_file, table in tables_of_records(records, folder, SUMMARISED):
        rows += summary_rows(read_run_file(run_file), table.to_pandas(), complete=True)
    return summary_frame(rows)


def differing_tables(records: Path, folder: Path) -> Iterator[str]:
    """A sentence for each record that is not, row for row, in the tables; raises as above."""
    found = set()
    for path, run_file, table in tables_of_records(records, folder):
        found.add(run_file)
        if not table.equals(record_table(run_file, table.schema)):
            name = record_name(read_run_file(run_file))
            yield f"{path}: the rows of {name} are not those of its record"
    for run_file in glob_visible(records, "*/*/*.json"):
        if run_file not in found:
            yield f"{run_file}: its record is in no table"


def write_records(records: Path, folder: Path, out: Path) -> None:
    """Write the records of the tables as they were, to out/<image set>/<threat>/<model>.csv.

    Raises UserError where a record does not have the sha256 of its run file, and as above.
    """
    for run_file, text in csv_of_records(records, folder):
        record = out / run_file.relative_to(records).with_suffix(".csv")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(text, encoding="utf-8")
        check_record_sha256(record, read_run_file(run_file))


def csv_of_records(records: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """(run file, CSV that its tables give of the record); raises as above."""
    for _, run_file, table in tables_of_records(records, folder):
        rows = table.drop_columns("model").to_pandas(integer_object_nulls=True)
        columns = RECORD_COLUMNS[read_run_file(run_file)["kind"]]
        if "l1" in rows and rows["l1"].isna().all() and rows["l2"].notna().any():
            rows = rows.drop(columns="l1")  # begun before records had it, beside others
        whole = [name for name in SHARED if name in rows and not has_fractions(rows[name])]
        rows = rows.astype(dict.fromkeys(whole, "Int64"))
        yield run_file, rows_to_csv(rows[[name for name in columns if name in rows]])


def tables_of_records(
    records: Path, folder: Path, columns: list[str] | None = None
) -> Iterator[tuple[Path, Path, Any]]:
    """(parquet file, run file, pyarrow.Table of its rows) for each record of the tables.

    columns   those to read; None: all
    Raises UserError for rows without a run file, and as `models_of_table`.
    """
    for path in glob_visible(folder, "*/*.parquet"):
        runs = records / path.relative_to(folder).with_suffix("")
        run_files = {
            record_name(read_run_file(file)): file for file in glob_visible(runs, "*.json")
        }
        for model, table in models_of_table(path, columns):
            if model not in run_files:
                raise UserError(
                    f"{path}: has rows of {model}, which has no run file in {runs}; publish again"
                )
            yield path, run_files[model], table


def models_of_table(path: Path, columns: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(model, pyarrow.Table of its rows) of a file that `write_table` wrote.

    columns   those to read, where the file has them; None: all
    Raises UserError for a file that cannot be read.
    """
    pyarrow = load_pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
        known = [name for name in columns or [] if name in file.schema_arrow.names]
        groups: dict[str, list[int]] = {}
        for i in range(file.num_row_groups):
            model = file.metadata.row_group(i).column(0).statistics.min
            groups.setdefault(model, []).append(i)
        for model, numbers in groups.items():
            yield model, file.read_row_groups(numbers, known or None)
    except (pyarrow.ArrowException, AttributeError) as error:
        raise UserError(f"{path}: no parquet table of this project ({error})") from None
