"""Attacks measured against their peers: rows, passes counted at the model, seconds, agreement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nets import attack_rows, digits, digits_net
from torch import Tensor, nn

from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.libraries import CountedModule, run_pyautoattack
from alignment_security.attacks.rand import RandomBudget
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.heads import ANIMATE_CLASSES
from alignment_security.models.loading import load_model

Image = tuple[str, Tensor, int]  # id, (C, H, W) in [0, 1], label
DIGITS_TRAINED_ON = 1200
DIGITS_CLASSES = CIFAR_CLASSES = 10
COST_KEYS = ("forwards", "backwards", "seconds", "passes_per_image")


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults are those of the committed tables.

    budget         of AutoAttack where the standard one is meant
    photographs    of the sample and of CIFAR-10; None: all
    epochs         of the adversarially trained digits net
    digits         attacked in `agreement`; many_eps_digits: in `many_eps`; norm_digits: in the
                   tables of norms
    growth_images, growth_batches, growth_digits   of `growth`
    long_norms, short_norms                        steps of the tables of norms
    overhead_images, overhead_steps, queries, repeats   of `overhead`
    memory_images, memory_steps                    of `memory`
    random_digits, random_budget                   of `random_net`
    screened_digits, screened_cifar, redraws   images and redraws of the tables of `screened`
    norm_cifar         images in the tables of norms on the certified CIFAR-10 net
    norm_photographs, norm_pixels   photographs, and their side, in the tables of norms on Lite0
                   and Lite2
    robust_net         folder of `certified_cifar`; None: its tables are left out
    """

    budget: Budget = Budget()
    photographs: int | None = None
    epochs: int = 6
    digits: int = 300
    many_eps_digits: int = 100
    norm_digits: int = 60
    growth_budget: Budget = Budget(steps=20, targets=2, queries=100)
    growth_images: tuple[int, ...] = (20, 200, 1000)
    growth_batches: tuple[int, ...] = (16, 64, 256)
    growth_digits: int = 200
    long_norms: int = 1000
    short_norms: tuple[int, ...] = (50, 100)
    overhead_images: int = 8
    overhead_steps: int = 20
    overhead_queries: int = 40
    repeats: int = 5
    memory_images: int = 16
    memory_steps: int = 10
    random_digits: int = 40
    random_budget: RandomBudget = RandomBudget(steps=20, targets=3)
    screened_digits: int = 960
    screened_cifar: int = 400
    redraws: int = 200
    norm_cifar: int = 40
    norm_photographs: int = 16
    norm_pixels: int = 128
    robust_net: Path | None = None


FULL = Size()
QUICK = Size(
    budget=Budget(steps=2, targets=1, queries=2),
    photographs=2,
    epochs=2,
    digits=3,
    many_eps_digits=2,
    norm_digits=20,
    growth_budget=Budget(steps=2, targets=1, queries=2),
    growth_images=(2, 3),
    growth_batches=(1, 2),
    growth_digits=3,
    long_norms=3,
    short_norms=(2,),
    overhead_images=2,
    overhead_steps=2,
    overhead_queries=2,
    repeats=1,
    memory_images=2,
    memory_steps=2,
    random_digits=2,
    random_budget=RandomBudget(steps=2, targets=1),
    screened_digits=8,
    screened_cifar=4,
    redraws=2,
    norm_cifar=2,
    norm_photographs=2,
    norm_pixels=64,
)


# ---- networks and their images -------------------------------------------------------------------


def correct_images(net: nn.Module, images: list[Image], device: str) -> list[Image]:
    """The images that the network classifies correctly."""
    return [row for row in images if int(net(row[1][None].to(device)).argmax()) == row[2]]


def lite0(device: str, size: Size) -> tuple[nn.Module, list[Image], int]:
    """EfficientNet-Lite0, the sample photographs that it classifies correctly, and its outputs."""
    return photographs_of("tf_efficientnet_lite0", "none", device, size.photographs)


def photographs_of(
    name: str, head: str, device: str, count: int | None = None, pixels: int | None = None
) -> tuple[nn.Module, list[Image], int]:
    """A timm model, the sample photographs that it classifies correctly, and its outputs.

    pixels   side of the images; default: the model's own
    """
    model = load_model(name, head=head, device=device)
    module = model.module.to(memory_format=torch.channels_last)
    preprocessing = dict(model.preprocessing)
    if pixels:
        preprocessing["input_size"] = (3, pixels, pixels)
    images: list[Image] = []
    for image_id, x, y in stream_images(load_image_set("sample"), preprocessing):
        images.append((image_id, x, y if head == "none" else int(y >= ANIMATE_CLASSES)))
    return module, correct_images(module, images, device)[:count], model.n_outputs


class CifarPixels(nn.Module):
    """Pixels in [0, 1] as the certified network of Wong et al. takes them."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.225


def certified_cifar(folder: Path, device: str) -> tuple[nn.Module, list[Image]]:
    """A small CIFAR-10 network trained to be provably robust in Linf (Wong et al. 2018), and test
    images.

    folder   has cifar_small_36px.pth of locuslab/convex_adversarial, and cifar10_test_400.npz with
             images (n, 32, 32, 3) uint8, labels (n,) and names (n,)
    """
    net = nn.Sequential(
        CifarPixels(),
        nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 100),
            nn.ReLU(),
            nn.Linear(100, CIFAR_CLASSES),
        ),
    )
    saved = torch.load(folder / "cifar_small_36px.pth", map_location="cpu", weights_only=True)
    net[1].load_state_dict(saved["state_dict"][0])
    data = np.load(folder / "cifar10_test_400.npz")
    pixels = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    labels = data["labels"].tolist()
    images = [(str(name), x, label) for name, x, label in zip(data["names"], pixels, labels)]
    return net.to(device).eval().requires_grad_(False), images


def robust_digits_net(device: str, size: Size) -> nn.Module:
    """A digits net trained adversarially in Linf at 0.1."""
    return digits_net(eps=0.1, epochs=size.epochs).to(device)


def held_out_digits(count: int) -> list[Image]:
    """Digits that robust_digits_net was not trained on."""
    return digits()[DIGITS_TRAINED_ON : DIGITS_TRAINED_ON + count]


# ---- cost and agreement --------------------------------------------------------------------------


def measured(run, net: nn.Module, images: list[Image], **options) -> tuple[pd.DataFrame, dict]:
    """Rows of an attack, and its cost: rows forward and backward through the network, seconds."""
    counted, begin = CountedModule(net), time.perf_counter()
    rows = attack_rows(run, counted, images, **options)
    return rows, cost_of(counted, len(images), begin)


def cost_of(counted: CountedModule, images: int, begin: float) -> dict:
    """The cost of an attack on `images` images that began at time.perf_counter() == begin."""
    return {
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": time.perf_counter() - begin,
        "passes_per_image": (counted.forwards + counted.backwards) / images,
    }


def reference(
    net: nn.Module, images: list[Image], eps: list[float], n_outputs: int, budget: Budget
) -> tuple[pd.DataFrame, dict]:
    """pyautoattack's rows and cost. It takes one eps at a time, so there is a run for each."""
    tables, total = [], dict.fromkeys(COST_KEYS, 0)
    for level in eps:
        rows, cost = measured(
            run_pyautoattack,
            net,
            images,
            norm="Linf",
            eps=[level],
            n_outputs=n_outputs,
            budget=budget,
            seed=0,
            batch_size=len(images),
        )
        tables.append(rows)
        total = {key: total[key] + cost[key] for key in total}
    return pd.concat(tables), total


def compare(ours: pd.DataFrame, cost: dict, theirs: pd.DataFrame, their_cost: dict) -> dict:
    """Cost of each side, their ratios, and the share of equal verdicts over images and eps."""
    both = ours.merge(theirs, on=["image_id", "eps"], suffixes=("", "_reference"))
    robust = both.groupby("eps")[["robust", "robust_reference"]].mean()
    difference = (robust["robust"] - robust["robust_reference"]).abs()
    return {
        "images": both["image_id"].nunique(),
        "pairs": len(both),
        "ours": cost,
        "pyautoattack": their_cost,
        "passes_ratio": cost["passes_per_image"] / their_cost["passes_per_image"],
        "seconds_ratio": cost["seconds"] / their_cost["seconds"],
        "agreement": float((both["robust"] == both["robust_reference"]).mean()),
        "robust_accuracy": {f"{eps:.5f}": row.tolist() for eps, row in robust.iterrows()},
        "largest_difference": float(difference.max()),
        "broken_by": ours[ours["robust"] == 0].value_counts("broken_by").to_dict()
        if "broken_by" in ours
        else {},
    }


def against_reference(
    net: nn.Module, images: list[Image], eps: list[float], n_outputs: int, budget: Budget
) -> dict:
    """Our attacks and pyautoattack's, on the same images with the same budget in Linf."""
    ours, cost = measured(
        run_autoattack,
        net,
        images,
        norm="Linf",
        eps=eps,
        n_outputs=n_outputs,
        budget=budget,
        seed=0,
        batch_size=min(64, len(images)),
    )
    return compare(ours, cost, *reference(net, images, eps, n_outputs, budget))


def processor_time(device: str) -> float:
    """Processor seconds of this process on a CPU, wall-clock seconds on a synchronised GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
