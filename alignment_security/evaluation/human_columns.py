"""Columns that compare with people: labels that fit, agreement with human maps."""

from __future__ import annotations

from torch import Tensor

from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.threats.clean import Clean
from alignment_security.images.human_maps import human_map
from alignment_security.images.labels import multilabel_correct, real_correct
from alignment_security.models.heads import IMAGENET_CLASSES, Model
from alignment_security.records.metrics import agreement_of_image, over_ceiling


def add_human_columns(rows: list[dict], evaluation: Evaluation, settings: dict) -> None:
    """Add what people say of an image to its rows.

    settings   of the run file: how human maps are read, and the ceiling of that reading
    Clean rows get `clean_real` and `clean_multilabel`: whether the prediction is among all labels
    that fit. Rows with a perturbation or a gradient get its rank agreement with the image's human
    map. A value that does not exist is no cell.
    """
    threat, model = evaluation.threat, evaluation.model
    for row in rows:
        if isinstance(threat, Clean) and model.n_outputs == IMAGENET_CLASSES:
            add_accepted_labels(row, threat, model)
        compared = row.get("perturbation", row.get("gradient"))
        if threat.map_reduce and compared is not None:
            add_alignment(row, compared, evaluation, settings)


def add_accepted_labels(row: dict, threat: Clean, model: Model) -> None:
    accepted = threat.accepted_labels(model.settings["head"])
    row["clean_real"] = real_correct(row["image_id"], row["clean_pred"])
    row["clean_multilabel"] = multilabel_correct(accepted, row["image_id"], row["clean_pred"])


def add_alignment(row: dict, compared: Tensor, evaluation: Evaluation, settings: dict) -> None:
    """Add the rank agreement of a perturbation or gradient (C, H, W) with the image's map."""
    images, reduce = evaluation.images, evaluation.threat.map_reduce
    position, blur = images.position(row["image_id"]), "human_map_blur" in settings
    attention = human_map(images, position, evaluation.model.preprocessing, blur)
    if attention is None or reduce is None:
        return
    raw = agreement_of_image(attention, compared.cpu().numpy(), reduce)
    if raw is not None:
        row["human_alignment_raw"] = raw
        row["human_alignment"] = over_ceiling(raw, settings["human_ceiling"])
