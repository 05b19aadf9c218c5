"""Attacks of other libraries: pyautoattack (`--engine reference`) and foolbox.

They run unchanged and give the same record rows as ours. This is the only file that imports an
attack library.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from alignment_security.attacks.attack import (
    BAD_GRADIENT,
    BAD_LOGITS,
    AttackedImage,
    AttackError,
    EpsProgress,
    Finding,
)
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.clean import ImageStream, images_to_attack
from alignment_security.attacks.confirmation import confirm_in_float32
from alignment_security.attacks.eps_search import EpsSearch
from alignment_security.attacks.minimum_norm import minimum_norm_row
from alignment_security.common.files import UserError
from alignment_security.common.pixels import in_unit_range
from alignment_security.models.fast import Wrapper
from alignment_security.models.forward import NO_GRADIENT

# Protocol -> class of foolbox 3.3.4, and its settings. feng2025: the published code of Feng et al.
# (2025). The others find the distances of linear models with these settings (tested).
# Carlini-Wagner's default step size of 0.01 does not (1.97 times the distance at 0.02), and with
# abort_early an image's result would depend on its batch.
FOOLBOX: dict[str, tuple[str, dict[str, Any]]] = {
    "feng2025": (
        "L2FMNAttack",
        {"steps": 1000, "max_stepsize": 1.0, "min_stepsize": 1e-5, "gamma": 10.0},
    ),
    "ddn": ("DDNAttack", {"steps": 1000, "init_epsilon": 1.0, "gamma": 0.05}),
    "cw": (
        "L2CarliniWagnerAttack",
        {
            "steps": 1000,
            "binary_search_steps": 9,
            "stepsize": 2e-3,
            "initial_const": 0.1,
            "confidence": 0.0,
            "abort_early": False,
        },
    ),
    "deepfool": (
        "L2DeepFoolAttack",
        {"steps": 50, "candidates": 10, "overshoot": 0.02, "loss": "logits"},
    ),
}

BATCH_SECONDS = 60  # that a batch of an attack of foolbox may take


class CountedModule(nn.Module):
    """A module in eval mode that counts the rows that go forward and backward through it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.forwards, self.backwards = module, 0, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.module(x)
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError(NO_GRADIENT)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class CheckedModule(Wrapper):
    """Raises AttackError for NaN or infinite logits or gradients under another library's attack."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.module(x)
        if not torch.isfinite(logits).all():
            raise AttackError(f"{BAD_LOGITS} at a point of the attack")
        if x.requires_grad:
            x.register_hook(self._check_gradient)
        return logits

    def _check_gradient(self, grad: Tensor) -> None:
        if not torch.isfinite(grad).all():
            raise AttackError(BAD_GRADIENT)


# ---- AutoAttack by pyautoattack ----------------------------------------------------------------


def run_pyautoattack(
    model: AttackedModel,
    source: ImageStream,
    norm: str,
    eps: Sequence[float],
    budget: Budget,
    begun: dict[str, list[dict]] | None = None,
) -> Iterator[list[dict]]:
    """AutoAttack's verdicts by pyautoattack's attack classes, eps ascending.

    Parameters, rows and errors as of `run_autoattack`. Random numbers are drawn per batch (seeded
    with `seed`), and a batch's passes are shared evenly among its images, so both depend on the
    batch. Every adversarial point is confirmed as with our engine.
    """
    budget.check(model.n_outputs)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    counted = CountedModule(model.module)
    forward = replace(model, module=counted).forward()
    confirm = confirm_in_float32(model.forward(), norm)  # counts its own passes
    search = EpsSearch(
        budget.attacks,
        eps,
        norm,
        confirm,
        lambda batch: images_to_attack(model, forward, batch, EpsProgress),
        begun,
    )
    source = iter(source)
    while batch := list(islice(source, model.batch_size)):
        rows, images = search.on_images(batch)
        yield rows
        while images:
            eps_index = min(image.progress.eps_index for image in images)
            attacked = [image for image in images if image.progress.eps_index == eps_index]
            images = [image for image in images if image.progress.eps_index != eps_index]
            findings = _reference_findings(attacked, search, counted, budget)
            for image, finding in zip(attacked, findings):
                if finding is not None:
                    rows, next_stage = search.on_fooled(image, finding)
                else:
                    rows, next_stage = search.on_survived(image)
                yield rows
                if next_stage is not None:
                    images.append(image)


def _reference_findings(
    images: list[AttackedImage[EpsProgress]],
    search: EpsSearch,
    counted: CountedModule,
    budget: Budget,
) -> list[Finding | None]:
    """Run the reference's attacks on images of one eps, each on those that are not yet broken."""
    findings: list[Finding | None] = [None] * len(images)
    forwards, backwards = counted.forwards, counted.backwards
    for name in budget.attacks:
        robust = [i for i, finding in enumerate(findings) if finding is None]
        if not robust:
            break
        attacked = [images[i] for i in robust]
        x = torch.stack([image.x for image in attacked])
        y = torch.tensor([image.label for image in attacked], device=x.device)
        checked, eps, seed = CheckedModule(counted), images[0].eps, images[0].seed
        attack = reference_attack(name, checked, search.norm, eps, budget, seed)
        points = attack.perturb(x, y).detach()
        for i, finding in zip(robust, search.confirm(attacked, points, name)):
            findings[i] = finding
    for image in images:
        image.forwards += (counted.forwards - forwards) / len(images)
        image.backwards += (counted.backwards - backwards) / len(images)
    return findings


def reference_attack(
    name: str, module: nn.Module, norm: str, eps: float, budget: Budget, seed: int
) -> Any:
    """One of pyautoattack's attack objects, with the settings of its standard version."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    shared = {"norm": norm, "eps": eps, "seed": seed, "n_restarts": 1}
    targeted = {"n_iter": budget.steps, "n_target_classes": budget.targets}
    if name == "apgd-ce":
        return APGDAttack(module, n_iter=budget.steps, loss="ce", **shared)
    if name == "apgd-t":
        return APGDAttack_targeted(module, **targeted, **shared)
    if name == "fab-t":
        return FABAttack_PT(module, targeted=True, **targeted, **shared)
    return SquareAttack(module, n_queries=budget.queries, p_init=0.8, resc_schedule=False, **shared)


# ---- minimal norms by foolbox ------------------------------------------------------------------


def run_foolbox(
    model: AttackedModel, source: ImageStream, protocol: str, steps: int
) -> Iterator[list[dict]]:
    """L2 norms by one of foolbox's attacks (FOOLBOX). Yields lists of `minimum_norm` record rows.

    The row of a misclassified image has no norm; in feng2025 the stretched pixels count. Every norm
    is of a point that is confirmed to be misclassified. A row's passes are an even share of its
    batch's.

    feng2025 reproduces the published norms, which are not minimal: the attack never projects onto
    its ball, so its first step of length 1 decides the norm of a nearer image.
    """
    import foolbox

    counted = CountedModule(model.module)
    forward, source = replace(model, module=counted).forward(), iter(source)
    confirm = confirm_in_float32(forward, "L2")
    class_name, settings = FOOLBOX[protocol]
    attack = getattr(foolbox.attacks, class_name)(**settings | {"steps": steps})
    for batch in paced_batches(source, model.batch_size):
        if protocol == "feng2025":
            batch = [(name, stretch(in_unit_range(x)[None])[0], label) for name, x, label in batch]
        images = images_to_attack(model, forward, batch, lambda: None, math.inf)
        correct = [image for image in images if image.clean["clean_correct"]]
        findings: dict[str, Finding | None] = {}
        if correct:
            forwards, backwards = counted.forwards, counted.backwards
            points = _foolbox_points(attack, CheckedModule(counted), correct)
            forwards, backwards = counted.forwards - forwards, counted.backwards - backwards
            for image, finding in zip(correct, confirm(correct, points, protocol)):
                findings[image.image_id] = finding
                image.forwards += forwards / len(correct)
                image.backwards += backwards / len(correct)
        yield [minimum_norm_row(image, findings.get(image.image_id)) for image in images]


def paced_batches(source: ImageStream, largest: int) -> Iterator[list]:
    """Batches of at most `largest` images, as large as BATCH_SECONDS allow.

    An attack of another library cannot be interrupted, so a stopped run loses its last batch. The
    first is one image. Each next one is twice as large while batches take less than half of that
    time, and half as large when one takes more.
    """
    size = 1
    while batch := list(islice(source, size)):
        begin = time.monotonic()
        yield batch
        seconds = time.monotonic() - begin
        if seconds < BATCH_SECONDS / 2:
            size = min(2 * size, largest)
        elif seconds > BATCH_SECONDS:
            size = max(1, size // 2)


def _foolbox_points(attack: Any, module: nn.Module, images: list[AttackedImage[None]]) -> Tensor:
    """The points (B, C, H, W) that a foolbox attack returns, adversarial or not."""
    import foolbox

    x = torch.stack([image.x for image in images])
    labels = torch.tensor([image.label for image in images], device=x.device)
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device=x.device)
    return attack(model, x, labels, epsilons=None)[1].detach()


def stretch(x: Tensor) -> Tensor:
    """Stretch each image's values to [0, 1], as the published experiment did.

    x (B, 3, H, W) in [0, 1]. A constant image is returned unchanged.
    """
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), x)
