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

import utilities
from alignment_security.analysis import brainscore_leaderboard as brainscore
from alignment_security.analysis import statistics as inference
from alignment_security.models.families import lineage
from alignment_security.plots.style import NothingToDraw, Results
from alignment_security.records.run import SUMMARY_NAME, RecordError

LEGACY = "evaluation_results_merged_robust.csv"
KEY = ["image_set", "threat", "protocol", "attack", "n", "list_sha256"]     # models that share these are comparable
# what the first paper's table does not say and its scripts do (kyangl/alignment-security, evaluate_robustness.py)
LEGACY_KEY = {"image_set": "imagenet-val", "protocol": "torchattacks",
              "attack": "first paper's table: torchattacks' AutoAttack, whose APGD has 10 steps"}
WIDE = r"Top-1 Accuracy (?:Linf (?P<eps>[0-9.e-]+)|Clean)"
GROUPS = {"average_vision": "average", "neural_vision": "neural", "behavior_vision": "behavioral",
          "engineering_vision": "engineering"}      # each column stands before those that it is the average of
CLEAN = "clean"
MIN_MODELS, MIN_FAMILIES = 10, 5    # below: no correlation; no interval over families
ALPHA = 0.05                        # false discovery rate (Benjamini & Hochberg 1995)
COLUMNS = ["benchmark", "group", "leaf", "accuracy", "n", "families", "empty", "rho", "p", "q", "low", "high", "family_low",
           "family_high", "left_low", "left_high", "left_family", "partial_rho", "partial_p", "partial_q", "partial_low",
           "partial_high"]


@dataclass(frozen=True, eq=False)
class Study:
    """Models that were measured alike, and their scores."""
    name: str                   # added to the names of files; empty where there is one study
    heading: str                # image set, threat, protocol, budget: stands in every picture
    facts: str                  # n, date of the scores, missing data: stands in every caption
    scores: pd.DataFrame        # (models, benchmarks); nan: no score
    accuracy: pd.DataFrame      # (models, 1 + radii): `clean`, then each eps; in [0, 1], nan: not evaluated

    @cached_property
    def families(self) -> np.ndarray:
        return np.array([lineage(model) for model in self.scores.index])

    @property
    def radii(self) -> list[float]:
        return [outcome for outcome in self.accuracy if outcome != CLEAN]


# ---- accuracies ------------------------------------------------------------------------------------------------

def read_accuracies(folder: Path) -> pd.DataFrame:
    """Rows `model, weights, eps, clean_acc, robust_acc` and KEY of every table of accuracies in a results folder."""
    readers = {folder / SUMMARY_NAME: read_summary, folder / LEGACY: read_legacy}
    tables = [reader(path) for path, reader in readers.items() if path.exists()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def read_summary(path: Path) -> pd.DataFrame:
    """Finished rows of the summary that hold an accuracy under attack."""
    table = read_text(path, "`python utilities.py merge`", ["model", *KEY[:4], "eps", "clean_acc"])
    table = to_numbers(path, table, ["eps", "clean_acc", "robust_acc"])
    table = table.reindex(columns=[*dict.fromkeys([*table, *KEY, "robust_acc", "partial", "weights"])])
    attacked = table["robust_acc"].notna() & (table["eps"] > 0) & (table["partial"] != "1")
    return table.loc[attacked, ["model", "weights", "eps", "clean_acc", "robust_acc", *KEY]]


def read_legacy(path: Path) -> pd.DataFrame:
    """The first paper's table: a row per model and `Epsilon`, or one per model with eps inside the column names."""
    table = read_text(path, "the first paper's scripts", [])
    table = table.rename(columns={"model_registry_name": "Model Name"})
    wide = list(table.columns[table.columns.str.fullmatch(WIDE)])
    table = widened(path, table, wide) if wide and "Epsilon" not in table else table
    names = {"Model Name": "model", "Threat Model": "threat", "Epsilon": "eps", "Top-1 Accuracy": "robust_acc",
             "Top-1 Subset Clean Accuracy": "clean_acc"}
    if missing := [column for column in names if column not in table]:
        raise RecordError(f"{path}: no column {', '.join(missing)}, which the first paper's tables have")
    rows = to_numbers(path, table, ["Epsilon", "Top-1 Accuracy", "Top-1 Subset Clean Accuracy"])[list(names)]
    rows = rows.rename(columns=names).dropna(subset="robust_acc").drop_duplicates()
    return rows[rows["eps"] > 0].assign(**LEGACY_KEY, n=np.nan, list_sha256="", weights="")


def widened(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A row per model and eps from a table with eps inside the names of these columns; cells stay text."""
    if "Model Name" not in table:
        raise RecordError(f"{path}: no column Model Name or model_registry_name, which the first paper's tables have")
    cells = table[["Model Name", *columns]].melt("Model Name")
    cells["Epsilon"] = cells["variable"].str.extract(WIDE)["eps"].fillna("")
    clean = cells[cells["Epsilon"] == ""].set_index("Model Name")["value"]
    attacked = cells[cells["Epsilon"] != ""].rename(columns={"value": "Top-1 Accuracy"}).reset_index(drop=True)
    return attacked.assign(**{"Threat Model": "Linf", "Top-1 Subset Clean Accuracy": attacked["Model Name"].map(clean).fillna("")})


def read_text(path: Path, made_by: str, columns: list[str]) -> pd.DataFrame:
    """A CSV whose cells are all text. Raises RecordError, naming the command that made it, where it is none or lacks columns."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a table ({error}); make it again with {made_by}") from None
    if missing := [column for column in columns if column not in table]:
        raise RecordError(f"{path}: no column {', '.join(missing)}; make it again with {made_by}")
    return table


def to_numbers(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table with some columns (where it has them) as numbers: radii from 0 up, accuracies in [0, 1]; empty is nan."""
    table = table.copy()
    for column in [name for name in columns if name in table]:
        values = pd.to_numeric(table[column].replace("", np.nan), errors="coerce")
        most = np.inf if column in ("eps", "Epsilon") else 1
        wrong = table[column][(values.isna() & (table[column] != "")) | ~values.fillna(0).between(0, most)]
        if len(wrong):
            raise RecordError(f"{path}, line {wrong.index[0] + 2}, column {column}: {wrong.iloc[0]!r} is no number from 0 "
                              f"to {most}; write accuracies as fractions, and eps in pixel units of [0, 1]")
        table[column] = values
    return table


def accuracy_table(rows: pd.DataFrame, key: dict) -> pd.DataFrame:
    """(models, `clean` and each eps) of the rows of one study. Raises RecordError where a model has two values."""
    if (twice := rows.duplicated(["model", "eps"])).any():
        model, eps = rows.loc[twice, ["model", "eps"]].iloc[0]
        raise RecordError(f"{model}: two accuracies at eps {utilities.format_eps(eps)} under {key['attack']}; keep one of them")
    robust = rows.pivot(index="model", columns="eps", values="robust_acc")
    robust.insert(0, CLEAN, rows.groupby("model")["clean_acc"].first())
    return robust.astype(float)


# ---- scores ----------------------------------------------------------------------------------------------------

def read_scores(folder: Path) -> tuple[pd.DataFrame, str]:
    """The joined leaderboard and a sentence on its source and date. Raises NothingToDraw without one."""
    path = folder / "benchmark_scores" / f"{brainscore.MERGED}.csv"
    if not path.exists():
        raise NothingToDraw(f"no {path}")
    table = read_text(path, "setup_scores", ["model_registry_name"])
    benchmarks = brainscore.benchmark_columns(table)
    try:
        numbers = brainscore.to_numbers(table[benchmarks])
    except ValueError as error:
        raise RecordError(f"{path}: {error}; make it again with setup_scores") from None
    names = table.reindex(columns=["model_registry_name", "timm_name"], fill_value="")
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        facts = {}
    source = f"Brain-Score of {facts.get('date') or 'a date not recorded'} ({facts.get('source', path.name)})"
    return pd.concat([names, numbers], axis=1), source


def group_of(benchmarks: list[str]) -> dict[str, str]:
    """Benchmark -> average, neural, behavioral or engineering, by the average that stands before it."""
    found, current = {}, "other"
    for benchmark in benchmarks:
        current = GROUPS.get(benchmark, current)
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
    scores, source = read_scores(results.folder)
    found = [join(accuracy_table(part, key := dict(zip(KEY, values))), part.groupby("model")["weights"].first(), scores,
                  source, key) for values, part in rows.groupby(KEY, dropna=False)]
    large = [study for study in found if len(study.scores) >= MIN_MODELS]
    counts = "; ".join(f"{study.heading}: {len(study.scores)} model(s)" for study in found if study not in large)
    if not large:
        raise NothingToDraw(f"too few models have both accuracies under attack and scores ({counts})")
    named = large if len(large) == 1 else [replace(study, name=study.name + f"_{i}") for i, study in enumerate(large, start=1)]
    return [replace(study, name=study.name if len(large) > 1 else "",
                    facts=study.facts + (f" Not drawn, fewer than {MIN_MODELS}: {counts}." if counts else "")) for study in named]


def join(accuracy: pd.DataFrame, weights: pd.Series, scores: pd.DataFrame, source: str, key: dict) -> Study:
    """Models with both; those without scores are named in the facts."""
    joined, unmatched = brainscore.join_scores(
        scores, pd.DataFrame({"model": accuracy.index, "weights": weights.reindex(accuracy.index).to_numpy()}))
    if (twice := joined["model_registry_name"].duplicated(keep=False)).any():
        raise RecordError(f"{' and '.join(joined.loc[twice, 'model'])}: one model of Brain-Score; keep the results of one of them")
    joined = joined.set_index("model").sort_index()
    lacking = sorted(unmatched.loc[unmatched["side"] == "results", "model"])
    images = "not recorded" if pd.isna(key["n"]) else f"{float(key['n']):g}"
    heading = f"{key['image_set']} (n = {images}), {key['threat'].replace('inf', '∞')}, {key['protocol']}, {key['attack']}"
    benchmarks = brainscore.benchmark_columns(scores)
    empty = [name for name in benchmarks if joined[name].notna().sum() == 0]
    facts = (f"{heading}: {len(joined)} models in {len(set(map(lineage, joined.index)))} families; {source}. "
             f"{listed('Models without scores', lacking)} {listed('Benchmarks without any score', empty)} "
             f"{1 - joined[benchmarks].notna().to_numpy().mean():.0%} of the scores are missing.")
    name = re.sub(r"[^\w.-]+", "-", "_" + "_".join(str(key[column]) for column in KEY[:3]))
    return Study(name, heading, facts, joined[benchmarks], accuracy.loc[joined.index])


def listed(what: str, names: list[str], most: int = 12) -> str:
    """A sentence that names what is missing, the first of them where they are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most]) or 'none'}{more}."


# ---- correlations ----------------------------------------------------------------------------------------------

def correlate(score: np.ndarray, accuracy: np.ndarray, families: np.ndarray) -> list[dict]:
    """Spearman's correlation of one benchmark with each accuracy, and all that tells how far to trust it.

    score (n,), accuracy (n, k), the first of them clean; floats, nan: none; families (n,) names. Returns k dicts: n, families,
    rho, its p, its bootstrap interval over models (low, high) and over families (family_low, family_high), its range with each
    family left out (left_low, left_high, and left_family, which moves it most), the same given clean accuracy (partial_rho,
    partial_p, partial_low, partial_high), and `empty`: why there is none.
    """
    known, found = ~np.isnan(accuracy) & ~np.isnan(score)[:, None], dict[int, dict]()
    for whole in np.unique(known, axis=1).T:    # accuracies of the same models share their resamples
        alike = np.flatnonzero((known == whole[:, None]).all(axis=0))
        found |= zip(alike, correlate_whole(score[whole], accuracy[whole], alike, families[whole]))
    return [found[j] for j in range(accuracy.shape[1])]


def correlate_whole(score: np.ndarray, accuracy: np.ndarray, outcomes: np.ndarray, families: np.ndarray) -> list[dict]:
    """`correlate` with some outcomes (columns of accuracy), for models that have them and the score."""
    n, (names, left) = len(score), inference.without_each(families)
    found: dict = {"n": n, "families": len(names)}
    if n < MIN_MODELS or np.ptp(score) == 0:
        return [found | {"empty": f"fewer than {MIN_MODELS} models" if n < MIN_MODELS else "constant score"}] * len(outcomes)
    drawn = inference.resample_counts(n)
    weights = np.concatenate([np.ones((1, n)), left, drawn, inference.family_counts(families)])
    parts = np.cumsum([1, len(names), len(drawn)])      # as they are, a family left out, models drawn, families drawn
    used = list(dict.fromkeys([0, *outcomes]))
    r = inference.rank_correlations(np.column_stack([score, np.nan_to_num(accuracy[:, used])]), weights)
    cells = []
    for j in outcomes:
        y = 1 + used.index(j)
        rho, without, resampled, clustered = np.split(r[:, 0, y], parts)
        cell = found | estimate(rho[0], resampled, n)
        if np.isnan(rho[0]):
            cell["empty"] = "constant accuracy"
        elif len(names) >= MIN_FAMILIES:
            cell |= zip(["family_low", "family_high"], inference.percentiles(clustered))
            cell |= range_without(rho[0], np.where(left.sum(axis=1) >= MIN_MODELS, without, np.nan), names)
        if j != 0 and not np.isnan(accuracy[:, 0]).any():
            rho, _, resampled, _ = np.split(inference.partial(r[:, 0, y], r[:, 0, 1], r[:, 1, y]), parts)
            cell |= {f"partial_{name}": value for name, value in estimate(rho[0], resampled, n, given=1).items()}
        cells.append(cell)
    return cells


def estimate(rho: float, resampled: np.ndarray, n: int, given: int = 0) -> dict[str, float]:
    """A correlation, its p and its bootstrap interval."""
    return {"rho": rho, "p": inference.correlation_p(rho, n, given),
            **dict(zip(["low", "high"], inference.percentiles(resampled)))}


def range_without(rho: float, without: np.ndarray, names: np.ndarray) -> dict:
    """The range of a correlation with each family left out, and the family that moves it most."""
    if np.isnan(without).all():
        return {}
    return {"left_low": np.nanmin(without), "left_high": np.nanmax(without),
            "left_family": names[np.nanargmax(np.abs(without - rho))]}


@lru_cache(maxsize=8)
def correlation_table(study: Study) -> pd.DataFrame:
    """`correlate` of every benchmark with every accuracy, a row each, with q over the whole grid and whether it survives."""
    group, leaves = group_of(list(study.scores)), set(brainscore.leaf_benchmarks(study.scores))
    accuracy, families, rows = study.accuracy.to_numpy(), study.families, []
    for benchmark, scores in study.scores.items():
        names = {"benchmark": benchmark, "group": group[benchmark], "leaf": int(benchmark in leaves)}
        cells = correlate(scores.to_numpy(), accuracy, families)
        rows += [names | {"accuracy": outcome} | cell for outcome, cell in zip(study.accuracy, cells)]
    table = pd.DataFrame(rows, columns=COLUMNS).fillna({"empty": "", "left_family": ""})
    for p, q in (("p", "q"), ("partial_p", "partial_q")):
        table[q] = inference.benjamini_hochberg(table[p].to_numpy(float))
    return table.assign(survives=survives(table).astype(int))


def survives(table: pd.DataFrame) -> pd.Series:
    """Benchmarks (no averages) whose correlation with robust accuracy has q <= ALPHA, an interval over families without 0,
    and one sign whichever family is left out."""
    return ((table["leaf"] == 1) & (table["accuracy"] != CLEAN) & (table["q"] <= ALPHA)
            & (table["family_low"] * table["family_high"] > 0) & (table["left_low"] * table["left_high"] > 0))
