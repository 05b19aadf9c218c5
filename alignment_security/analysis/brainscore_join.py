"""The summary of our results with the Brain-Score scores of each model (brainscore.join_scores).

    python utilities.py join            results/evaluation_results.csv + the merged scores -> JOINED and UNMATCHED
"""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import MERGED, join_scores
from alignment_security.records.run import SUMMARY_NAME, RecordError, write_atomic

JOINED, UNMATCHED = "evaluation_results_scores.csv", "evaluation_results_unmatched.csv"
MAX_SHOWN = 20      # models without results that are printed; the file has all


def join_results(results_dir: str | Path = "results") -> pd.DataFrame:
    """The summary of our results with each model's scores: writes JOINED and, beside it, UNMATCHED; prints the latter.

    Returns the joined table. Raises RecordError where a table is missing; then nothing is written.
    """
    folder = Path(results_dir)
    results = read_made(folder / SUMMARY_NAME, f"python utilities.py merge --results_dir {folder}")
    scores = read_made(folder / "benchmark_scores" / f"{MERGED}.csv", f"python utilities.py setup_scores --results_dir {folder}")
    joined, unmatched = join_scores(scores, results)
    for name, table in ((JOINED, joined), (UNMATCHED, unmatched)):
        write_atomic(folder / name, table.to_csv(index=False, lineterminator="\n"))
    print(f"{len(joined)} of {len(results)} rows joined ({joined['model'].nunique()} models): {folder / JOINED}\n"
          f"{len(unmatched)} models without a partner: {folder / UNMATCHED}\n{shown(unmatched)}")
    return joined


def read_made(path: Path, command: str) -> pd.DataFrame:
    """A table that a command of ours writes; RecordError with that command where it is missing or empty."""
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        raise RecordError(f"{path}: no such table; `{command}` makes it") from None


def shown(unmatched: pd.DataFrame) -> str:
    """Every result without scores; of the models without results, which are many, the first ones and how many more."""
    of_scores = unmatched[unmatched["side"] == "scores"]
    table = pd.concat([unmatched[unmatched["side"] == "results"], of_scores.head(MAX_SHOWN)])
    more = len(of_scores) - MAX_SHOWN
    return (table.to_string(index=False) if len(table) else "") + (f"\n... and {more} more of the scores" if more > 0 else "")
