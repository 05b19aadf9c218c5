"""NormTable: minimal norms and human alignment of models, all measured in one way.

A table holds one protocol, budget and image set. Tables are never pooled: each has its own panel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

PUBLISHED = "Feng et al. 2025, published"
NOT_STANDARD = ["robust", "harmonized"]  # groups by training; all other models are standard ones
MULTILABEL = "multi-label accuracy (%)"
NORM_TABLE_COLUMNS = [
    "source",
    "model",
    "weights",
    "weights_sha256",
    "list_sha256",  # of the images; "" for published norms
    "public",  # name of the public net that it is; "" for a net of one's own
    "family",
    "group",
    "pt",  # Perturbation Tolerance: mean minimal norm, pixel units of [0, 1]
    "pt_sem",
    "size",  # of the attacked images, `height x width`: norms of another size are of other pixels
    "pt_per_pixel",  # pt / sqrt(3 height width)
    "alignment",  # Spearman with human maps over the human ceiling
    "alignment_sem",
    "accuracy",  # percent
    "estimated",  # whether the accuracy is estimated from top-1
    "n_norm",  # images behind pt; missing for published norms
    "n_alignment",  # images behind alignment: those with a norm and a human map
]
TOLERANCE = "Perturbation Tolerance (L₂)"
L1_IN_L2 = "L1, in L2"  # of a table with L1 records of earlier versions, which have no L1 norm
# norm that an attack makes small -> label, column of the summary, factor
TOLERANCES = {
    "L2": (TOLERANCE, "l2", 1),
    "Linf": ("Perturbation Tolerance (L∞, 1/255)", "linf", 255),
    "L1": ("Perturbation Tolerance (L₁)", "l1", 1),
    L1_IN_L2: ("L₂ norm of the smallest L₁ perturbation", "l2", 1),
}
ALIGNMENT = "human alignment (% of ceiling)"
OTHER_ALIGNMENT = "human alignment (% of 0.65753)"  # over maps whose ceiling it is not


class NormTable(NamedTuple):
    """Models measured under one protocol and budget on one image set."""

    name: str  # the title of its panel
    rows: pd.DataFrame  # NORM_TABLE_COLUMNS, a row per model
    accuracy_label: str  # which accuracy `rows` has
    note: str  # facts for a caption
    image_set: str = ""  # of our own records
    threat: str = ""  # of our own records
    attack: str = ""  # of our own records, with its budget
    norm: str = "L2"  # that the attack makes small, of TOLERANCES
    head: str = "none"  # of the networks
    alignment_label: str = ALIGNMENT
    ceiling_note: str = ""  # where the human ceiling is not that of the maps

    @property
    def key(self) -> tuple[str, str, str]:
        """Image set, threat and attack of our own records, which `results.runs_of` finds."""
        return self.image_set, self.threat, self.attack

    @property
    def source(self) -> str:
        """Where the rows are from, in one line."""
        return self.rows["source"].iat[0]

    @property
    def standard(self) -> pd.DataFrame:
        """Rows of models that were neither trained adversarially nor harmonized."""
        return self.rows[~self.rows["group"].isin(NOT_STANDARD)]


def short_name(table: NormTable, beside: Iterable[NormTable]) -> str:
    """A table's image set and threat; with its budget and head where others have the same two.

    beside   the tables of all panels
    """
    first = table.name.splitlines()[0]
    alike = {other.name for other in beside if other.name.splitlines()[0] == first}
    return table.name.replace("\n", ", ") if alike - {table.name} else first
