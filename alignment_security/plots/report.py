"""One HTML page of a results folder: the answer, the leaderboard, and every figure.

`python plotting.py --report` writes it next to the figures. It is one static file: pictures are
embedded, nothing is fetched. Its style and its script are report.css and report.js.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from PIL import Image

from alignment_security.analysis.feng2025 import published_norm_table
from alignment_security.analysis.norm_table import PUBLISHED
from alignment_security.analysis.results import Results, read_summary
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.text import read_text
from alignment_security.models.families import FAMILIES
from alignment_security.plots.feng2025_style import GROUP_STYLES
from alignment_security.plots.report_leaderboard import Leaderboard, leaderboard, published_board
from alignment_security.plots.report_pictures import (
    OURS,
    Picture,
    accuracy_pictures,
    tradeoff_pictures,
)
from alignment_security.plots.report_tables import frame_html
from alignment_security.records.comparable import attack_text, run_folder

REPORT_NAME = "report.html"
TRADEOFF, ACCURACY = "Human alignment and tolerance", "Clean and robust accuracy"
SHRINK = 200 / 144  # files of figures have 200 pixels an inch, the page shows 144
NARROW = 500  # pixels of a page: a figure that a phone shows whole


def page_part(kind: str) -> str:
    """The template (html), the style (css) or the script (js) of the page."""
    return read_text(Path(__file__).with_name(f"report.{kind}"))


# ---- sections ------------------------------------------------------------------------------------


def picture_html(name: str, pictures: list[Picture]) -> str:
    """The place in which report.js draws some pictures; "" without any."""
    return f'<figure class="picture" data-pictures="{name}"></figure>' if pictures else ""


def published_html(results: Results, published: Leaderboard) -> str:
    """The published numbers with their source; "" without --published."""
    table = published_norm_table(results)
    return f"{published.html}<p>{escape(table.note)}</p>" if table else ""


def drawing_html(name: str, files: dict[str, Path]) -> str:
    """A figure, embedded, or a table, with its caption.

    files   suffix -> file: .csv, .txt and, of a figure, .png
    """
    title = f"<h3>{escape(name.replace('_', ' '))}</h3>"
    caption = f"<figcaption>{escape(read_text(files['.txt']).strip())}</figcaption>"
    if ".png" not in files:
        table = frame_html(f"table-{name}", pd.read_csv(files[".csv"]))
        return f'{title}{table}<figure class="drawing">{caption}</figure>'
    image = image_html(name, files[".png"])
    return f'{title}<figure class="drawing">{image}{caption}</figure>'


def image_html(name: str, path: Path) -> str:
    """An embedded picture of a figure, smaller than its PNG: figures of photographs are large."""
    with Image.open(path) as image:
        webp = io.BytesIO()
        image.convert("RGB").save(webp, "webp", quality=90, method=4)
        width, height = (round(side / SHRINK) for side in image.size)
    kind, data = min(
        ("webp", webp.getvalue()), ("png", path.read_bytes()), key=lambda one: len(one[1])
    )
    look = ' class="narrow"' if width <= NARROW else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}">'
        f'<img{look} alt="{escape(name)}" width="{width}" height="{height}" '
        f'src="data:image/{kind};base64,{base64.b64encode(data).decode()}"></div>'
    )


def drawings_html(files: list[Path], folder: Path) -> str:
    """The drawings among some files that plotting.py wrote to the page's folder."""
    drawings: dict[str, dict[str, Path]] = {}
    for path in files:
        if path.parent == folder:
            drawings.setdefault(path.stem, {})[path.suffix] = path
    return "\n".join(drawing_html(name, parts) for name, parts in drawings.items())


# ---- the page ------------------------------------------------------------------------------------


def facts_of(results: Results) -> str:
    """How many models the page is about."""
    counts = []
    summary, published = read_summary(results), published_norm_table(results)
    if len(summary):
        counts.append(f"{summary['model'].nunique()} models evaluated in {results.folder}")
    if published:
        counts.append(f"{len(published.rows)} models of {PUBLISHED}")
    return f"{'; '.join(counts)}. Choose a point to see its model and values."


def left_out_html(results: Results) -> str:
    """A paragraph for each record that has no row in the leaderboard, with the reason."""
    reasons = [*results.not_comparable.values(), *unfinished_records(results)]
    return "".join(f"<p>Not in this table: {escape(reason)}.</p>" for reason in reasons)


def unfinished_records(results: Results) -> Iterator[str]:
    """`path: unfinished (status)` of each unfinished record that the summary has no rows of."""
    keys = ["model", "image_set", "threat", "attack"]
    known = set(read_summary(results)[keys].fillna("").itertuples(index=False, name=None))
    for run in results.runs:
        if (
            run["status"] != "done"
            and (run["model"], *run_folder(run), attack_text(run)) not in known
        ):
            yield f"{run['csv']}: unfinished ({run['status']})"


def pictures_json(pictures: dict[str, list[Picture]]) -> str:
    """Data of the pictures, which cannot end the script element that holds them."""
    colours = {
        "group": {name: colour for name, (colour, _) in GROUP_STYLES.items()} | {OURS: "#000000"},
        "family": {name: colour for name, (colour, _) in FAMILIES.items()},
    }
    data = {"colours": colours, **pictures}
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def write_report(results: Results, drawn: dict[str, list[Path]], folder: Path) -> Path:
    """Write the page of a results folder and return its path.

    drawn    section of the page -> files that plotting.py has just written for it: of each drawing
             .csv, .txt and .png or .tex
    folder   of the page; files in other folders are left out
    Raises UserError if there is nothing to report.
    """
    board, table = leaderboard(results, folder), published_norm_table(results)
    published = published_board(table) if table else Leaderboard()
    pictures = {
        "tradeoff": list(tradeoff_pictures(results, board, published)),
        "accuracy": list(accuracy_pictures(results, board)),
    }
    sections = {
        TRADEOFF: picture_html("tradeoff", pictures["tradeoff"]),
        ACCURACY: picture_html("accuracy", pictures["accuracy"]),
        "Leaderboard": board.html and board.html + left_out_html(results),
        **{title: drawings_html(files, folder) for title, files in drawn.items()},
        PUBLISHED: published_html(results, published),
    }
    shown = {title: content for title, content in sections.items() if content}
    if not shown:
        raise UserError(
            f"{results.folder}: nothing to report; evaluate a model, then `python utilities.py "
            f"merge --results_dir {results.folder}`, or name published numbers with --published DIR"
        )
    page = Template(page_part("html")).substitute(
        style=page_part("css"),
        facts=escape(facts_of(results)),
        links=" ".join(f'<a href="#s{i}">{escape(title)}</a>' for i, title in enumerate(shown)),
        sections="\n".join(
            f'<section><h2 id="s{i}">{escape(title)}</h2>\n{content}</section>'
            for i, (title, content) in enumerate(shown.items())
        ),
        pictures=pictures_json(pictures),
        script=page_part("js"),
    )
    write_atomic(folder / REPORT_NAME, page)
    return folder / REPORT_NAME
