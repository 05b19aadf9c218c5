"""Confirmation: the plain float32 model decides whether a point is adversarial.

Attacks may run on a faster copy of the model (folded batch norm, TF32, bf16) and put forward points
that the exact model classifies correctly. Only confirmed points reach a record.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment_security.attacks.attack import BAD_LOGITS, AttackedImage, AttackError, Finding
from alignment_security.attacks.engine import Confirm
from alignment_security.attacks.geometry import ORDER, exact_norm
from alignment_security.common.verdicts import inside_ball
from alignment_security.models.forward import Forward


def confirm_in_float32(exact: Forward, norm: str) -> Confirm:
    """The `confirm` of `run_stages`: evaluates points on the model `exact`, and measures them.

    A point is confirmed if it is misclassified and its perturbation is within the image's eps in
    `norm`, up to float32 rounding (`common.verdicts.inside_ball`). The pass counts as a
    forward. Raises AttackError for NaN or infinite logits.
    """

    def confirm(
        images: list[AttackedImage], points: Tensor, broken_by: str
    ) -> list[Finding | None]:
        deltas = points - torch.stack([image.x for image in images])
        logits = exact.logits(points)
        measured = [
            torch.isfinite(logits).all(1).to(deltas.dtype),
            logits.argmax(1).to(deltas.dtype),
            *(exact_norm(deltas, ORDER[name]) for name in (norm, "Linf", "L2")),
        ]
        findings: list[Finding | None] = []
        for image, delta, values in zip(images, deltas, torch.stack(measured, 1).tolist()):
            is_finite, prediction, size, linf, l2 = values
            image.forwards += 1
            if not is_finite:
                raise AttackError(f"{image.image_id}: {BAD_LOGITS} at a point of {broken_by}")
            if prediction != image.label and inside_ball(size, image.eps):
                findings.append(Finding(int(prediction), linf, l2, delta, broken_by, image.eps))
            else:
                findings.append(None)
        return findings

    return confirm
