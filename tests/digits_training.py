"""The digits net trained by each objective, and what can be said of it; shared by tests and benchmarks/training.py."""

from __future__ import annotations

import numpy as np
import torch
from nets import DigitsWithMaps, digits, ink_maps, untrained_digits_net

from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.records.metrics import rank_agreement
from alignment_security.trainer.loop import fit, make_learner
from alignment_security.trainer.options import parse_args

BASE = "--model_name digits --batch_size 60 --workers 0 --optimizer adam --lr 2e-3 --lambda_2 0 --schedule constant --epochs 10"
ADVERSARIAL = "--objective adversarial --norm Linf --eps 0.12"
HELD_OUT = digits()[1200:1400]


def trained(options: str = "", maps: bool = False, **net):
    """The digits net trained by an objective on the first 1200 digits. Seconds."""
    rows = digits()[:1200]
    args = parse_args(f"{BASE} {options}".split())
    student = make_learner(args, untrained_digits_net(**net), len(rows) // 60, torch.device("cpu"))
    data = DigitsWithMaps(rows, ink_maps(rows) if maps else None)
    assert fit(args, student, data, data.ids)
    return student.net.eval().requires_grad_(False)


def verdicts(net, budget: Budget, rows) -> tuple[float, float]:
    """Clean and robust accuracy in percent, in Linf at 0.12."""
    found = [
        row
        for some in run_autoattack(net, iter(rows), "Linf", [0.12], 10, budget, batch_size=64)
        for row in some
    ]
    return tuple(
        100 * sum(row[column] for row in found) / len(rows)
        for column in ("clean_correct", "robust")
    )


def agreement(net) -> float:
    """Mean rank agreement of the true logit's gradient with the maps of digits that were not trained on."""
    x = torch.stack([row[1] for row in HELD_OUT]).requires_grad_()
    own = net(x).gather(1, torch.tensor([[row[2]] for row in HELD_OUT]))
    (gradient,) = torch.autograd.grad(own.sum(), x)
    return float(np.nanmean(rank_agreement(ink_maps(HELD_OUT).numpy(), gradient.numpy())))


def accuracy(net) -> float:
    return float(
        (
            net(torch.stack([r[1] for r in HELD_OUT])).argmax(1)
            == torch.tensor([r[2] for r in HELD_OUT])
        )
        .float()
        .mean()
    )
