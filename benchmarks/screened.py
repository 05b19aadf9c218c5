"""Tables of benchmarks/attacks.py about `--budget screened`: coverage, width and passes of it.

The full budget attacks every image once, so that each redraw of the sample is known.
"""

from __future__ import annotations

import pandas as pd
from nets import digits, digits_net
from torch import nn

from alignment_security.attacks.autoattack import run_autoattack
from alignment_security.attacks.screen import run_screen
from alignment_security.records.screened import (
    SAMPLE,
    SCREENED,
    choose,
    robust_estimates,
    settled,
)
from benchmarks.measure import DIGITS_CLASSES, Image, Size, certified_cifar, measured

BATCH_SIZE = 512  # tiny nets are faster in large batches
# (eps of the training, epochs, seed) of digits nets, and the eps of the attack
DIGITS_NETS = {
    "trained at 0.1": ((0.1, 6, 0), 0.12),
    "trained at 0.05, another seed": ((0.05, 6, 3), 0.08),
}
CIFAR_EPS = (2, 4, 8)  # of 255 levels


def screened_digits(device: str, size: Size) -> dict:
    """Two adversarially trained nets, on the last digits; a few were trained on."""
    table = {}
    for name, (training, eps) in DIGITS_NETS.items():
        net = digits_net(*training).to(device)
        table[name] = redraws(net, digits()[-size.screened_digits :], eps, size)
    return table


def screened_cifar(device: str, size: Size) -> dict:
    """The certified CIFAR-10 net, at three eps."""
    assert size.robust_net
    net, images = certified_cifar(size.robust_net, device)
    images = images[: size.screened_cifar]
    return {f"{eps}/255": redraws(net, images, eps / 255, size) for eps in CIFAR_EPS}


def redraws(net: nn.Module, images: list[Image], eps: float, size: Size) -> dict:
    """What `size.redraws` samples of the images give, against the full budget on all.

    standing, broken     images that the screen leaves, and how many of these the full budget breaks
    broken_by_screen     images that only the screen breaks
    coverage             share of the redraws whose interval holds the accuracy
    width, error         of the interval and of the estimate, in points: means over the redraws
    width_none_found     the largest where the sample has no image that breaks
    passes               share of the full budget's, and the largest
    """
    screened = attacked(run_screen, net, images, eps)
    full = attacked(run_autoattack, net, images, eps, budget=size.budget)
    standing = screened["robust"] == 1
    found = pd.DataFrame([one_redraw(screened, full, seed) for seed in range(size.redraws)])
    none_found = found.loc[found["found"] == 0, "width"]
    return {
        "images": len(images),
        "redraws": len(found),
        "standing": int(standing.sum()),
        "broken": int((standing & (full["robust"] == 0)).sum()),
        "broken_by_screen": int((~standing & (full["robust"] == 1)).sum()),
        "coverage": float(found["covered"].mean()),
        "width": float(found["width"].mean()),
        "width_none_found": float(none_found.max()) if len(none_found) else None,
        "none_found": len(none_found),
        "error": float(found["error"].mean()),
        "passes": float(found["passes"].mean()),
        "passes_most": float(found["passes"].max()),
    }


def attacked(run, net: nn.Module, images: list[Image], eps: float, **options) -> pd.DataFrame:
    """The rows of an attack at one eps, in the order of the image ids."""
    options |= {"norm": "Linf", "eps": [eps], "n_outputs": DIGITS_CLASSES, "batch_size": BATCH_SIZE}
    rows, _ = measured(run, net, images, **options)
    return rows.sort_values("image_id", ignore_index=True)


def one_redraw(screened: pd.DataFrame, full: pd.DataFrame, seed: int) -> dict:
    """The estimate from a sample of its own."""
    screened = screened.assign(stage=SCREENED)
    stages = {image_id: stage for (image_id, _), stage in choose(screened, seed).items()}
    second = full.assign(stage=full["image_id"].map(stages)).dropna(subset="stage")
    rows = settled(pd.concat([screened, second], ignore_index=True))
    estimate = robust_estimates(rows).iloc[0]
    truth = float(((screened["robust"] == 1) & (full["robust"] == 1)).mean())
    low, high = estimate["robust_low"], estimate["robust_high"]
    passes = (rows["forwards"] + rows["backwards"]).sum()
    return {
        "covered": low <= truth <= high,
        "width": 100 * (high - low),
        "error": 100 * abs(estimate["robust_estimate"] - truth),
        "found": int(((rows["stage"] == SAMPLE) & (rows["robust"] == 0)).sum()),
        "passes": passes / (full["forwards"] + full["backwards"]).sum(),
    }
