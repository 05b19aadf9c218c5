"""Figure of minimal norms as distributions over images: a box per model."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignment_security.analysis.captions import describe_runs
from alignment_security.analysis.norms import image_norms, norm_groups
from alignment_security.analysis.results import Results, panel_budget, run_columns
from alignment_security.models.families import family
from alignment_security.plots.style import (
    DARK,
    FAMILY_COLOURS,
    LINE_HEIGHT,
    NORM_SYMBOLS,
    Drawing,
    plain_log_ticks,
    put_heading,
    width_beside,
)
from alignment_security.records.comparable import numbered
from alignment_security.records.norm_summary import minimised_norm

MAX_BOXES = 40  # models of a picture, those of the largest medians; the table has all
QUANTILES = {"p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}
NOT_FOUND = 1e9  # in the place of the norm of an image without one: larger than any, but finite
MADE_BY = "`python evaluate_robustness.py --model_name NAME --results_dir {} L2` makes it"


def norm_distributions(results: Results) -> Iterator[Drawing]:
    """Minimal norms over images, a box per model: a figure per image set, threat and settings."""
    groups = norm_groups(results)
    tables = [(group, norm_quantiles(group)) for group in groups]
    drawn = [(group, table) for group, table in tables if not table.empty]
    names = numbered(
        [f"norm_distributions_{run['image_set']}_{run['threat']}" for (run, *_), _ in drawn]
    )
    for name, (group, table) in zip(names, drawn):
        run, hidden = group[0], len(table) - MAX_BOXES
        budget = panel_budget(run, groups)
        heading = f"{run['image_set']}, {run['threat']} (n = {run['images']}): {budget}"
        caption = (
            "Smallest perturbation found of each correctly classified image. Boxes: quartiles and "
            "median; whiskers: 5th to 95th percentile; colours: families. A norm that was not "
            "found counts as larger than any; a percentile that falls there is not drawn."
            + (f" The {hidden} smallest medians are in the table only." if hidden > 0 else "")
        )
        norm = minimised_norm(run["threat"])
        figure = draw_boxes(table[:MAX_BOXES], norm, heading)
        boxed = [run for run in group if run["model"] in set(table["model"])]
        undrawn = "no image is classified correctly"
        undrawn += ", or no L1 norm in its record" if norm == "L1" else ""
        facts = describe_runs(boxed, results.runs, undrawn)
        yield name, figure, table, f"{caption}\n{facts}"


def norm_quantiles(group: list[dict]) -> pd.DataFrame:
    """QUANTILES of the norms of correctly classified images, the model of largest median first.

    Interpolated between two images; nan where one of these is an image whose norm was not found.
    """
    rows = []
    for run in group:
        norms = image_norms(run)
        norms = norms[norms > -np.inf]  # of correctly classified images
        if norms.empty:
            continue
        found = np.percentile(norms.clip(upper=NOT_FOUND), list(QUANTILES.values()))
        largest = norms[np.isfinite(norms)].max()
        facts = run_columns(run) | {"family": family(run["model"]), "n": len(norms)}
        facts |= {"without_norm": int(np.isinf(norms).sum())}
        rows.append(facts | dict(zip(QUANTILES, np.where(found <= largest, found, np.nan))))
    table = pd.DataFrame(rows)
    return table.sort_values("median", ascending=False, ignore_index=True) if rows else table


def draw_boxes(table: pd.DataFrame, norm: str, heading: str) -> Figure:
    """A box per row on a logarithmic axis; Linf in 255ths.

    table   of `norm_quantiles`
    """
    scale = 255 if norm == "Linf" else 1
    figure, ax = plt.subplots(
        figsize=(width_beside(table["model"]), 1.0 + 1.3 * LINE_HEIGHT * len(table)),
        layout="constrained",
    )
    for place, row in enumerate(table.to_dict("records")):
        colour = FAMILY_COLOURS[row["family"]]
        p5, p25, median, p75, p95 = (scale * row[name] for name in QUANTILES)
        for whisker in ([p5, p25], [p75, p95]):
            ax.plot(whisker, [place, place], color=colour, linewidth=0.8)
        ax.barh(place, p75 - p25, 0.6, p25, color=colour, alpha=0.55)
        ax.plot([median, median], [place - 0.3, place + 0.3], color=DARK, linewidth=1.2)
    ax.set_yticks(range(len(table)), table["model"])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xscale("log")
    plain_log_ticks(ax.xaxis)
    unit = " (1/255)" if norm == "Linf" else ""
    ax.set_xlabel(f"minimal {NORM_SYMBOLS.get(norm, norm)} norm{unit}, log scale")
    put_heading(figure, heading)
    return figure


FIGURES = {"norm_distributions": (norm_distributions, MADE_BY)}
