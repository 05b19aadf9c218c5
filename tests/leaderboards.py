"""Results folders for tests: a leaderboard, small or full, and accuracies that are MADE UP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import (
    MERGED_SCORES,
    benchmark_columns,
    drop_repeats,
    read_leaderboard,
    score_numbers,
)

RADII = [0.25 / 255, 0.5 / 255, 1 / 255]
MADE_UP = "MADE-UP accuracies of a test"
KINDS = (
    "resnet",
    "vit",
    "convnext",
    "vgg",
    "mobilenet",
    "alexnet",
    "bagnet",
    "cornet",
    "hmax",
    "grcnn",
)
# averages and benchmarks in the leaderboard's order; three models in five have `lab.Half2020-pls`
BENCHMARKS = [
    "average_vision",
    "neural_vision",
    "V1",
    "Marques2020_A1999-peak_sf",
    "Marques2020_B2013-texture_sparseness",
    "lab.Half2020-pls",
    "behavior_vision",
    "Null2021-i2n",
    "Family2021-consistency",
    "engineering_vision",
    "ImageNet-top1",
    "Against2020-top1",
]


def random_scores(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """(models, BENCHMARKS), independent and standard normal; models of ten families in turn."""
    rng = np.random.default_rng(seed)
    scores = pd.DataFrame(
        rng.normal(size=(n, len(BENCHMARKS))),
        [f"{KINDS[i % 10]}_{i:03d}" for i in range(n)],
        BENCHMARKS,
    )
    scores.loc[rng.random(n) < 0.4, "lab.Half2020-pls"] = np.nan
    return scores


def full_scores(path: Path, n: int) -> pd.DataFrame:
    """(models, 130 benchmarks): the first n models of a leaderboard file."""
    kept, _ = drop_repeats(read_leaderboard(path)[0])
    table = score_numbers(kept[benchmark_columns(kept)])
    return table.set_index(kept["model_name"]).rename_axis(None)[:n]


def write_scores(results: Path, scores: pd.DataFrame) -> None:
    """As `setup_scores` writes them."""
    folder = results / "benchmark_scores"
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(["og_model_name", "model_registry_name", "model_name"], scores.index)
    table = pd.concat(
        [pd.DataFrame(names | {"timm_name": "", "layers": ""}, scores.index), scores], axis=1
    )
    table.to_csv(folder / f"{MERGED_SCORES}.csv", index=False)
    (folder / f"{MERGED_SCORES}.json").write_text(
        '{"date": "2025-05-07", "source": "leaderboard.csv"}'
    )


def made_up(clean: pd.Series, robust: pd.Series, radii=RADII) -> pd.DataFrame:
    """Rows of a summary: accuracies that fall with eps and keep the ranks of `robust`."""

    def squash(values):
        return 1 / (1 + np.exp(-values))

    constants = {
        "threat": "Linf",
        "image_set": "imagenet-val",
        "protocol": "autoattack",
        "attack": MADE_UP,
        "n": 1000,
        "partial": 0,
    }
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": clean.index,
                    "eps": eps,
                    "clean_acc": squash(clean),
                    "robust_acc": squash(robust - i),
                }
            ).assign(**constants)
            for i, eps in enumerate(radii)
        ]
    )


def planted(scores: pd.DataFrame, seed: int = 1) -> tuple[pd.Series, pd.Series]:
    """Clean accuracy follows ImageNet-top1; robust accuracy one benchmark and minus another."""
    filled, rng = scores.fillna(scores.mean()), np.random.default_rng(seed)
    filled = (filled - filled.mean()) / filled.std()
    noise = rng.normal(size=(2, len(scores)))
    plus, minus = (
        ("Marques2020_B2013-texture_sparseness", "Against2020-top1")
        if "Against2020-top1" in scores
        else (
            "Marques2020_FreemanZiemba2013-texture_sparseness",
            "Hermann2020cueconflict-shape_bias",
        )
    )
    clean = filled["ImageNet-top1"] + noise[0]
    return clean, filled[plus] - filled[minus] + 0.3 * clean + 0.5 * noise[1]


def write_study(results: Path, scores: pd.DataFrame | None = None, radii=RADII) -> pd.DataFrame:
    """Scores and made-up accuracies with planted correlations; returns the rows of the summary."""
    scores = random_scores() if scores is None else scores
    write_scores(results, scores)
    rows = made_up(*planted(scores), radii)
    rows.to_csv(results / "evaluation_results.csv", index=False)
    return rows
