"""Validation: what a training logs of its network after an epoch, on images of --val_dataset."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.clean import ImageStream, run_clean
from alignment_security.attacks.saliency import run_saliency
from alignment_security.images.human_maps import human_map, is_blurred, map_source
from alignment_security.images.image_sets import ImageSet, default_dir
from alignment_security.images.loading import has_imagenet_order, load_image_set, stream_bytes
from alignment_security.images.slices import take_slice
from alignment_security.models.forward import device_of
from alignment_security.models.heads import Model, restrict_classes
from alignment_security.records.metrics import agreement_of_image, over_ceiling
from alignment_security.trainer.distributed import (
    rank,
    share_buffers,
    sum_over_processes,
    world_size,
)
from alignment_security.trainer.setup import images_per_pass

BUDGET = Budget(("apgd-ce",), steps=20)  # a small attack: robust accuracy is an upper bound
SAMPLE_SIZE = 100


@dataclass(frozen=True)
class Sample:
    """Images on which robust accuracy and human alignment are measured.

    every       epochs between two measurements; the last epoch is measured too
    norm, eps   of the attack BUDGET, eps in pixel units of [0, 1]
    """

    images: ImageSet
    every: int
    norm: str
    eps: float

    @property
    def settings(self) -> dict:
        """For the run file."""
        return {
            "every": self.every,
            "norm": self.norm,
            "eps": self.eps,
            "attack": BUDGET.name,
            "image_set": self.images.name,
            "images": len(self.images),
            "list_sha256": self.images.list_sha256,
            "human_map": map_source(self.images),
        }


@dataclass(frozen=True)
class Validation:
    """Columns of log.csv after an epoch: means over the images, which the processes share.

    model    whose network is in training: preprocessing and outputs
    images   of `val_accuracy`
    sample   of `val_robust` and `val_alignment`; None: not measured
    """

    model: Model
    images: ImageSet
    epochs: int
    pass_size: int
    workers: int
    sample: Sample | None = None

    @classmethod
    def from_args(cls, args: Namespace, model: Model) -> Validation | None:
        """The validation of a command line; None without --val_dataset."""
        if not args.val_dataset:
            return None
        folder = args.val_dir or default_dir(args.val_dataset)
        order = None if has_imagenet_order(args.val_dataset) else args.class_order
        images = load_image_set(args.val_dataset, folder, model.n_outputs, class_order=order)
        sample = None
        if args.evaluate_every:
            some = take_slice(images, 0, args.evaluate_images or SAMPLE_SIZE)
            eps = args.eps if args.evaluate_eps is None else args.evaluate_eps
            sample = Sample(some, args.evaluate_every, args.norm or "Linf", eps)
        return cls(model, images, args.epochs, images_per_pass(args), args.workers, sample)

    @property
    def settings(self) -> dict:
        """What resuming compares, so that a column of the log has one meaning."""
        return {} if self.sample is None else {"evaluation": self.sample.settings}

    def __call__(self, net: nn.Module, epoch: int) -> dict[str, float]:
        """Means, by column, of a network after so many epochs."""
        share_buffers(net)
        was_training = net.training
        model = replace(self.model, module=net.eval())
        columns = {"val_accuracy": self._mean(self._correct, model, self.images)}
        if self.sample and (epoch % self.sample.every == 0 or epoch == self.epochs):
            some = self.sample.images
            columns["val_robust"] = self._mean(self._robust, model, some)
            columns["val_alignment"] = self._mean(self._alignment, model, some)
        net.train(was_training)
        return columns

    def _mean(
        self, measure: Callable[[Model, ImageSet], Iterator[float]], model: Model, images: ImageSet
    ) -> float:
        """Mean of a measure over the images of all processes; nan where no image has a value."""
        share = images.take(range(rank(), len(images), world_size()))
        model = restrict_classes(model, images.restrict_to, images.merged)
        values = list(measure(model, share))
        sums = torch.tensor([sum(values), len(values)], dtype=torch.float64)
        total, count = sum_over_processes(sums.to(device_of(model.module))).tolist()
        return total / count if count else float("nan")

    def _stream(self, images: ImageSet) -> ImageStream:
        return stream_bytes(images, self.model.preprocessing, self.workers)

    def _attacked(self, model: Model) -> AttackedModel:
        return AttackedModel(model.module, model.n_outputs, batch_size=self.pass_size)

    def _correct(self, model: Model, images: ImageSet) -> Iterator[float]:
        """1 for each image that is classified correctly."""
        for rows in run_clean(self._attacked(model), self._stream(images)):
            yield from (row["clean_correct"] for row in rows)

    def _robust(self, model: Model, images: ImageSet) -> Iterator[float]:
        """1 for each image that is classified correctly and withstands the attack."""
        assert self.sample is not None
        for rows in run_autoattack(
            self._attacked(model),
            self._stream(images),
            self.sample.norm,
            [self.sample.eps],
            BUDGET,
        ):
            yield from (row["robust"] for row in rows)

    def _alignment(self, model: Model, images: ImageSet) -> Iterator[float]:
        """Human alignment of the input gradient of each image that has a map, over the ceiling."""
        if map_source(images) is None:
            return
        blur = is_blurred(images)
        for rows in run_saliency(self._attacked(model), self._stream(images)):
            for row in rows:
                position = images.position(row["image_id"])
                attention = human_map(images, position, model.preprocessing, blur)
                if attention is None:
                    continue
                agreement = agreement_of_image(attention, row["gradient"].cpu().numpy())
                if agreement is not None:
                    yield float(over_ceiling(agreement))
