"""What the objectives cost, against a plain step; and what they achieve on digits, by AutoAttack.

    python benchmarks/training.py               both tables -> benchmarks/training.json
    python benchmarks/training.py speed --device cuda --models resnet50 vit_tiny_patch16_224 \\
        --batch_size 64 --output benchmarks/training_gpu.json

Both take about ten minutes on one CPU core. The goal on a GPU is at most 3.5 times the plain step
for the harmonizer, and 4.5 times for adversarial training. On a CPU it is the processor time of one
thread, to which other processes do not add.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import digits_training

from alignment_security.attacks.autoattack import Budget
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.forward import tune_process
from alignment_security.trainer.images import TrainingBatch
from alignment_security.trainer.learner import make_learner
from alignment_security.trainer.loop import train_step
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.recipe import Recipe
from alignment_security.trainer.setup import starting_model
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, update_table

OBJECTIVES = {
    "plain": "",
    "harmonizer": "--objective harmonizer --lambda_1 0.01",
    "adversarial": "--objective adversarial --norm Linf --eps 4/255",
    "both": "--objective both --norm Linf --eps 4/255 --lambda_1 0.01",
}
# objective -> (options, whether the digits have maps)
DIGITS = {
    "plain": ("", False),
    "adversarial": (digits_training.ADVERSARIAL, False),
    "harmonizer": ("--objective harmonizer --lambda_1 0.1", True),
    "both": ("--objective both --norm Linf --eps 0.12 --lambda_1 0.005", True),
}
MODELS = ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
CLASSES = 1000


@dataclass(frozen=True)
class Size:
    """rounds: steps of each objective, of which the first `warm_up` are not counted.

    budget, attacked, training   of the digits: AutoAttack, its images, more options
    """

    rounds: int = 7
    warm_up: int = 2
    budget: Budget = Budget()
    attacked: int = 100
    training: str = ""


FULL = Size()
QUICK = Size(
    rounds=2,
    warm_up=1,
    budget=Budget(steps=1, targets=1, queries=1),
    attacked=2,
    training="--epochs 1",
)


# ---- speed ---------------------------------------------------------------------------------------


def recipe_of(name: str, precision: str, options: str) -> Recipe:
    """A recipe whose learning rate is 0, so that each step sees the same weights."""
    words = ["--model_name", name, "--precision", precision, "--lr", "0", *options.split()]
    return Recipe.from_args(parse_args(words))


def seconds_of(step: Callable, device: torch.device) -> float:
    """Of one step: processor time on a CPU, wall-clock time of a synchronised GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    begin = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def random_batch(batch_size: int, shape: tuple[int, int, int], device: torch.device):
    """Random images, each of another class and with a random map."""
    torch.manual_seed(0)
    return TrainingBatch(
        positions=list(range(batch_size)),
        x=torch.rand(batch_size, *shape),
        labels=torch.arange(batch_size),
        maps=torch.rand(batch_size, *shape[1:]),
        has_map=torch.ones(batch_size, dtype=torch.bool),
    ).to(device)


def speed_of(name: str, batch_size: int, device: torch.device, precision: str, size: Size) -> dict:
    """Images per second of each objective, and its time over the plain step's; medians.

    The objectives take turns on one network and one batch.
    """
    recipes = {key: recipe_of(name, precision, options) for key, options in OBJECTIVES.items()}
    model = starting_model(name, "random", CLASSES, seed=0)
    learner = make_learner(recipes["plain"], model.module, 1000, device)
    shape = model.preprocessing["input_size"]
    batch = random_batch(batch_size, shape, device)
    spent: dict[str, list[float]] = {key: [] for key in recipes}
    for _ in range(size.rounds):
        for key, recipe in recipes.items():
            learner.step = 0
            seconds = seconds_of(lambda recipe=recipe: train_step(recipe, learner, batch), device)
            spent[key].append(seconds)
    medians = {key: statistics.median(values[size.warm_up :]) for key, values in spent.items()}
    return {
        "batch_size": batch_size,
        "input_size": shape,
        "precision": precision,
        "images_per_second": {key: batch_size / value for key, value in medians.items()},
        "times_plain": {key: value / medians["plain"] for key, value in medians.items()},
    }


def speed(args: argparse.Namespace, size: Size) -> dict:
    """A table for each model."""
    device = torch.device(args.device)
    return {
        name: speed_of(name, args.batch_size, device, args.precision, size) for name in args.models
    }


# ---- digits --------------------------------------------------------------------------------------


def digits(args: argparse.Namespace, size: Size) -> dict:
    """Clean and robust accuracy (Linf 0.12) on 100 held-out digits, agreement with maps on 200."""
    found = {}
    for key, (options, maps) in DIGITS.items():
        net = digits_training.trained(f"{options} {size.training}", maps)
        attacked = digits_training.HELD_OUT[: size.attacked]
        clean, robust = digits_training.accuracies(net, size.budget, attacked)
        found[key] = {
            "options": options,
            "clean": clean,
            "robust": robust,
            "rank_agreement": digits_training.agreement(net),
        }
        print(key, found[key], flush=True)
    return found


TABLES = {"speed": speed, "digits": digits}


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser(__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm names, for speed")
    parser.add_argument("--batch_size", type=int, default=4, help="images per step, for speed")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    torch.set_num_threads(1)
    tune_process(torch.device(args.device), args.precision)
    for name in args.tables or TABLES:
        table = {"results": TABLES[name](args, size), "machine": machine(args.device)}
        update_table(name, table, output_file(args, __file__))


if __name__ == "__main__":
    main()
