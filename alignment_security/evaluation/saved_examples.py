"""Adversarial examples that a run saves for figures (--examples)."""

from __future__ import annotations

import io
from collections.abc import Container, Sequence
from difflib import get_close_matches
from pathlib import PurePath

import numpy as np
from timm.data import ImageNetInfo

from alignment_security.common.files import UserError, write_atomic
from alignment_security.images.human_maps import human_map
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_bytes
from alignment_security.models.heads import HEADS, Model
from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.run import Run


def image_called(name: str, images: ImageSet) -> str:
    """The image_id that a name stands for: itself, or the only one whose file is called that.

    Raises UserError for a name of no image, or of several.
    """
    if name in images.ids:
        return name
    found = [image_id for image_id in images.ids if PurePath(image_id).name == name]
    if len(found) == 1:
        return found[0]
    near = ", ".join(found[:3] or get_close_matches(name, images.ids, n=3, cutoff=0.4))
    what = f"{len(found)} images of that name" if found else "no image of that name"
    raise UserError(
        f"--examples {name}: {images.name} has {what}" + (f"; one is {near}" if near else "")
    )


def save_examples(
    rows: list[dict], chosen: Container[str], model: Model, images: ImageSet, run: Run
) -> None:
    """Save photograph and perturbation of chosen images (ids) that were fooled.

    One .npz an image, for figures; see alignment_security/records/adversarial_examples.py.
    """
    for row in rows:
        if row.get("perturbation") is None or row["image_id"] not in chosen:
            continue
        path = example_path(run.csv, row["image_id"])
        blur = "human_map_blur" in run.settings["run"]
        write_atomic(path, example_bytes(row, model, images, blur))


def example_bytes(row: dict, model: Model, images: ImageSet, blur: bool = False) -> bytes:
    """The .npz file of one adversarial example; `blur` says how its human map is read."""
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
