"""Table of benchmarks/attacks.py about `--budget rand`: a net with Gaussian noise, and its peer."""

from __future__ import annotations

import logging
import time

import torch
from nets import NoisyPixels, share_wrong_at
from torch import Tensor, nn

from alignment_security.attacks.libraries import CountedModule
from alignment_security.attacks.rand import run_rand
from benchmarks.measure import (
    DIGITS_CLASSES,
    Image,
    Size,
    cost_of,
    held_out_digits,
    measured,
    robust_digits_net,
)

STD, EPS = 0.15, 0.15


def random_net(device: str, size: Size) -> dict:
    """Robust accuracy, passes and false successes of ours and of pyautoattack's `rand` version.

    A false success is an image that counts as fooled, and whose adversarial point most of 1000 new
    draws get right.
    """
    net = NoisyPixels(robust_digits_net(device, size), STD)
    images = held_out_digits(size.random_digits)
    torch.manual_seed(0)
    rows, cost = measured(
        run_rand,
        net,
        images,
        norm="Linf",
        eps=[EPS],
        n_outputs=DIGITS_CLASSES,
        budget=size.random_budget,
        seed=0,
    )
    rows = rows.set_index("image_id")
    ours = {
        row[0]: row[1] + rows.perturbation[row[0]]
        for row in images
        if rows.robust[row[0]] == 0 and rows.broken_by[row[0]] != "clean"
    }
    theirs, their_cost = by_pyautoattack(net, images, size.random_budget.steps)
    return {
        "images": len(images),
        "ours": cost | {"robust": float(rows.robust.mean())} | false_successes(net, images, ours),
        "pyautoattack": their_cost | false_successes(net, images, theirs),
    }


def by_pyautoattack(
    net: nn.Module, images: list[Image], steps: int
) -> tuple[dict[str, Tensor], dict]:
    """Points of the images that its `rand` version fools by an attack, by id; and its cost."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    counted, begin = CountedModule(net), time.perf_counter()
    x = torch.stack([image for _, image, _ in images])
    y = torch.tensor([label for _, _, label in images])
    attack = AutoAttack(counted, norm="Linf", eps=EPS, version="rand", seed=0)
    attack.apgd.n_iter = steps
    points, predictions = attack.run_standard_evaluation(x, y, batch_size=len(images))
    cost = cost_of(counted, len(images), begin)
    robust = (predictions == y).tolist()
    moved = (points != x).flatten(1).any(1).tolist()
    fooled = {
        name: point
        for (name, _, _), point, stands, was_moved in zip(images, points, robust, moved)
        if was_moved and not stands
    }
    return fooled, cost | {"robust": sum(robust) / len(robust)}


def false_successes(net: nn.Module, images: list[Image], points: dict[str, Tensor]) -> dict:
    labels = {name: label for name, _, label in images}
    shares = [share_wrong_at(net, point, labels[name]) for name, point in points.items()]
    return {"fooled": len(shares), "false_successes": sum(share <= 0.5 for share in shares)}
