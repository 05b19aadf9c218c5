"""The digits net trained by each objective, and its accuracies; for tests and benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from nets import DigitsWithMaps, digits, ink_maps, untrained_digits_net
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.records.metrics import rank_agreement
from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import fit
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.recipe import Recipe

BATCH_SIZE = 60
BASE = (
    f"--batch_size {BATCH_SIZE} --optimizer adam --lr 2e-3 --lambda_2 0 --schedule constant "
    "--epochs 10"
)
ADVERSARIAL = "--objective adversarial --norm Linf --eps 0.12"
TRAINED_ON = 1200  # of the 1797 digits
HELD_OUT = digits()[TRAINED_ON:1400]


def make_recipe(options: str) -> Recipe:
    """The recipe of a command line."""
    return Recipe.from_args(parse_args(f"--model_name digits {options}".split()))


def trained(options: str = "", maps: bool = False, **net) -> nn.Module:
    """The digits net after training on the first 1200 digits. Takes seconds."""
    rows = digits()[:TRAINED_ON]
    recipe = make_recipe(f"{BASE} {options}")
    steps_per_epoch = len(rows) // BATCH_SIZE
    learner = make_learner(
        recipe, untrained_digits_net(**net), steps_per_epoch, torch.device("cpu")
    )
    data = DigitsWithMaps(rows, ink_maps(rows) if maps else None)
    assert fit(recipe, learner, data, data.ids)
    return learner.net.eval().requires_grad_(False)


def accuracies(net: nn.Module, budget: Budget, rows) -> tuple[float, float]:
    """Clean and robust accuracy in percent, in Linf at 0.12."""
    batches = run_autoattack(
        AttackedModel(net, 10, batch_size=64), iter(rows), "Linf", [0.12], budget
    )
    found = [row for batch in batches for row in batch]
    clean, robust = (
        100 * sum(row[column] for row in found) / len(rows)
        for column in ("clean_correct", "robust")
    )
    return clean, robust


def agreement(net: nn.Module) -> float:
    """Mean rank agreement of the true logit's input gradient with the maps of held-out digits."""
    x = torch.stack([image for _, image, _ in HELD_OUT]).requires_grad_()
    labels = torch.tensor([[label] for _, _, label in HELD_OUT])
    (gradient,) = torch.autograd.grad(net(x).gather(1, labels).sum(), x)
    return float(np.nanmean(rank_agreement(ink_maps(HELD_OUT).numpy(), gradient.numpy())))


def accuracy(net: nn.Module) -> float:
    """Share of held-out digits that the net classifies correctly."""
    x = torch.stack([image for _, image, _ in HELD_OUT])
    labels = torch.tensor([label for _, _, label in HELD_OUT])
    return float((net(x).argmax(1) == labels).float().mean())
