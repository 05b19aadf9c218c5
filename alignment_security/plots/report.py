"""One HTML page of a results folder: a sortable leaderboard linked to its records, and figures.

`python plotting.py --report` writes it next to the figures. It is one static file: pictures are
embedded, nothing is fetched.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from alignment_security.analysis.feng2025 import published_norm_table
from alignment_security.analysis.norm_table import PUBLISHED
from alignment_security.analysis.results import Results, read_summary
from alignment_security.common.eps import format_eps
from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.text import read_text

REPORT_NAME = "report.html"
PAGE_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>alignment-security: results</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a;
 margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
nav a { margin-right: 1em; }
.table { overflow: auto; max-height: 34rem; border: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; vertical-align: bottom; padding: 0;
 position: sticky; top: 0; background: #f0f0f0; }
th button { font: inherit; font-weight: 600; text-align: left; padding: 6px 10px;
 border: 0; background: none; cursor: pointer; }
th small { display: block; font-weight: 400; color: #444; max-width: 14em; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
td { padding: 3px 10px; border-top: 1px solid #e4e4e4; white-space: nowrap; }
td.number { text-align: right; }
td.long { white-space: normal; min-width: 16em; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #333; white-space: pre-line; }
input { font: inherit; margin: 0.5rem 0; padding: 3px 6px; width: 20em; max-width: 100%; }
a { color: #0058a3; }
</style></head><body>
<h1>alignment-security: results</h1>
<nav>$links</nav>
$sections
<script>
function value(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a === typeof b && typeof a === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", {numeric: true});
}
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, column = head.cellIndex;
  const body = head.closest("table").tBodies[0];
  const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const byValue = (a, b) => compare(value(a, column), value(b, column), sign);
  body.append(...[...body.rows].sort(byValue));
};
for (const input of document.querySelectorAll("input")) input.oninput = () => {
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase());
};
</script></body></html>
""")
# what the values of a row share: an accuracy on other images, or of another head, is another row
ROW = ["model", "image_set", "head", "n", "list_sha256"]
LONG_CELL = 40  # letters above which a cell is wrapped


class Cell(NamedTuple):
    """A cell of a table: what is shown, the number it is sorted by, and the file it links to."""

    text: str
    value: float = math.nan
    href: str = ""


class Column(NamedTuple):
    """A column of the leaderboard: values of one column of the summary under one threat."""

    heading: str
    budget: str  # small print below the heading
    name: str  # in the summary
    rows: pd.DataFrame  # of the summary, indexed by ROW
    digits: int
    factor: float  # 100: a fraction shown in percent


# ---- HTML ----------------------------------------------------------------------------------------


def cell_html(cell: Cell) -> str:
    """A cell; every text and address is escaped, whatever a model is called."""
    attributes = ""
    if not math.isnan(cell.value):
        attributes = f' class="number" data-value="{cell.value!r}"'
    elif len(cell.text) > LONG_CELL and " " in cell.text:
        attributes = ' class="long"'
    content = escape(cell.text)
    if cell.href:
        content = f'<a href="{escape(cell.href)}">{content}</a>'
    return f"<td{attributes}>{content}</td>"


def heading_html(heading: str, small: str) -> str:
    """A column's heading: a button that sorts, with small print."""
    small_print = f"<small>{escape(small)}</small>" if small else ""
    return f'<th scope="col"><button type="button">{escape(heading)}{small_print}</button></th>'


def table_html(name: str, header: list[tuple[str, str]], rows: Iterable[list[Cell]]) -> str:
    """A sortable table with a filter.

    name     id of the table
    header   (heading, small print) of each column
    """
    head = "".join(heading_html(heading, small) for heading, small in header)
    body = "\n".join(f"<tr>{''.join(map(cell_html, cells))}</tr>" for cells in rows)
    key = escape(name)
    return (
        f'<input type="search" data-table="{key}" aria-label="filter rows" '
        'placeholder="filter rows …">\n'
        f'<div class="table"><table id="{key}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def number(value: float, digits: int, factor: float = 1, href: str = "") -> Cell:
    """A rounded number that is sorted by all its digits; empty for nan."""
    if pd.isna(value):
        return Cell("")
    return Cell(f"{factor * value:.{digits}f}", float(value), href)


def frame_html(name: str, table: pd.DataFrame) -> str:
    """Any table, its numbers to four digits."""
    rows = ([any_cell(value) for value in row] for row in table.itertuples(index=False))
    return table_html(name, [(str(column), "") for column in table], rows)


def any_cell(value: object) -> Cell:
    """A number to four digits, a text, or an empty cell for nan."""
    if pd.isna(value):
        return Cell("")
    if isinstance(value, (int, float)):
        return Cell(f"{value:.4g}", float(value))
    return Cell(str(value))


# ---- leaderboard ---------------------------------------------------------------------------------


def record_link(results: Results, folder: Path, image_set: str, threat: str, model: str) -> str:
    """Address of a record relative to the page's folder; "" if there is no such file."""
    path = results.folder / "records" / image_set / threat / f"{safe_file_name(model)}.csv"
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if path.exists() else ""


def leaderboard_columns(summary: pd.DataFrame) -> Iterator[Column]:
    """The columns of the leaderboard; each budget of a threat has its own."""
    for (threat, attack), part in summary.groupby(["threat", "attack"], dropna=False):
        budget = "" if pd.isna(attack) else str(attack)
        for eps, rows in part.groupby("eps"):
            if rows["robust_acc"].notna().any():
                rows = rows.drop_duplicates(ROW).set_index(ROW)
                heading = f"{threat} ε = {format_eps(eps, threat)} (%)"
                yield Column(heading, budget, "robust_acc", rows, 1, 100)
        rows = part.drop_duplicates(ROW).set_index(ROW)
        if is_corrupted(threat):
            yield Column(
                f"{threat.removeprefix('corruptions-')} (%)", "", "clean_acc", rows, 1, 100
            )
        if part["l2_mean"].notna().any():
            yield Column(f"{threat} L2 norm", budget, "l2_mean", rows, 3, 1)
        if part["human_alignment"].notna().any():
            yield Column(f"{threat} alignment (%)", budget, "human_alignment", rows, 1, 100)


def leaderboard_html(results: Results, folder: Path) -> str:
    """A row per model, image set, head and list of images; everything in it is of that list.

    Clean accuracy, then a column per threat, budget and eps. Every value links to its record. ""
    without a summary.
    """
    summary = read_summary(results)
    if summary.empty:
        return ""
    summary = summary.fillna({"head": "none", "list_sha256": ""})
    columns = list(leaderboard_columns(summary))
    body = []
    for key, part in summary.groupby(ROW):
        links = {
            threat: record_link(results, folder, part["image_set"].iat[0], threat, key[0])
            for threat in part["threat"].unique()
        }
        clean = part.loc[~part["threat"].map(is_corrupted), "clean_acc"]
        head = part["head"].iat[0]
        cells = [
            Cell(key[0], href=next(filter(None, links.values()), "")),
            Cell(part["image_set"].iat[0] + ("" if head == "none" else f", head {head}")),
            number(part["n"].iat[0], 0),
            number(clean.iat[0], 1, 100) if len(clean) else Cell(""),
        ]
        cells += [value_cell(key, column, links) for column in columns]
        cells.append(Cell("unfinished" if part["partial"].eq(1).any() else ""))
        body.append(cells)
    header = [
        ("model", ""),
        ("image set", ""),
        ("images", ""),
        ("clean (%)", ""),
        *((column.heading, column.budget) for column in columns),
        ("", ""),
    ]
    return table_html("leaderboard", header, body)


def value_cell(key: tuple, column: Column, links: dict[str, str]) -> Cell:
    """A model's value in a column; empty where that list of images has none."""
    if key not in column.rows.index:
        return Cell("")
    row = column.rows.loc[key]
    return number(row[column.name], column.digits, column.factor, links[row["threat"]])


def is_corrupted(threat: str) -> bool:
    """Whether the images of a threat are corrupted, so that their accuracy is not clean."""
    return threat.startswith("corruptions-")


def published_html(results: Results) -> str:
    """The models of Feng 2025's public numbers; "" without --published."""
    published = published_norm_table(results)
    if published is None:
        return ""
    header = [
        ("model", ""),
        ("family", ""),
        ("group", ""),
        ("Perturbation Tolerance", "L2, protocol feng2025"),
        ("SEM", ""),
        ("human alignment (%)", "of ceiling"),
        ("SEM (%)", ""),
        (published.accuracy_label, ""),
        ("estimated", "from top-1"),
    ]
    rows = [
        [
            Cell(row.model),
            Cell(row.family),
            Cell(row.group),
            number(row.pt, 3),
            number(row.pt_sem, 3),
            number(row.alignment, 1, 100),
            number(row.alignment_sem, 1, 100),
            number(row.accuracy, 1),
            Cell("yes" if row.estimated else ""),
        ]
        for row in published.rows.itertuples()
    ]
    return table_html("published", header, rows) + f"<p>{escape(published.note)}</p>"


# ---- the page ------------------------------------------------------------------------------------


def drawing_html(name: str, files: dict[str, Path]) -> str:
    """A figure, embedded, or a table, with its caption.

    files   suffix -> file: .csv, .txt and, of a figure, .png
    """
    caption = f"<figcaption>{escape(read_text(files['.txt']).strip())}</figcaption>"
    if ".png" not in files:
        table = frame_html(f"table-{name}", pd.read_csv(files[".csv"]))
        return f"{table}<figure>{caption}</figure>"
    picture = base64.b64encode(files[".png"].read_bytes()).decode()
    image = f'<img alt="{escape(name)}" src="data:image/png;base64,{picture}">'
    return f"<figure>{image}{caption}</figure>"


def write_report(results: Results, files: list[Path], folder: Path) -> Path:
    """Write the page of a results folder and return its path.

    files    what plotting.py has just written: of each drawing .csv, .txt and .png or .tex
    folder   of the page; files in other folders are left out
    Raises UserError if there is nothing to report.
    """
    drawings: dict[str, dict[str, Path]] = {}
    for path in files:
        if path.parent == folder:
            drawings.setdefault(path.stem, {})[path.suffix] = path
    sections = {
        "Leaderboard": leaderboard_html(results, folder),
        PUBLISHED: published_html(results),
    }
    for name, parts in drawings.items():
        sections[name.replace("_", " ")] = drawing_html(name, parts)
    shown = [
        (f"s{i}", title, content) for i, (title, content) in enumerate(sections.items()) if content
    ]
    if not shown:
        raise UserError(
            f"{results.folder}: nothing to report; evaluate a model, then `python utilities.py "
            f"merge --results_dir {results.folder}`, or name published numbers with --published DIR"
        )
    page = PAGE_TEMPLATE.substitute(
        links=" ".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in shown),
        sections="\n".join(
            f'<h2 id="{key}">{escape(title)}</h2>\n{content}' for key, title, content in shown
        ),
    )
    write_atomic(folder / REPORT_NAME, page)
    return folder / REPORT_NAME
