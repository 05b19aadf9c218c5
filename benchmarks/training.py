"""What the objectives cost and what they achieve: images a second against the plain step; digits, by AutoAttack.

    python benchmarks/training.py                       both tables -> benchmarks/training.json (about ten minutes on one CPU core)
    python benchmarks/training.py speed --device cuda --models resnet50 vit_tiny_patch16_224 --batch_size 64 \\
           --output benchmarks/training_gpu.json        on a GPU box: harmonizer <= 3.5, adversarial <= 4.5 times the plain step

On a CPU one thread is timed by the processor's seconds, which other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import digits_training

from alignment_security.attacks.autoattack import Budget
from alignment_security.common.files import utc_now, write_atomic
from alignment_security.models.fast import PRECISIONS
from alignment_security.models.forward import session_facts, tune_process
from alignment_security.models.heads import Model
from alignment_security.trainer.images import TrainingBatch
from alignment_security.trainer.loop import make_learner, train_step
from alignment_security.trainer.options import parse_args
from alignment_security.trainer.setup import starting_model

OBJECTIVES = {
    "plain": "",
    "harmonizer": "--objective harmonizer --lambda_1 0.01",
    "adversarial": "--objective adversarial --norm Linf --eps 4/255",
    "both": "--objective both --norm Linf --eps 4/255 --lambda_1 0.01",
}
ROUNDS, WARM = 7, 2  # steps of each objective in turn; the first are not counted


def seconds_of(step, device: torch.device) -> float:
    """Of one step: the processor's on a CPU, the clock's around a synchronised GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    begin = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def speed_of(name: str, batch_size: int, device: torch.device, precision: str) -> dict:
    """Median seconds of a step and images a second, objectives in turn on one net and batch; every image has a map."""
    args = parse_args(
        ["--model_name", name, "--batch_size", str(batch_size), "--precision", precision]
    )
    model: Model = starting_model(args, 1000)
    student = make_learner(args, model.module, 1000, device)
    side = model.preprocessing["input_size"]
    torch.manual_seed(0)
    batch = TrainingBatch(
        list(range(batch_size)),
        torch.rand(batch_size, *side),
        torch.arange(batch_size),
        torch.rand(batch_size, *side[1:]),
        torch.ones(batch_size, dtype=torch.bool),
    ).to(device)
    each = {
        key: parse_args(
            ["--model_name", name, "--precision", precision, "--lr", "0", *options.split()]
        )
        for key, options in OBJECTIVES.items()
    }
    spent: dict[str, list[float]] = {key: [] for key in each}
    for _ in range(ROUNDS):
        for key, recipe in each.items():
            student.step = 0
            spent[key].append(
                seconds_of(lambda recipe=recipe: train_step(recipe, student, batch), device)
            )
    medians = {key: statistics.median(values[WARM:]) for key, values in spent.items()}
    return {
        "batch_size": batch_size,
        "input_size": side,
        "precision": precision,
        "images_per_second": {key: batch_size / value for key, value in medians.items()},
        "times_plain": {key: value / medians["plain"] for key, value in medians.items()},
    }


def speed(args) -> dict:
    device = torch.device(args.device)
    return {name: speed_of(name, args.batch_size, device, args.precision) for name in args.models}


def digits(args) -> dict:
    """Clean accuracy, and AutoAttack's (Linf 0.12, standard budget) on 100 held-out digits; rank agreement with maps on 200."""
    nets = {
        "plain": ("", False),
        "adversarial": (digits_training.ADVERSARIAL, False),
        "harmonizer": ("--objective harmonizer --lambda_1 0.1", True),
        "both": (
            digits_training.ADVERSARIAL.replace("adversarial", "both") + " --lambda_1 0.005",
            True,
        ),
    }
    found = {}
    for key, (options, maps) in nets.items():
        net = digits_training.trained(options, maps)
        clean, robust = digits_training.verdicts(net, Budget(), digits_training.HELD_OUT[:100])
        found[key] = {
            "options": options,
            "clean": clean,
            "robust": robust,
            "rank_agreement": digits_training.agreement(net),
        }
        print(key, found[key], flush=True)
    return found


def machine(device: str) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )
    facts = session_facts(torch.device(device), 0)
    return {
        "processor": name,
        "device": facts["device"],
        "threads": facts["threads"],
        "git": facts["git"],
        "date": utc_now(),
        "versions": facts["versions"],
    }


TABLES = {"speed": speed, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--models", nargs="+", default=["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
    )
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_process(torch.device(args.device), args.precision)
    for name in args.tables or TABLES:
        result = {"results": TABLES[name](args), "machine": machine(args.device)}
        known = json.loads(args.output.read_text()) if args.output.exists() else {}
        write_atomic(args.output, json.dumps(known | {name: result}, indent=1) + "\n")
        print(name, json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
