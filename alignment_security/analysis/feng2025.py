"""Perturbation Tolerance and human alignment of models: Feng et al. (2025) as published, and ours.

`norm_tables` gives a table per source; the functions below it compute what Figures 4, 6 and 7 show.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from alignment_security.analysis.family_tests import rank_tests
from alignment_security.analysis.feng2025_published import (
    ROBUST_NAME,
    multilabel_accuracy,
    own_groups,
    published_norms,
)
from alignment_security.analysis.norm_table import (
    MULTILABEL,
    NORM_TABLE_COLUMNS,
    PUBLISHED,
    NormTable,
)
from alignment_security.analysis.results import (
    Results,
    describe_runs,
    read_summary,
    run_budget,
    run_folder,
)
from alignment_security.analysis.statistics import (
    percentile_interval,
    rank_correlations,
    resample_counts,
)
from alignment_security.common.public_nets import public_nets
from alignment_security.models.families import family, lineage
from alignment_security.records.metrics import pareto_front

TOLERANCE, ALIGNMENT = "Perturbation Tolerance (L₂)", "human alignment (% of ceiling)"
# norm that an attack makes small -> label, column of the summary, factor. Records of L1 hold no L1
# norm.
TOLERANCES = {
    "L2": (TOLERANCE, "l2", 1),
    "Linf": ("Perturbation Tolerance (L∞, 1/255)", "linf", 255),
    "L1": ("L₂ norm of the smallest L₁ perturbation", "l2", 1),
}
MEASURES = {"pt": (TOLERANCE, 1), "alignment": (ALIGNMENT, 100)}  # column -> label, factor
NORM_NAMES = {"l2": "L2", "linf": "Linf"}  # in names of robust nets -> as threats name them
FEWEST = 5  # models below which nothing is fitted and no correlation is given
NOT_MINIMAL = "feng2025"  # the protocol whose norms are not minimal (docs/threats.md)


@lru_cache(maxsize=2)
def norm_tables(results: Results) -> list[NormTable]:
    """The public numbers if --published is given, then every L2 protocol of ours that has norms."""
    return [*published_norms(results), *own_norms(results, "L2")]


@lru_cache(maxsize=2)
def tables_of_every_norm(results: Results) -> list[NormTable]:
    """`norm_tables`, and tables of our Linf and L1 norms. Their pt are no L2 norms."""
    return [*norm_tables(results), *own_norms(results, "Linf"), *own_norms(results, "L1")]


def published_norm_table(results: Results) -> NormTable | None:
    """The public numbers of Feng 2025; None without --published."""
    return next((table for table in norm_tables(results) if table.name == PUBLISHED), None)


def tables_with(tables: list[NormTable], columns: list[str]) -> list[NormTable]:
    """The tables with a model that has values in all these columns."""
    return [table for table in tables if len(table.rows.dropna(subset=columns))]


# ---- our norms -----------------------------------------------------------------------------------


def own_norms(results: Results, norm: str) -> Iterator[NormTable]:
    """Our minimal norms (L2, Linf or L1), a table per image set, protocol and budget.

    Unfinished records are named in the note and not used.
    """
    summary = read_summary(results)
    of_norm = summary["threat"].astype(str).str.startswith(f"{norm}-")
    found = summary[of_norm & summary["l2_mean"].notna()]
    for (image_set, threat, attack), part in found.groupby(
        ["image_set", "threat", "attack"], dropna=False
    ):
        unfinished = part["partial"].eq(1)
        rows, left_out = part[~unfinished], part.loc[unfinished, "model"]
        if rows.empty:
            continue
        note = own_note(results, image_set, threat, attack, rows)
        if len(left_out):
            note += f" Unfinished, not drawn: {', '.join(left_out)}."
        budget = attack if isinstance(attack, str) else "budget not given"
        table = own_norm_table(results, f"{image_set}, {threat}\n{budget}", rows, note, norm)
        yield table._replace(image_set=image_set, threat=threat, attack=budget)


def own_note(results: Results, image_set: str, threat: str, attack: str, rows: pd.DataFrame) -> str:
    """Facts on our norms for a caption: from the run files, or from the summary without any."""
    models = set(rows["model"])
    runs = [
        run
        for run in results.runs
        if (run["image_set"], run["threat"], run_budget(run)) == (image_set, threat, attack)
        and run["model"] in models
    ]
    if runs:
        return describe_runs(runs, results.runs)
    counts = " or ".join(map(str, rows["n"].unique()))
    return f"{image_set}, {threat}: {len(rows)} model(s), n = {counts}, budget {attack}."


def runs_of(results: Results, table: NormTable) -> dict[str, dict]:
    """The finished runs behind a table of ours, by model; none behind published numbers."""
    return {
        run["model"]: run
        for run in results.runs
        if run["status"] == "done"
        and (*run_folder(run), run_budget(run)) == (table.image_set, table.threat, table.attack)
    }


def own_norm_table(
    results: Results, name: str, rows: pd.DataFrame, note: str, norm: str = "L2"
) -> NormTable:
    """Rows of the summary as a NormTable of a norm (TOLERANCES).

    Its accuracy is multi-label accuracy if any of the models has one, else clean accuracy.
    """
    public, groups, label = public_nets(rows), own_groups(rows), MULTILABEL
    accuracy = multilabel_accuracy(results, public)
    without = rows.loc[accuracy["accuracy"].isna(), "model"]
    if len(without) == len(rows):
        accuracy = accuracy.assign(accuracy=100 * rows["clean_acc"])
        label = f"clean accuracy on {rows['image_set'].iat[0]} (%)"
    elif len(without):
        note += f" No multi-label accuracy: {', '.join(without)}."
    unlabelled = rows.loc[(public == "") & rows["group"].isna() & (groups == "Other"), "model"]
    if len(unlabelled):
        note += f" Counted as standard, their training is not recorded: {', '.join(unlabelled)}."
    column, per_pixel = TOLERANCES[norm][1], rows["l2_per_pixel"]
    table = pd.DataFrame(
        {
            "source": name.replace("\n", ", "),
            "model": rows["model"],
            "weights": rows["weights"].fillna("").astype(str),
            "weights_sha256": rows["weights_sha256"].fillna("").astype(str),
            "list_sha256": rows["list_sha256"].fillna("").astype(str),
            "public": public,
            "family": rows["model"].map(family),
            "group": groups,
            "pt": rows[f"{column}_mean"],
            "pt_sem": rows[f"{column}_sem"],
            "size": rows["size"],
            "pt_per_pixel": per_pixel if column == "l2" else np.nan,
            "alignment": rows["human_alignment"],
            "alignment_sem": rows["human_alignment_sem"],
        }
    )
    return NormTable(name, table.join(accuracy)[NORM_TABLE_COLUMNS], label, note, norm=norm)


def measure_label(table: NormTable, measure: str) -> str:
    """Axis label of a measure of a table."""
    return TOLERANCES[table.norm][0] if measure == "pt" else MEASURES[measure][0]


def in_drawn_units(table: NormTable) -> NormTable:
    """The table with its norms as axes have them (TOLERANCES): Linf in 255ths."""
    factor = TOLERANCES[table.norm][2]
    rows = table.rows
    return table._replace(rows=rows.assign(pt=factor * rows["pt"], pt_sem=factor * rows["pt_sem"]))


# ---- correlations --------------------------------------------------------------------------------


def correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """Spearman's `rho` of two columns, its 95 % bootstrap interval `low, high`, and `n`.

    Over the models with both values; all but n are nan below FEWEST of them.
    """
    pair = rows[[x, y]].dropna().to_numpy()
    n = len(pair)
    if n < FEWEST:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "n": n}
    resampled = rank_correlations(pair, resample_counts(n))[:, 0, 1]
    low, high = percentile_interval(resampled)
    return {"rho": rank_correlations(pair)[0, 0, 1], "low": low, "high": high, "n": n}


def correlation_tests(rows: pd.DataFrame, x: str, y: str) -> dict[str, float]:
    """p of Spearman's correlation of two columns, as if models were independent and over families.

    rows   with `model`
    Returns p, families (their number) and family_p (`rank_tests`), over the models with both
    values; p are nan below FEWEST of them.
    """
    pair = rows[["model", x, y]].dropna()
    families = pair["model"].map(lineage).to_numpy()
    found = {"p": np.nan, "families": len(set(families)), "family_p": np.nan}
    if len(pair) >= FEWEST:
        ranked = pair[x].to_numpy(float), pair[[y]].to_numpy(float), families
        found["p"] = rank_tests(*ranked, independent=True).p[0]
        found["family_p"] = rank_tests(*ranked).p[0]
    return found


def rho_text(found: dict[str, float]) -> str:
    """A result of `correlation` as text."""
    if np.isnan(found["rho"]):
        return f"n = {found['n']}"
    return f"ρ = {found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}], n = {found['n']}"


# ---- Figures 2 and 3 -----------------------------------------------------------------------------


def quadratic_fit(standard: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The second-degree fit of a measure on accuracy in percent: coefficients, r2, n.

    standard   rows with values in both
    `coefficients` are of the square, the slope and the constant; empty below FEWEST accuracies.
    """
    accuracy, values = standard["accuracy"], standard[measure]
    if accuracy.nunique() < FEWEST:
        return {}
    coefficients = np.polyfit(accuracy, values, 2)
    residuals = values - np.polyval(coefficients, accuracy)
    r2 = 1 - residuals.var() / values.var()
    return {"coefficients": coefficients.tolist(), "r2": r2, "n": len(values)}


# ---- Figure 4 ------------------------------------------------------------------------------------


def mark_pareto_front(table: NormTable) -> NormTable:
    """The table with a column `front`, of the models that have both measures.

    True for standard models that no other standard model beats in both measures.
    """
    measures = ["pt", "alignment"]
    standard = table.standard.dropna(subset=measures)
    best = standard.index[pareto_front(standard[measures].to_numpy())]
    rows = table.rows.dropna(subset=measures)
    return table._replace(rows=rows.assign(front=rows.index.isin(best)))


def robust_series(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(net and norm, its rows by increasing training eps) of the adversarially trained nets.

    Of the group robust: another net of one's own may have such a name.
    """
    rows = rows[rows["group"] == "robust"]
    parts = rows["model"].str.extract(ROBUST_NAME)
    nets = rows.join(parts.astype({"eps": float})).dropna(subset=["net"]).sort_values("eps")
    return [
        (f"{net} {NORM_NAMES[norm]}", part) for (net, norm), part in nets.groupby(["net", "norm"])
    ]
