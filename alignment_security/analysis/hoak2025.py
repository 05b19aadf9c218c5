"""The first paper's data: accuracies of models joined with their Brain-Score benchmarks, and how the two correlate.

Accuracies: evaluation_results.csv (`python utilities.py merge`), and evaluation_results_merged_robust.csv as the first paper's
scripts read it. Scores: benchmark_scores/ (`setup_scores`). What was measured differently is never pooled: each image set,
threat, protocol and budget is a study of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import nan_euclidean_distances

from alignment_security.analysis.brainscore_join import join_scores
from alignment_security.analysis.brainscore_leaderboard import (
    MERGED_SCORES,
    benchmark_columns,
    leaf_benchmarks,
    score_numbers,
)
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.common.files import UserError
from alignment_security.common.settings import format_eps
from alignment_security.models.families import lineage
from alignment_security.records.summary import SUMMARY_NAME

HOAK2025_TABLE = "evaluation_results_merged_robust.csv"
STUDY_KEY = [
    "image_set",
    "threat",
    "protocol",
    "attack",
    "n",
    "list_sha256",
]  # models that share these are comparable
# what the first paper's table does not say and its scripts do (kyangl/alignment-security, evaluate_robustness.py)
HOAK2025_KEY = {
    "image_set": "imagenet-val",
    "protocol": "torchattacks",
    "attack": "first paper's table: torchattacks' AutoAttack, whose APGD has 10 steps",
}
WIDE_COLUMN = r"Top-1 Accuracy (?:Linf (?P<eps>[0-9.e-]+)|Clean)"
BENCHMARK_GROUPS = {
    "average_vision": "average",
    "neural_vision": "neural",
    "behavior_vision": "behavioral",
    "engineering_vision": "engineering",
}  # each column stands before those that it is the average of
CLEAN_OUTCOME = "clean"
MIN_MODELS, MIN_FAMILIES = 10, 5  # below: no correlation; no interval over families
ALPHA = 0.05  # false discovery rate (Benjamini & Hochberg 1995)


@dataclass(frozen=True, eq=False)
class Study:
    """Models that were measured alike, and their scores."""

    name: str  # added to the names of files; empty where there is one study
    heading: str  # image set, threat, protocol, budget: stands in every picture
    facts: str  # n, date of the scores, missing data: stands in every caption
    scores: pd.DataFrame  # (models, benchmarks); nan: no score
    accuracy: (
        pd.DataFrame
    )  # (models, 1 + radii): `clean`, then each eps; in [0, 1], nan: not evaluated

    @cached_property
    def families(self) -> np.ndarray:
        return np.array([lineage(model) for model in self.scores.index])

    @property
    def radii(self) -> list[float]:
        return [outcome for outcome in self.accuracy if outcome != CLEAN_OUTCOME]


# ---- accuracies ------------------------------------------------------------------------------------------------


def read_accuracies(folder: Path) -> pd.DataFrame:
    """Rows `model, weights, eps, clean_acc, robust_acc` and KEY of every table of accuracies in a results folder."""
    readers = {
        folder / SUMMARY_NAME: read_accuracy_summary,
        folder / HOAK2025_TABLE: read_hoak2025_table,
    }
    tables = [reader(path) for path, reader in readers.items() if path.exists()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def read_accuracy_summary(path: Path) -> pd.DataFrame:
    """Finished rows of the summary that hold an accuracy under attack."""
    table = read_text_table(
        path, "`python utilities.py merge`", ["model", *STUDY_KEY[:4], "eps", "clean_acc"]
    )
    table = numeric_columns(path, table, ["eps", "clean_acc", "robust_acc"])
    table = table.reindex(
        columns=[*dict.fromkeys([*table, *STUDY_KEY, "robust_acc", "partial", "weights"])]
    )
    attacked = table["robust_acc"].notna() & (table["eps"] > 0) & (table["partial"] != "1")
    return table.loc[attacked, ["model", "weights", "eps", "clean_acc", "robust_acc", *STUDY_KEY]]


def read_hoak2025_table(path: Path) -> pd.DataFrame:
    """The first paper's table: a row per model and `Epsilon`, or one per model with eps inside the column names."""
    table = read_text_table(path, "the first paper's scripts", [])
    table = table.rename(columns={"model_registry_name": "Model Name"})
    wide = list(table.columns[table.columns.str.fullmatch(WIDE_COLUMN)])
    table = melt_wide_table(path, table, wide) if wide and "Epsilon" not in table else table
    names = {
        "Model Name": "model",
        "Threat Model": "threat",
        "Epsilon": "eps",
        "Top-1 Accuracy": "robust_acc",
        "Top-1 Subset Clean Accuracy": "clean_acc",
    }
    if missing := [column for column in names if column not in table]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}, which the first paper's tables have"
        )
    rows = numeric_columns(
        path, table, ["Epsilon", "Top-1 Accuracy", "Top-1 Subset Clean Accuracy"]
    )[list(names)]
    rows = rows.rename(columns=names).dropna(subset="robust_acc").drop_duplicates()
    return rows[rows["eps"] > 0].assign(**HOAK2025_KEY, n=np.nan, list_sha256="", weights="")


def melt_wide_table(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A row per model and eps from a table with eps inside the names of these columns; cells stay text."""
    if "Model Name" not in table:
        raise UserError(
            f"{path}: no column Model Name or model_registry_name, which the first paper's tables have"
        )
    cells = table[["Model Name", *columns]].melt("Model Name")
    cells["Epsilon"] = cells["variable"].str.extract(WIDE_COLUMN)["eps"].fillna("")
    clean = cells[cells["Epsilon"] == ""].set_index("Model Name")["value"]
    attacked = (
        cells[cells["Epsilon"] != ""]
        .rename(columns={"value": "Top-1 Accuracy"})
        .reset_index(drop=True)
    )
    return attacked.assign(
        **{
            "Threat Model": "Linf",
            "Top-1 Subset Clean Accuracy": attacked["Model Name"].map(clean).fillna(""),
        }
    )


def read_text_table(path: Path, made_by: str, columns: list[str]) -> pd.DataFrame:
    """A CSV whose cells are all text. Raises UserError, naming the command that made it, where it is none or lacks columns."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table ({error}); make it again with {made_by}") from None
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path}: no column {', '.join(missing)}; make it again with {made_by}")
    return table


def numeric_columns(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table with some columns (where it has them) as numbers: radii from 0 up, accuracies in [0, 1]; empty is nan."""
    table = table.copy()
    for column in [name for name in columns if name in table]:
        values = pd.to_numeric(table[column].replace("", np.nan), errors="coerce")
        most = np.inf if column in ("eps", "Epsilon") else 1
        wrong = table[column][
            (values.isna() & (table[column] != "")) | ~values.fillna(0).between(0, most)
        ]
        if len(wrong):
            raise UserError(
                f"{path}, line {wrong.index[0] + 2}, column {column}: {wrong.iloc[0]!r} is no number from 0 "
                f"to {most}; write accuracies as fractions, and eps in pixel units of [0, 1]"
            )
        table[column] = values
    return table


def accuracy_table(rows: pd.DataFrame, key: dict) -> pd.DataFrame:
    """(models, `clean` and each eps) of the rows of one study. Raises UserError where a model has two values."""
    if (twice := rows.duplicated(["model", "eps"])).any():
        model, eps = rows.loc[twice, ["model", "eps"]].iloc[0]
        raise UserError(
            f"{model}: two accuracies at eps {format_eps(eps)} under {key['attack']}; keep one of them"
        )
    robust = rows.pivot(index="model", columns="eps", values="robust_acc")
    robust.insert(0, CLEAN_OUTCOME, rows.groupby("model")["clean_acc"].first())
    return robust.astype(float)


# ---- scores ----------------------------------------------------------------------------------------------------


def read_joined_scores(folder: Path) -> tuple[pd.DataFrame, str]:
    """The joined leaderboard and a sentence on its source and date. Raises NothingToDraw without one."""
    path = folder / "benchmark_scores" / f"{MERGED_SCORES}.csv"
    if not path.exists():
        raise NothingToDraw(f"no {path}")
    table = read_text_table(path, "setup_scores", ["model_registry_name"])
    benchmarks = benchmark_columns(table)
    try:
        numbers = score_numbers(table[benchmarks])
    except ValueError as error:
        raise UserError(f"{path}: {error}; make it again with setup_scores") from None
    names = table.reindex(columns=["model_registry_name", "timm_name"], fill_value="")
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        facts = {}
    source = f"Brain-Score of {facts.get('date') or 'a date not recorded'} ({facts.get('source', path.name)})"
    return pd.concat([names, numbers], axis=1), source


def benchmark_groups(benchmarks: list[str]) -> dict[str, str]:
    """Benchmark -> average, neural, behavioral or engineering, by the average that stands before it."""
    found, current = {}, "other"
    for benchmark in benchmarks:
        current = BENCHMARK_GROUPS.get(benchmark, current)
        found[benchmark] = current
    return found


# ---- studies ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def studies(results: Results) -> list[Study]:
    """Every set of models measured alike of which at least MIN_MODELS have scores; none without accuracies.

    Raises NothingToDraw where accuracies have no scores, or too few of them.
    """
    rows = read_accuracies(results.folder)
    if results.models and len(rows):
        rows = rows[rows["model"].isin(results.models)]
    if rows.empty:
        return []
    scores, source = read_joined_scores(results.folder)
    found = [
        join_study(
            accuracy_table(part, key := dict(zip(STUDY_KEY, values))),
            part.groupby("model")["weights"].first(),
            scores,
            source,
            key,
        )
        for values, part in rows.groupby(STUDY_KEY, dropna=False)
    ]
    large = [study for study in found if len(study.scores) >= MIN_MODELS]
    counts = "; ".join(
        f"{study.heading}: {len(study.scores)} model(s)" for study in found if study not in large
    )
    if not large:
        raise NothingToDraw(
            f"too few models have both accuracies under attack and scores ({counts})"
        )
    named = (
        large
        if len(large) == 1
        else [replace(study, name=study.name + f"_{i}") for i, study in enumerate(large, start=1)]
    )
    return [
        replace(
            study,
            name=study.name if len(large) > 1 else "",
            facts=study.facts
            + (f" Not drawn, fewer than {MIN_MODELS}: {counts}." if counts else ""),
        )
        for study in named
    ]


def join_study(
    accuracy: pd.DataFrame, weights: pd.Series, scores: pd.DataFrame, source: str, key: dict
) -> Study:
    """Models with both; those without scores are named in the facts."""
    joined, unmatched = join_scores(
        scores,
        pd.DataFrame(
            {"model": accuracy.index, "weights": weights.reindex(accuracy.index).to_numpy()}
        ),
    )
    if (twice := joined["model_registry_name"].duplicated(keep=False)).any():
        raise UserError(
            f"{' and '.join(joined.loc[twice, 'model'])}: one model of Brain-Score; keep the results of one of them"
        )
    joined = joined.set_index("model").sort_index()
    lacking = sorted(unmatched.loc[unmatched["side"] == "results", "model"])
    images = "not recorded" if pd.isna(key["n"]) else f"{float(key['n']):g}"
    heading = f"{key['image_set']} (n = {images}), {key['threat'].replace('inf', '∞')}, {key['protocol']}, {key['attack']}"
    benchmarks = benchmark_columns(scores)
    empty = [name for name in benchmarks if joined[name].notna().sum() == 0]
    facts = (
        f"{heading}: {len(joined)} models in {len(set(map(lineage, joined.index)))} families; {source}. "
        f"{list_names('Models without scores', lacking)} {list_names('Benchmarks without any score', empty)} "
        f"{1 - joined[benchmarks].notna().to_numpy().mean():.0%} of the scores are missing."
    )
    name = re.sub(r"[^\w.-]+", "-", "_" + "_".join(str(key[column]) for column in STUDY_KEY[:3]))
    return Study(name, heading, facts, joined[benchmarks], accuracy.loc[joined.index])


def list_names(what: str, names: list[str], most: int = 12) -> str:
    """A sentence that names what is missing, the first of them where they are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most]) or 'none'}{more}."


COMPARABLE = 0.5  # of the benchmarks have a score of the model, and of the models on the benchmark
MOST_RADII = 6  # as many as there are colours of radii (plots/style.py)


# ---- parts -----------------------------------------------------------------------------------------------------


def outcome_label(outcome) -> str:
    """`clean`, or eps as people write it."""
    return outcome if outcome == CLEAN_OUTCOME else f"ε = {format_eps(outcome)}"


def short_benchmark(benchmark: str) -> str:
    """A benchmark's name without its laboratory and without Marques2020_, which 22 of them begin with."""
    return re.sub(r"^([a-z]+\.|Marques2020_)", "", benchmark).replace("_", " ")


def drawn_radii(study: Study) -> list[float]:
    """The radii that get a panel or a colour: all, or MOST_RADII of them, spread out; tables have all."""
    radii = study.radii
    return (
        radii
        if len(radii) <= MOST_RADII
        else [radii[i] for i in np.linspace(0, len(radii) - 1, MOST_RADII).round().astype(int)]
    )


# ---- t-SNE -----------------------------------------------------------------------------------------------------


def comparable_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Benchmarks, standardised, and models of which at least the share COMPARABLE is known; averages and constants left out."""
    leaves = scores[leaf_benchmarks(scores.columns)]
    leaves = leaves.loc[:, (leaves.notna().mean() >= COMPARABLE) & (leaves.std() > 0)]
    leaves = leaves[leaves.notna().mean(axis=1) >= COMPARABLE]
    return (leaves - leaves.mean()) / leaves.std()


def score_distances(standardised: pd.DataFrame) -> np.ndarray:
    """(models, models): Euclidean over the benchmarks that both have, scaled up to all of them (Dixon 1979; scikit-learn)."""
    found = nan_euclidean_distances(standardised)
    return np.nan_to_num(
        found, nan=np.nanmax(found)
    )  # a pair without a benchmark in common: as far as any
