"""Perturbation Tolerance and human alignment, a row per model, of every source: Feng et al. (2025) as published, and ours.

A source is one protocol, budget and image set. Sources are never pooled: each is a panel, a table or a row of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from alignment_security.analysis.results import Results, describe_runs
from alignment_security.analysis.statistics import (
    percentile_interval,
    rank_correlations,
    resample_counts,
)
from alignment_security.common.files import UserError
from alignment_security.common.settings import ROOT
from alignment_security.models.families import family
from alignment_security.records.metrics import pareto_front
from alignment_security.records.summary import SUMMARY_NAME

PUBLISHED = "Feng et al. 2025, published"
NOT_STANDARD = [
    "robust",
    "harmonized",
]  # groups by training, beside which every other model is a standard one
ROBUST_NAME = re.compile(r"(?P<net>.+)_(?P<norm>l2|linf)_eps(?P<eps>[\d.]+)(_255)?$")
GROUPS_FILE = ROOT / "lists" / "models" / "feng2025.txt"
NORM_TABLE_COLUMNS = [
    "source",
    "model",
    "weights",
    "family",
    "group",
    "pt",
    "pt_sem",
    "alignment",
    "alignment_sem",
    "accuracy",
    "estimated",
]
REQUIRED_COLUMNS = [
    "model",
    "threat",
    "image_set",
    "protocol",
    "attack",
    "n",
    "clean_acc",
]  # of the summary
SUMMARY_COLUMNS = [
    *REQUIRED_COLUMNS,
    "eps",
    "robust",
    "robust_acc",
    "l2_mean",
    "l2_sem",
    "human_alignment",
    "human_alignment_sem",
    "partial",
    "weights",
]
WORD_COLUMNS = [
    "model",
    "threat",
    "image_set",
    "protocol",
    "attack",
    "model_dir_id",
    "name",
    "group",
    "weights",
]  # columns of words
MULTILABEL = "multi-label accuracy (%)"
# names of eth-sri/automated-error-analysis that are neither `timm--NAME` nor `torchvision--NAME` (= NAME.tv_in1k)
MULTILABEL_NAMES = {
    "regnetx_004_tv.tv2_in1k": "torchvision--regnet_x_400mf",
    "regnetx_008.tv2_in1k": "torchvision--regnet_x_800mf",
    "regnetx_016.tv2_in1k": "torchvision--regnet_x_1_6gf",
    "regnety_004.tv2_in1k": "torchvision--regnet_y_400mf",
    "regnety_008_tv.tv2_in1k": "torchvision--regnet_y_800mf",
    "regnety_016.tv2_in1k": "torchvision--regnet_y_1_6gf",
    "resnet18.fb_ssl_yfcc100m_ft_in1k": "facebook--resnet18_ssl",
    "resnet18.fb_swsl_ig1b_ft_in1k": "facebook--resnet18_swsl",
    "convnext_base.fb_in22k_ft_in1k": "facebook--convnext-base-224-22k-1k",
    "convnext_base.fb_in22k_ft_in1k_384": "facebook--convnext-base-384-22k-1k",
    "convnext_large.fb_in22k_ft_in1k_384": "facebook--convnext-large-384-22k-1k",
}
SAME_WEIGHTS = 1.0  # percent of top-1 accuracy by which two tables may differ on one model
# top-1 of the linear heads, in percent (Oquab et al. 2023, DINOv2, table 4); timm's tables have no row for them
DINOV2_TOP1 = {
    f"vit_{size}_patch14_dinov2.lvd142m": top1
    for size, top1 in (("small", 81.1), ("base", 84.5), ("large", 86.3), ("giant", 86.5))
}


class NormTable(NamedTuple):
    """One protocol on one image set: its rows (COLUMNS), what its accuracy is, and what a caption says of it."""

    name: str
    rows: pd.DataFrame
    accuracy_label: str
    note: str
    image_set: str = ""  # of our own records
    threat: str = ""

    @property
    def standard(self) -> pd.DataFrame:
        """Rows of models that were neither trained adversarially nor harmonized."""
        return self.rows[~self.rows["group"].isin(NOT_STANDARD)]


@cache
def norm_tables(results: Results) -> list[NormTable]:
    """The published numbers where --published gives them, then every protocol of ours that has norms."""
    return [*published_norms(results), *own_norms(results)]


# ---- published -------------------------------------------------------------------------------------------------


def read_number_table(
    path: Path, columns: list[str], mend: str, text: Collection[str] = WORD_COLUMNS, **options
) -> pd.DataFrame:
    """A CSV that has these columns, numbers in all but those of `text`. Raises UserError naming the file and what is wrong."""
    try:
        table = pd.read_csv(path, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table ({str(error).strip()}); {mend}") from None
    if lacking := [column for column in columns if column not in table]:
        raise UserError(f"{path}: no column {', '.join(lacking)}; {mend}")
    return as_numbers(path, table, set(columns) - set(text), mend)


def as_numbers(path: Path, table: pd.DataFrame, columns: Iterable[str], mend: str) -> pd.DataFrame:
    """The table with these columns as numbers. Raises UserError with the first cell that is none."""
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce")
        if (wrong := values.isna() & table[column].notna()).any():
            raise UserError(
                f"{path}, column {column}: {table.loc[wrong, column].iat[0]!r} is no number; {mend}"
            )
        table[column] = values
    return table


def published_table(results: Results, pattern: str, columns: list[str]) -> pd.DataFrame | None:
    """The published files of a pattern, one below the other, the oldest first; None where there is none."""
    if results.published is None:
        return None
    if not results.published.is_dir():
        raise UserError(
            f"{results.published}: no such folder; --published (or PUBLISHED_DIR of .env) names it"
        )
    tables = [
        read_number_table(path, columns, "bring it again from where results/README.md says")
        for path in sorted(results.published.glob(pattern))
    ]
    return pd.concat(tables, ignore_index=True) if tables else None


def model_groups() -> dict[str, str]:
    """Model -> group of the second paper (SSL, CNN, ViT, Hybrid, robust), from lists/models/feng2025.txt."""
    table = read_number_table(
        GROUPS_FILE,
        ["name", "group"],
        "restore it: git checkout lists",
        sep="\t",
        comment="#",
        dtype=str,
    )
    return dict(zip(table["name"], table["group"]))


def multilabel_accuracy(results: Results, models: pd.Series) -> pd.DataFrame:
    """Multi-label accuracy in percent (`accuracy`) of models by timm name, and whether it is `estimated`.

    Measured ones are those of eth-sri/automated-error-analysis (torchvision's only where top-1 tells that they are timm's:
    a name may stand for newer weights there). Of a model without one it is what a cubic in top-1 accuracy, fitted to all
    models of that table, gives for its top-1 (timm, robust-models-transfer, DINOv2); else nan.
    """
    table = published_table(
        results,
        "multilabel/stats-imagenet*.csv",
        ["model_dir_id", "top1_val_acc", "imagenet_mla_val_acc"],
    )
    if table is None:
        return pd.DataFrame({"accuracy": np.nan, "estimated": False}, index=models.index)
    known = table.drop_duplicates("model_dir_id").set_index("model_dir_id")
    top1 = models.map(top1_accuracies(results)).astype(float)
    rows = known.reindex([multilabel_name(model, known.index) for model in models]).set_index(
        models.index
    )
    other_weights = models.str.endswith(".tv_in1k") & (
        (rows["top1_val_acc"] - top1).abs() > SAME_WEIGHTS
    )
    found = rows["imagenet_mla_val_acc"].mask(other_weights)
    cubic = np.polyfit(table["top1_val_acc"], table["imagenet_mla_val_acc"], 3)
    guess = pd.Series(np.polyval(cubic, top1), models.index)
    return pd.DataFrame(
        {"accuracy": found.fillna(guess), "estimated": found.isna() & guess.notna()}
    )


def multilabel_name(model: str, known: pd.Index) -> str:
    """What eth-sri/automated-error-analysis calls a timm model; "" where it has no such model."""
    names = [
        f"timm--{model}",
        MULTILABEL_NAMES.get(model, ""),
        f"torchvision--{model.removesuffix('.tv_in1k')}",
    ]
    return next((name for name in names[: 2 + model.endswith(".tv_in1k")] if name in known), "")


def top1_accuracies(results: Results) -> dict[str, float]:
    """ImageNet top-1 in percent by model name; the oldest of timm's tables, which the paper's models come from, first."""
    tables = [
        published_table(results, "timm/results-imagenet_*.csv", ["model", "top1"]),
        published_table(results, "feng2025/robust_checkpoints_top1.csv", ["model", "top1"]),
    ]
    known = pd.concat(
        [
            pd.Series(DINOV2_TOP1, name="top1").rename_axis("model").reset_index(),
            *(table[["model", "top1"]] for table in tables if table is not None),
        ]
    )
    return known.drop_duplicates("model").set_index("model")["top1"].to_dict()


def paper_tables(results: Results) -> pd.DataFrame | None:
    """Tables 1 (harmonized nets) and 2 (robust nets) as printed: model, pt, pt_sem, alignment, alignment_sem, table."""
    table = published_table(
        results, "feng2025/seed_tables_1_2.csv", ["model", "pt", "ps", "aa", "as_"]
    )
    if table is None:
        return None
    robust = table["model"].str.match(ROBUST_NAME.pattern)
    return pd.DataFrame(
        {
            "table": np.where(robust, 2, 1),
            "model": table["model"].str.removesuffix("_255").where(robust, table["model"]),
            "pt": table["pt"],
            "pt_sem": table["ps"],
            "alignment": table["aa"] / 100,
            "alignment_sem": table["as_"] / 100,
        }
    )


def published_norms(results: Results) -> Iterator[NormTable]:
    """The 351 models of Feng et al. (2025) and the harmonized nets of their Table 1, whose accuracies are not public."""
    table = published_table(
        results, "feng2025/adversarial_alignment*.csv", ["model", "pt", "aa", "pt_sem", "aa_sem"]
    )
    if table is None:
        return
    rows = table.drop_duplicates("model").rename(
        columns={"aa": "alignment", "aa_sem": "alignment_sem"}
    )
    rows = rows.assign(group=rows["model"].map(model_groups()).fillna("Other"))
    if (printed := paper_tables(results)) is not None:
        nets = printed[printed["table"] == 1].assign(group="harmonized")
        rows = pd.concat(
            [rows, nets.assign(model=nets["model"] + " (harmonized)")], ignore_index=True
        )  # no timm model
    standard = ~rows["group"].eq("harmonized")
    rows = rows.join(multilabel_accuracy(results, rows.loc[standard, "model"])).assign(
        source=PUBLISHED
    )
    rows = rows.assign(
        weights=("timm:" + rows["model"]).where(~rows["group"].isin(NOT_STANDARD), ""),
        family=rows["model"].map(family),
        estimated=rows["estimated"].fillna(False).astype(bool),
    )
    known = rows.loc[~rows["group"].isin(NOT_STANDARD)]
    note = (
        f"{PUBLISHED} (TonyFPY/Adversarial_Alignment@597da67, Tables 1 and 2): {len(known)} standard, "
        f"{rows['group'].eq('robust').sum()} robust, {rows['group'].eq('harmonized').sum()} harmonized nets; protocol "
        f"feng2025 (its norms are not minimal), bars as published. Multi-label accuracy of eth-sri/automated-error-"
        f"analysis: of {len(known)} standard models {known['estimated'].sum()} are estimated from their top-1, as all "
        f"robust ones are; {rows['accuracy'].isna().sum()} models have none."
    )
    yield NormTable(PUBLISHED, rows[NORM_TABLE_COLUMNS], MULTILABEL, note)


# ---- ours ------------------------------------------------------------------------------------------------------


def read_summary(results: Results) -> pd.DataFrame:
    """results/evaluation_results.csv, of the models asked for; empty where there is none. Raises UserError."""
    path = results.folder / SUMMARY_NAME
    if not path.exists():
        return pd.DataFrame(columns=SUMMARY_COLUMNS)
    mend = f"`python utilities.py merge --results_dir {results.folder}` writes it"
    table = read_number_table(
        path, REQUIRED_COLUMNS, mend, dtype={"model": str}, float_precision="round_trip"
    )
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *SUMMARY_COLUMNS])))
    table = as_numbers(path, table, set(SUMMARY_COLUMNS) - set(WORD_COLUMNS), mend)
    return table[table["model"].isin(results.models)] if results.models else table


def own_norms(results: Results) -> Iterator[NormTable]:
    """Our minimal L2 norms, a source per image set, protocol and budget; unfinished records are named, not used."""
    table = read_summary(results)
    table = table[table["threat"].astype(str).str.startswith("L2-") & table["l2_mean"].notna()]
    unfinished = table["partial"].eq(1)
    for (image_set, threat, attack), part in table.groupby(
        ["image_set", "threat", "attack"], dropna=False
    ):
        rows, left_out = part[~unfinished[part.index]], part.loc[unfinished[part.index], "model"]
        if rows.empty:
            continue
        runs = [
            run
            for run in results.runs
            if (run["image_set"], run["threat"]) == (image_set, threat)
            and run["model"] in set(rows["model"])
        ]
        note = (
            describe_runs(runs, results.runs)
            if runs
            else f"{image_set}, {threat}: {len(rows)} model(s), n = {' or '.join(map(str, rows['n'].unique()))}, budget {attack}."
        )
        note += f" Unfinished, not drawn: {', '.join(left_out)}." if len(left_out) else ""
        budget = attack if isinstance(attack, str) else "budget not given"
        yield own_norm_table(results, f"{image_set}, {threat}\n{budget}", rows, note)._replace(
            image_set=image_set, threat=threat
        )


def own_norm_table(results: Results, name: str, rows: pd.DataFrame, note: str) -> NormTable:
    """Rows of the summary as a source, against multi-label accuracy where it is known of any, else clean accuracy."""
    names = {
        "l2_mean": "pt",
        "l2_sem": "pt_sem",
        "human_alignment": "alignment",
        "human_alignment_sem": "alignment_sem",
    }
    known, label = multilabel_accuracy(results, rows["model"]), MULTILABEL
    if known["accuracy"].isna().all():
        known, label = (
            known.assign(accuracy=100 * rows["clean_acc"]),
            f"clean accuracy on {rows['image_set'].iat[0]} (%)",
        )
    elif len(lacking := rows.loc[known["accuracy"].isna(), "model"]):
        note += f" No multi-label accuracy: {', '.join(lacking)}."
    rows = rows.rename(columns=names).assign(
        source=name.replace("\n", ", "),
        weights=rows["weights"].fillna("").astype(str),
        family=rows["model"].map(family),
        group=rows["model"].map(model_groups()).fillna("Other"),
    )
    return NormTable(
        name,
        rows.drop(columns=["accuracy", "estimated"], errors="ignore").join(known)[
            NORM_TABLE_COLUMNS
        ],
        label,
        note,
    )


TOLERANCE, ALIGNMENT = "Perturbation Tolerance ($L_2$)", "human alignment (% of ceiling)"
MEASURES = {"pt": (TOLERANCE, 1), "alignment": (ALIGNMENT, 100)}  # column -> label, factor
NORM_NAMES = {"l2": "L2", "linf": "Linf"}  # of file names
FEWEST = 5  # models below which nothing is fitted and no correlation is given


def correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """Spearman's rho of the models with both values, its 95 % bootstrap interval and n; nan below FEWEST models."""
    pair = rows[[x, y]].dropna().to_numpy()
    if len(pair) < FEWEST:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": len(pair)}
    low, high = percentile_interval(rank_correlations(pair, resample_counts(len(pair)))[:, 0, 1])
    return {"rho": rank_correlations(pair)[0, 0, 1], "low": low, "high": high, "n": len(pair)}


def rho_text(found: dict[str, float]) -> str:
    if np.isnan(found["rho"]):
        return f"n = {found['n']}"
    return f"ρ = {found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}], n = {found['n']}"


def tables_with(tables: list[NormTable], columns: list[str]) -> list[NormTable]:
    """Sources that have values in all these columns."""
    return [source for source in tables if len(source.rows.dropna(subset=columns))]


# ---- Figure 4 --------------------------------------------------------------------------------------------------


def mark_pareto_front(source: NormTable) -> NormTable:
    """The source with a column `front`: standard models that no other standard model beats in both measures."""
    standard = source.standard.dropna(subset=["pt", "alignment"])
    best = standard.index[pareto_front(standard[["pt", "alignment"]].to_numpy())]
    return source._replace(
        rows=source.rows.dropna(subset=["pt", "alignment"]).assign(
            front=source.rows.index.isin(best)
        )
    )


def robust_series(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Robust nets as (name of net and norm, rows in order of the eps they were trained against)."""
    parts = rows["model"].str.extract(ROBUST_NAME)
    known = rows.join(parts.astype({"eps": float})).dropna(subset=["net"]).sort_values("eps")
    return [
        (f"{net} {NORM_NAMES[norm]}", part) for (net, norm), part in known.groupby(["net", "norm"])
    ]


# ---- Figures 6 and 7 -------------------------------------------------------------------------------------------


def harmonized_pairs(results: Results) -> pd.DataFrame:
    """A row per harmonized net of Table 1 and public standard model of its architecture (or none: empty cells)."""
    tables = [source.standard for source in norm_tables(results) if source.name == PUBLISHED]
    printed = paper_tables(results)
    if not tables or printed is None:
        return pd.DataFrame()
    harmonized = (
        printed[printed["table"] == 1].drop(columns="table").rename(columns={"model": "net"})
    )
    standard = tables[0].assign(net=tables[0]["model"].str.partition(".")[0])
    return harmonized.merge(
        standard[["net", "model", *MEASURES, "pt_sem", "alignment_sem"]],
        how="left",
        on="net",
        suffixes=("_harmonized", ""),
    )


def paired_test(pairs: pd.DataFrame, measure: str) -> dict[str, float]:
    """Wilcoxon's signed-rank test of harmonized nets against the mean of the public models of their architecture."""
    means = pairs.dropna(subset=["model"]).groupby("net")[[f"{measure}_harmonized", measure]].mean()
    difference = means.iloc[:, 0] - means.iloc[:, 1]
    p = stats.wilcoxon(difference).pvalue if len(difference) >= FEWEST else np.nan
    return {"difference": difference.mean(), "p": p, "n": len(difference)}
