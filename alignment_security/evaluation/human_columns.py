"""Columns that compare with people: labels that fit, agreement with human maps."""

from __future__ import annotations

import numpy as np

from alignment_security.evaluation.threats.clean import Clean
from alignment_security.evaluation.threats.threat import Threat
from alignment_security.images.human_maps import human_map
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.labels import multilabel_correct, real_correct
from alignment_security.models.heads import IMAGENET_CLASSES, Model
from alignment_security.records.metrics import over_ceiling, rank_agreement


def add_human_columns(rows: list[dict], threat: Threat, model: Model, images: ImageSet) -> None:
    """Add what people say of an image to its rows.

    Clean rows get `clean_real` and `clean_multilabel`: whether the prediction is among all labels
    that fit. Rows with a perturbation get its rank agreement with the image's human map. A value
    that does not exist is no cell.
    """
    for row in rows:
        if isinstance(threat, Clean) and model.n_outputs == IMAGENET_CLASSES:
            add_accepted_labels(row, threat, model)
        if threat.map_reduce and row.get("perturbation") is not None:
            add_alignment(row, threat.map_reduce, model, images)


def add_accepted_labels(row: dict, threat: Clean, model: Model) -> None:
    accepted = threat.accepted_labels(model.settings["head"])
    row["clean_real"] = real_correct(row["image_id"], row["clean_pred"])
    row["clean_multilabel"] = multilabel_correct(accepted, row["image_id"], row["clean_pred"])


def add_alignment(row: dict, map_reduce: str, model: Model, images: ImageSet) -> None:
    attention = human_map(images, images.position(row["image_id"]), model.preprocessing)
    if attention is None:
        return
    perturbation = row["perturbation"].cpu().numpy()
    raw = rank_agreement(attention[None], perturbation[None], map_reduce)[0]
    if np.isnan(raw):
        return
    row["human_alignment_raw"] = float(raw)
    row["human_alignment"] = float(over_ceiling(raw))
