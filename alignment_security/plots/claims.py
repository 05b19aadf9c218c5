"""The table of every claim of both papers, with ours and a verdict."""

from __future__ import annotations

from collections.abc import Iterator

from alignment_security.analysis.claims import claims_table
from alignment_security.analysis.results import Results
from alignment_security.plots.style import Drawing


def claims(results: Results) -> Iterator[Drawing]:
    """The ledger of both papers; the CSV has the reason and the command of each row too."""
    table = claims_table(results)
    if table.empty:
        return
    counts = table["verdict"].value_counts()
    summed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    caption = (
        f"The {len(table)} claims of both papers that are known here: {summed}. reproduced: equal "
        "to the digits printed."
    )
    yield "claims", None, table, caption


MADE_BY = (
    "it needs the published numbers; --published DIR (or PUBLISHED_DIR of .env) names their folder"
)
FIGURES = {"claims": (claims, MADE_BY)}
