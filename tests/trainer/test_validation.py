"""Accuracy on --val_dataset while training."""

from __future__ import annotations

import shutil
from argparse import Namespace

import torch

from alignment_security.images.image_sets import synsets
from alignment_security.images.loading import stream_images
from alignment_security.images.variants import VARIANTS
from alignment_security.models.loading import load_model
from alignment_security.trainer.setup import validation


def test_imagenet_a_is_validated_over_its_classes(tiny, sample, tmp_path):
    """The net's one answer is none of the 200: restricted, it is the best of these."""
    model = load_model(tiny.name, tiny.checkpoint)
    classes = VARIANTS["imagenet-a"].classes
    _, image, _ = next(stream_images(sample, model.preprocessing))
    logits = model.module(image[None])[0].detach()
    best = max(classes, key=lambda label: logits[label])
    assert int(logits.argmax()) not in classes
    for label in classes:
        folder = tmp_path / synsets()[label]
        folder.mkdir()
        if label == best:
            shutil.copy(sample.paths[0], folder)
    args = Namespace(
        val_dataset="imagenet-a",
        val_dir=str(tmp_path),
        class_order=None,
        workers=0,
        batch_size=4,
        pass_size=0,
    )
    accuracy = validation(args, model, torch.device("cpu"))
    assert accuracy is not None and accuracy(model.module) == 1
