"""Perturbation Tolerance and human alignment of models: Feng et al. (2025) as published, and ours.

`norm_tables` gives a table per source; the functions below it compute what Figures 4, 6 and 7 show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ALIGNMENT,
    MULTILABEL,
    NORM_TABLE_COLUMNS,
    OTHER_ALIGNMENT,
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
from alignment_security.common.text import some
from alignment_security.models.families import family, lineage
from alignment_security.records.ceiling import is_other_ceiling, other_ceiling_text
from alignment_security.records.metrics import pareto_front

TOLERANCE = "Perturbation Tolerance (L₂)"
# norm that an attack makes small -> label, column of the summary, factor. Records of L1 hold no L1
# norm.
TOLERANCES = {
    "L2": (TOLERANCE, "l2", 1),
    "Linf": ("Perturbation Tolerance (L∞, 1/255)", "linf", 255),
    "L1": ("L₂ norm of the smallest L₁ perturbation", "l2", 1),
}
MEASURE_NAMES = {"pt": "Perturbation Tolerance", "alignment": "human alignment"}
MEASURES = {"pt": (TOLERANCE, 1), "alignment": (ALIGNMENT, 100)}  # column -> label, factor
LACKED = {"pt": "norm", "alignment": "human alignment", "accuracy": "accuracy"}  # in captions
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
    """The tables with a model that has values in all these columns.

    Their notes say over how many images the measures among these columns are, and name the models
    that lack one and that a figure of these columns has therefore not.
    """
    return [
        table._replace(
            note=table.note + measures_text(table, columns) + lacking_text(table, columns)
        )
        for table in tables
        if len(table.rows.dropna(subset=columns))
    ]


def measures_text(table: NormTable, columns: Sequence[str] = tuple(MEASURES)) -> str:
    """Over how many images the measures among some columns are, and over which ceiling."""
    counts = {"pt": "n_norm", "alignment": "n_alignment"}
    texts = [
        f"{MEASURE_NAMES[column]} over {count_range(table.rows[counts[column]])}"
        for column in columns
        if column in counts and table.rows[counts[column]].gt(0).any()
    ]
    text = ", ".join(texts)
    sentence = f" {text[:1].upper()}{text[1:]}." if texts else ""
    return sentence + (table.ceiling_note if "alignment" in columns else "")


def lacking_text(table: NormTable, columns: list[str]) -> str:
    """A sentence on the models of a table of ours that lack a value of a figure; "" for none.

    The note of the published numbers counts theirs.
    """
    if table.name == PUBLISHED:
        return ""
    lacking = {
        LACKED[column]: list(table.rows.loc[table.rows[column].isna(), "model"])
        for column in columns
    }
    texts = [f"{what}: {some(models)}" for what, models in lacking.items() if models]
    return f" Not drawn, without {'; without '.join(texts)}." if texts else ""


# ---- our norms -----------------------------------------------------------------------------------


def own_norms(results: Results, norm: str) -> Iterator[NormTable]:
    """Our minimal norms (L2, Linf or L1), a table per image set, protocol and budget.

    Unfinished records and models without a norm are named in the note and not used.
    """
    summary = read_summary(results)
    of_norm = summary[summary["threat"].astype(str).str.startswith(f"{norm}-")]
    for (image_set, threat, attack), part in of_norm.groupby(
        ["image_set", "threat", "attack"], dropna=False
    ):
        unfinished, has_norm = part["partial"].eq(1), part["l2_mean"].notna()
        rows = part[~unfinished & has_norm]
        if rows.empty:
            continue
        runs = own_runs(results, image_set, threat, attack, set(rows["model"]))
        note = describe_runs(runs, results.runs) if runs else summary_note(rows)
        for why, left_out in (
            ("Unfinished", unfinished),
            ("No image is classified correctly", ~unfinished & part["clean_acc"].eq(0)),
            ("No norm was found", ~unfinished & ~has_norm & part["clean_acc"].ne(0)),
        ):
            if left_out.any():
                note += f" {why}, not drawn: {some(list(part.loc[left_out, 'model']))}."
        budget = attack if isinstance(attack, str) else "budget not given"
        table = own_norm_table(results, f"{image_set}, {threat}\n{budget}", rows, note, norm)
        settings = [run["settings"]["run"] for run in runs]
        if rows["human_alignment"].notna().any() and any(map(is_other_ceiling, settings)):
            note = other_ceiling_text(settings)
            table = table._replace(alignment_label=OTHER_ALIGNMENT, ceiling_note=note)
        yield table._replace(image_set=image_set, threat=threat, attack=budget)


def own_runs(
    results: Results, image_set: str, threat: str, attack: str, models: set[str]
) -> list[dict]:
    """The runs behind rows of the summary; none where the summary is alone."""
    return [
        run
        for run in results.runs
        if (*run_folder(run), run_budget(run)) == (image_set, threat, attack)
        and run["model"] in models
        and run["csv"] not in results.not_comparable
    ]


def summary_note(rows: pd.DataFrame) -> str:
    """Facts on our norms for a caption, from rows of the summary of one threat and budget."""
    first, counts = rows.iloc[0], " or ".join(map(str, rows["n"].unique()))
    return (
        f"{first['image_set']}, {first['threat']}: {len(rows)} model(s), n = {counts}, budget "
        f"{first['attack']}."
    )


def count_range(counts: pd.Series) -> str:
    """`5 images` or `5 to 7 images`: what some counts above 0 are; `none` without."""
    if not counts.gt(0).any():
        return "none"
    low, high = counts[counts > 0].min(), counts.max()
    count = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    return f"{count} image{'s' if high > 1 else ''}"


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
            "n_norm": rows["n_norm"].astype("Int64"),
            "n_alignment": rows["n_alignment"].astype("Int64"),
        }
    )
    return NormTable(name, table.join(accuracy)[NORM_TABLE_COLUMNS], label, note, norm=norm)


def measure_label(table: NormTable, measure: str) -> str:
    """Axis label of a measure of a table."""
    return TOLERANCES[table.norm][0] if measure == "pt" else table.alignment_label


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
        return models_text(found["n"])
    interval = f"{found['low']:z.2f}, {found['high']:z.2f}"
    return f"ρ = {found['rho']:z.2f} [{interval}], {models_text(found['n'])}"


def models_text(n: float) -> str:
    """`n = 2 models`: in pictures whose captions give numbers of images too."""
    return f"n = {n:.0f} model{'s' if n > 1 else ''}"


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
