"""Tables of benchmarks/attacks.py about minimal norms: FMN, boundary crossing, and their peers."""

from __future__ import annotations

import math
import time
from fnmatch import fnmatch
from functools import partial

import numpy as np
from torch import nn

from alignment_security.attacks.libraries import CountedModule
from alignment_security.models.fast import fast_copy
from benchmarks.measure import (
    CIFAR_CLASSES,
    DIGITS_CLASSES,
    Image,
    Size,
    certified_cifar,
    correct_images,
    cost_of,
    held_out_digits,
    photographs_of,
    robust_digits_net,
)
from benchmarks.norm_peers import norm_attacks

# Names of attacks that are left out where a pass is expensive; {long} is the steps of long ones.
TOO_LONG_FOR_CIFAR = ("CW*", "APGD-T*")
# on photographs the long attacks run in the setting alone that suits these norms
TOO_LONG = ("CW*", "APGD-T*", "FMN {long}", "* {long}, first * 1")


def norms_digits(device: str, size: Size) -> dict:
    """Minimal L2 norms of an adversarially trained digits net."""
    return digits_table(device, size, "L2")


def norms_digits_linf(device: str, size: Size) -> dict:
    return digits_table(device, size, "Linf")


def norms_cifar(device: str, size: Size) -> dict:
    """The same of a certified CIFAR-10 net, on test images that no schedule was chosen on."""
    return cifar_table(device, size, "L2")


def norms_cifar_linf(device: str, size: Size) -> dict:
    return cifar_table(device, size, "Linf")


def digits_table(device: str, size: Size, norm: str) -> dict:
    """Of the held-out digits that the net classifies correctly."""
    net = robust_digits_net(device, size)
    images = correct_images(net, held_out_digits(size.norm_digits), device)
    return norms_table(net, images, DIGITS_CLASSES, size, norm)


def cifar_table(device: str, size: Size, norm: str) -> dict:
    assert size.robust_net is not None
    net, images = certified_cifar(size.robust_net, device)
    images = correct_images(net, images, device)[-size.norm_cifar :]
    return norms_table(net, images, CIFAR_CLASSES, size, norm, TOO_LONG_FOR_CIFAR)


def photographs_table(name: str, head: str, norm: str, device: str, size: Size) -> dict:
    """Of small sample photographs that a timm model gets right. Its batch norms are folded."""
    net, images, n_outputs = photographs_of(
        name, head, device, size.norm_photographs, size.norm_pixels
    )
    net = fast_copy(net, images[0][1][None].to(device))
    return norms_table(net, images, n_outputs, size, norm, TOO_LONG)


# norms_lite0_1000, norms_lite0_1000_linf and so on; nothing was chosen on Lite2
PHOTOGRAPH_TABLES = {
    f"norms_{net}_{classes}{suffix}": partial(
        photographs_table, f"tf_efficientnet_{net}", head, norm
    )
    for net in ("lite0", "lite2")
    for classes, head in (("1000", "none"), ("animate", "animate"))
    for suffix, norm in (("", "L2"), ("_linf", "Linf"))
}


def norms_table(
    net: nn.Module,
    images: list[Image],
    n_outputs: int,
    size: Size,
    norm: str,
    without: tuple[str, ...] = (),
) -> dict:
    """Mean and median norm, success, seconds, passes and optimality of each attack.

    The mean is of the images with a norm; in the median and the optimality an image without one
    counts as infinite.

    without   patterns of the names of attacks that are left out
    """
    attacks = norm_attacks(norm, n_outputs, size.short_norms, size.long_norms)
    norms, table = {}, {}
    for name, attack in attacks.items():
        if not any(fnmatch(name, pattern.format(long=size.long_norms)) for pattern in without):
            counted, begin = CountedModule(net), time.perf_counter()
            norms[name] = attack(counted, images)
            table[name] = norms_row(norms[name], cost_of(counted, len(images), begin))
    best = np.min(list(norms.values()), axis=0)
    tuned_mean = table[f"FMN {size.short_norms[-1]}, first step 0.1"]["mean"]
    for name, row in table.items():
        row["optimality"] = optimality(norms[name], best)
        if row["mean"] and tuned_mean:
            row["over_tuned_fmn"] = row["mean"] / tuned_mean
    return table


def norms_row(norms: np.ndarray, cost: dict) -> dict:
    found, median = norms[np.isfinite(norms)], float(np.median(norms))
    return {
        "images": len(norms),
        "mean": float(found.mean()) if len(found) else None,
        "median": median if math.isfinite(median) else None,
        "success": len(found) / len(norms),
        "seconds": cost["seconds"],
        "passes_per_image": cost["passes_per_image"],
    }


def optimality(norms: np.ndarray, best: np.ndarray) -> float:
    """AttackBench's measure of an attack on correctly classified images (Cina et al. 2024).

    1 - (A - A*) / (largest - A*): 1 if its norms (n,) are the best known ones. A and A* are the
    areas under the curves of accuracy against norm, of the attack and of the best norms, up to the
    largest of these. They are areas under steps, which are the means of the norms;
    attackbench/AttackBench joins the points by lines, which favours attacks where images are few.
    """
    largest, best_area = best.max(), best.mean()
    area = norms.clip(max=largest).mean()
    return float(1 - (area - best_area) / (largest - best_area))
