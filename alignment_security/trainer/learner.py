"""A network in training: with its optimiser, schedule and average of weights, and what is saved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alignment_security.trainer.distributed import world_size
from alignment_security.trainer.recipe import Recipe

WARMUP_LR_DIVISOR = 100  # warm-up begins at the learning rate over this


@dataclass
class Learner:
    """A network in training.

    net        the network: pixels in [0, 1] -> logits
    parallel   what the loss is computed with: `net`, or DistributedDataParallel around it
    step       updates done
    window     per step since the last row of the log: means of STEP_SUMS, norm of the gradient
    """

    net: nn.Module
    parallel: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    step: int = 0
    window: list[list[float]] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """The network to validate and to save: the average of weights, if there is one."""
        return self.net if self.ema is None else self.ema.module


def make_learner(
    recipe: Recipe, net: nn.Module, steps_per_epoch: int, device: torch.device
) -> Learner:
    """Set up optimiser, schedule, DDP for several processes, and the average of weights."""
    optimisation = recipe.optimisation
    net = net.to(device, memory_format=torch.channels_last).train()
    optimiser = create_optimizer_v2(
        net,
        optimisation.optimizer,
        lr=optimisation.lr,
        weight_decay=optimisation.weight_decay,
        momentum=optimisation.momentum,
    )
    schedule, _ = create_scheduler_v2(
        optimiser,
        optimisation.schedule,
        num_epochs=optimisation.epochs,
        decay_epochs=optimisation.decay_epochs,
        decay_rate=optimisation.decay_rate,
        warmup_epochs=optimisation.warmup_epochs,
        warmup_lr=optimisation.lr / WARMUP_LR_DIVISOR,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    ema = ModelEmaV3(net, optimisation.ema, use_warmup=True) if optimisation.ema else None
    parallel = net
    if world_size() > 1:
        parallel = DistributedDataParallel(net, [device.index] if device.type == "cuda" else None)
    return Learner(net, parallel, optimiser, schedule, ema)


def bare_net(module: nn.Module) -> nn.Module:
    """The timm network inside a PixelModel; another module itself."""
    return getattr(module, "net", module)


def learner_state(learner: Learner) -> dict:
    """What a checkpoint holds: everything that the next step depends on."""
    ema = learner.ema
    return {
        "state_dict": bare_net(learner.net).state_dict(),
        "ema": None if ema is None else bare_net(ema.module).state_dict(),
        "optimizer": learner.optimiser.state_dict(),
        "step": learner.step,
        "window": learner.window,
    }


def resume(learner: Learner, state: dict) -> None:
    """Load what learner_state returned."""
    bare_net(learner.net).load_state_dict(state["state_dict"])
    if learner.ema is not None:
        bare_net(learner.ema.module).load_state_dict(state["ema"])
    learner.optimiser.load_state_dict(state["optimizer"])
    learner.step, learner.window = state["step"], state["window"]
