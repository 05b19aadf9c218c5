"""One HTML page of a results folder: the leaderboard as a sortable table whose models link to their records, and the figures.

`python plotting.py --report` writes it beside the figures. It is one static file: pictures are embedded, nothing is fetched.
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

from alignment_security.analysis.feng2025 import PUBLISHED, norm_tables, read_summary
from alignment_security.analysis.results import Results
from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.settings import format_eps

REPORT_NAME = "report.html"
PAGE_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>alignment-security: results</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
nav a { margin-right: 1em; }
.table { overflow: auto; max-height: 34rem; border: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; position: sticky; top: 0; background: #f0f0f0; padding: 0; vertical-align: bottom; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 6px 10px; text-align: left; cursor: pointer; }
th small { display: block; font-weight: 400; color: #444; max-width: 14em; }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
td { padding: 3px 10px; border-top: 1px solid #e4e4e4; white-space: nowrap; } td.number { text-align: right; }
td.long { white-space: normal; min-width: 16em; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #333; white-space: pre-line; }
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
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => compare(value(a, column), value(b, column), sign)));
};
for (const input of document.querySelectorAll("input")) input.oninput = () => {
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase());
};
</script></body></html>
""")
LONG = 40  # letters above which a cell is wrapped


class Cell(NamedTuple):
    """A cell of a table: what is shown, the number it is sorted by, and the file it links to."""

    text: str
    value: float = math.nan
    href: str = ""


# ---- HTML ------------------------------------------------------------------------------------------------------


def cell_html(cell: Cell) -> str:
    """A cell; every text and address is escaped, whatever a model is called."""
    number = "" if math.isnan(cell.value) else f' class="number" data-value="{cell.value!r}"'
    kind = number or (' class="long"' if len(cell.text) > LONG and " " in cell.text else "")
    text = escape(cell.text)
    return (
        f"<td{kind}>"
        + (f'<a href="{escape(cell.href)}">{text}</a>' if cell.href else text)
        + "</td>"
    )


def table_html(name: str, header: list[tuple[str, str]], rows: Iterable[list[Cell]]) -> str:
    """A sortable table with a filter: header (word, small print), a list of cells per row."""
    head = "".join(
        f'<th scope="col"><button type="button">{escape(word)}'
        f"{f'<small>{escape(small)}</small>' if small else ''}</button></th>"
        for word, small in header
    )
    body = "\n".join(f"<tr>{''.join(map(cell_html, cells))}</tr>" for cells in rows)
    return (
        f'<input type="search" data-table="{escape(name)}" aria-label="rows that hold" placeholder="rows that hold …">\n'
        f'<div class="table"><table id="{escape(name)}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def number(value: float, digits: int, factor: float = 1, href: str = "") -> Cell:
    """A rounded number that is sorted by all its digits; empty where there is none."""
    if pd.isna(value):
        return Cell("")
    return Cell(f"{factor * value:.{digits}f}", float(value), href)


def frame_html(name: str, table: pd.DataFrame) -> str:
    """Any table, its numbers to four digits."""
    rows = (
        [
            Cell(f"{value:.4g}", float(value))
            if isinstance(value, (int, float)) and pd.notna(value)
            else Cell("" if pd.isna(value) else str(value))
            for value in row
        ]
        for row in table.itertuples(index=False)
    )
    return table_html(name, [(str(column), "") for column in table], rows)


# ---- leaderboard -----------------------------------------------------------------------------------------------


def record_link(results: Results, folder: Path, image_set: str, threat: str, model: str) -> str:
    """Address of a record seen from the page; empty where there is no such file."""
    path = results.folder / "records" / image_set / threat / f"{safe_file_name(model)}.csv"
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if path.exists() else ""


def measured(
    table: pd.DataFrame,
) -> Iterator[tuple[tuple[str, str], str, pd.DataFrame, int, float]]:
    """Columns of the leaderboard: header, column of the summary, its rows, digits and factor; a budget is a column of its own."""
    for (threat, attack), part in table.groupby(["threat", "attack"], dropna=False):
        small = "" if pd.isna(attack) else str(attack)
        for eps, rows in part.groupby("eps"):
            if rows["robust_acc"].notna().any():
                yield (f"{threat} ε = {format_eps(eps)} (%)", small), "robust_acc", rows, 1, 100
        for column, word, digits, factor in (
            ("l2_mean", "L2 norm", 3, 1),
            ("human_alignment", "alignment (%)", 1, 100),
        ):
            if part[column].notna().any():
                yield (f"{threat} {word}", small), column, part, digits, factor


def leaderboard_html(results: Results, folder: Path) -> str:
    """A row per model and image set: clean accuracy, and a column per threat, budget and eps; every value links its record."""
    table = read_summary(results)
    if table.empty:
        return ""
    columns = [
        (
            header,
            column,
            rows.drop_duplicates(["model", "image_set"]).set_index(["model", "image_set"]),
            digits,
            factor,
        )
        for header, column, rows, digits, factor in measured(table)
    ]
    body = []
    for (model, image_set), part in table.groupby(["model", "image_set"]):
        links = {
            threat: record_link(results, folder, image_set, threat, model)
            for threat in part["threat"].unique()
        }
        cells = [
            Cell(model, href=next(filter(None, links.values()), "")),
            Cell(image_set),
            number(part["n"].iat[0], 0),
            number(part["clean_acc"].iat[0], 1, 100),
        ]
        for _, column, rows, digits, factor in columns:
            found = rows.loc[(model, image_set)] if (model, image_set) in rows.index else None
            cells.append(
                Cell("")
                if found is None
                else number(found[column], digits, factor, links[found["threat"]])
            )
        body.append([*cells, Cell("unfinished" if part["partial"].eq(1).any() else "")])
    header = [
        ("model", ""),
        ("image set", ""),
        ("images", ""),
        ("clean (%)", ""),
        *(column[0] for column in columns),
        ("", ""),
    ]
    return table_html("leaderboard", header, body)


def published_html(results: Results) -> str:
    """The second paper's models, where --published gives them."""
    tables = [source for source in norm_tables(results) if source.name == PUBLISHED]
    if not tables:
        return ""
    header = [
        ("model", ""),
        ("family", ""),
        ("group", ""),
        ("Perturbation Tolerance", "L2, protocol feng2025"),
        ("SEM", ""),
        ("human alignment (%)", "of ceiling"),
        ("SEM (%)", ""),
        (tables[0].accuracy_label, ""),
        ("estimated", "from top-1"),
    ]
    rows = (
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
        for row in tables[0].rows.itertuples()
    )
    return table_html("published", header, rows) + f"<p>{escape(tables[0].note)}</p>"


# ---- the page --------------------------------------------------------------------------------------------------


def drawing_html(name: str, files: dict[str, Path]) -> str:
    """A figure, embedded, or a table, with its caption."""
    caption = f"<figcaption>{escape(files['.txt'].read_text().strip())}</figcaption>"
    if ".png" not in files:
        return (
            frame_html(f"table-{name}", pd.read_csv(files[".csv"])) + f"<figure>{caption}</figure>"
        )
    picture = base64.b64encode(files[".png"].read_bytes()).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{picture}">{caption}</figure>'


def write_report(results: Results, files: list[Path], folder: Path) -> Path:
    """Write the page of the files that plotting.py has just written (of each drawing .csv, .txt and .png or .tex)."""
    drawings: dict[str, dict[str, Path]] = {}
    for path in files:
        if path.parent == folder:
            drawings.setdefault(path.stem, {})[path.suffix] = path
    sections = {
        "Leaderboard": leaderboard_html(results, folder),
        PUBLISHED: published_html(results),
    }
    sections |= {
        name.replace("_", " "): drawing_html(name, parts) for name, parts in drawings.items()
    }
    shown = [
        (f"s{i}", title, content) for i, (title, content) in enumerate(sections.items()) if content
    ]
    if not shown:
        raise UserError(
            f"{results.folder}: nothing to report; evaluate a model, then `python utilities.py merge "
            f"--results_dir {results.folder}`, or name published numbers with --published DIR"
        )
    page = PAGE_TEMPLATE.substitute(
        links=" ".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in shown),
        sections="\n".join(
            f'<h2 id="{key}">{escape(title)}</h2>\n{content}' for key, title, content in shown
        ),
    )
    write_atomic(folder / REPORT_NAME, page)
    return folder / REPORT_NAME
