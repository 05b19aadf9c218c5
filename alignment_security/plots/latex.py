r"""Tables as LaTeX that fits a page of the article class, 345 pt wide; needs the booktabs package.

Prose stays out of the cells: long statements are in the CSV beside the table. What is still too
wide is wrapped, then set in a smaller size, then split into sets of columns. A long table comes in
parts of ROWS rows.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

PAGE_WIDTH = 343.0  # points: \textwidth of article at 10 points, less two of rounding
SEPARATION = 3.0  # points: \tabcolsep, on both sides of a column
ROWS = 42  # lines of one part of a table
WRAPPED = 16  # letters: a column of more may go on in further lines
# size -> width of a letter in points, on average, of Computer Modern
SIZES = {"small": 4.7, "footnotesize": 4.3, "scriptsize": 4.0}
# places in a name or a sentence where a line may end; never within a number
BREAKS = re.compile(r"(?<=[_/:])|(?<=[a-z0-9][.-])(?=[a-zA-Z])|(?<= )")
# columns that name the runs behind a row, which the caption does
OF_RUNS = ("source", "image_set", "threat", "attack")
# figure -> the columns that are printed, where its table has prose besides
PRINTED = {
    "text_statistics": [
        "statistic",
        "measure",
        "claimed",
        "recomputed",
        "reproduces",
        "p",
        "family_p",
        "n",
    ],
    "claims": ["claim", "claimed", "ours", "verdict"],
    "table_2_robust": ["model", "norm", "eps", "Perturbation Tolerance"]
    + ["human alignment (%)", "equal"],
}
SECTIONS = {
    "text_statistics": "source",
    "claims": "paper",
}  # figure -> the column that is a heading above its rows
KEYS = {"text_statistics": 2}  # figure -> columns that name a row, where it is more than the first


def latex(table: pd.DataFrame, name: str = "") -> str:
    """A table for a paper: booktabs, floats with three significant digits, empty for nan.

    A column without any value is left out.

    name   of the figure, for PRINTED and SECTIONS
    """
    section = SECTIONS.get(name)
    parts = table.groupby(section, sort=False) if section else [("", table)]
    texts = ["% \\usepackage{booktabs}"]
    for heading, part in parts:
        if heading:
            texts.append(f"\\noindent\\textit{{{escaped(str(heading))}}}\\par")
        printed = PRINTED.get(name, [one for one in part if one not in OF_RUNS])
        cells = as_text(part[[one for one in printed if one in part]])
        cells = cells.loc[:, cells.ne("").any()]
        for columns in column_sets(cells, KEYS.get(name, 1)):
            texts += [tabular(rows, columns) for rows in row_parts(cells[columns])]
    return "\n\n".join(texts) + "\n"


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """All cells as text: floats with three significant digits, nothing for a missing value."""
    text = {}
    for column in table:
        is_float = pd.api.types.is_float_dtype(table[column])
        text[str(column)] = [
            "" if pd.isna(value) else f"{value:.3g}" if is_float else str(value)
            for value in table[column]
        ]
    return pd.DataFrame(text)


# ---- widths --------------------------------------------------------------------------------------


def widest(texts: list[str]) -> int:
    return max(map(len, texts), default=0)


def wanted(cells: pd.DataFrame, column: str) -> int:
    """Letters of the widest cell of a column, its heading included."""
    return widest([column, *cells[column]])


def needed(cells: pd.DataFrame, column: str) -> int:
    """Letters below which a column is not made narrower: of its widest piece if it is WRAPPED."""
    want = wanted(cells, column)
    if want <= WRAPPED:
        return want
    pieces = [piece for text in (column, *cells[column]) for piece in BREAKS.split(text)]
    return max(widest(pieces), WRAPPED)


def widths(cells: pd.DataFrame, letter: float) -> dict[str, float]:
    """Points of each column: what it wants, or a share between that and what it needs.

    Wider than the page together if the columns need more than it has.
    """
    want = {column: letter * wanted(cells, column) for column in cells}
    need = {column: letter * needed(cells, column) for column in cells}
    room = PAGE_WIDTH - 2 * SEPARATION * len(want) - sum(need.values())
    surplus = sum(want.values()) - sum(need.values())
    share = min(1.0, max(0.0, room / surplus)) if surplus else 1.0
    return {column: need[column] + share * (want[column] - need[column]) for column in want}


def fits(cells: pd.DataFrame, letter: float) -> bool:
    total = sum(widths(cells, letter).values()) + 2 * SEPARATION * cells.shape[1]
    return total <= PAGE_WIDTH + 1e-6


def column_sets(cells: pd.DataFrame, keys: int) -> list[list[str]]:
    """The columns, or sets of them that each fit the page and begin with the first `keys`."""
    columns = list(cells)
    sets, current = [], columns[:keys]
    for column in columns[keys:]:
        if len(current) > keys and not fits(cells[[*current, column]], SIZES["scriptsize"]):
            sets.append(current)
            current = columns[:keys]
        current = [*current, column]
    return [*sets, current]


def row_parts(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows in parts of about ROWS lines, of which a wrapped cell takes several."""
    letter = SIZES["scriptsize"]
    wide = widths(cells, letter)
    lines = [
        max(math.ceil(1.2 * letter * len(row[column]) / wide[column]) for column in cells)
        for row in cells.to_dict("records")
    ]
    part = (np.cumsum([0, *lines])[:-1] // ROWS).astype(int)
    return [rows for _, rows in cells.groupby(part)] or [cells]


# ---- text ----------------------------------------------------------------------------------------

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\varepsilon$",
    "ρ": r"$\rho$",
    "∞": r"$\infty$",
    "²": r"$^2$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def escaped(text: str) -> str:
    """Text in which LaTeX reads every letter as it is."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def boxed(text: str) -> str:
    r"""A cell of several lines, which may end at BREAKS; \wrap is of `tabular`: not stretched."""
    if not text:
        return ""
    lines = "\\allowbreak{}".join(map(escaped, BREAKS.split(text)))
    return f"\\wrap {lines}".replace(" \\allowbreak{}", " ")


def tabular(cells: pd.DataFrame, columns: list[str]) -> str:
    """Some columns as one tabular, in the largest of SIZES that fits."""
    cells = cells[columns]
    size = next((name for name, letter in SIZES.items() if fits(cells, letter)), "scriptsize")
    wide = widths(cells, SIZES[size])
    wrapped = [wide[column] < SIZES[size] * wanted(cells, column) for column in columns]
    shape = "".join(
        f"p{{{wide[column]:.1f}pt}}" if wraps else "l" for column, wraps in zip(columns, wrapped)
    )
    lines = [
        " & ".join(boxed(text) if wraps else escaped(text) for text, wraps in zip(row, wrapped))
        for row in [columns, *cells.to_numpy().tolist()]
    ]
    end = r"\\[2pt]" if any(wrapped) else r"\\"
    head, *body = [f"{line} {end}" for line in lines]
    return "\n".join(
        [
            f"{{\\{size}\\setlength{{\\tabcolsep}}{{{SEPARATION}pt}}"
            r"\def\wrap{\raggedright\let\\\tabularnewline}\noindent",
            f"\\begin{{tabular}}{{{shape}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}\par}",
        ]
    )
