"""LaTeX tables of Feng et al. (2025): the statistics of its text, and Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from alignment_security.analysis.feng2025 import (
    NORM_NAMES,
    TOLERANCES,
    measures_text,
    norm_tables,
    tables_of_every_norm,
)
from alignment_security.analysis.feng2025_published import (
    PUBLISHED_ERRORS,
    ROBUST_NAME,
    paper_tables,
)
from alignment_security.analysis.feng2025_statistics import (
    DIFFERS,
    NOT_PUBLIC,
    text_statistics_table,
)
from alignment_security.analysis.feng2025_tables import printed_columns, robust_table
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import Results
from alignment_security.plots.feng2025_style import LACKING, own_figure_name
from alignment_security.plots.style import Drawing


def text_statistics(results: Results) -> Iterator[Drawing]:
    """The statistics of the text: claimed, recomputed, n, groups and rule; then of our records."""
    table = text_statistics_table(results)
    if table.empty:
        return
    not_reproduced = table["reproduces"].isin([DIFFERS, NOT_PUBLIC])
    lost = ", ".join(table.loc[not_reproduced, "statistic"].unique())
    caption = "\n".join(
        [
            "Statistics of Feng et al. (2025) as claimed and as recomputed from public numbers. "
            "reproduces: equal to the digits printed; no: differs; not public: what it takes was "
            "not published; empty: not in the paper. value, df and p are in full. family_p: the "
            "same with a random intercept for each of the families of models.",
            f"Does not reproduce from public numbers: {lost or 'nothing'}.",
            *(source.note + measures_text(source) for source in norm_tables(results)),
        ]
    )
    yield "text_statistics", None, table, caption


def paper_drawings(results: Results) -> Iterator[Drawing]:
    """Tables 1 (harmonized nets) and 2 (robust nets), and one like them per protocol of ours."""
    tables = paper_tables(results)
    if tables is not None:
        first = tables[tables["table"] == 1]
        caption = (
            "Feng et al. (2025), Table 1: harmonized nets, mean ± standard error "
            f"({PUBLISHED_ERRORS}). Printed only: no public file holds these rows."
        )
        table = pd.DataFrame({"model": first["model"], **printed_columns(first)})
        yield "table_1_harmonized", None, table, caption
    robust = robust_table(results)
    if robust is not None:
        yield robust_drawing(robust)
    own = tables_of_every_norm(results)
    for table in own:
        if table.name != PUBLISHED:
            yield own_drawing(table, own_figure_name("table", table, own))


def robust_drawing(robust: pd.DataFrame) -> Drawing:
    """Table 2, as printed and as in the public file.

    robust   of `robust_table`
    """
    nets = robust["model"].str.extract(ROBUST_NAME)
    public = {f"{name}, public file": cells for name, cells in printed_columns(robust).items()}
    table = pd.DataFrame(
        {
            "model": nets["net"],
            "norm": nets["norm"].map(NORM_NAMES),
            "eps": nets["eps"],
            **printed_columns(robust, "_printed"),
            **public,
            "equal": robust["equal"],
        }
    )
    caption = (
        "Feng et al. (2025), Table 2: robust nets of microsoft/robust-models-transfer, mean ± "
        f"standard error ({PUBLISHED_ERRORS}); eps of L2 in pixel units, of Linf in 255ths. "
        "equal: the public file has "
        f"the same value to the digits printed: {robust['equal'].eq('yes').sum()} of {len(robust)} "
        "rows."
    )
    return "table_2_robust", None, table, caption


def own_drawing(source: NormTable, name: str) -> Drawing:
    """A protocol of ours as a table like Tables 1 and 2, the most tolerant model first."""
    rows = source.rows.sort_values("pt", ascending=False)
    table = pd.DataFrame(
        {
            "model": rows["model"],
            "group": rows["group"],
            source.accuracy_label: rows["accuracy"],
            "size": rows["size"],
            **printed_columns(rows),
            "source": rows["source"],
        }
    )
    caption = (
        f"Perturbation Tolerance ({TOLERANCES[source.norm][1]} norms under {source.threat}, "
        f"pixel units) and human alignment, mean ± standard error.\n{source.note}"
        f"{measures_text(source)}"
    )
    return name, None, table, caption


FIGURES = {
    "text_statistics": (text_statistics, LACKING),
    "tables_1_2": (paper_drawings, LACKING),
}
