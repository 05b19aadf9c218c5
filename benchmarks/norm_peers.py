"""Minimum-norm attacks that benchmarks/minimal_norms.py compares, at settings that suit each.

Ours, FMN at the authors' settings, and attacks of foolbox and, where it is installed, of adv-lib.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from nets import attack_rows
from torch import Tensor, nn

from alignment_security.attacks.crossing import BoundaryCrossing
from alignment_security.attacks.fmn import FMN
from alignment_security.attacks.geometry import ORDER, lp_norm
from alignment_security.attacks.libraries import FOOLBOX, CountedModule
from alignment_security.attacks.minimum_norm import MinimumNormAttack, run_minimum_norm
from alignment_security.models.heads import smooth_head
from benchmarks.measure import Image

BATCH = 50
# of the binary search with targeted APGD: balls, the first of FIRST_BALL; targets; least classes
HALVINGS, APGD_TARGETS, APGD_CLASSES = 9, 9, 4
ALMA_CLASSES = 3  # its loss divides by the difference of the first and third logit
FIRST_STEPS = (1.0, 0.1)  # of the authors, and one of about the norms sought
FIRST_BALL = {"L2": 1.0, "Linf": 0.25}

Norms = np.ndarray  # (n,) of the perturbations of n images, infinite where none was found
NormAttack = Callable[[CountedModule, list[Image]], Norms]
PeerAttack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # net, x, labels -> points


def norm_attacks(
    norm: str, n_outputs: int, short: tuple[int, ...], long: int
) -> dict[str, NormAttack]:
    """Attacks in "L2" or "Linf" by name.

    short   numbers of gradients of the attacks that are compared
    long    steps of the attacks that show what norms there are
    """
    attacks: dict[str, NormAttack] = {}
    for steps in short:
        attacks[f"crossing {steps}"] = partial(_ours, BoundaryCrossing(norm, steps), n_outputs)
    for steps in (*short, long):
        attacks[f"FMN {steps}"] = partial(_ours, FMN(norm, steps), n_outputs)
    for steps in (short[-1], long):
        for first in FIRST_STEPS:
            fmn = FMN(norm, steps, first, first / 100, step_unit="pixels")
            attacks[f"FMN {steps}, first step {first:g}"] = partial(_ours, fmn, n_outputs)
    peers = _foolbox_peers(norm, short, long) | _adv_lib_peers(norm, n_outputs, long)
    return attacks | {name: partial(_peer, peer, norm) for name, peer in peers.items()}


def _ours(
    attack: MinimumNormAttack, n_outputs: int, counted: CountedModule, images: list[Image]
) -> Norms:
    if isinstance(attack, BoundaryCrossing):
        counted.module = smooth_head(counted.module)
    rows = attack_rows(
        run_minimum_norm, counted, images, attack, n_outputs=n_outputs, batch_size=BATCH
    )
    rows = rows.set_index("image_id").loc[[name for name, _, _ in images]]
    return rows[attack.norm.lower()].fillna(math.inf).to_numpy()


def _peer(attack: PeerAttack, norm: str, counted: CountedModule, images: list[Image]) -> Norms:
    device = next(counted.parameters()).device
    x = torch.stack([image for _, image, _ in images]).to(device)
    y = torch.tensor([label for _, _, label in images], device=device)
    points = torch.cat([attack(counted, a, b) for a, b in zip(x.split(BATCH), y.split(BATCH))])
    found = counted.module(points).argmax(1) != y
    norms = torch.where(found, lp_norm(points.detach() - x, ORDER[norm]), torch.inf)
    return norms.double().cpu().numpy()


# ---- other libraries -----------------------------------------------------------------------------


def _foolbox_peers(norm: str, short: tuple[int, ...], long: int) -> dict[str, PeerAttack]:
    import foolbox

    def peer(attack) -> PeerAttack:
        def points(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return attack(foolbox.PyTorchModel(net, (0, 1), x.device), x, y, epsilons=None)[1]

        return points

    if norm == "Linf":
        return {"DeepFool": peer(foolbox.attacks.LinfDeepFoolAttack(steps=50, candidates=10))}
    _, cw = FOOLBOX["cw"]
    searches = cw["binary_search_steps"]
    return {
        **{
            f"DDN {steps}, first ball {eps:g}": peer(
                foolbox.attacks.DDNAttack(steps=steps, init_epsilon=eps)
            )
            for steps in (short[-1], long)
            for eps in FIRST_STEPS
        },
        "DeepFool": peer(foolbox.attacks.L2DeepFoolAttack(**FOOLBOX["deepfool"][1])),
        f"CW {searches} x {long}": peer(
            foolbox.attacks.L2CarliniWagnerAttack(**cw | {"steps": long})
        ),
    }


def _adv_lib_peers(norm: str, n_outputs: int, long: int) -> dict[str, PeerAttack]:
    """Peers of adv-lib 0.2.8; none where it is not installed."""
    if find_spec("adv_lib") is None:
        return {}
    from adv_lib.attacks import alma, sdf
    from adv_lib.attacks.auto_pgd import minimal_apgd

    peers: dict[str, PeerAttack] = {}
    if norm == "L2":
        peers["SuperDeepFool"] = sdf
    if norm == "L2" and n_outputs >= ALMA_CLASSES:
        for first in FIRST_STEPS:
            peers[f"ALMA {long}, first distance {first:g}"] = partial(
                alma, num_steps=long, init_lr_distance=first
            )
    if n_outputs >= APGD_CLASSES:
        peers[f"APGD-T, {HALVINGS} balls"] = partial(
            minimal_apgd,
            norm=ORDER[norm],
            max_eps=FIRST_BALL[norm],
            binary_search_steps=HALVINGS,
            targeted_version=True,
            num_targets=APGD_TARGETS,
        )
    return peers
