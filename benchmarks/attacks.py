"""Our attacks against their peers: same images, same model, one process; passes are counted at the model.

    python benchmarks/attacks.py                         every table -> benchmarks/attacks.json (about an hour on two CPU cores)
    python benchmarks/attacks.py early_exit growth     some of them; the others in the file stay as they are
    python benchmarks/attacks.py --device cuda --output benchmarks/attacks_gpu.json

Peers that are not in requirements.txt (torchattacks 3.5.1, adv-lib 0.2.8) are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nets
from nets import rows_of

from alignment_security.attacks.autoattack import Budget, run_autoattack
from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.libraries import CountedModule, run_pyautoattack
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.common.files import utc_now, write_atomic
from alignment_security.common.settings import git_state, installed_versions
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.fast import fast_copy
from alignment_security.models.forward import Forward, tune_process
from alignment_security.models.heads import ANIMATE_CLASSES, smooth_head
from alignment_security.models.loading import load_model


def lite0(head: str, device: str):
    """EfficientNet-Lite0 and the sample photographs it gets right."""
    model = load_model("tf_efficientnet_lite0", head=head, device=device)
    module = model.module.to(memory_format=torch.channels_last)
    source = stream_images(load_image_set("sample"), model.preprocessing)
    images = [
        (name, x, int(y >= ANIMATE_CLASSES) if head != "none" else y) for name, x, y in source
    ]
    right = [row for row in images if int(module(row[1][None].to(device)).argmax()) == row[2]]
    return module, right, model.n_outputs


def measured(run, net, images, **options) -> tuple[pd.DataFrame, dict]:
    """Rows of a run, and what it cost: rows through the model, seconds."""
    counted, begin = CountedModule(net), time.perf_counter()
    rows = rows_of(run(counted, images, **options))
    return rows, {
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": time.perf_counter() - begin,
        "passes_per_image": (counted.forwards + counted.backwards) / len(images),
    }


def reference(net, images, eps, **common) -> tuple[pd.DataFrame, dict]:
    """pyautoattack, one run an eps: it knows no ladder."""
    parts = [
        measured(run_pyautoattack, net, images, eps=[level], batch_size=len(images), **common)
        for level in eps
    ]
    return pd.concat([rows for rows, _ in parts]), {
        key: sum(cost[key] for _, cost in parts) for key in parts[0][1]
    }


def compare(ours: pd.DataFrame, cost: dict, theirs: pd.DataFrame, spent: dict) -> dict:
    """Cost of each side, their ratio, and the share of equal verdicts."""
    both = ours.merge(theirs, on=["image_id", "eps"], suffixes=("", "_reference"))
    robust = both.groupby("eps")[["robust", "robust_reference"]].mean()
    return {
        "images": both["image_id"].nunique(),
        "pairs": len(both),
        "ours": cost,
        "pyautoattack": spent,
        "passes_ratio": cost["passes_per_image"] / spent["passes_per_image"],
        "seconds_ratio": cost["seconds"] / spent["seconds"],
        "agreement": float((both["robust"] == both["robust_reference"]).mean()),
        "robust_accuracy": {f"{eps:.5f}": row.tolist() for eps, row in robust.iterrows()},
        "largest_difference": float((robust["robust"] - robust["robust_reference"]).abs().max()),
        "broken_by": ours["broken_by"].value_counts().to_dict(),
    }


def against_reference(net, images, eps, n_outputs, budget=None) -> dict:
    common = {"norm": "Linf", "n_outputs": n_outputs, "budget": budget or Budget(), "seed": 0}
    return compare(
        *measured(run_autoattack, net, images, eps=eps, batch_size=64, **common),
        *reference(net, images, eps, **common),
    )


# ---- tables ----------------------------------------------------------------------------------------------------


def early_exit(device: str) -> dict:
    """Where nothing or little survives: the passes that early exit saves."""
    module, images, n = lite0("none", device)
    resnet = nets.cifar_resnet18().to(device)
    cifar = nets.cifar_photographs()
    out = {
        "lite0_1_255": against_reference(module, images, [1 / 255], n),
        "resnet18_8_255": against_reference(resnet, cifar, [8 / 255], 10),
        "resnet18_2_255_apgd_ce": against_reference(
            resnet, cifar, [2 / 255], 10, Budget(attacks=("apgd-ce",))
        ),
    }
    for key, net, rows, eps in (
        ("lite0_1_255", module, images, 1 / 255),
        ("resnet18_8_255", resnet, cifar, 8 / 255),
    ):
        out[key]["torchattacks"] = torchattacks_cost(net, rows, eps, device)
    return out


def torchattacks_cost(net, images, eps: float, device: str) -> dict | None:
    """What the first study's library spends (its budget is not AutoAttack's: trap 7)."""
    try:
        import torchattacks
    except ImportError:
        return None
    counted = CountedModule(net)
    attack = torchattacks.AutoAttack(
        counted, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0
    )
    begin = time.perf_counter()
    attack(
        torch.stack([x for _, x, _ in images]).to(device),
        torch.tensor([y for *_, y in images], device=device),
    )
    return {
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": time.perf_counter() - begin,
        "passes_per_image": (counted.forwards + counted.backwards) / len(images),
        "n_classes": 10,
    }


def agreement(device: str) -> dict:
    """An adversarially trained digits net, where all four attacks matter; three eps, the full standard budget."""
    net, images, eps = (
        nets.digits_net(eps=0.1, epochs=6).to(device),
        nets.digits()[1200:1500],
        [0.08, 0.12, 0.16],
    )
    common = {"norm": "Linf", "n_outputs": 10, "budget": Budget(), "seed": 0}
    theirs = reference(net, images, eps, **common)
    return {
        ladder: compare(
            *measured(
                run_autoattack,
                net,
                images,
                eps=eps,
                batch_size=64,
                bisect=ladder == "bisect",
                **common,
            ),
            *theirs,
        )
        for ladder in ("ascending", "bisect")
    }


def survivor(device: str) -> dict:
    """One photograph whose true class leads by far at a tiny eps: no early exit is possible."""
    module, images, n = lite0("none", device)
    image = [row for row in images if row[0].startswith("imagenet_12")]
    example = torch.rand(2, *image[0][1].shape, device=device)
    plain = load_model(
        "tf_efficientnet_lite0", device=device
    ).module  # as a user of the reference has it
    common = {"norm": "Linf", "eps": [0.05 / 255], "n_outputs": n, "seed": 0, "budget": Budget()}
    ours, cost = measured(run_autoattack, fast_copy(module, example), image, batch_size=1, **common)
    theirs, spent = measured(run_pyautoattack, plain, image, batch_size=1, **common)
    return {
        "ours": cost,
        "pyautoattack": spent,
        "passes_ratio": cost["passes_per_image"] / spent["passes_per_image"],
        "seconds_ratio": cost["seconds"] / spent["seconds"],
        "robust": [int(ours.robust[0]), int(theirs.robust[0])],
    }


def overhead(device: str) -> dict:
    """Time of the engine over the time of as many bare passes at the same batch size, the least of five each.

    On a CPU the processor's time on one thread, which neighbours on the machine disturb less than the clock on the wall.
    """
    module, images, n = lite0("none", device)
    fast = fast_copy(module, torch.rand(2, *images[0][1].shape, device=device))
    out = {}
    budgets = {
        "apgd-ce": Budget(attacks=("apgd-ce",), steps=20),
        "fab-t": Budget(attacks=("fab-t",), steps=20, targets=1),
        "square": Budget(attacks=("square",), queries=40),
    }
    for name, budget in budgets.items():
        sides: dict[str, list[float]] = {"engine": [], "bare": []}
        for _ in range(5):
            begin = processor_time(device)
            _, cost = measured(
                run_autoattack,
                fast,
                images[:8],
                norm="Linf",
                eps=[1e-5],
                n_outputs=n,
                seed=0,
                budget=budget,
                batch_size=8,
            )
            sides["engine"].append(processor_time(device) - begin)
            sides["bare"].append(bare_seconds(fast, images[:8], cost, device))
        out[name] = {
            "ratio": min(sides["engine"]) / min(sides["bare"]),
            "seconds": sides,
            "forwards": cost["forwards"],
            "backwards": cost["backwards"],
        }
    return out


def processor_time(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def bare_seconds(net, images, cost: dict, device: str) -> float:
    """As many forward(+backward) passes of the same batch, and nothing else."""
    x, bare = torch.stack([row[1] for row in images]).to(device), Forward(net, len(images))
    begin = processor_time(device)
    for _ in range(round(cost["backwards"] / len(x))):
        bare.gradient(x, lambda logits, rows: logits.amax(1))
    for _ in range(round((cost["forwards"] - cost["backwards"]) / len(x))):
        bare.logits(x)
    return processor_time(device) - begin


def norms_digits(device: str) -> dict:
    """Mean minimal L2 norm over the mean of FMN at 1000 steps, at 50 and 100 passes, beside peers at equal passes."""
    return norms_on(*robust_digits(device), 10, device)


def norms_digits_linf(device: str) -> dict:
    """The same in Linf."""
    return norms_on(*robust_digits(device), 10, device, "Linf")


def robust_digits(device: str):
    """An adversarially trained net and the digits, of 100 it has not seen, that it gets right."""
    net = nets.digits_net(eps=0.1, epochs=6).to(device)
    return net, [
        row
        for row in nets.digits()[1200:1300]
        if int(net(row[1][None].to(device)).argmax()) == row[2]
    ]


def norms_lite0_1000(device: str) -> dict:
    """The same on the sample photographs, 1000 classes."""
    return norms_on(*lite0("none", device), device)


def norms_lite0_animate(device: str) -> dict:
    """The same, animate against inanimate."""
    return norms_on(*lite0("animate", device), device)


def norms_on(net, images, n_outputs: int, device: str, norm: str = "L2") -> dict:
    def mean(attack, net=net) -> dict:
        rows, cost = measured(
            run_minimum_norm, net, images, attack=attack, n_outputs=n_outputs, batch_size=10
        )
        found = rows.loc[rows.success == 1, norm.lower()]
        return {
            "mean": float(found.mean()),
            "median": float(found.median()),
            "success": len(found) / len(rows),
            "seconds": cost["seconds"],
            "passes_per_image": cost["passes_per_image"],
        }

    table = {"FMN 1000": mean(FMN(norm, 1000))}
    for steps in (50, 100):
        table |= {
            f"FMN {steps}": mean(FMN(norm, steps)),
            f"crossing {steps}": mean(BoundaryCrossing(norm, steps), smooth_head(net)),
        }
        peers = peer_norms(net, images, steps, device) if norm == "L2" else {}
        table |= {f"{peer} {steps}": value for peer, value in peers.items()}
    for value in table.values():
        value["over_fmn_1000"] = value["mean"] / table["FMN 1000"]["mean"]
    return table


def peer_norms(net, images, steps: int, device: str) -> dict:
    """foolbox's and adv-lib's minimum-norm attacks at the same number of gradients."""
    import foolbox

    x, y = (
        torch.stack([row[1] for row in images]).to(device),
        torch.tensor([row[2] for row in images], device=device),
    )
    wrapped = foolbox.PyTorchModel(net, (0, 1), device)
    runs = {
        "foolbox DDN": lambda a, b: foolbox.attacks.DDNAttack(steps=steps)(
            wrapped, a, b, epsilons=None
        )[1]
    }
    try:
        from adv_lib.attacks import ddn, fmn

        runs |= {
            "adv-lib DDN": lambda a, b: ddn(net, a, b, steps=steps),
            "adv-lib FMN": lambda a, b: fmn(net, a, b, 2, steps=steps),
        }
    except ImportError:
        pass
    out = {}
    for name, run in runs.items():
        begin, found = (
            time.perf_counter(),
            torch.cat([run(a, b) for a, b in zip(x.split(10), y.split(10))]).detach(),
        )
        hit = net(found).argmax(1) != y
        size = (found - x).flatten(1).norm(dim=1)[hit]
        out[name] = {
            "mean": float(size.mean()),
            "median": float(size.median()),
            "success": float(hit.float().mean()),
            "seconds": time.perf_counter() - begin,
        }
    return out


def growth(device: str) -> dict:
    """Passes and seconds an image for 20, 200 and 1000 digits, and for batches of 16, 64 and 256."""
    net = nets.digits_net(eps=0.1, epochs=6).to(device)
    budget = Budget(steps=20, targets=2, queries=100)
    common = {"norm": "Linf", "eps": [0.1], "n_outputs": 10, "budget": budget, "seed": 0}
    out = {
        f"{n} images": measured(run_autoattack, net, nets.digits()[:n], batch_size=64, **common)[1]
        for n in (20, 200, 1000)
    }
    return out | {
        f"batch {b}": measured(run_autoattack, net, nets.digits()[:200], batch_size=b, **common)[1]
        for b in (16, 64, 256)
    }


def memory(device: str) -> dict:
    """Peak memory above the loaded model and images, MiB, at batch 16 (20 steps each): a process a side."""
    out = {
        side: float(
            subprocess.run(
                [sys.executable, __file__, "--memory_of", side, "--device", device],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[-1]
        )
        for side in ("ours", "pyautoattack")
    }
    return {"mib": out, "ratio": out["ours"] / out["pyautoattack"]}


def peak_memory(side: str, device: str) -> float:
    """MiB that a run of one side adds to what the model and the images take; eps so small that nothing leaves early."""
    module, images, n = lite0("none", device)
    engine = {"ours": run_autoattack, "pyautoattack": run_pyautoattack}[side]
    budget = Budget(attacks=("apgd-ce", "fab-t"), steps=10, targets=1)

    def peak() -> float:
        if device != "cpu":
            return torch.cuda.max_memory_allocated() / 2**20
        # not getrusage: there a process begins with the peak of the one that started it
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return int(status["VmHWM"].split()[0]) / 1024

    before = peak()
    rows_of(engine(module, images[:16], "Linf", [1e-6], n, budget, seed=0, batch_size=16))
    return peak() - before


TABLES = {
    f.__name__: f
    for f in (
        early_exit,
        agreement,
        overhead,
        norms_digits,
        norms_digits_linf,
        memory,
        growth,
        survivor,
        norms_lite0_1000,
        norms_lite0_animate,
    )
}

ONE_THREAD = (
    "agreement",
    "growth",
    "norms_digits",
    "norms_digits_linf",
    "overhead",
)  # tiny nets are faster so


def machine(device: str) -> dict:
    name = (
        torch.cuda.get_device_name(device)
        if device != "cpu"
        else platform.processor() or platform.machine()
    )
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": utc_now(),
        "git": git_state(),
        "versions": installed_versions(),
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of torch; the digits tables use one"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--memory_of", choices=["ours", "pyautoattack"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    tune_process(torch.device(args.device), "float32")
    if args.memory_of:
        print(peak_memory(args.memory_of, args.device))
        return
    for name in args.tables or TABLES:
        torch.set_num_threads(1 if name in ONE_THREAD else args.threads)
        result = TABLES[name](args.device) | {"machine": machine(args.device)}
        known = json.loads(args.output.read_text()) if args.output.exists() else {}
        write_atomic(args.output, json.dumps(known | {name: result}, indent=1) + "\n")
        print(name, json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
