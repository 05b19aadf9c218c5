"""Data of the figures of Hoak 2025: accuracies of models joined with their Brain-Score benchmarks.

A Study holds models that were measured alike: image set, threat, protocol and budget are the same.
Studies are never pooled. Scores: benchmark_scores/ (`setup_scores`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_join import join_scores
from alignment_security.analysis.brainscore_leaderboard import benchmark_columns
from alignment_security.analysis.hoak2025_accuracies import (
    CLEAN_OUTCOME,
    STUDY_KEY,
    WEIGHTS_COLUMNS,
    accuracy_table,
    read_accuracies,
)
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.analysis.scores import read_scores
from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError
from alignment_security.common.text import some_of
from alignment_security.models.families import lineage

# averages of the leaderboard, each before the benchmarks that it is the average of -> their group
BENCHMARK_GROUPS = {
    "average_vision": "average",
    "neural_vision": "neural",
    "behavior_vision": "behavioral",
    "engineering_vision": "engineering",
}
MIN_MODELS = 10  # fewer: no correlation
MIN_FAMILIES = 5  # fewer: no interval over families
ALPHA = 0.05  # false discovery rate (Benjamini & Hochberg 1995)
COMPARABLE = 0.5  # share of the benchmarks that a model, or of the models that a benchmark, needs


@dataclass(frozen=True, eq=False)
class Study:
    """Models that were measured alike, and their scores.

    Equal only to itself, so that `correlation_table` can cache its result per study.
    """

    name: str  # added to file names; empty if there is only one study
    heading: str  # image set, threat, protocol, budget: on every picture
    facts: str  # n, date of the scores, missing data: in every caption
    scores: pd.DataFrame  # (models, benchmarks); nan: no score
    accuracy: pd.DataFrame  # (models, `clean` and each eps), in [0, 1]; nan: not evaluated
    runs: dict[str, str]  # image_set, threat and attack of the runs behind it

    @cached_property
    def families(self) -> np.ndarray:
        """(models,) names of the families that are resampled."""
        return np.array([lineage(model) for model in self.scores.index])

    @property
    def radii(self) -> list[float]:
        """The eps of the accuracies under attack."""
        return [outcome for outcome in self.accuracy if outcome != CLEAN_OUTCOME]

    def radius(self, eps: float) -> str:
        """An eps as text, in one unit with the others: `1/255`, or 0.00392 beside 0.00196."""
        return format_eps(eps, self.runs["threat"], self.radii)

    def label(self, outcome: str | float) -> str:
        """`clean`, or an eps as text: `ε = 1/255`."""
        return outcome if isinstance(outcome, str) else f"ε = {self.radius(outcome)}"


def benchmark_groups(benchmarks: list[str]) -> dict[str, str]:
    """Benchmark -> average, neural, behavioral or engineering, by the last average before it."""
    groups, current = {}, "other"
    for benchmark in benchmarks:
        current = BENCHMARK_GROUPS.get(benchmark, current)
        groups[benchmark] = current
    return groups


# ---- studies -------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def studies(results: Results) -> list[Study]:
    """Every study of at least MIN_MODELS models with scores; empty without accuracies.

    Raises NothingToDraw if there are accuracies but no scores, or if every study is too small.
    """
    rows = results.asked_for(read_accuracies(results.folder))
    if rows.empty:
        return []
    scores, source = read_scores(results)
    found = [
        join_study(part, dict(zip(STUDY_KEY, values)), scores, source)
        for values, part in rows.groupby(STUDY_KEY, dropna=False)
    ]
    large = [study for study in found if len(study.scores) >= MIN_MODELS]
    small = [study for study in found if len(study.scores) < MIN_MODELS]
    counts = "; ".join(f"{study.heading}: {len(study.scores)} model(s)" for study in small)
    if not large:
        raise NothingToDraw(
            f"too few models have both accuracies under attack and scores ({counts})"
        )
    if small:
        not_drawn = f" Not drawn, fewer than {MIN_MODELS}: {counts}."
        large = [replace(study, facts=study.facts + not_drawn) for study in large]
    if len(large) == 1:
        return [replace(large[0], name="")]
    return [replace(study, name=f"{study.name}_{i}") for i, study in enumerate(large, start=1)]


def join_study(rows: pd.DataFrame, key: dict, scores: pd.DataFrame, source: str) -> Study:
    """The study of some accuracies: the models that have scores; `facts` names the others.

    rows     accuracies that share STUDY_KEY
    key      STUDY_KEY -> the values that they share
    scores, source   of `read_scores`
    Raises UserError if two results are one model of Brain-Score.
    """
    accuracy = accuracy_table(rows, key["attack"])
    weights = rows.groupby("model")[WEIGHTS_COLUMNS].first().reindex(accuracy.index)
    joined, unmatched = join_scores(scores, weights.rename_axis("model").reset_index())
    twice = joined["model_registry_name"].duplicated(keep=False)
    if twice.any():
        raise UserError(
            f"{' and '.join(joined.loc[twice, 'model'])}: one model of Brain-Score; keep the "
            "results of one of them"
        )
    joined = joined.set_index("model").sort_index()
    without = sorted(unmatched.loc[unmatched["side"] == "results", "model"])
    joined_scores = joined[benchmark_columns(scores)]
    other_input = list(joined.index[joined["input_note"] != ""])
    heading = study_heading(key)
    name = "_" + "_".join(str(key[column]) for column in ("image_set", "threat", "protocol"))
    return Study(
        name=re.sub(r"[^\w.-]+", "-", name),
        heading=heading,
        facts=f"{heading}: {study_facts(joined_scores, source, without, other_input)}",
        scores=joined_scores,
        accuracy=accuracy.loc[joined.index],
        runs={name: key[name] for name in ("image_set", "threat", "attack")},
    )


def study_heading(key: dict) -> str:
    """Image set, n, threat, protocol and budget of a study."""
    n = "n not recorded" if pd.isna(key["n"]) else f"n = {float(key['n']):g}"
    threat = key["threat"].replace("inf", "∞")
    return f"{key['image_set']} ({n}), {threat}, {key['protocol']}, {key['attack']}"


def study_facts(
    scores: pd.DataFrame, source: str, without: list[str], other_input: list[str]
) -> str:
    """Numbers of models and families, source of the scores, and what is missing, for a caption.

    without       models without scores
    other_input   models to which Brain-Score's plugin shows other images than timm
    """
    seen = list_names("Scored on another input than timm's", other_input) if other_input else ""
    families = {lineage(model) for model in scores.index}
    empty = list(scores.columns[scores.isna().all()])
    missing = scores.isna().to_numpy().sum() / max(scores.size, 1)
    return (
        f"{len(scores)} models in {len(families)} families; {source}. "
        f"{list_names('Models without scores', without)} "
        f"{list_names('Benchmarks without any score', empty)} "
        f"{missing:.0%} of the scores are missing. {seen}"
    ).rstrip()


def list_names(what: str, names: list[str]) -> str:
    """A sentence with the first of some names, and how many more there are."""
    return f"{what}: {some_of(names) or 'none'}."
