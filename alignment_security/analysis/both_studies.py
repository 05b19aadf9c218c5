"""Hoak 2025 and Feng 2025 joined: Brain-Score, robust accuracy and norms of the same models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from alignment_security.analysis.accuracy_pairs import share_intervals
from alignment_security.analysis.brainscore_join import join_scores
from alignment_security.analysis.brainscore_leaderboard import (
    benchmark_columns,
    leaf_benchmarks,
)
from alignment_security.analysis.feng2025 import (
    MEASURES,
    correlation,
    correlation_tests,
    norm_tables,
    tables_with,
)
from alignment_security.analysis.hoak2025 import MIN_MODELS
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import Results, read_summary, robust_rows
from alignment_security.analysis.statistics import benjamini_hochberg
from alignment_security.common.public_nets import public_nets

# how a model joined: its name here and there, the rule, and the difference of its input there
JOIN_COLUMNS = ["model", "weights", "model_registry_name", "match", "input_note"]


# ---- Brain-Score ---------------------------------------------------------------------------------


def benchmark_table(norms: NormTable, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman of every benchmark with both measures, a row each.

    p and q treat models as independent, family_p and family_q do not (`rank_tests`). Each q
    (Benjamini & Hochberg 1995) is over all benchmarks of at least MIN_MODELS models and both
    measures; averages have none.
    """
    joined = joined_models(norms, scores)
    benchmarks = benchmark_columns(scores)
    leaves = set(leaf_benchmarks(benchmarks))
    rows = []
    for name in benchmarks:
        for measure in MEASURES:
            row = {
                "source": norms.source,
                "benchmark": name,
                "leaf": int(name in leaves),
                "measure": measure,
                "models": len(joined),
            }
            found = correlation(joined, name, measure) | correlation_tests(joined, name, measure)
            rows.append(row | found)
    table = pd.DataFrame(rows)
    tested = table["leaf"].eq(1) & (table["n"] >= MIN_MODELS)
    for kind in ("", "family_"):
        table[f"{kind}q"] = benjamini_hochberg(table[f"{kind}p"].where(tested).to_numpy())
    return table


def joined_models(norms: NormTable, scores: pd.DataFrame) -> pd.DataFrame:
    """The models of a table of norms that have scores, with how they joined and the scores."""
    columns = ["source", "model", "weights", "weights_sha256", *MEASURES]
    return join_scores(scores, norms.rows[columns])[0]


# ---- robust accuracy against norms ---------------------------------------------------------------


class RobustPair(NamedTuple):
    """Robust accuracies under one threat, and norms of one table, of the models that have both."""

    accuracy: str  # image set, threat and budget of the accuracies
    threat: str  # of the accuracies
    norms: NormTable
    models: pd.DataFrame  # a row per model and eps
    heads: tuple[str, str]  # of the accuracies and of the norms


def robust_pairs(results: Results) -> Iterator[RobustPair]:
    """Every pair of robust accuracies and norms that have models in common.

    Accuracies are grouped by image set, threat, budget, head and list of images. Norms are of the
    same list, or published. `models` has the columns of the summary, pt, pt_sem, and a 95 % Wilson
    interval low, high.
    """
    summary = read_summary(results)
    key = ["image_set", "threat", "attack", "head", "list_sha256"]
    for (image_set, threat, attack, head, _), part in robust_rows(summary).groupby(
        key, dropna=False
    ):
        for norms in tables_with(norm_tables(results), ["pt"]):
            models = join_norms(part, norms)
            same_images = norms.name == PUBLISHED or norms.image_set == image_set
            if len(models) and same_images:
                models[["low", "high"]] = share_intervals(models["robust_acc"], models["n"])
                heads = head if isinstance(head, str) else "none", norms.head
                accuracy = f"{image_set}, {threat}, {attack}"
                yield RobustPair(accuracy, threat, norms, models, heads)


def without_partner(results: Results, pairs: list[RobustPair]) -> list[str]:
    """Robust accuracies and tables of norms that `robust_pairs` leaves out: none has the other."""
    balls = robust_rows(read_summary(results))[["image_set", "threat", "attack"]]
    names = [f"{row.image_set}, {row.threat}, {row.attack}" for row in balls.itertuples()]
    names += [norms.source for norms in tables_with(norm_tables(results), ["pt"])]
    paired = {name for pair in pairs for name in (pair.accuracy, pair.norms.source)}
    return [name for name in dict.fromkeys(names) if name not in paired]


def join_norms(part: pd.DataFrame, norms: NormTable) -> pd.DataFrame:
    """Rows of the summary with source, group, pt and pt_sem of a table of norms.

    Published norms join the public nets alone; ours join by name, which is one net in a folder,
    and by list of images.
    """
    columns = ["source", "group", "pt", "pt_sem"]
    key = ["public"] if norms.name == PUBLISHED else ["model", "list_sha256"]
    rows = norms.rows.loc[norms.rows[key[0]] != "", [*key, *columns]]
    part = part.drop(columns="group").assign(public=public_nets(part))
    return part.fillna({"list_sha256": ""}).merge(rows, on=key)
