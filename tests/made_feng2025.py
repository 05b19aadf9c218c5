"""Made records in the shape of Feng 2025's study: nets of each group, photographs with human maps.

Norms and alignments are drawn around the values that a net is given; perturbations of kept examples
are as aligned as that with the photograph's map. Nothing in them was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from alignment_security.records.adversarial_examples import example_path
from alignment_security.records.run import Run

# name -> (group, architecture, mean norm, mean alignment)
MADE_NETS = {
    "resnet50.a1_in1k": (None, None, 0.35, 0.18),
    "resnet50_l2_eps3": ("robust", "resnet50", 2.4, 0.52),
    "resnet50_harmonized": ("harmonized", "resnet50", 0.9, 0.66),
    "vgg16.tv_in1k": (None, None, 0.2, 0.21),
    "vgg16_harmonized": ("harmonized", "vgg16.tv_in1k", 0.5, 0.6),
    "vit_small_patch16_224.augreg_in1k": (None, None, 0.3, 0.1),
    "vit_large_patch14_dinov2.lvd142m": (None, None, 1.1, -0.05),
    "beit_large_patch16_512.in22k_ft_in22k_in1k": (None, None, 0.95, 0.02),
    "mobilenetv3_small_100.lamb_in1k": (None, None, 0.12, 0.22),
}
SIDE = 96


def made_photograph(i: int) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): a bright blob of some colour on a ground of noise."""
    rng = np.random.default_rng(i)
    ground = gaussian_filter(rng.random((SIDE, SIDE, 3)), (2, 2, 0))
    colour = rng.random(3)
    picture = 0.25 + 0.5 * ground + blob(i)[..., None] * colour
    return (255 * picture / picture.max()).astype(np.uint8)


def blob(i: int, side: int = SIDE) -> np.ndarray:
    """float (side, side) in [0, 1]: where people look at photograph i."""
    x, y, width = np.random.default_rng(1000 + i).uniform((0.3, 0.3, 0.1), (0.7, 0.7, 0.2))
    grid = (np.arange(side) + 0.5) / side
    return np.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * width**2))


def made_delta(human_map: np.ndarray, alignment: float, norm: float, seed: int) -> np.ndarray:
    """float32 (H, W, 3) of that L2 norm, the larger where people look the better aligned."""
    rng = np.random.default_rng(seed)
    other = gaussian_filter(rng.random(human_map.shape), 0.08 * len(human_map))
    other = (other - other.min()) / np.ptp(other)
    share = np.clip(alignment, 0, 1)
    size = share * human_map / human_map.max() + (1 - share) * other
    delta = size[..., None] * rng.standard_normal((*human_map.shape, 3))
    return (delta * norm / np.linalg.norm(delta)).astype(np.float32)


def make_study(
    results: Path,
    nets: dict = MADE_NETS,
    images: int = 24,
    examples: Sequence[int] = (0, 1, 2, 3),
    threat: str = "L2-crossing",
    photographs: dict[int, np.ndarray] | None = None,
    maps: dict[int, np.ndarray] | None = None,
) -> None:
    """Finished records of some nets on the made set `big12`, and the examples that they kept.

    examples     numbers of the images whose examples are kept
    photographs, maps   of some images, in place of made ones
    """
    for number, (name, (group, architecture, norm, alignment)) in enumerate(nets.items()):
        rng = np.random.default_rng(number)
        model = {"name": name, "weights": "file:made.pth" if architecture else f"timm:{name}"}
        model |= {"group": group} if group else {}
        model |= {"architecture": architecture} if architecture else {}
        run_settings = {
            "protocol": threat.partition("-")[2],
            "norm": threat.partition("-")[0],
            "attack": "crossing 100 steps",
            "head": "animate",
            "human_map": "ClickMe",
            "map_reduce": "max",
        }
        settings = {"model": model, "run": run_settings}
        with Run(results, "big12", threat, name, "minimum_norm", settings) as run:
            for i in range(images):
                length = norm * rng.lognormal(0, 0.4)
                row = {
                    "image_id": f"val-{i:05d}",
                    "label": i % 2,
                    "clean_pred": i % 2,
                    "clean_correct": 1,
                    "success": 1,
                    "adv_pred": 1 - i % 2,
                    "l2": length,
                    "linf": length / 40,
                    "l1": 30 * length,
                    "human_alignment": float(
                        np.clip(alignment + 0.15 * rng.standard_normal(), -1, 1)
                    ),
                }
                run.append([row])
                if i in examples:
                    keep_example(run, row, i, photographs or {}, maps or {}, number)
            run.finish([f"val-{i:05d}" for i in range(images)], None)


def keep_example(run: Run, row: dict, i: int, photographs: dict, maps: dict, seed: int) -> None:
    photograph = photographs[i] if i in photographs else made_photograph(i)
    human_map = maps.get(i, blob(i, len(photograph)))
    delta = made_delta(human_map, row["human_alignment"], row["l2"], 100 * seed + i)
    path = example_path(run.csv, row["image_id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        image=photograph,
        delta=delta,
        human_map=human_map.astype(np.float32),
        label=("animate", "inanimate")[row["label"]],
        pred=("animate", "inanimate")[row["adv_pred"]],
        eps=np.nan,
        l2=row["l2"],
        linf=row["linf"],
        human_alignment=row["human_alignment"],
    )
