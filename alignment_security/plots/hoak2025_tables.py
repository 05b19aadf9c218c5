"""LaTeX tables for Hoak 2025: regressions on alignment, and the strongest benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis.hoak2025 import studies
from alignment_security.analysis.hoak2025_regression import regression_rows
from alignment_security.analysis.hoak2025_statistics import (
    ranked_benchmarks,
    robust_correlations,
)
from alignment_security.analysis.results import Results
from alignment_security.plots.hoak2025 import NEEDED_DATA, drawing_of, short_benchmark
from alignment_security.plots.style import Drawing

LISTED = 10  # benchmarks of each sign


def regression_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the regressions of accuracy under attack on each kind of alignment."""
    for study in studies(results):
        rows = regression_rows(study)
        if rows.empty:
            continue
        caption = (
            "Accuracy under attack regressed on alignment: least squares, R2 in the sample and of "
            "unseen models (ten folds, five times) and families (ten folds), p of the slope, and p "
            "with a random intercept per family."
        )
        yield drawing_of(study, "regression_table", None, rows, caption)


def benchmark_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the benchmarks of largest and smallest correlation with accuracy at the last eps."""
    for study in studies(results):
        table = robust_correlations(study)
        if table.empty:
            continue
        largest = table["accuracy"].max()
        table = table[table["accuracy"] == largest].sort_values("rho", ascending=False)
        table = pd.concat([table[:LISTED], table[LISTED:][-LISTED:]])
        shown = pd.DataFrame(
            {
                "benchmark": table["benchmark"].map(short_benchmark),
                "kind": table["group"],
                "n": table["n"],
                "rho": table["rho"],
                "95 % interval": interval(table["low"], table["high"]),
                "over families": interval(table["expanded_low"], table["expanded_high"]),
                "q": table["family_q"],
                "given clean": table["partial_rho"],
                "survives": table["survives"].map({1: "yes", 0: "no"}),
            }
        )
        caption = (
            f"Spearman's correlation with accuracy at {study.label(largest)}: the strongest "
            "benchmarks of either sign, with bootstrap intervals over models and over families. "
            "q: with a random intercept per family. "
            f"{ranked_benchmarks(study)[1]} Given clean: partial correlation given clean accuracy."
        )
        yield drawing_of(study, "benchmark_table", None, shown, caption)


def interval(low: pd.Series, high: pd.Series) -> list[str]:
    """Intervals as text, empty without a value."""
    return ["" if np.isnan(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high)]


FIGURES = {
    "regression_table": (regression_table, NEEDED_DATA),
    "benchmark_table": (benchmark_table, NEEDED_DATA),
}
