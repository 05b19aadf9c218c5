"""What figures share: style, finished runs and their rows, colours of models, panels and captions."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import utilities
from alignment_security.models.families import FAMILIES, family
from alignment_security.records import run as records

COLUMN, PAGE = 3.4, 7.0     # inches: one column of a two-column paper, and both
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "lines.linewidth": 1.2, "lines.markersize": 4, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.handlelength": 2.6, "pdf.fonttype": 42}
MARKERS, DASHES = "osD^vP*X", ("-", "--", ":", "-.")    # tell the models of a family apart
MAX_NAMED = 24              # models in a legend; above it plain lines, and the legend gives families
NORMS = {"Linf": "$L_\\infty$", "L2": "$L_2$", "L1": "$L_1$"}
Drawing = tuple[str, Figure | None, pd.DataFrame, str]      # name, figure (None: a LaTeX table), the table drawn, caption


class NothingToDraw(Exception):
    """Why a figure cannot be drawn from results that are there; the command that mends it is the figure's."""


@dataclass(frozen=True, eq=False)       # a key of caches by identity
class Results:
    """Where figures find what they draw."""
    folder: Path                    # results/: the summary, benchmark_scores/, records/
    runs: list[dict]                # run files, finished or not, with the record's path as `csv`
    published: Path | None = None   # published numbers (PUBLISHED_DIR of .env), laid out as results/README.md says
    models: tuple[str, ...] = ()    # only these, if any are named


# ---- what is drawn ---------------------------------------------------------------------------------------------

def load_results(results_dir, models: list[str] | None = None, published=None) -> Results:
    """Every run file, those of some models if `models` is given. Raises RecordError when one of them has none."""
    root = Path(results_dir) / "records"
    runs = [records.read_run(path) | {"csv": path.with_suffix(".csv")} for path in sorted(root.glob("*/*/*.json"))]
    have = sorted({run["model"] for run in runs})
    if have and (unknown := sorted(set(models or []) - set(have))):
        raise records.RecordError(f"{root}: no record of {', '.join(unknown)}; --models takes {', '.join(have)}")
    runs = [run for run in runs if not models or run["model"] in models]
    return Results(Path(results_dir), runs, Path(published) if published else None, tuple(models or ()))


def read_rows(run: dict) -> pd.DataFrame:
    """Rows of a finished record. Raises RecordError when the file is not the one that the run finished with."""
    records.check_sha256(run["csv"], run)
    return records.read_record(run["csv"])


def finished(runs: list[dict], kinds: tuple[str, ...], key: Callable) -> list[list[dict]]:
    """Finished runs of these kinds, those of one key together."""
    chosen = sorted((run for run in runs if run["status"] == "done" and run["kind"] in kinds), key=key)
    return [list(group) for _, group in groupby(chosen, key)]


def folder(run: dict) -> tuple[str, str]:
    return run["image_set"], run["threat"]


def budget(run: dict) -> str:
    return run["settings"]["run"].get("attack", "not given")


def model_styles(models: set[str]) -> dict[str, dict]:
    """Keywords of a line: colour by family, marker and dashes by the place within it."""
    styles, seen = {}, dict.fromkeys(FAMILIES, 0)
    for model in sorted(models):
        name = family(model)
        styles[model] = {"color": FAMILIES[name][0]} | ({"linewidth": 0.6} if len(models) > MAX_NAMED else {
            "marker": MARKERS[seen[name] % len(MARKERS)], "linestyle": DASHES[seen[name] % len(DASHES)]})
        seen[name] += 1
    return styles


def describe(group: list[dict], runs: list[dict]) -> str:
    """A line of a caption: n, protocol, budget and dates of the runs drawn, and which models of the image set are not."""
    settings, (image_set, threat) = [run["settings"]["run"] for run in group], folder(group[0])
    values = {"n =": {str(run["images"]) for run in group}, "protocol": {str(s.get("protocol")) for s in settings},
              "head": {s.get("head", "none") for s in settings} - {"none"}, "budget": {budget(run) for run in group}}
    facts = [f"{len(group)} model(s)", *(f"{name} {' or '.join(sorted(value))}" for name, value in values.items() if value)]
    days = sorted(session["started"][:10] for run in group for session in run["sessions"])
    status = {run["model"]: "not evaluated" for run in runs if run["image_set"] == image_set}
    status |= {run["model"]: run["status"] for run in runs if folder(run) == (image_set, threat)}
    missing = [f"Missing ({why}): {', '.join(model for model in status if status[model] == why)}."
               for why in dict.fromkeys(status.values()) if why != "done"]
    return (f"{image_set}, {threat}: {', '.join(facts)}, evaluated {' to '.join(dict.fromkeys([days[0], days[-1]]))}. "
            f"{' '.join(missing) or 'No model is missing.'}")


def norm_means(rows: pd.DataFrame) -> dict[str, float]:
    """Mean and SEM of minimal norms and alignments over correctly classified images, and their numbers."""
    right = rows[(rows["clean_correct"] == 1) & (rows["success"] == 1)]
    maps = right["human_alignment"].dropna()
    return {"n": len(right), "l2": right["l2"].mean(), "l2_sem": right["l2"].sem(), "n_maps": len(maps),
            "alignment": maps.mean(), "alignment_sem": maps.sem()}


# ---- parts of figures ------------------------------------------------------------------------------------------

def panels(count: int, legend: list[Line2D]) -> tuple[Figure, list]:
    """`count` axes, one to a column or two to a page, above a legend with as many columns as fit."""
    width, columns = (COLUMN, 1) if count == 1 else (PAGE, 2)
    rows, fit = -(-count // columns), max(1, int(width / max(0.45 + 0.062 * len(str(line.get_label())) for line in legend)))
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(width, 2.3 * rows + 0.15 * -(-len(legend) // fit)))
    figure.legend(handles=legend, loc="outside lower center", ncols=min(fit, len(legend)))
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def legend_handles(styles: dict[str, dict]) -> list[Line2D]:
    """A line per model, or per family where there are too many models to name."""
    if len(styles) <= MAX_NAMED:
        return [Line2D([], [], label=model, **style) for model, style in styles.items()]
    return [Line2D([], [], label=name, color=FAMILIES[name][0]) for name in FAMILIES if name in map(family, styles)]


def radius_axis(ax, eps, norm: str) -> None:
    """Ticks at the radii that were evaluated, the larger one where two would touch; Linf in 255ths."""
    ticks: list[float] = []
    for value in sorted(eps, reverse=True):
        if not ticks or ticks[-1] - value > 0.1 * max(eps):
            ticks.append(float(value))
    shown = [utilities.format_eps(value) if norm == "Linf" else f"{value:g}" for value in ticks]
    ax.set_xticks(ticks, [text.removesuffix("/255") for text in shown])
    ax.set_xlabel(f"radius ε in {NORMS.get(norm, norm)}" + (" (1/255)" if any("/255" in text for text in shown) else ""))
