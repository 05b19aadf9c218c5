"""Tables 1 and 2 of Feng et al. (2025): as printed, and as in the public file."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alignment_security.analysis.feng2025 import MEASURE_NAMES, MEASURES, published_norm_table
from alignment_security.analysis.feng2025_published import paper_tables
from alignment_security.analysis.results import Results

TABLE_DIGITS = {"pt": 4, "alignment": 2}  # decimals of Tables 1 and 2
# largest difference of a printed value from the public one that rounding explains
ROUNDING = {"pt": 5e-5, "pt_sem": 5e-7, "alignment": 5.1e-5, "alignment_sem": 5.1e-5}


def plus_minus(value: float, error: float, factor: float, digits: int) -> str:
    """`2.9369 ± 0.0785`: a value and its standard error; empty without a value."""
    if np.isnan(value):
        return ""
    text = f"{factor * value:.{digits}f}"
    return text if np.isnan(error) else f"{text} ± {factor * error:.{digits}f}"


def printed_columns(rows: pd.DataFrame, suffix: str = "") -> dict[str, list[str]]:
    """Both measures as Tables 1 and 2 print them: PT to four decimals, alignment in percent to two.

    suffix   of the columns that are read, `pt{suffix}` and so on
    """
    columns = {}
    for measure, (_, factor) in MEASURES.items():
        heading = MEASURE_NAMES[measure] + (" (%)" if factor == 100 else "")
        columns[heading] = [
            plus_minus(value, error, factor, TABLE_DIGITS[measure])
            for value, error in zip(rows[f"{measure}{suffix}"], rows[f"{measure}_sem{suffix}"])
        ]
    return columns


def robust_table(results: Results) -> pd.DataFrame | None:
    """Table 2 as printed (`pt_printed`, ...) and the public file's values (`pt`, ...) of each net.

    `equal` is yes or no, or empty if the file has no such net. None without the printed table.
    """
    tables = paper_tables(results)
    if tables is None:
        return None
    published = published_norm_table(results)
    columns = ["model", *ROUNDING]
    public = pd.DataFrame(columns=columns) if published is None else published.rows[columns]
    both = tables[tables["table"] == 2].merge(
        public, how="left", on="model", suffixes=("_printed", "")
    )
    both[list(ROUNDING)] = both[list(ROUNDING)].astype(float)
    same = pd.Series(True, both.index)
    for column, tolerance in ROUNDING.items():
        difference = (both[f"{column}_printed"] - both[column]).abs()
        same &= difference <= tolerance
    both["equal"] = np.select([both["pt"].isna(), same], ["", "yes"], "no")
    return both
