"""A finished record grows: a request for its images and eps and more adds the rows that it lacks.

Images are added in any place of the list, and any eps. At a new eps an image is attacked as after
an interruption (its clean pass is counted again), unless its rows decide it: it is robust below an
eps that it survived, and broken above one that broke it.
Another model, budget, head or seed shares no rows.
"""

from __future__ import annotations

import pandas as pd

from alignment_security.common.locked_run import json_round_trip
from alignment_security.images.image_sets import ImageSet

IMAGE_SETTINGS = {"slice", "images", "list_sha256", "contents_sha256"}


def may_grow(images: ImageSet, old: dict, new: dict, rows: pd.DataFrame) -> bool:
    """Whether these images, and the eps of a request, hold those of a finished record.

    old, rows   settings and rows of the record
    new         settings of the request
    """
    before, after = old["run"], new["run"]
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if old["model"] != new["model"] or not changed <= IMAGE_SETTINGS | {"eps"}:
        return False
    return holds_eps(before.get("eps"), after.get("eps")) and holds_images(images, rows, before)


def holds_eps(old: list[float] | None, new: list[float] | None) -> bool:
    """Whether the new eps are the old ones, and perhaps more."""
    return set(old or []) <= set(json_round_trip({"eps": new or []})["eps"])


def holds_images(images: ImageSet, rows: pd.DataFrame, settings: dict) -> bool:
    """Whether the list of a finished record, with its labels and order, is a part of `images`."""
    part = images.take_named(set(rows["image_id"]))
    return part.list_sha256 == settings.get("list_sha256")
