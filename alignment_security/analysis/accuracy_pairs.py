"""Clean and robust accuracy of the same models on the same images, and their Pareto front."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from alignment_security.analysis.feng2025_published import own_groups
from alignment_security.analysis.results import Results, read_summary, robust_rows
from alignment_security.models.families import family
from alignment_security.records.metrics import accuracy_interval, pareto_front

SAME_IMAGES = ["image_set", "threat", "attack", "head", "n", "list_sha256", "eps"]


def accuracy_pairs(results: Results) -> Iterator[pd.DataFrame]:
    """A table per image list, head, threat, budget and eps of the summary, a row per model.

    Columns SAME_IMAGES, model, family, group (`own_groups`); clean, robust and their 95 % Wilson
    intervals clean_low, clean_high, robust_low, robust_high, in [0, 1]; front, whether no other
    model is as good in both accuracies and better in one. Unfinished records are left out.
    """
    for _, part in robust_rows(read_summary(results)).groupby(SAME_IMAGES, dropna=False):
        yield accuracy_pair_table(part.reset_index(drop=True))


def accuracy_pair_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of `accuracy_pairs` of some rows of the summary."""
    table = rows[["model", *SAME_IMAGES]].assign(
        family=rows["model"].map(family), group=own_groups(rows)
    )
    for name, column in (("clean", "clean_acc"), ("robust", "robust_acc")):
        table[name] = rows[column]
        table[[f"{name}_low", f"{name}_high"]] = share_intervals(rows[column], rows["n"])
    return table.assign(front=pareto_front(table[["clean", "robust"]].to_numpy()))


def share_intervals(shares: pd.Series, n: pd.Series) -> list[tuple[float, float]]:
    """95 % Wilson interval of each share of n images."""
    counts = (shares * n).round().astype(int)
    return [accuracy_interval(count, total) for count, total in zip(counts, n.astype(int))]
