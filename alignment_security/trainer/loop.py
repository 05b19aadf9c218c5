"""A net in training: one step of an objective, and the loop that logs, checkpoints and can be taken up at any step.

Every random number follows from (seed, step, process) or (seed, epoch, image id), the learning rate from the step: what a
checkpoint holds besides the weights is the optimiser, their average, the step, and the sums of the log's next row.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from alignment_security.common.files import utc_now, write_atomic
from alignment_security.images.image_sets import DataError
from alignment_security.models.forward import device_of
from alignment_security.trainer.images import TrainingBatch, batch_loader, seed_of, shares
from alignment_security.trainer.objectives import (
    ObjectiveError,
    forward_logits,
    harmonizer_loss,
    pgd,
)
from alignment_security.trainer.run import LOG_COLUMNS, TrainingError, TrainingRun

PROGRESS_SECONDS = 60
SUMS = ("loss", "cross_entropy", "harmonizer", "accuracy")  # of a step, over images


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value):
    """What the first process says, in every process; all of them wait for it."""
    said = [value]
    if world_size() > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]


@dataclass
class Learner:
    """A net in training. `parallel` is what the loss runs through: the net, or DDP around it."""

    net: nn.Module
    parallel: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Any
    ema: ModelEmaV3 | None
    step: int = 0
    window: list[list[float]] = field(
        default_factory=list
    )  # means of the steps since the last row of the log

    @property
    def trained(self) -> nn.Module:
        """What is evaluated and handed on: the average of weights where there is one."""
        return self.net if self.ema is None else self.ema.module


def make_learner(args, net: nn.Module, steps_per_epoch: int, device: torch.device) -> Learner:
    """timm's optimiser and schedule, DDP where there are several processes, and the average of weights if asked for."""
    net = net.to(device, memory_format=torch.channels_last).train()
    optimiser = create_optimizer_v2(
        net, args.optimizer, lr=args.lr, weight_decay=args.lambda_2, momentum=args.momentum
    )
    schedule, _ = create_scheduler_v2(
        optimiser,
        args.schedule,
        num_epochs=args.epochs,
        decay_epochs=args.decay_epochs,
        decay_rate=args.decay_rate,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    ema = ModelEmaV3(net, args.ema, use_warmup=True) if args.ema else None
    parallel = (
        DistributedDataParallel(net, [device.index] if device.type == "cuda" else None)
        if world_size() > 1
        else net
    )
    return Learner(net, parallel, optimiser, schedule, ema)


def learner_state(learner: Learner) -> dict:
    """Everything that the next step depends on; the order of images and every random number follow from the step."""
    weights = getattr(learner.net, "net", learner.net)
    average = (
        None
        if learner.ema is None
        else getattr(learner.ema.module, "net", learner.ema.module).state_dict()
    )
    return {
        "state_dict": weights.state_dict(),
        "ema": average,
        "optimizer": learner.optimiser.state_dict(),
        "step": learner.step,
        "window": learner.window,
    }


def resume(learner: Learner, state: dict) -> None:
    getattr(learner.net, "net", learner.net).load_state_dict(state["state_dict"])
    if learner.ema is not None:
        getattr(learner.ema.module, "net", learner.ema.module).load_state_dict(state["ema"])
    learner.optimiser.load_state_dict(state["optimizer"])
    learner.step, learner.window = state["step"], state["window"]


# ---- a step ----------------------------------------------------------------------------------------------------


def losses(args, learner: Learner, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and harmonizer's loss per image (B,), and whether each is right. `both` harmonizes at the adversarial point."""
    x = batch.x
    if args.objective in ("adversarial", "both"):
        learner.net.eval()
        x = pgd(
            learner.net,
            x,
            batch.labels,
            args.norm,
            args.eps,
            args.attack_steps,
            args.attack_step,
            args.random_start,
            args.precision,
        )
        learner.net.train()
    if args.objective in ("harmonizer", "both"):
        logits, far = harmonizer_loss(
            learner.parallel, x, batch.labels, batch.maps, batch.has_map, args.form, args.precision
        )
    else:
        logits = forward_logits(learner.parallel, x, args.precision)
        far = torch.zeros(len(x), device=x.device)
    entropy = functional.cross_entropy(
        logits, batch.labels, reduction="none", label_smoothing=args.smoothing
    )
    return entropy, far, (logits.argmax(1) == batch.labels).float()


def backward(args, learner: Learner, batch: TrainingBatch) -> Tensor:
    """Gradients of the mean loss of this process's images, --pass_size at a time; returns the sums of SUMS over them."""
    size, sums = args.pass_size or len(batch.x), torch.zeros(len(SUMS), device=batch.x.device)
    for begin in range(0, len(batch.x), size):
        last = begin + size >= len(batch.x)
        with (
            nullcontext() if last or learner.parallel is learner.net else learner.parallel.no_sync()
        ):
            entropy, far, right = losses(args, learner, batch.part(slice(begin, begin + size)))
            loss = entropy + (args.lambda_1 or 0) * far
            differentiate(loss.sum() / len(batch.x))
        sums += torch.stack([loss.sum(), entropy.sum(), far.sum(), right.sum()]).detach()
    return sums


def differentiate(loss: Tensor) -> None:
    """loss.backward(), with a line for nets that have no second derivative."""
    try:
        loss.backward()
    except RuntimeError as error:
        if "derivative for" in str(error) or "differentiate twice" in str(error):
            raise ObjectiveError(
                f"this net cannot be harmonized, it has an operation without a second derivative "
                f"({str(error).splitlines()[0][:120]})"
            ) from None
        raise


def train_step(
    args, learner: Learner, batch: TrainingBatch, stop: bool = False
) -> tuple[list[float], bool]:
    """One update of the weights. ([mean of SUMS over all processes, norm of the gradient], whether any process was told to stop).

    Raises TrainingError, before the weights are touched, when the loss or the gradient is not finite.
    """
    learner.schedule.step_update(learner.step)
    learner.optimiser.zero_grad()
    sums = torch.cat(
        [backward(args, learner, batch), torch.tensor([len(batch.x), stop], device=batch.x.device)]
    )
    if world_size() > 1:
        dist.all_reduce(sums)
    size = nn.utils.clip_grad_norm_(learner.net.parameters(), args.clip_grad or math.inf)
    *total, images, stopping, length = torch.cat([sums, size.detach()[None]]).tolist()
    means = [value / images for value in total] + [length]
    if not all(map(math.isfinite, means)):
        raise TrainingError(
            f"step {learner.step}: loss {means[0]:.4g}, norm of the gradient {length:.4g}: not finite"
        )
    learner.optimiser.step()
    learner.step += 1
    if learner.ema is not None:
        learner.ema.update(learner.net, learner.step)
    return means, stopping > 0


# ---- the loop --------------------------------------------------------------------------------------------------


def fit(
    args,
    learner: Learner,
    data: Dataset,
    ids: tuple[str, ...],
    run: TrainingRun | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    told: Callable[[], bool] = lambda: False,
) -> bool:
    """Train from learner.step to the end. Returns False when `told` said to stop; what is done is in the checkpoint then.

    data   (epoch, position) -> a row that training_images.collate takes; ids are the names of the positions
    Raises DataError for an image that cannot be decoded, TrainingError for a loss or gradient that is not finite.
    """
    device, per_epoch = device_of(learner.net), len(ids) // args.batch_size
    order = shares(
        len(ids),
        args.batch_size,
        args.seed,
        learner.step,
        args.epochs * per_epoch,
        rank(),
        world_size(),
    )
    saved, progress = time.monotonic(), Progress(args, learner.step, args.epochs * per_epoch)
    for batch in batch_loader(data, order, args.workers, pin=device.type == "cuda"):
        if isinstance(batch, DataError):
            raise batch
        torch.manual_seed(seed_of(args.seed, learner.step, rank()))  # dropout, random starts
        try:
            means, stopping = train_step(args, learner, batch.to(device), told())
        except TrainingError as error:
            raise TrainingError(f"{error}; {keep_ids(args, run, learner.step, ids)}") from None
        learner.window.append(means)
        epoch_over = learner.step % per_epoch == 0
        if epoch_over or len(learner.window) >= args.log_every:
            row = log_row(
                learner, per_epoch, validate(learner.trained) if validate and epoch_over else None
            )
            progress.show(row)
            if run:
                run.log(row)
        if run and (epoch_over or stopping or time.monotonic() - saved > args.save_every):
            run.checkpoint(learner_state(learner))
            saved = time.monotonic()
        if stopping and learner.step < args.epochs * per_epoch:
            return False
    return True


def log_row(learner: Learner, per_epoch: int, val_accuracy: float | None) -> dict:
    """Means over the steps since the last row; empties the window."""
    means = [sum(column) / len(learner.window) for column in zip(*learner.window)]
    learner.window.clear()
    return dict(
        zip(
            LOG_COLUMNS,
            [
                learner.step,
                learner.step / per_epoch,
                learner.optimiser.param_groups[0]["lr"],
                *means,
                val_accuracy,
            ],
        )
    )


def keep_ids(args, run: TrainingRun | None, step: int, ids: tuple[str, ...]) -> str:
    """Save which images a bad step saw, in all processes; returns the end of the message."""
    (keys,) = shares(len(ids), args.batch_size, args.seed, step, step + 1)
    names = [ids[i] for _, i in keys]
    if run is None:
        return f"its images begin with {names[0]}"
    write_atomic(run.bad, json.dumps({"step": step, "image_ids": names}, indent=1) + "\n")
    kept = (
        f"the last good checkpoint is {run.last}"
        if run.last.exists()
        else "there is no checkpoint yet"
    )
    return f"its images are listed in {run.bad}, {kept}; a smaller --lr or --clip_grad may mend it"


class Progress:
    """A bar on a terminal, else a line a minute; only of the first process."""

    def __init__(self, args, begun: int, total: int):
        self.bar = tqdm(
            total=total,
            initial=begun,
            desc=args.name,
            unit="step",
            disable=rank() > 0 or not sys.stderr.isatty(),
        )
        self.name, self.shown = args.name, time.monotonic()

    def show(self, row: dict) -> None:
        text = f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(row["step"] - self.bar.n)
        if self.bar.disable and rank() == 0 and time.monotonic() - self.shown > PROGRESS_SECONDS:
            self.shown = time.monotonic()
            print(
                f"{utc_now()} {self.name}: step {row['step']}, epoch {row['epoch']:.2f}, {text}",
                file=sys.stderr,
                flush=True,
            )
