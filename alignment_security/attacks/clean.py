"""alignment_security.attacks.clean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from alignment_security.attacks.attack import AttackedImage, AttackError
from alignment_security.attacks.geometry import ORDER, ROUNDING, lp_norm
from alignment_security.models.forward import Forward, device_of

ImageStream = Iterable[tuple[str, Tensor, int]]


# ---- inputs and findings ---------------------------------------------------------------------------------------


def check_images(x: Tensor, labels: list[int], ids: list[str], n_outputs: int) -> None:
    """Raise AttackError for pixels outside [0, 1] or not finite, or a label out of range, naming the image."""
    for name, image, label in zip(ids, x, labels):
        if not torch.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise AttackError(
                f"{name}: pixels are not all in [0, 1] (from {image.min():.3g} to {image.max():.3g})"
            )
        if not 0 <= label < n_outputs:
            raise AttackError(f"{name}: label {label} is outside 0..{n_outputs - 1}")


def clean_pass(passes: Forward, batch: list, n_outputs: int) -> tuple[Tensor, Tensor]:
    """(x, logits) of a batch of (image_id, image, label), checked."""
    x = torch.stack([image for _, image, _ in batch])
    check_images(x, [label for *_, label in batch], [name for name, *_ in batch], n_outputs)
    x = x.to(device_of(passes.module), non_blocking=True)
    logits = passes.logits(x)
    if logits.shape[1] != n_outputs:
        raise AttackError(
            f"{batch[0][0]}: the model gives {logits.shape[1]} logits, {n_outputs} are wanted"
        )
    if bad := [name for (name, *_), z in zip(batch, logits) if not torch.isfinite(z).all()]:
        raise AttackError(
            f"{bad[0]}: the model gives NaN or infinite logits ({len(bad)} image(s) of this batch)"
        )
    return x, logits


def clean_columns(name: str, label: int, logits: Tensor) -> dict:
    pred = int(logits.argmax())
    return {
        "image_id": name,
        "label": label,
        "clean_pred": pred,
        "clean_correct": int(pred == label),
    }


def run_clean(
    module: nn.Module,
    source: ImageStream,
    n_outputs: int,
    batch_size: int,
    log: Callable[[str], None] = lambda m: None,
) -> Iterator[list[dict]]:
    """Predictions on clean images: top-1 and, from five classes on, top-5."""
    passes, source = Forward(module, batch_size, log), iter(source)
    while batch := list(islice(source, batch_size)):
        _, logits = clean_pass(passes, batch, n_outputs)
        best = logits.topk(min(5, n_outputs), dim=1)[1].tolist()
        yield [
            clean_columns(name, label, z)
            | ({"clean_top5": int(label in top)} if n_outputs > 5 else {})
            for (name, _, label), z, top in zip(batch, logits, best)
        ]


def confirm_in_float32(exact: Forward, norm: str) -> Callable:
    """A judge of findings: the point, run through the float32 model again, is misclassified and inside its ball."""

    def confirm(jobs: list[AttackedImage], points: Tensor) -> list[dict | None]:
        delta = points - torch.stack([job.x for job in jobs])
        size = lp_norm(delta, ORDER[norm]).tolist()
        linf, l2, preds = (
            lp_norm(delta, ORDER["Linf"]).tolist(),
            lp_norm(delta, 2).tolist(),
            exact.logits(points).argmax(1).tolist(),
        )
        for job in jobs:
            job.forwards += 1
        return [
            {"adv_pred": preds[i], "linf": linf[i], "l2": l2[i], "perturbation": delta[i]}
            if preds[i] != job.label and size[i] <= job.eps * (1 + 1e-5) + ROUNDING
            else None
            for i, job in enumerate(jobs)
        ]

    return confirm
