"""Tables of benchmarks/attacks.py about AutoAttack: passes, agreement, overhead, growth, memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch
from nets import cifar_photographs, cifar_resnet18, digits, rows_of
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.libraries import CountedModule, run_pyautoattack
from alignment_security.models.fast import fast_copy
from alignment_security.models.forward import CPU_ROWS, Forward
from alignment_security.models.loading import load_model
from benchmarks.measure import (
    DIGITS_CLASSES,
    Image,
    Size,
    against_reference,
    cost_of,
    held_out_digits,
    lite0,
    measured,
    processor_time,
    reference,
    robust_digits_net,
)

SCRIPT = Path(__file__).with_name("attacks.py")
AGREEMENT_EPS = [0.08, 0.12, 0.16]
MANY_EPS = [(0.1,), (0.06, 0.1, 0.14), tuple(0.02 * k for k in range(1, 11))]
SIDES = {"ours": run_autoattack, "pyautoattack": run_pyautoattack}


def early_exit(device: str, size: Size) -> dict:
    """Where few or no images survive: the passes that early exit saves."""
    module, images, n_outputs = lite0(device, size)
    resnet = cifar_resnet18().to(device)
    cifar = cifar_photographs()[: size.photographs]
    only_ce = Budget(("apgd-ce",), size.budget.steps, size.budget.targets, size.budget.queries)
    table = {
        "lite0_1_255": against_reference(module, images, [1 / 255], n_outputs, size.budget),
        "resnet18_8_255": against_reference(resnet, cifar, [8 / 255], DIGITS_CLASSES, size.budget),
        "resnet18_2_255_apgd_ce": against_reference(
            resnet, cifar, [2 / 255], DIGITS_CLASSES, only_ce
        ),
    }
    for key, net, rows, eps in (
        ("lite0_1_255", module, images, 1 / 255),
        ("resnet18_8_255", resnet, cifar, 8 / 255),
    ):
        table[key]["torchattacks"] = torchattacks_cost(net, rows, eps, device)
    return table


def torchattacks_cost(net: nn.Module, images: list[Image], eps: float, device: str) -> dict | None:
    """Cost of torchattacks, which Hoak 2025 used; None where it is not installed.

    Its budget is not AutoAttack's: APGD runs 10 steps.
    """
    try:
        import torchattacks
    except ImportError:
        return None
    counted = CountedModule(net)
    attack = torchattacks.AutoAttack(
        counted, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0
    )
    x = torch.stack([image for _, image, _ in images]).to(device)
    y = torch.tensor([label for _, _, label in images], device=device)
    begin = time.perf_counter()
    attack(x, y)
    return cost_of(counted, len(images), begin) | {"n_classes": 10}


def agreement(device: str, size: Size) -> dict:
    """Verdicts on an adversarially trained digits net, where all four attacks matter; three eps."""
    net = robust_digits_net(device, size)
    return against_reference(
        net, held_out_digits(size.digits), AGREEMENT_EPS, DIGITS_CLASSES, size.budget
    )


def many_eps(device: str, size: Size) -> dict:
    """The same net and other digits: one, three and ten eps in one run of ours.

    pyautoattack has a run for each.
    """
    net = robust_digits_net(device, size)
    images = held_out_digits(size.digits + size.many_eps_digits)[size.digits :]
    return {
        f"{len(eps)} eps": against_reference(net, images, list(eps), DIGITS_CLASSES, size.budget)
        for eps in MANY_EPS
    }


def survivor(device: str, size: Size) -> dict:
    """Four photographs, a full pass on a CPU, at an eps that they survive: no early exit."""
    module, images, n_outputs = lite0(device, Size())
    images = images[:CPU_ROWS]
    example = torch.rand(2, *images[0][1].shape, device=device)
    # pyautoattack gets the model as its users have it, ours the fast copy
    plain = load_model("tf_efficientnet_lite0", device=device).module
    ours, cost = measured(
        run_autoattack,
        fast_copy(module, example),
        images,
        norm="Linf",
        eps=[0.05 / 255],
        n_outputs=n_outputs,
        budget=size.budget,
        seed=0,
        batch_size=CPU_ROWS,
    )
    theirs, their_cost = reference(plain, images, [0.05 / 255], n_outputs, size.budget)
    return {
        "ours": cost,
        "pyautoattack": their_cost,
        "passes_ratio": cost["passes_per_image"] / their_cost["passes_per_image"],
        "seconds_ratio": cost["seconds"] / their_cost["seconds"],
        "robust": [ours.robust.tolist(), theirs.robust.tolist()],
    }


# ---- overhead ------------------------------------------------------------------------------------


def overhead(device: str, size: Size) -> dict:
    """Time of the engine over that of as many bare passes at the same batch size, least of five.

    On a CPU it is the processor time of one thread, which other processes disturb less than the
    wall clock.
    """
    module, images, n_outputs = lite0(device, size)
    images = images[: size.overhead_images]
    fast = fast_copy(module, torch.rand(2, *images[0][1].shape, device=device))
    steps = size.overhead_steps
    budgets = {
        "apgd-ce": Budget(attacks=("apgd-ce",), steps=steps),
        "fab-t": Budget(attacks=("fab-t",), steps=steps, targets=1),
        "square": Budget(attacks=("square",), queries=size.overhead_queries),
    }
    table = {}
    for name, budget in budgets.items():
        seconds: dict[str, list[float]] = {"engine": [], "bare": []}
        for _ in range(size.repeats):
            begin = processor_time(device)
            _, cost = measured(
                run_autoattack,
                fast,
                images,
                norm="Linf",
                eps=[1e-5],
                n_outputs=n_outputs,
                seed=0,
                budget=budget,
                batch_size=len(images),
            )
            seconds["engine"].append(processor_time(device) - begin)
            seconds["bare"].append(bare_seconds(fast, images, cost, device))
        table[name] = {
            "ratio": min(seconds["engine"]) / min(seconds["bare"]),
            "seconds": seconds,
            "forwards": cost["forwards"],
            "backwards": cost["backwards"],
        }
    return table


def bare_seconds(net: nn.Module, images: list[Image], cost: dict, device: str) -> float:
    """Time of as many forward and backward passes of the same batch, and nothing else."""
    x = torch.stack([image for _, image, _ in images]).to(device)
    bare = Forward(net, len(images))
    begin = processor_time(device)
    for _ in range(round(cost["backwards"] / len(x))):
        bare.gradient(x, lambda logits, rows: logits.amax(1))
    for _ in range(round((cost["forwards"] - cost["backwards"]) / len(x))):
        bare.logits(x)
    return processor_time(device) - begin


def growth(device: str, size: Size) -> dict:
    """Cost for 20, 200 and 1000 digits, and for batches of 16, 64 and 256."""
    net = robust_digits_net(device, size)

    def cost(images: int, batch_size: int) -> dict:
        return measured(
            run_autoattack,
            net,
            digits()[:images],
            norm="Linf",
            eps=[0.1],
            n_outputs=DIGITS_CLASSES,
            budget=size.growth_budget,
            seed=0,
            batch_size=batch_size,
        )[1]

    by_images = {f"{n} images": cost(n, 64) for n in size.growth_images}
    by_batch = {f"batch {b}": cost(size.growth_digits, b) for b in size.growth_batches}
    return by_images | by_batch


# ---- memory --------------------------------------------------------------------------------------


def memory(device: str, size: Size) -> dict:
    """Peak memory of each side above that of the loaded model and images, MiB, at batch 16.

    Each side has a process of its own.
    """
    mib = {}
    for side in SIDES:
        command = [sys.executable, str(SCRIPT), "--memory_of", side, "--device", device]
        if size != Size():
            command.append("--quick")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        mib[side] = float(done.stdout.split()[-1])
    return {"mib": mib, "ratio": mib["ours"] / mib["pyautoattack"]}


def peak_mib(device: str) -> float:
    """Peak memory so far: of the GPU, or resident on the CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage: there a process begins with the peak of the one that started it
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("/proc/self/status has no VmHWM")


def memory_of(side: str, device: str, size: Size) -> float:
    """MiB that an attack adds to the peak; eps is so small that every image takes every step."""
    module, images, n_outputs = lite0(device, size)
    images = images[: size.memory_images]
    budget = Budget(attacks=("apgd-ce", "fab-t"), steps=size.memory_steps, targets=1)
    before = peak_mib(device)
    model = AttackedModel(module, n_outputs, batch_size=len(images))
    rows_of(SIDES[side](model, images, "Linf", [1e-6], budget))
    return peak_mib(device) - before
