"""Tables of benchmarks/attacks.py about minimal norms: FMN, boundary crossing, and their peers."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.models.heads import smooth_head
from benchmarks.measure import (
    DIGITS_CLASSES,
    Image,
    Size,
    correct_images,
    held_out_digits,
    lite0,
    measured,
    robust_digits_net,
)

BATCH = 10


def norms_digits(device: str, size: Size) -> dict:
    """Mean minimal L2 norms over that of FMN at 1000 steps, for 50 and 100 passes, and of peers."""
    net, images = robust_digits(device, size)
    return norms_table(net, images, DIGITS_CLASSES, device, size)


def norms_digits_linf(device: str, size: Size) -> dict:
    """The same in Linf, without peers."""
    net, images = robust_digits(device, size)
    return norms_table(net, images, DIGITS_CLASSES, device, size, "Linf")


def norms_lite0_1000(device: str, size: Size) -> dict:
    """The same on the sample photographs, 1000 classes."""
    return norms_table(*lite0("none", device, size), device, size)


def norms_lite0_animate(device: str, size: Size) -> dict:
    """The same, animate against inanimate."""
    return norms_table(*lite0("animate", device, size), device, size)


def robust_digits(device: str, size: Size) -> tuple[nn.Module, list[Image]]:
    """An adversarially trained net, and the held-out digits that it classifies correctly."""
    net = robust_digits_net(device, size)
    return net, correct_images(net, held_out_digits(size.norm_digits), device)


def norms_table(
    net: nn.Module,
    images: list[Image],
    n_outputs: int,
    device: str,
    size: Size,
    norm: str = "L2",
) -> dict:
    """Mean and median norm, success, seconds and passes of each attack."""

    def row(attack: FMN | BoundaryCrossing, net: nn.Module) -> dict:
        rows, cost = measured(
            run_minimum_norm, net, images, attack=attack, n_outputs=n_outputs, batch_size=BATCH
        )
        found = rows.loc[rows.success == 1, norm.lower()]
        return {
            "mean": float(found.mean()),
            "median": float(found.median()),
            "success": len(found) / len(rows),
            "seconds": cost["seconds"],
            "passes_per_image": cost["passes_per_image"],
        }

    longest = f"FMN {size.long_norms}"
    table = {longest: row(FMN(norm, size.long_norms), net)}
    for steps in size.short_norms:
        table[f"FMN {steps}"] = row(FMN(norm, steps), net)
        table[f"crossing {steps}"] = row(BoundaryCrossing(norm, steps), smooth_head(net))
        if norm == "L2":
            for peer, attack in peers(net, steps, device).items():
                table[f"{peer} {steps}"] = peer_row(net, images, attack, device)
    for value in table.values():
        value["over_fmn_1000"] = value["mean"] / table[longest]["mean"]
    return table


# ---- peers ---------------------------------------------------------------------------------------

PeerAttack = Callable[[Tensor, Tensor], Tensor]  # x, labels -> adversarial x


def peers(net: nn.Module, steps: int, device: str) -> dict[str, PeerAttack]:
    """Minimum-norm attacks of foolbox, and of adv-lib where it is installed, in L2."""
    import foolbox

    wrapped = foolbox.PyTorchModel(net, (0, 1), device)

    def foolbox_ddn(x: Tensor, y: Tensor) -> Tensor:
        return foolbox.attacks.DDNAttack(steps=steps)(wrapped, x, y, epsilons=None)[1]

    found: dict[str, PeerAttack] = {"foolbox DDN": foolbox_ddn}
    try:
        from adv_lib.attacks import ddn, fmn
    except ImportError:
        return found
    found["adv-lib DDN"] = lambda x, y: ddn(net, x, y, steps=steps)
    found["adv-lib FMN"] = lambda x, y: fmn(net, x, y, 2, steps=steps)
    return found


def peer_row(net: nn.Module, images: list[Image], attack: PeerAttack, device: str) -> dict:
    """Mean and median L2 norm, success and seconds of a peer's attack."""
    x = torch.stack([image for _, image, _ in images]).to(device)
    y = torch.tensor([label for _, _, label in images], device=device)
    begin = time.perf_counter()
    points = [attack(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH))]
    found = torch.cat(points).detach()
    fooled = net(found).argmax(1) != y
    norms = (found - x).flatten(1).norm(dim=1)[fooled]
    return {
        "mean": float(norms.mean()),
        "median": float(norms.median()),
        "success": float(fooled.float().mean()),
        "seconds": time.perf_counter() - begin,
    }
