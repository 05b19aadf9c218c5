"""A leaderboard of the shape of Brain-Score's of 2025-05-07: every score in it is MADE UP.

It has the shape of the real file: 455 rows of 440 models, 130 benchmarks, and what a reader can get
wrong (repeated names, names that start with a space, `:` and `/` in names, `.467`, `X`, empty
cells). brainscore-vision 2.4.2 registers 233 of the models.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from alignment_security.models.lists import read_model_list

FAILED, NOT_RUN = "X", ""
# models that the registry does not have; timm has one set of weights of each deit
UNREGISTERED = [
    *(
        f"deit_{size}{kind}_patch16_224"
        for size in ("tiny", "small", "base")
        for kind in ("", "_distilled")
    ),
    "resnet50",
    "RN50",
    "my-model",
    "ViT-B/32",
]
KINDS = ("resnet", "vit", "convnext", "vgg", "mobilenet", "bagnet", "cornet", "hmax", "grcnn")
# on the leaderboard twice: with a space before the name and without
SPACED = ["vonegrcnn_47e", "vonegrcnn_52e_full", "vonegrcnn_62e_nobn"]
# registered models with timm's weights and no `:` in their name; all of those with a `:` are there
TIMM = [
    "cv_18_dagger_408_pretrained",
    "densenet-201",
    "focalnet_tiny_lrf_in1k",
    "inception_v3",
    "inception_v4",
    "nasnet_large",
    "pnasnet_large",
    "xception",
]
FULL = "alexnet"  # ten rows, of which the first two have every score
REPEATED = [*[FULL] * 9, *(f" {name}" for name in SPACED), "resnet50", "RN50", "my-model"]


def leaves(names: str, count: int = 1) -> dict[str, dict]:
    """{benchmark: nothing below it}; `names` has a place for the number where there are several."""
    return {names.format(i): {} for i in range(1, count + 1)}


def marques(group: str, count: int) -> dict[str, dict]:
    return {f"V1-{group}": leaves(f"Marques2020_Made2026-{group}_{{}}", count)}


# an average -> what it averages. The averages, and the benchmarks that our code or tests know, have
# Brain-Score's names; the other names are made up
TREE: dict[str, dict] = {
    "average_vision": {
        "neural_vision": {
            "V1": leaves("Made2026.V1-pls")
            | {
                "Marques2020": {
                    **marques("orientation", 7),
                    **marques("receptive_field_size", 2),
                    **marques("response_magnitude", 3),
                    "V1-response_selectivity": {
                        **leaves("Marques2020_FreemanZiemba2013-texture_sparseness"),
                        **leaves("Marques2020_Made2026-selectivity_{}", 3),
                    },
                    **marques("spatial_frequency", 3),
                    **marques("surround_modulation", 1),
                    **marques("texture_modulation", 2),
                },
            }
            | leaves("tong.Coggan2024_fMRI.V1-rdm"),
            "V2": leaves("Made2026.V2-pls") | leaves("tong.Coggan2024_fMRI.V2-rdm"),
            "V4": leaves("Made{}.V4-pls", 4) | leaves("tong.Coggan2024_fMRI.V4-rdm"),
            "IT": leaves("Kar2019-ost")
            | leaves("Made{}.IT-pls", 5)
            | leaves("tong.Coggan2024_fMRI.IT-rdm"),
        },
        "behavior_vision": {
            **leaves("Made2026-i2n"),
            "Geirhos2021-error_consistency": leaves("Geirhos2021made_up_{}-error_consistency", 17),
            "Baker2022": leaves("Baker2022made_up_{}-accuracy_delta", 3),
            "BMD2024": leaves("BMD2024.made_up_{}Behavioral-accuracy_distance", 4),
            "Ferguson2024": leaves("Ferguson2024made_up_{}-value_delta", 14),
            **leaves("Made2026-match"),
            "Maniquet2024": leaves("Maniquet2024-made_up_{}", 2),
            **leaves("tong.Coggan2024_behavior-ConditionWiseAccuracySimilarity"),
        },
    },
    "engineering_vision": {
        **leaves("ImageNet-top1"),
        "ImageNet-C-top1": leaves("ImageNet-C-made_up_{}-top1", 4),
        **leaves("Made2026-top1"),
        "Geirhos2021-top1": leaves("Geirhos2021made_up_{}-top1", 17),
        "Hermann2020": leaves("Hermann2020cueconflict-shape_bias")
        | leaves("Hermann2020cueconflict-made_up"),
    },
}


def flat(tree: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """(benchmark, the leaves below it) in the leaderboard's order: an average before its leaves."""
    for name, below in tree.items():
        parts = list(flat(below))
        yield name, [part for part, of in parts if not of]
        yield from parts


LEAVES = [name for name, below in flat(TREE) if not below]
AVERAGES = {name: below for name, below in flat(TREE) if below}


def model_names() -> list[str]:
    """440 names: 233 of the registry (21 with `:`, 29 with timm's weights) and 207 others."""
    registry = read_model_list("brainscore")
    colon = registry["name"].str.contains(":") & registry["weights"].str.startswith("timm:")
    plain = registry.loc[
        ~registry["name"].str.contains(":") & registry["weights"].eq("plugin"), "name"
    ]
    others = [name for name in plain if name not in (FULL, *SPACED)][::3][:200]
    made_up = [f"{KINDS[i % len(KINDS)]}_made_up_{i:03d}" for i in range(207 - len(UNREGISTERED))]
    return [*registry["name"][colon], *TIMM, FULL, *SPACED, *others, *UNREGISTERED, *made_up]


def draw(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """(rows, LEAVES) from -0.05 to 1.15; as in the real file, a good model is good at most."""
    loading = rng.uniform(-0.2, 0.98, len(LEAVES))
    quality, noise = rng.normal(size=(rows, 1)), rng.normal(size=(rows, len(LEAVES)))
    values = quality * loading + noise * np.sqrt(1 - loading**2)
    return pd.DataFrame(1.2 / (1 + np.exp(-values)) - 0.05, columns=LEAVES).round(3)


def as_text(score: float) -> str:
    """As the site writes it: one decimal from 1 up, else three and no zero before the point."""
    return f"{score:.1f}" if score >= 1 else f"{score:.3f}".removeprefix("0")


def make_leaderboard(seed: int = 0) -> pd.DataFrame:
    """(455, 134) as text: model_name, model_id, rank, layers, 130 benchmarks; the best is first."""
    rng = np.random.default_rng(seed)
    names = np.array([*model_names(), *REPEATED])
    repeated = np.arange(len(names)) >= len(names) - len(REPEATED)
    share = np.where(repeated, 0.1, rng.uniform(0.3, 1, len(names)))  # of benchmarks that were run
    scores = draw(rng, len(names))
    run = rng.random(scores.shape) < share[:, None]
    failed = rng.random(scores.shape) < 0.1
    full = np.flatnonzero(names == FULL)[:2]
    run[full], failed[full] = True, False
    failed[:, LEAVES.index("Kar2019-ost")] = True

    scored = scores.where(run & ~failed)
    cells = scored.map(as_text, na_action="ignore").mask(run & failed, FAILED).fillna(NOT_RUN)
    means = {name: scored[below].mean(axis=1).round(3) for name, below in AVERAGES.items()}
    averages = pd.DataFrame(means)
    cells = cells.join(averages.map(as_text, na_action="ignore").fillna(FAILED))

    best_first = averages["average_vision"].sort_values(ascending=False, kind="stable").index
    rank = averages["average_vision"].rank(ascending=False, method="min", na_option="bottom")
    layers = [
        f'{{"IT": "layer{i % 7}", "V1": "layer1"}}' if i % 7 else "" for i in range(len(names))
    ]
    table = pd.DataFrame({"model_name": names, "model_id": rng.permutation(len(names)) + 1})
    table = table.assign(rank=rank.astype(int), layers=layers).astype(str)
    table = table.join(cells[[name for name, _ in flat(TREE)]])
    return table.loc[best_first].reset_index(drop=True)


def older_leaderboard(
    new: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[tuple[str, str], float], list[tuple[str, str]]]:
    """(456, 133): `new` before a few scores changed, without layers, benchmarks in another order.

    One repeated name has a row more. Returns the table, {(model, benchmark): new - old} of scores
    that changed, and each (model, benchmark) that has a score in `new` only.
    """
    cells = new.set_index("model_name").drop(columns="layers")
    once = [name for name in UNREGISTERED if name.startswith("deit")]
    scored = [
        (name, column)
        for name in once
        for column in LEAVES
        if cells.loc[name, column] not in (FAILED, NOT_RUN)
    ]
    below_1 = [(name, column) for name, column in scored if float(cells.loc[name, column]) < 0.9]
    moved, lost = dict.fromkeys(below_1[::9][:25], 0.0), below_1[4::9][:4]
    for i, (name, column) in enumerate(moved):
        score, change = float(cells.loc[name, column]), (-1) ** i * (i + 1) / 1000
        cells.loc[name, column], moved[name, column] = as_text(score - change), change
    for name, column in lost:
        cells.loc[name, column] = NOT_RUN
    extra = pd.DataFrame(NOT_RUN, [FULL], cells.columns).assign(model_id="9999", rank="456")
    order = ["model_id", "rank", *reversed(cells.columns[2:])]
    return pd.concat([cells, extra])[order].rename_axis("model_name").reset_index(), moved, lost
