"""Saliency: the input gradient of each image's true logit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from alignment_security.attacks.attack import BAD_GRADIENT, AttackError
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import ImageStream, clean_columns, clean_pass
from alignment_security.attacks.geometry import lp_norm


def run_saliency(model: AttackedModel, source: ImageStream) -> Iterator[list[dict]]:
    """Clean predictions and gradients. Yields `clean` columns, and `gradient` (C, H, W).

    Raises AttackError for bad images, labels, logits or gradients.
    """
    forward, source = model.forward(), iter(source)
    while batch := list(islice(source, forward.batch_size)):
        x, _, classes = clean_pass(forward, batch, model.n_outputs)
        labels = torch.tensor([label for _, _, label in batch], device=x.device)

        def label_logit(z: Tensor, rows: slice, labels: Tensor = labels) -> Tensor:
            return z.gather(1, labels[rows, None])[:, 0]

        _, gradient = forward.gradient(x, label_logit)
        for (name, _, _), size in zip(batch, lp_norm(gradient, torch.inf).tolist()):
            if not math.isfinite(size):
                raise AttackError(f"{name}: {BAD_GRADIENT}")
        yield [
            clean_columns(name, label, prediction) | {"gradient": row}
            for (name, _, label), (prediction,), row in zip(batch, classes, gradient)
        ]
