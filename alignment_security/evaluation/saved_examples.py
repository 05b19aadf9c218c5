"""Adversarial examples that a run saves for figures (--examples)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from timm.data import ImageNetInfo

from alignment_security.common.files import write_atomic
from alignment_security.common.text import some_of
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.images.human_maps import human_map
from alignment_security.images.loading import stream_bytes
from alignment_security.models.heads import HEADS
from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.run import Run


def save_examples(rows: list[dict], evaluation: Evaluation, run: Run) -> None:
    """Save photograph and perturbation of the images in `kept_examples` that were fooled.

    One .npz an image, for figures; see alignment_security/records/adversarial_examples.py.
    """
    for row in rows:
        if row.get("perturbation") is None or row["image_id"] not in evaluation.kept_examples:
            continue
        path = example_path(run.csv, row["image_id"])
        blur = "human_map_blur" in run.settings["run"]
        write_atomic(path, example_bytes(row, evaluation, blur))


def unsaved_examples(evaluation: Evaluation, run: Run) -> list[str]:
    """A line about the images in `kept_examples` that were fooled and have no file; [] if none.

    They were evaluated before examples were asked for.
    """
    if "l2" not in run.rows:
        return []
    fooled = run.rows.loc[run.rows["l2"] > 0, "image_id"].unique()
    kept = [name for name in fooled if name in evaluation.kept_examples]
    unsaved = [name for name in kept if not example_path(run.csv, name).exists()]
    if not unsaved:
        return []
    return [
        f"  note: --examples: none of {some_of(unsaved)}, since examples are saved as images are "
        "attacked; --overwrite attacks all images again"
    ]


def example_bytes(row: dict, evaluation: Evaluation, blur: bool) -> bytes:
    """The .npz file of one adversarial example; `blur` says how its human map is read."""
    model, images = evaluation.model, evaluation.images
    position = images.position(row["image_id"])
    (_, image, _) = next(stream_bytes(images.take([position]), model.preprocessing))
    attention = human_map(images, position, model.preprocessing, blur)
    head = model.settings["head"]
    arrays = {
        "image": image.numpy().transpose(1, 2, 0),
        "delta": row["perturbation"].cpu().numpy().astype(np.float32).transpose(1, 2, 0),
        "label": class_name(row["label"], head, images.class_names),
        "pred": class_name(row["adv_pred"], head, images.class_names),
        "label_index": row["label"],
        "pred_index": row["adv_pred"],
        "eps": row.get("eps", np.nan),
        "l2": row["l2"],
        "linf": row["linf"],
        "human_alignment": row.get("human_alignment", np.nan),
    }
    if attention is not None:
        arrays["human_map"] = attention.astype(np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def class_name(index: int, head: str, names: Sequence[str] = ()) -> str:
    """The class that a label or a prediction stands for, in words.

    names   of the set's own classes; empty for ImageNet's
    """
    if HEADS[head]:
        return ("animate", "inanimate")[index]
    if names:
        return names[index]
    return ImageNetInfo("imagenet-1k").index_to_description(index).split(",")[0]
