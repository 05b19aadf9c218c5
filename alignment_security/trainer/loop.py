"""The training loop: one step of an objective, and `fit`, which logs, checkpoints and resumes.

Every random number follows from (seed, step, process) or (seed, epoch, image id), and the learning
rate from the step. A checkpoint therefore holds the weights, the optimiser, the average of weights,
the step, and the steps that the next row of the log averages; no state of a generator.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.progress import ProgressMeter
from alignment_security.images.image_sets import DataError
from alignment_security.models.fast import BFloat16
from alignment_security.models.forward import device_of
from alignment_security.trainer.distributed import rank, sum_over_processes, world_size
from alignment_security.trainer.images import (
    TrainingBatch,
    batch_indices,
    batch_loader,
    derive_seed,
)
from alignment_security.trainer.learner import Learner, learner_state
from alignment_security.trainer.objectives import differentiate, harmonizer_loss
from alignment_security.trainer.pgd import pgd
from alignment_security.trainer.recipe import Objective, Recipe
from alignment_security.trainer.run import LOG_COLUMNS, TrainingError, TrainingRun

STEP_SUMS = ("loss", "cross_entropy", "harmonizer", "accuracy")  # of a step, over its images
SAVE_EVERY = 600.0  # seconds between checkpoints within an epoch


# ---- one step ------------------------------------------------------------------------------------


def with_precision(module: nn.Module, precision: str) -> nn.Module:
    """The module, under bfloat16 autocast for "bf16"; its logits are float32 either way."""
    return BFloat16(module) if precision == "bf16" else module


def adversarial_examples(recipe: Recipe, learner: Learner, batch: TrainingBatch) -> Tensor:
    """PGD's points (B, C, H, W) for a network in eval mode, which is in train mode afterwards."""
    attack = recipe.objective.attack
    assert attack is not None
    learner.net.eval()
    points = pgd(
        with_precision(learner.net, recipe.precision),
        batch.x,
        batch.labels,
        attack.norm,
        attack.eps,
        attack.steps,
        attack.step_size,
        attack.random_start,
    )
    learner.net.train()
    return points


def losses(recipe: Recipe, learner: Learner, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, the harmonizer's loss, and whether the answer is right, per image (B,).

    With an attack all three are those of the adversarial examples.
    """
    objective = recipe.objective
    model = with_precision(learner.parallel, recipe.precision)
    x = batch.x if objective.attack is None else adversarial_examples(recipe, learner, batch)
    if objective.harmonizer is None:
        logits = model(x)
        harmonizer = torch.zeros(len(x), device=x.device)
    else:
        logits, harmonizer = harmonizer_loss(
            model, x, batch.labels, batch.maps, batch.has_map, objective.harmonizer.form
        )
    cross_entropy = functional.cross_entropy(
        logits, batch.labels, reduction="none", label_smoothing=objective.smoothing
    )
    correct = (logits.argmax(1) == batch.labels).float()
    return cross_entropy, harmonizer, correct


def harmonizer_weight(objective: Objective) -> float:
    return 0.0 if objective.harmonizer is None else objective.harmonizer.lambda_1


def backward(recipe: Recipe, learner: Learner, batch: TrainingBatch) -> Tensor:
    """Accumulate the gradient of the mean loss over this process's images, pass_size at a time.

    Returns the sums of STEP_SUMS over these images, (4,).
    """
    images = len(batch.x)
    pass_size = recipe.pass_size or images
    weight = harmonizer_weight(recipe.objective)
    sums = torch.zeros(len(STEP_SUMS), device=batch.x.device)
    for begin in range(0, images, pass_size):
        # DDP exchanges gradients in the last pass only
        last = begin + pass_size >= images
        accumulate = isinstance(learner.parallel, DistributedDataParallel) and not last
        with learner.parallel.no_sync() if accumulate else nullcontext():
            part = batch.part(slice(begin, begin + pass_size))
            cross_entropy, harmonizer, correct = losses(recipe, learner, part)
            loss = cross_entropy + weight * harmonizer
            differentiate(loss.sum() / images)
        values = [loss.sum(), cross_entropy.sum(), harmonizer.sum(), correct.sum()]
        sums += torch.stack(values).detach()
    return sums


def one_image_error(error: ValueError) -> UserError | None:
    """The error about batch norm in a part of one image; None for other errors.

    A batch norm of 1 x 1 maps has one value a channel then, which has no variance.
    """
    if "more than 1 value per channel" not in str(error):
        return None
    return UserError(
        "a part of one image cannot be normalised by this network's batch norms; choose "
        "--pass_size or --batch_size so that no part, the last one included, holds one image"
    )


def train_step(
    recipe: Recipe, learner: Learner, batch: TrainingBatch, stop: bool = False
) -> tuple[list[float], bool]:
    """Update the weights once.

    stop   whether this process was asked to stop
    Returns ([means of STEP_SUMS over the images of all processes, L2 norm of the gradient],
    whether any process was asked to stop).
    Raises TrainingError, before the weights change, for a loss or gradient that is not finite.
    """
    # Gradients of this process's images; DDP averages them over the processes.
    learner.schedule.step_update(learner.step)
    learner.optimiser.zero_grad()
    try:
        sums = backward(recipe, learner, batch)
    except ValueError as error:
        raise one_image_error(error) or error from None

    # Means over all processes.
    counts = torch.tensor([len(batch.x), stop], device=batch.x.device)
    totals = sum_over_processes(torch.cat([sums, counts]))
    largest = recipe.optimisation.clip_grad or math.inf
    norm = nn.utils.clip_grad_norm_(learner.net.parameters(), largest).detach()
    *total, images, stopping, gradient_norm = torch.cat([totals, norm[None]]).tolist()
    means = [value / images for value in total] + [gradient_norm]
    if not all(map(math.isfinite, means)):
        raise TrainingError(
            f"step {learner.step}: loss {means[0]:.4g}, norm of the gradient {gradient_norm:.4g}: "
            "not finite"
        )

    # The update, of the weights and of their average.
    learner.optimiser.step()
    learner.step += 1
    if learner.ema is not None:
        learner.ema.update(learner.net, learner.step)
    return means, stopping > 0


# ---- the loop ------------------------------------------------------------------------------------


def fit(
    recipe: Recipe,
    learner: Learner,
    data: Dataset,
    ids: tuple[str, ...],
    run: TrainingRun | None = None,
    validate: Callable[[nn.Module, int], dict] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    workers: int = 0,
    save_every: float = SAVE_EVERY,
) -> bool:
    """Train from learner.step to the end of the last epoch.

    data          (epoch, position) -> a row for images.collate; `ids` names the positions
    run           where rank 0 logs and checkpoints; None in other processes: nothing is written
    validate      (network, epochs done) -> further columns of the last row of each epoch
    should_stop   asked at every step
    workers       processes that decode images; 0: this one
    save_every    seconds between checkpoints within an epoch
    Returns False when stopped before the end; the checkpoint then holds all that was done.
    Raises DataError for an image that cannot be decoded, TrainingError for a loss or gradient that
    is not finite.
    """
    device = device_of(learner.net)
    steps_per_epoch = len(ids) // recipe.batch_size
    last_step = recipe.optimisation.epochs * steps_per_epoch
    progress = ProgressMeter(recipe.name, last_step, learner.step, "step", silent=rank() > 0)
    indices = batch_indices(
        len(ids), recipe.batch_size, recipe.seed, learner.step, last_step, rank(), world_size()
    )
    saved = time.monotonic()
    share = recipe.batch_size // world_size()
    for batch in batch_loader(data, indices, workers, device.type == "cuda", share):
        if isinstance(batch, DataError):
            raise batch

        # Dropout and random starts draw from the generator of this step and process.
        torch.manual_seed(derive_seed(recipe.seed, learner.step, rank()))
        try:
            means, stopping = train_step(recipe, learner, batch.to(device), should_stop())
        except TrainingError as error:
            kept = keep_ids(recipe, run, learner.step, ids)
            raise TrainingError(f"{error}; {kept}") from None
        learner.window.append(means)

        # Log every --log_every steps and at the end of each epoch, which is also validated.
        epoch_over = learner.step % steps_per_epoch == 0
        if epoch_over or len(learner.window) >= recipe.log_every:
            row = log_row(learner, steps_per_epoch)
            if validate and epoch_over:
                row |= validate(learner.trained, learner.step // steps_per_epoch)
            progress.update(row["step"], f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}")
            if run:
                run.log(row)

        # Checkpoint at the end of each epoch, when stopped, and every `save_every` seconds.
        if run and (epoch_over or stopping or time.monotonic() - saved > save_every):
            run.checkpoint(learner_state(learner))
            saved = time.monotonic()
        if stopping and learner.step < last_step:
            return False
    return True


def log_row(learner: Learner, steps_per_epoch: int) -> dict:
    """A row of log.csv: means over the steps since the last row. Empties the window."""
    means = [sum(column) / len(learner.window) for column in zip(*learner.window)]
    learner.window.clear()
    epoch = learner.step / steps_per_epoch
    lr = learner.optimiser.param_groups[0]["lr"]
    return dict(zip(LOG_COLUMNS, [learner.step, epoch, lr, *means]))


def keep_ids(recipe: Recipe, run: TrainingRun | None, step: int, ids: tuple[str, ...]) -> str:
    """Save the ids of a bad step's images, of all processes. Returns the end of its message."""
    (batch,) = batch_indices(len(ids), recipe.batch_size, recipe.seed, step, step + 1)
    names = [ids[position] for _, position in batch]
    if run is None:
        return f"its images begin with {names[0]}"
    write_atomic(run.bad, json.dumps({"step": step, "image_ids": names}, indent=1) + "\n")
    checkpoint = "there is no checkpoint yet"
    if run.last.exists():
        checkpoint = f"the last good checkpoint is {run.last}"
    return f"its images are listed in {run.bad}, {checkpoint}; try a smaller --lr or --clip_grad"
