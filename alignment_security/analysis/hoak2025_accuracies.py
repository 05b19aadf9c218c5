"""Accuracies under attack for the figures of Hoak 2025: our summary, and tables of its scripts.

Ours: evaluation_results.csv (`python utilities.py merge`). Hoak 2025's scripts
(kyangl/alignment-security, evaluate_robustness.py): evaluation_results_merged_robust.csv.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError
from alignment_security.common.tables import read_table, to_numbers
from alignment_security.records.summary import SUMMARY_NAME

HOAK2025_TABLE = "evaluation_results_merged_robust.csv"
# models that share these are comparable
STUDY_KEY = ["image_set", "threat", "protocol", "attack", "n", "list_sha256"]
WEIGHTS_COLUMNS = ["weights", "weights_sha256"]
ACCURACY_COLUMNS = ["model", *WEIGHTS_COLUMNS, "eps", "clean_acc", "robust_acc", *STUDY_KEY]
# what Hoak 2025's table does not say and its scripts do
HOAK2025_KEY = {
    "image_set": "imagenet-val",
    "protocol": "torchattacks",
    "attack": "AutoAttack with 10 steps of APGD (Hoak 2025)",
}
HOAK2025_COLUMNS = {
    "Model Name": "model",
    "Threat Model": "threat",
    "Epsilon": "eps",
    "Top-1 Accuracy": "robust_acc",
    "Top-1 Subset Clean Accuracy": "clean_acc",
}
EPS_COLUMNS = ("eps", "Epsilon")
THREAT_COLUMNS = ("threat", "Threat Model")
FRACTION_COLUMNS = (
    "clean_acc",
    "robust_acc",
    "Top-1 Accuracy",
    "Top-1 Subset Clean Accuracy",
)
WIDE_COLUMN = r"Top-1 Accuracy (?:Linf (?P<eps>[0-9.e-]+)|Clean)"
CLEAN_OUTCOME = "clean"  # column of clean accuracy; those of accuracy under attack are eps
MERGE_AGAIN = "make it again with `python utilities.py merge`"
UNITS = "write accuracies as fractions, and eps in pixel units of [0, 1]"
NOT_HOAK2025 = "make it again with Hoak 2025's scripts"


def read_accuracies(folder: Path) -> pd.DataFrame:
    """Accuracies under attack of every table in a results folder, a row per model and eps.

    Columns ACCURACY_COLUMNS; empty without a table. Raises UserError for a damaged table.
    """
    tables = []
    if (folder / SUMMARY_NAME).exists():
        tables.append(read_accuracy_summary(folder / SUMMARY_NAME))
    if (folder / HOAK2025_TABLE).exists():
        tables.append(read_hoak2025_table(folder / HOAK2025_TABLE))
    if not tables:
        return pd.DataFrame(columns=ACCURACY_COLUMNS)
    return pd.concat(tables, ignore_index=True)


def read_accuracy_summary(path: Path) -> pd.DataFrame:
    """Finished rows of the summary that have an accuracy under attack."""
    required = ["model", "image_set", "threat", "protocol", "attack", "eps", "clean_acc"]
    table = numeric_accuracies(path, read_table(path, required, MERGE_AGAIN))
    columns = dict.fromkeys([*table, *ACCURACY_COLUMNS, "partial"])
    table = table.reindex(columns=list(columns))
    attacked = table["robust_acc"].notna() & (table["eps"] > 0) & (table["partial"] != "1")
    return table.loc[attacked, ACCURACY_COLUMNS]


def numeric_accuracies(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with eps and accuracies as numbers: eps from 0 up, in Linf and accuracies to 1.

    Knows the columns of the summary and those of Hoak 2025. Only an empty cell has no value.
    """
    threat = table[next(name for name in THREAT_COLUMNS if name in table)]
    linf = table[threat.str.startswith("Linf")]
    to_numbers(path, linf, EPS_COLUMNS, UNITS, low=0, high=1, no_value=("",))
    table = to_numbers(path, table, EPS_COLUMNS, UNITS, low=0, no_value=("",))
    return to_numbers(path, table, FRACTION_COLUMNS, UNITS, low=0, high=1, no_value=("",))


def read_hoak2025_table(path: Path) -> pd.DataFrame:
    """Hoak 2025's table, in either of its two shapes.

    Long: a row per model and `Epsilon`. Wide: a row per model, with eps in the column names.
    """
    table = read_table(path, [], NOT_HOAK2025)
    table = table.rename(columns={"model_registry_name": "Model Name"})
    wide = list(table.columns[table.columns.str.fullmatch(WIDE_COLUMN)])
    if wide and "Epsilon" not in table:
        table = melt_wide_table(path, table, wide)
    missing = [column for column in HOAK2025_COLUMNS if column not in table]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}, which Hoak 2025's tables have; {NOT_HOAK2025}"
        )
    # numbers first: an error names the columns as the file has them
    rows = numeric_accuracies(path, table[list(HOAK2025_COLUMNS)]).rename(columns=HOAK2025_COLUMNS)
    rows = rows.dropna(subset="robust_acc").drop_duplicates()
    rows = rows[rows["eps"] > 0].assign(**HOAK2025_KEY, n=np.nan, list_sha256="")
    return rows.assign(**dict.fromkeys(WEIGHTS_COLUMNS, ""))


def melt_wide_table(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A row per model and eps of a table with eps in the names of `columns`; cells stay text."""
    if "Model Name" not in table:
        raise UserError(
            f"{path}: no column Model Name or model_registry_name, which Hoak 2025's tables have; "
            f"{NOT_HOAK2025}"
        )
    cells = table[["Model Name", *columns]].melt("Model Name")
    cells["Epsilon"] = cells["variable"].str.extract(WIDE_COLUMN)["eps"].fillna("")
    is_clean = cells["Epsilon"] == ""
    clean = cells[is_clean].set_index("Model Name")["value"]
    attacked = cells[~is_clean].rename(columns={"value": "Top-1 Accuracy"})
    attacked = attacked.reset_index(drop=True)
    attacked["Threat Model"] = "Linf"
    attacked["Top-1 Subset Clean Accuracy"] = attacked["Model Name"].map(clean).fillna("")
    return attacked


def accuracy_table(rows: pd.DataFrame, attack: str) -> pd.DataFrame:
    """(models, `clean` and each eps) of rows that share STUDY_KEY; nan where not evaluated.

    Raises UserError if a model has two accuracies at one eps.
    """
    twice = rows.duplicated(["model", "eps"])
    if twice.any():
        model, eps, threat = rows.loc[twice, ["model", "eps", "threat"]].iloc[0]
        raise UserError(
            f"{model}: two accuracies at eps {format_eps(eps, threat)} under {attack}; keep one "
            "of them"
        )
    robust = rows.pivot(index="model", columns="eps", values="robust_acc")
    robust.insert(0, CLEAN_OUTCOME, rows.groupby("model")["clean_acc"].first())
    return robust.astype(float)
