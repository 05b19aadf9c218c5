"""Leaderboards of the HTML page: our models with every threat, and the published numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from alignment_security.analysis.norm_table import NormTable
from alignment_security.analysis.results import Results, read_summary
from alignment_security.common.eps import format_eps
from alignment_security.plots.report_tables import Cell, Heading, number, table_html
from alignment_security.records.comparable import attack_text, run_folder
from alignment_security.records.metrics import accuracy_interval
from alignment_security.records.norm_summary import NORM_COLUMNS, shown_norms

# what the values of a row share: an accuracy on other images, or of another head, is another row
ROW = ["model", "image_set", "head", "n", "list_sha256"]
MOST_CORRUPTIONS = 3  # columns of corruptions that are shown until a reader chooses
UNFINISHED = "unfinished"
NOTHING_RIGHT = "no image classified correctly"
# mean -> the number of images behind it
COUNTS = {f"{column}_mean": "n_norm" for column in NORM_COLUMNS.values()}
COUNTS |= {"human_alignment": "n_alignment"}


class Column(NamedTuple):
    """A column of the leaderboard: values of one column of the summary under one threat."""

    heading: Heading
    name: str  # in the summary
    rows: pd.DataFrame  # of the summary, indexed by ROW
    digits: int
    factor: float  # 100: a fraction shown in percent


# ---- columns -------------------------------------------------------------------------------------


def leaderboard_columns(summary: pd.DataFrame) -> Iterator[Column]:
    """The columns of the leaderboard; each budget of a threat has its own.

    Shown first are, of each threat, the budget of most models and the eps at which they differ
    most.
    """
    corruptions = summary.loc[summary["threat"].map(is_corrupted), "threat"].nunique()
    for threat, of_threat in summary.groupby("threat"):
        largest = of_threat["attack"].fillna("").mode().iat[0]
        for attack, part in of_threat.groupby(of_threat["attack"].fillna("")):
            is_shown = attack == largest
            for name in ("robust_acc", "robust_estimate"):
                yield from robust_columns(name, str(threat), str(attack), part, is_shown)
            rows = part.drop_duplicates(ROW).set_index(ROW)
            if is_corrupted(str(threat)):
                heading = Heading(
                    f"{threat.removeprefix('corruptions-')} (%)",
                    "",
                    corruptions <= MOST_CORRUPTIONS,
                )
                yield Column(heading, "clean_acc", rows, 1, 100)
            yield from norm_columns(str(threat), str(attack), part, is_shown)
            if part["human_alignment"].notna().any():
                heading = Heading(f"{threat} alignment (%)", attack, is_shown)
                yield Column(heading, "human_alignment", rows, 1, 100)


def robust_columns(
    name: str, threat: str, attack: str, part: pd.DataFrame, is_shown: bool
) -> Iterator[Column]:
    """Robust accuracy at each eps of a budget, counted (robust_acc) or estimated.

    name   of the column of the summary
    """
    part = part[part[name].notna()]
    spread = part.groupby("eps")[name].agg(lambda values: values.max() - values.min())
    for eps, rows in part.groupby("eps"):
        heading = Heading(
            f"{threat} ε = {format_eps(eps, threat, spread.index)} (%)",
            attack,
            is_shown and eps == spread.idxmax(),
        )
        rows = rows.drop_duplicates(ROW).set_index(ROW)
        yield Column(heading, name, rows, 1, 100)


def norm_columns(threat: str, attack: str, part: pd.DataFrame, is_shown: bool) -> Iterator[Column]:
    """The mean norm of a budget, of `shown_norms`; Linf in 255ths."""
    part = part[part["l2_mean"].notna()]
    for norm, rows in part.groupby(shown_norms(part)):
        unit, factor = (" (1/255)", 255) if norm == "Linf" else ("", 1)
        heading = Heading(f"{threat} {norm} norm{unit}", attack, is_shown)
        rows = rows.drop_duplicates(ROW).set_index(ROW)
        yield Column(heading, f"{NORM_COLUMNS[str(norm)]}_mean", rows, 3, factor)


def is_corrupted(threat: str) -> bool:
    """Whether the images of a threat are corrupted, so that their accuracy is not clean."""
    return threat.startswith("corruptions-")


# ---- cells ---------------------------------------------------------------------------------------


def value_cell(row: pd.Series, column: Column, n: int, href: str) -> Cell:
    """A value with its interval: an estimate's own, 95 % Wilson of an accuracy, else its SEM.

    n   images of the table's row; a mean over fewer has its own n behind it
    """
    value, error = row[column.name], row.get(f"{column.name.removesuffix('_mean')}_sem")
    interval = ""
    if column.name == "robust_estimate":
        interval = f"[{100 * row['robust_low']:.1f}, {100 * row['robust_high']:.1f}]"
    elif column.name.endswith("_acc") and pd.notna(value):
        low, high = accuracy_interval(round(value * n), n)
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    elif pd.notna(error):
        interval = f"± {column.factor * error:.{column.digits}f}"
    count = row.get(COUNTS.get(column.name, ""))
    if pd.notna(value) and pd.notna(count) and count != n:
        interval = f"{interval}, n = {count:g}".removeprefix(", ")
    return number(value, column.digits, column.factor, href=href, interval=interval)


def record_links(results: Results, folder: Path) -> dict[tuple, str]:
    """(model, image set, threat, attack) -> address of the record relative to the page's folder."""
    return {
        (run["model"], *run_folder(run), attack_text(run)): quote(
            Path(os.path.relpath(run["csv"], folder)).as_posix()
        )
        for run in results.runs
        if run["csv"].exists()
    }


# ---- tables --------------------------------------------------------------------------------------


class Leaderboard(NamedTuple):
    """The table of our models, and where each of its rows is."""

    html: str = ""  # "" without a summary
    rows: dict[tuple[str, str, str], str] = {}  # (model, image set, list_sha256) -> id of the row


def leaderboard(results: Results, folder: Path) -> Leaderboard:
    """A row per model, image set, head and list of images; everything in it is of that list.

    Clean accuracy, then a column per threat, budget and eps. Every value links to its record.
    """
    summary = read_summary(results)
    if summary.empty:
        return Leaderboard()
    summary = summary.fillna({"head": "none", "list_sha256": "", "attack": ""})
    addresses = record_links(results, folder)
    columns = list(leaderboard_columns(summary))
    body, ids = [], []
    rows: dict[tuple[str, str, str], str] = {}
    for i, (key, part) in enumerate(summary.groupby(ROW)):
        model, image_set, _, _, list_sha256 = key
        attacks = part[["threat", "attack"]].itertuples(index=False, name=None)
        links = {attack: addresses.get((model, image_set, *attack), "") for attack in attacks}
        ids.append(f"row-{i}")
        rows.setdefault((model, image_set, list_sha256), f"row-{i}")
        cells = first_cells(part, next(filter(None, links.values()), ""), links)
        for column in columns:
            cells.append(Cell(""))
            if key in column.rows.index:
                row = column.rows.loc[key]
                cells[-1] = value_cell(row, column, int(key[3]), links[attack_of(row)])
        body.append([*cells, Cell(state_of(part))])
    header = [
        Heading("model"),
        Heading("image set", "", summary["image_set"].nunique() > 1),
        Heading("images", "", summary["n"].nunique() > 1),
        Heading("clean (%)"),
        *(column.heading for column in columns),
        Heading("state", "", any(cells[-1].text for cells in body)),
    ]
    return Leaderboard(table_html("leaderboard", header, body, ids), rows)


def first_cells(part: pd.DataFrame, href: str, links: dict[tuple, str]) -> list[Cell]:
    """Model, image set and head, number of images, and clean accuracy of a row.

    part   the rows of the summary behind it
    """
    first = part.iloc[0]
    images = first["image_set"]
    if first["head"] != "none":
        images += f", head {first['head']}"
    cells = [Cell(first["model"], href=href), Cell(images), number(first["n"], 0)]
    clean = part[~part["threat"].map(is_corrupted)]
    if clean.empty:
        return [*cells, Cell("")]
    first = clean.iloc[0]
    column = Column(Heading(""), "clean_acc", clean, 1, 100)
    return [*cells, value_cell(first, column, int(first["n"]), links[attack_of(first)])]


def state_of(part: pd.DataFrame) -> str:
    """Why cells of a row are empty or of few images; part: the rows of the summary behind it."""
    unfinished = part["partial"].eq(1)
    wrong = part["clean_acc"].eq(0) & ~unfinished & ~part["threat"].map(is_corrupted)
    states = {UNFINISHED: unfinished, NOTHING_RIGHT: wrong}
    return ", ".join(state for state, found in states.items() if found.any())


def attack_of(row: pd.Series) -> tuple[str, str]:
    """Threat and attack of a row of the summary."""
    return row["threat"], row["attack"]


def published_board(published: NormTable) -> Leaderboard:
    """The models of Feng 2025's public numbers."""
    rows = published.rows
    header = [
        Heading("model"),
        Heading("family"),
        Heading("group"),
        Heading("Perturbation Tolerance", "L2, protocol feng2025"),
        Heading("human alignment (%)", "of ceiling"),
        Heading(published.accuracy_label),
        Heading("estimated", "accuracy, from top-1", False),
    ]
    body = [
        [
            Cell(row.model),
            Cell(row.family),
            Cell(row.group),
            number(row.pt, 3, interval=f"± {row.pt_sem:.3f}"),
            number(row.alignment, 1, 100, interval=f"± {100 * row.alignment_sem:.1f}"),
            number(row.accuracy, 1),
            Cell("yes" if row.estimated else ""),
        ]
        for row in rows.itertuples()
    ]
    ids = {(row.model, "", ""): f"published-{i}" for i, row in enumerate(rows.itertuples())}
    return Leaderboard(table_html("published", header, body, ids.values()), ids)
