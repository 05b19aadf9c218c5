"""Which models and photographs stand for many in Figures 1 and 4 of Feng et al. (2025)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from alignment_security.analysis.examples import keeps_examples, read_example
from alignment_security.analysis.feng2025_harmonized import architecture
from alignment_security.analysis.norm_table import NormTable
from alignment_security.analysis.results import Results, read_finished_rows, runs_of
from alignment_security.records.adversarial_examples import example_path

# corner of the plane of both measures -> its place, as shares of the ranks
CORNERS = {
    "low tolerance, low alignment": (0.0, 0.0),
    "high tolerance, low alignment": (1.0, 0.0),
    "high tolerance, high alignment": (1.0, 1.0),
}
REMEDIES = {"": "standard", "robust": "adversarially trained", "harmonized": "harmonized"}


class Picked(NamedTuple):
    """Models that stand for many, and one photograph as each of them is fooled on it.

    rows    of a NormTable, with the column `stands_for`
    cells   of `read_example`, one per row; empty where no record kept an example
    """

    rows: pd.DataFrame
    cells: list[dict]


def corner_models(rows: pd.DataFrame) -> pd.DataFrame:
    """The model nearest to each of CORNERS by its ranks in both measures, `stands_for` it.

    rows   of a NormTable. Empty below three models with both measures.
    """
    known = rows.dropna(subset=["pt", "alignment"])
    if len(known) < len(CORNERS):
        return known.iloc[:0].assign(stands_for="")
    ranks = (known[["pt", "alignment"]].rank() - 1) / (len(known) - 1)
    left, picked = ranks, []
    for corner in CORNERS.values():
        nearest = ((left - np.array(corner)) ** 2).sum(axis=1).idxmin()
        picked.append(nearest)
        left = left.drop(nearest)
    return known.loc[picked].assign(stands_for=list(CORNERS))


def remedy_models(results: Results, table: NormTable) -> pd.DataFrame:
    """A standard, an adversarially trained and a harmonized model of one architecture.

    The architecture with most of the three; of several models of a kind the best aligned one. Where
    a kind has none of that architecture, its best aligned model at all. Empty unless a table has
    standard models and others.
    """
    runs = runs_of(results, table.key)
    known = table.rows.dropna(subset=["pt", "alignment"])
    kinds = known["group"].where(known["group"].isin(list(REMEDIES)), "")
    nets = known["model"].map(lambda model: architecture(runs.get(model), model))
    if kinds.nunique() < 2 or "" not in set(kinds):
        return known.iloc[:0].assign(stands_for="")
    net = kinds.groupby(nets).nunique().idxmax()
    ordered = known.assign(elsewhere=nets != net).sort_values(
        ["elsewhere", "alignment"], ascending=[True, False]
    )
    picked = [ordered.index[kinds[ordered.index] == kind][:1] for kind in REMEDIES]
    chosen = [(index[0], name) for index, name in zip(picked, REMEDIES.values()) if len(index)]
    return known.loc[[index for index, _ in chosen]].assign(stands_for=[name for _, name in chosen])


def with_examples(results: Results, table: NormTable) -> NormTable:
    """The table's models that kept examples, if three have, else all of them."""
    models = [model for model, run in runs_of(results, table.key).items() if keeps_examples(run)]
    kept = table.rows[table.rows["model"].isin(models)]
    return table._replace(rows=kept) if len(kept) >= len(CORNERS) else table


def pick(results: Results, table: NormTable, rows: pd.DataFrame) -> Picked:
    """Models with the photograph that most of them kept an example of, or that --images names."""
    runs = runs_of(results, table.key)
    read = {
        model: read_finished_rows(runs[model])
        for model in rows["model"]
        if model in runs and keeps_examples(runs[model])
    }
    names = list(dict.fromkeys(name for part in read.values() for name in part["image_id"]))
    kept = {
        name: sum(example_path(runs[model]["csv"], name).exists() for model in read)
        for name in (results.images or names)
    }
    best = max(kept, key=kept.__getitem__, default="")  # the first of those that most have kept
    if not best or not kept[best]:
        return Picked(rows, [])
    shown = rows[rows["model"].isin(list(read))]
    cells = [read_example(runs[model], read[model], best) for model in shown["model"]]
    return Picked(shown, cells)
