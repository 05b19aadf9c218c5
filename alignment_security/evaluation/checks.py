"""Checks before an attack: what `evaluate` is given, and whether the model does more than guess.

A wrong order of classes, crop or weights shows on a few clean images, in seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from scipy.stats import binom
from torch import Tensor, nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import ImageStream, run_clean
from alignment_security.common.files import UserError
from alignment_security.common.pixels import in_unit_range
from alignment_security.common.process import print_line
from alignment_security.evaluation.evaluation import Evaluation
from alignment_security.evaluation.stream import with_head_labels
from alignment_security.evaluation.threats.threat import Threat
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import has_imagenet_order, stream_bytes
from alignment_security.images.slices import take_slice
from alignment_security.models.forward import Forward, device_of
from alignment_security.models.heads import Model
from alignment_security.models.loading import check_model
from alignment_security.records.run import Run

MAX_CHECKED = 64  # images, a fair sample, whose clean accuracy is looked at before an attack
FEWEST = 10  # images: fewer say nothing
# fewer, of so many classes, of which none is right: by chance with a probability of 0.4 %, for a
# network that is right on half of all images
FEWEST_WRONG = 8
LIKELY = 0.05  # probability with which a guess is right as often, or more often
# among so many classes, a network is right on this share at least, if its labels are in order
MANY_CLASSES, LEAST_RIGHT = 100, 0.05
RARE = 0.01  # probability with which a network of that share is right so seldom
LOOK = "check the class order of the images, the preprocessing and the weights"


def check_first_image(evaluation: Evaluation, images: ImageSet) -> list[str]:
    """The warnings of `check_model` on the first of some images. Raises ModelError."""
    model, random = evaluation.model, evaluation.threat.takes_random_models
    _, first, _ = next(stream_bytes(images.take([0]), model.preprocessing))
    first = in_unit_range(first[None].to(device_of(model.module)))
    return check_model(model.module, first, model.n_outputs, model.settings["name"], random)


def check_clean(evaluation: Evaluation, run: Run) -> float:
    """Classify a fair sample of the images before an attack, and warn of a model that guesses.

    Returns the seconds that a forward pass of an image takes.
    """
    decoded = list(fair_sample(evaluation, MAX_CHECKED))
    warn_of_guesses(clean_rows(evaluation, decoded), evaluation, run, aloud=True)
    x = torch.stack([image for _, image, _ in decoded[: evaluation.batch_size]])
    return seconds_per_image(evaluation.model.module, in_unit_range(x))


def fair_sample(evaluation: Evaluation, most: int) -> Iterator[tuple[str, Tensor, int]]:
    """At most so many images of an evaluation, uint8, with the labels of the model's head."""
    model, sample = evaluation.model, take_slice(evaluation.images, 0, most)
    return with_head_labels(stream_bytes(sample, model.preprocessing), model.settings["head"])


def clean_rows(evaluation: Evaluation, source: ImageStream) -> list[dict]:
    """The `clean` rows of images."""
    model = evaluation.model
    asked = AttackedModel(model.module, model.n_outputs, batch_size=evaluation.batch_size)
    return [row for rows in run_clean(asked, source) for row in rows]


def warn_of_guesses(
    rows: list[dict], evaluation: Evaluation, run: Run, aloud: bool = False
) -> None:
    """Warn in the run file, and on the screen where `aloud`, of what `chance_warning` finds."""
    images, classes = evaluation.images, evaluation.model.n_outputs
    own = not has_imagenet_order(images.name) and images.corruption is None
    warning = chance_warning(rows, len(images.restrict_to) or classes, own)
    if warning:
        run.warn(warning)
        if aloud:
            print_line(f"warning: {warning}", sys.stderr)


def chance_warning(rows: list[dict], classes: int, own: bool = False) -> str:
    """A sentence about a model that does hardly better than a guess, or has one answer; else "".

    rows      with label, clean_pred and clean_correct
    classes   that an answer may have
    own       whether the labels are of a folder of the user's, which may be in another order; hard
              sets, such as ImageNet-A or corrupted images, have less than LEAST_RIGHT right
    """
    n, correct = len(rows), sum(row["clean_correct"] for row in rows)
    answers = {row["clean_pred"] for row in rows}
    labels = {row["label"] for row in rows}
    if n < FEWEST and (correct or len(labels) < FEWEST_WRONG):
        return ""
    if len(answers) == 1 and len(labels) > 1 and 2 * correct <= n:
        return f"the model takes all {n} images for class {answers.pop()}: {LOOK}"
    if binom.sf(correct - 1, n, 1 / classes) > LIKELY:
        return f"clean accuracy {correct} of {n}, as of a guess among {classes} classes: {LOOK}"
    if own and classes >= MANY_CLASSES and binom.cdf(correct, n, LEAST_RIGHT) < RARE:
        return f"clean accuracy {correct} of {n}, hardly more than a guess: {LOOK}"
    return ""


def seconds_per_image(module: nn.Module, x: Tensor) -> float:
    """Time of a forward pass of x (B, 3, H, W) through a module that is warm, per image."""
    device = device_of(module)
    forward, x = Forward(module, len(x)), x.to(device)
    begin = time.perf_counter()
    forward.logits(x).cpu()  # waits for the device
    return (time.perf_counter() - begin) / len(x)


def check_kinds(model: object, images: object, threat: object) -> None:
    """Raise UserError where one of them is a name, or anything else than what it has to be."""
    wanted = (
        ("model", model, Model, "load_model(NAME), or as_model(...) for a network of your own"),
        ("images", images, ImageSet, "load_image_set(NAME, FOLDER)"),
        ("threat", threat, Threat, 'Clean(), AutoAttack("Linf", eps=[1 / 255]), ...'),
    )
    for name, value, kind, maker in wanted:
        if not isinstance(value, kind):
            raise UserError(
                f"{name} {str(value)[:60]!r}: not a {kind.__name__}; make it by {maker}"
            )
