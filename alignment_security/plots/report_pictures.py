"""Scatter plots of the HTML page as data, which report.js draws and lets a reader ask.

A picture is a dict:

    name, note         title, and a sentence below
    x, y               {"label", "log", "digits"} of an axis
    front              names of the models on the Pareto front, from left to right
    points             of each model {"model", "x", "y", "x_bar", "y_bar", "group", "family",
                       "own", "row"}: bars are [low, high] or None, own ones are ringed, and row is
                       the id of a row of a table
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from alignment_security.analysis.accuracy_pairs import accuracy_pairs
from alignment_security.analysis.feng2025 import (
    FEWEST,
    NOT_MINIMAL,
    TOLERANCE,
    correlation,
    mark_pareto_front,
    measures_text,
    norm_tables,
    rho_text,
    tables_with,
)
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import Results, read_summary
from alignment_security.common.eps import format_eps
from alignment_security.common.public_nets import public_nets
from alignment_security.plots.feng2025_style import LOG_RANGE
from alignment_security.plots.report_leaderboard import Leaderboard

Picture = dict[str, Any]
OURS = "your models"


def tradeoff_pictures(
    results: Results, board: Leaderboard, published: Leaderboard
) -> Iterator[Picture]:
    """Human alignment against Perturbation Tolerance: the published numbers, then each of ours.

    Among the published models those are marked that have a row in our leaderboard; our norms under
    the published protocol are drawn with them.
    """
    tables = tables_with(norm_tables(results), ["pt", "alignment"])
    for table in map(mark_pareto_front, tables):
        if table.name == PUBLISHED:
            points = [norm_point(row, published, table) for row in table.rows.itertuples()]
            mark_ours(points, table, rows_of_public_nets(results, board))
            points += [
                norm_point(row, board, ours) | {"own": True, "group": OURS}
                for ours in tables
                if (ours.threat, ours.head) == (f"L2-{NOT_MINIMAL}", table.head)
                for row in ours.rows.dropna(subset=["pt", "alignment"]).itertuples()
            ]
        else:
            points = [norm_point(row, board, table) for row in table.rows.itertuples()]
        tolerances = [point["x"] for point in points]
        is_log = max(tolerances) > LOG_RANGE * min(tolerances)
        yield {
            "name": table.name.replace("\n", ", "),
            "note": tradeoff_note(table),
            "x": axis(f"{TOLERANCE}: harder to fool →", 3, is_log),
            "y": axis("human alignment (%): fooled where people look →", 1),
            "front": list(table.rows[table.rows["front"]].sort_values("pt")["model"]),
            "points": points,
        }


def rows_of_public_nets(results: Results, board: Leaderboard) -> dict[str, str]:
    """Name of a public net -> id of its row in our leaderboard."""
    summary = read_summary(results).fillna({"list_sha256": ""})
    keys = zip(summary["model"], summary["image_set"], summary["list_sha256"])
    nets = zip(public_nets(summary), keys)
    return {name: board.rows[key] for name, key in nets if name and key in board.rows}


def mark_ours(points: list[dict], table: NormTable, rows: dict[str, str]) -> None:
    """Mark the points of published nets that have one of `rows`, to which they lead then."""
    for point, name in zip(points, table.rows["public"]):
        if name in rows:
            point |= {"own": True, "row": rows[name]}


def tradeoff_note(table: NormTable) -> str:
    """What the picture says in numbers."""
    found = correlation(table.standard, "pt", "alignment")
    marked = "Ringed: models with a record here. " if table.name == PUBLISHED else ""
    text = f"{found['n']} standard models; a correlation takes {FEWEST} that differ in both"
    if pd.notna(found["rho"]):
        text = f"Tolerance against alignment over standard models, Spearman's {rho_text(found)}"
    front = table.rows["front"].sum() > 1
    line = " Line: the Pareto front of standard models." if front else ""
    return f"{marked}{text}; bars: standard errors.{measures_text(table)}{line}"


def norm_point(row: Any, board: Leaderboard, table: NormTable) -> dict[str, Any]:
    """A point of a row of a table of norms."""
    low, high = row.alignment - row.alignment_sem, row.alignment + row.alignment_sem
    x = row.pt, row.pt - row.pt_sem, row.pt + row.pt_sem
    return point(row, board, table.image_set, x, (100 * row.alignment, 100 * low, 100 * high))


def point(
    row: Any, board: Leaderboard, image_set: str, x: Sequence[float], y: Sequence[float]
) -> dict[str, Any]:
    """A point of a row of a table, linked to its row of a leaderboard.

    x, y   value, and the two ends of its bar
    """
    list_sha256 = row.list_sha256 if isinstance(row.list_sha256, str) else ""
    return {
        "model": row.model,
        "x": x[0],
        "y": y[0],
        "x_bar": bar(*x[1:]),
        "y_bar": bar(*y[1:]),
        "group": row.group,
        "family": row.family,
        "own": False,
        "row": board.rows.get((row.model, image_set, list_sha256), ""),
    }


def accuracy_pictures(results: Results, board: Leaderboard) -> Iterator[Picture]:
    """Robust against clean accuracy: a picture per image set, threat, budget and eps."""
    for table in accuracy_pairs(results):
        first = table.iloc[0]
        at = f"{first['threat']} ε = {format_eps(first['eps'], first['threat'])}"
        yield {
            "name": f"{first['image_set']}, {at}, {first['attack']}",
            "note": (
                f"Accuracy under {at} against clean accuracy of {len(table)} models, n = "
                f"{first['n']:g} images; bars: 95 % Wilson intervals. Line: the Pareto front."
            ),
            "x": axis("clean accuracy (%)", 1),
            "y": axis(f"robust accuracy (%), {at}", 1),
            "front": list(table[table["front"]].sort_values("clean")["model"]),
            "points": [accuracy_point(row, board) for row in table.itertuples()],
        }


def accuracy_point(row: Any, board: Leaderboard) -> dict[str, Any]:
    """A point of a row of a table of `accuracy_pairs`."""
    x = [100 * share for share in (row.clean, row.clean_low, row.clean_high)]
    y = [100 * share for share in (row.robust, row.robust_low, row.robust_high)]
    return point(row, board, row.image_set, x, y)


def axis(label: str, digits: int, is_log: bool = False) -> dict[str, Any]:
    return {"label": label, "digits": digits, "log": bool(is_log)}


def bar(low: float, high: float) -> list[float] | None:
    """An interval; None where it is not known."""
    return None if pd.isna(low) or pd.isna(high) else [float(low), float(high)]
