"""Predictions on clean images, and the checks of images and logits before an attack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from alignment_security.attacks.attack import (
    BAD_LOGITS,
    AttackedImage,
    AttackError,
    Progress,
    to_device,
)
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.common.pixels import in_unit_range
from alignment_security.models.forward import Forward, device_of

# (image id, pixels (C, H, W) in [0, 1] or uint8 levels, label)
ImageStream = Iterable[tuple[str, Tensor, int]]

TOP = 5  # a label among so many largest logits is correct in clean_top5


def run_clean(model: AttackedModel, source: ImageStream) -> Iterator[list[dict]]:
    """Top-1 and, with more than five classes, top-5 predictions. Yields `clean` record rows.

    Raises AttackError for bad images, labels or logits.
    """
    forward, source, n_outputs = model.forward(), iter(source), model.n_outputs
    while batch := list(islice(source, model.batch_size)):
        _, _, classes = clean_pass(forward, batch, n_outputs, top=min(TOP, n_outputs))
        rows = []
        for (name, _, label), (prediction, *largest) in zip(batch, classes):
            row = clean_columns(name, label, prediction)
            if n_outputs > TOP:
                row["clean_top5"] = int(label in largest)
            rows.append(row)
        yield rows


def clean_pass(
    forward: Forward, batch: list, n_outputs: int, top: int = 0
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Check and evaluate a batch of (image id, pixels, label).

    Returns x (B, C, H, W) on the model's device, logits (B, n_outputs), and a list for each image:
    its predicted class (of a random network, that of each draw), then those of its `top` largest
    logits. Raises AttackError for bad images, labels or logits.
    """
    ids = [name for name, _, _ in batch]
    labels = [label for _, _, label in batch]
    x = torch.stack([image for _, image, _ in batch])
    check_images(x, labels, ids, n_outputs)
    x = in_unit_range(to_device(x, device_of(forward.module)))
    logits = forward.logits(x)
    if logits.shape[-1] != n_outputs:
        raise AttackError(
            f"{ids[0]}: the model gives {logits.shape[-1]} logits instead of {n_outputs}"
        )
    finite = torch.isfinite(logits).flatten(1).all(1, keepdim=True)
    columns = [finite, logits.argmax(-1).view(len(x), -1)]
    if top:
        columns.append(logits.topk(top, dim=1)[1])
    looked = torch.cat(columns, 1).tolist()  # the host waits for the device once
    bad = [name for name, (is_finite, *_) in zip(ids, looked) if not is_finite]
    if bad:
        raise AttackError(f"{bad[0]}: {BAD_LOGITS} ({len(bad)} image(s) of this batch)")
    return x, logits, [classes for _, *classes in looked]


def images_to_attack(
    model: AttackedModel,
    forward: Forward,
    batch: list,
    new_progress: Callable[[], Progress],
    eps: float = 0.0,
) -> list[AttackedImage[Progress]]:
    """The images of a batch after their clean pass, which is counted. Raises as `clean_pass`."""
    x, logits, classes = clean_pass(forward, batch, model.n_outputs)
    return [
        AttackedImage(
            name,
            pixels.clone(),
            label,
            image_logits,
            new_progress(),
            clean=clean_columns(name, label, prediction),
            seed=model.seed,
            eps=eps,
            forwards=1,
        )
        for (name, _, label), pixels, image_logits, (prediction,) in zip(batch, x, logits, classes)
    ]


def check_images(x: Tensor, labels: list[int], ids: list[str], n_outputs: int) -> None:
    """Raise AttackError, naming the image, for pixels outside [0, 1] and labels out of range."""
    for name, label in zip(ids, labels):
        if not 0 <= label < n_outputs:
            raise AttackError(f"{name}: label {label} is outside 0..{n_outputs - 1}")
    if x.dtype == torch.uint8:
        return
    smallest, largest = x.flatten(1).amin(1).tolist(), x.flatten(1).amax(1).tolist()
    for name, low, high in zip(ids, smallest, largest):
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise AttackError(
                f"{name}: pixels are not all in [0, 1] (from {low:.3g} to {high:.3g})"
            )


def clean_columns(name: str, label: int, prediction: int) -> dict[str, Any]:
    """The columns that every record row begins with."""
    return {
        "image_id": name,
        "label": label,
        "clean_pred": prediction,
        "clean_correct": int(prediction == label),
    }
