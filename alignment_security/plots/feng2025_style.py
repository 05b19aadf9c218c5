"""What figures of norms share: colours of Feng 2025's groups, its lines, the tolerance axis."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from alignment_security.analysis.feng2025 import robust_series
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.common.files import safe_file_name
from alignment_security.models.families import OTHER
from alignment_security.plots.style import DARK

# group -> colour (Okabe and Ito), marker; "Other" is a model that Feng 2025 does not have
GROUP_STYLES = {
    "CNN": ("#0072B2", "o"),
    "ViT": ("#CC79A7", "D"),
    "Hybrid": ("#56B4E9", "v"),
    "SSL": ("#E69F00", "s"),
    "robust": ("#D55E00", "^"),
    "harmonized": ("#009E73", "*"),
    OTHER: ("#666666", "P"),
}
SERIES_DASHES: Any = {"L2": "-", "Linf": ":"}  # norm of adversarial training -> line
LOG_RANGE = 4  # factor that norms span on a logarithmic axis
LACKING = (
    "`python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol crossing` and "
    "`python utilities.py merge --results_dir {}` make our numbers; --published DIR draws the "
    "published ones"
)


def own_figure_name(kind: str, table: NormTable, tables: list[NormTable]) -> str:
    """Kind, image set and threat of a table of ours, and its attack where other tables share these.

    Published numbers have the kind alone.
    """
    if table.name == PUBLISHED:
        return kind
    *place, attack = table.key
    is_alone = sum(other.key[:2] == table.key[:2] for other in tables) == 1
    return "_".join([kind, *place, *([] if is_alone else [safe_file_name(attack)])])


def group_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend of the groups among some rows; empty where no model has a group."""
    if rows["group"].eq(OTHER).all():
        return []
    return [
        Line2D([], [], linestyle="none", color=colour, marker=marker, label=name)
        for name, (colour, marker) in GROUP_STYLES.items()
        if rows["group"].eq(name).any()
    ]


def estimated_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend of filled and hollow points, where some accuracies are estimated."""
    if not rows["estimated"].any() or rows["estimated"].all():
        return []
    point: Any = {"linestyle": "none", "marker": "o", "color": "#666666"}
    return [
        Line2D([], [], label="accuracy measured", **point),
        Line2D([], [], label="estimated from top-1", markerfacecolor="white", **point),
    ]


def tolerance_scale(axis: XAxis | YAxis, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers, if norms span more than a factor of LOG_RANGE."""
    if not values.max() > LOG_RANGE * values.min() > 0:
        axis.set_major_locator(plt.MaxNLocator(5))
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(plt.FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def draw_front(ax: Axes, front: pd.DataFrame) -> None:
    """The Pareto front as the staircase that bounds what it dominates."""
    if len(front) < 2:
        return
    front = front.sort_values("pt")
    alignment = 100 * front["alignment"]
    ax.step(front["pt"], alignment, where="pre", color=DARK, linewidth=0.9, zorder=3)


def draw_series(ax: Axes, rows: pd.DataFrame) -> None:
    """A line per adversarially trained net and norm, along the eps of its training."""
    for name, part in robust_series(rows):
        dashes = SERIES_DASHES["L2" if name.endswith("L2") else "Linf"]
        x, y = part["pt"].to_numpy(), 100 * part["alignment"].to_numpy()
        ax.plot(x, y, color=GROUP_STYLES["robust"][0], linewidth=0.6, zorder=1, linestyle=dashes)
