"""Hoak 2025 and Feng 2025 joined: Brain-Score, robust accuracy and norms of the same models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from alignment_security.analysis.brainscore_join import join_scores
from alignment_security.analysis.brainscore_leaderboard import (
    MERGED_SCORES,
    SCORES_FOLDER,
    benchmark_columns,
    drop_repeats,
    leaf_benchmarks,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.brainscore_scores import read_merged_scores
from alignment_security.analysis.feng2025 import MEASURES, correlation, norm_tables, tables_with
from alignment_security.analysis.feng2025_published import TIMM_TOP1_TABLES, published_table
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import NothingToDraw, Results, read_summary
from alignment_security.analysis.statistics import benjamini_hochberg, correlation_p
from alignment_security.models.lists import read_model_list
from alignment_security.records.metrics import accuracy_interval

TIMM_PREFIX = "timm:"  # of weights in model lists


# ---- Brain-Score ---------------------------------------------------------------------------------


def read_scores(results: Results) -> tuple[pd.DataFrame, str]:
    """Brain-Score scores by model_registry_name and timm_name, and a phrase on their source.

    The table of setup_scores, else the leaderboard in the folder of --published. Raises
    NothingToDraw if there is neither.
    """
    path = results.folder / SCORES_FOLDER / f"{MERGED_SCORES}.csv"
    if path.exists():
        return read_merged_scores(results.folder)
    files = sorted(results.published.glob("brainscore/*leaderboard*")) if results.published else []
    if not files:
        raise NothingToDraw(f"no {path} and no published leaderboard")
    scores, facts = read_leaderboard(files[0])
    scores, _ = drop_repeats(scores)
    timm = scores["model_name"].map(timm_names(results)).fillna("")
    names = pd.DataFrame({"model_registry_name": scores["model_name"], "timm_name": timm})
    numbers = score_numbers(scores[benchmark_columns(scores)])
    source = f"Brain-Score leaderboard {files[0].name} ({facts['date'] or 'undated'})"
    return pd.concat([names, numbers], axis=1), source


def timm_names(results: Results) -> dict[str, str]:
    """Registry name -> timm model that certainly has the same weights.

    From lists/models/brainscore.txt, and architectures with a single set of weights in timm.
    """
    listed = read_model_list("brainscore")
    listed = listed[listed["weights"].str.startswith(TIMM_PREFIX)]
    known = dict(zip(listed["name"], listed["weights"].str.removeprefix(TIMM_PREFIX)))
    table = published_table(results, TIMM_TOP1_TABLES, ["model"], [])
    if table is None:
        return known
    models = pd.Series(table["model"].unique())
    architectures = models.str.partition(".")[0]
    single = ~architectures.duplicated(keep=False)
    return dict(zip(architectures[single], models[single])) | known


def benchmark_table(norms: NormTable, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman of every benchmark with both measures, a row each.

    q (Benjamini & Hochberg 1995) is over all benchmarks and both measures; averages have none.
    """
    joined, _ = join_scores(scores, norms.rows[["model", "weights", *MEASURES]])
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
            rows.append(row | correlation(joined, name, measure))
    table = pd.DataFrame(rows)
    table["p"] = [correlation_p(rho, n) for rho, n in zip(table["rho"], table["n"])]
    table["q"] = benjamini_hochberg(table["p"].where(table["leaf"] == 1).to_numpy())
    return table


# ---- robust accuracy against norms ---------------------------------------------------------------


class RobustPair(NamedTuple):
    """Robust accuracies under one threat, and norms of one table, of the models that have both."""

    accuracy: str  # image set, threat and budget of the accuracies
    norms: NormTable
    models: pd.DataFrame  # a row per model and eps


def robust_pairs(results: Results) -> Iterator[RobustPair]:
    """Every pair of robust accuracies and norms that have models in common.

    Accuracies are grouped by image set, threat and budget. Norms are of the same image set, or
    published. `models` has the columns of the summary, pt, pt_sem, and a 95 % Wilson interval
    low, high.
    """
    summary = read_summary(results)
    finished = summary["robust_acc"].notna() & summary["partial"].ne(1) & (summary["eps"] > 0)
    groups = summary[finished].groupby(["image_set", "threat", "attack"], dropna=False)
    for (image_set, threat, attack), part in groups:
        for norms in tables_with(norm_tables(results), ["pt"]):
            columns = ["source", "model", "group", "pt", "pt_sem"]
            models = part.merge(norms.rows[columns], on="model")
            same_images = norms.name == PUBLISHED or norms.image_set == image_set
            if len(models) and same_images:
                intervals = [
                    accuracy_interval(int(correct), int(n))
                    for correct, n in zip(models["robust"], models["n"])
                ]
                models["low"], models["high"] = zip(*intervals)
                yield RobustPair(f"{image_set}, {threat}, {attack}", norms, models)
