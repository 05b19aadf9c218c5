"""Our minimal norms as tables: one per image set, protocol and budget of the summary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.feng2025_published import multilabel_accuracy, own_groups
from alignment_security.analysis.norm_table import (
    L1_IN_L2,
    MULTILABEL,
    NORM_TABLE_COLUMNS,
    OTHER_ALIGNMENT,
    TOLERANCES,
    NormTable,
)
from alignment_security.analysis.results import Results, read_summary, runs_of_rows
from alignment_security.common.public_nets import public_nets
from alignment_security.common.text import some_of
from alignment_security.models.families import family
from alignment_security.records.ceiling import is_other_ceiling, other_ceiling_text
from alignment_security.records.norm_summary import shown_norms


def own_norms(results: Results, norm: str) -> Iterator[NormTable]:
    """Our minimal norms (L2, Linf or L1), a table per image set, protocol and budget.

    Unfinished records and models without a norm are named in the note and not used.
    """
    summary = read_summary(results)
    of_norm = summary[summary["threat"].astype(str).str.startswith(f"{norm}-")]
    key = ["image_set", "threat", "attack"]
    for (image_set, threat, attack), part in of_norm.groupby(key, dropna=False):
        unfinished, has_norm = part["partial"].eq(1), part["l2_mean"].notna()
        rows = part[~unfinished & has_norm]
        if rows.empty:
            continue
        runs = runs_of_rows(results, rows)
        note = describe_runs(runs, results.runs) if runs else summary_note(rows)
        for why, left_out in (
            ("Unfinished", unfinished),
            ("No image is classified correctly", ~unfinished & part["clean_acc"].eq(0)),
            ("No norm was found", ~unfinished & ~has_norm & part["clean_acc"].ne(0)),
        ):
            if left_out.any():
                note += f" {why}, not drawn: {some_of(list(part.loc[left_out, 'model']))}."
        budget = attack if isinstance(attack, str) else "budget not given"
        table = own_norm_table(results, f"{image_set}, {threat}\n{budget}", rows, note, norm)
        settings = [run["settings"]["run"] for run in runs]
        if rows["human_alignment"].notna().any() and any(map(is_other_ceiling, settings)):
            note = other_ceiling_text(settings)
            table = table._replace(alignment_label=OTHER_ALIGNMENT, ceiling_note=note)
        head = next(iter(rows["head"].dropna()), "none")
        yield table._replace(image_set=image_set, threat=threat, attack=budget, head=head)


def summary_note(rows: pd.DataFrame) -> str:
    """Facts on our norms for a caption, from rows of the summary of one threat and budget."""
    first, counts = rows.iloc[0], " or ".join(map(str, rows["n"].unique()))
    return (
        f"{first['image_set']}, {first['threat']}: {len(rows)} model(s), n = {counts}, budget "
        f"{first['attack']}."
    )


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
    if norm == "L1" and shown_norms(rows).ne("L1").any():
        norm = L1_IN_L2
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
