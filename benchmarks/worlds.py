"""Made-up worlds for benchmarks/survivors.py: a leaderboard, families of models, and accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from alignment_security.analysis.brainscore_leaderboard import (
    benchmark_columns,
    drop_repeats,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.family_tests import FEW_MODELS
from alignment_security.models.families import lineage

BENCHMARKS, GROUPS = 130, 10
OUTCOMES = 4  # clean accuracy, and accuracy at three eps
# correlation of each with what they have in common: 0.8 between any two eps, 0.4 with clean
COMMON = np.sqrt([[0.2], [0.8], [0.8], [0.8]])
MOSTLY_KNOWN = 0.9  # share of the models that have a benchmark in which an effect is planted


@dataclass(frozen=True)
class Board:
    """Scores of models of families."""

    scores: np.ndarray  # (models, benchmarks); nan: no score
    families: np.ndarray  # (models,) names

    def known(self, i: int) -> np.ndarray:
        """(models,) bool: which models have benchmark i."""
        return ~np.isnan(self.scores[:, i])


def with_enough(board: Board) -> Board:
    """Without the benchmarks that fewer than FEW_MODELS models have, or that do not vary."""
    scores = board.scores[:, (~np.isnan(board.scores)).sum(axis=0) >= FEW_MODELS]
    varies = np.nanmax(scores, axis=0) > np.nanmin(scores, axis=0)
    return Board(scores[:, varies], board.families)


def made_board(models: int, lineages: int, seed: int = 0, loose: bool = False) -> Board:
    """Scores with the structure of Brain-Score's leaderboard, all of them made up.

    Sizes of families fall as 1 / rank. A good model is good at most benchmarks, and most of all at
    those of one group; a third of the variance of a benchmark lies between families, and a fifth
    of the scores are missing.

    loose   benchmarks that are less alike than Brain-Score's, of which some are nearly the same in
            a family: harder for every test
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, lineages + 1)
    place = np.append(
        np.arange(lineages), rng.choice(lineages, models - lineages, p=share / share.sum())
    )
    icc = rng.beta(1.5, 3, BENCHMARKS) if loose else rng.beta(5, 9, BENCHMARKS)
    loading = rng.uniform(-0.2, 0.9, BENCHMARKS)
    group = np.arange(BENCHMARKS) * GROUPS // BENCHMARKS
    in_group = 0 if loose else np.sqrt(0.8)

    def factor(count: int) -> np.ndarray:
        common, own = rng.normal(size=(count, 1)), rng.normal(size=(count, BENCHMARKS))
        own = in_group * rng.normal(size=(count, GROUPS))[:, group] + np.sqrt(1 - in_group**2) * own
        return loading * common + np.sqrt(1 - loading**2) * own

    scores = np.sqrt(icc) * factor(lineages)[place] + np.sqrt(1 - icc) * factor(models)
    missing = rng.random(scores.shape) < rng.uniform(0, 0.4, BENCHMARKS)
    scores[missing] = np.nan
    return with_enough(Board(scores, np.char.add("family", place.astype(str))))


def real_board(path: Path, models: int, lineages: int, seed: int = 0) -> Board:
    """Models of the largest lineages of a leaderboard file, at least one of each.

    Drawn from the models that have half of the benchmarks, the others if a lineage has none.
    """
    kept, _ = drop_repeats(read_leaderboard(path)[0])
    table = score_numbers(kept[benchmark_columns(kept)])
    families = kept["model_name"].map(lineage)
    full = table.notna().mean(axis=1) >= 0.5
    largest = families.value_counts().index[:lineages]
    rng = np.random.default_rng(seed)
    chosen = []
    for name in largest:
        of_it = table.index[families.eq(name)]
        best = of_it[full[of_it]]
        chosen.append(rng.choice(best if len(best) else of_it))
    rest = table.index[families.isin(largest) & full].difference(chosen)
    chosen += list(rng.permutation(rest)[: models - lineages])
    return with_enough(Board(table.loc[chosen].to_numpy(float), families[chosen].to_numpy(str)))


def accuracies(
    families: np.ndarray, icc: float, worlds: int, rng: np.random.Generator, shape: str = "normal"
) -> np.ndarray:
    """(models, OUTCOMES, worlds): accuracies that have nothing to do with any score.

    icc     share of their variance that lies between families
    shape   normal; heavy: t with 3 degrees of freedom; unequal: errors twice as wide in every
            second family; floor: half of the models at the same lowest accuracy
    """
    place = np.unique(families, return_inverse=True)[1]

    def normal(count: int) -> np.ndarray:
        common, own = (
            rng.normal(size=(count, 1, worlds)),
            rng.normal(size=(count, OUTCOMES, worlds)),
        )
        values = COMMON * common + np.sqrt(1 - COMMON**2) * own
        if shape == "heavy":
            values = values / np.sqrt(rng.chisquare(3, (count, 1, worlds)) / 3)
        return values

    errors = normal(len(families))
    if shape == "unequal":
        errors = errors * np.where(place % 2, 2, 1)[:, None, None]
    found = np.sqrt(icc) * normal(place.max() + 1)[place] + np.sqrt(1 - icc) * errors
    if shape == "floor":
        found = np.maximum(found, np.median(found, axis=0))
    return found


def planted(
    board: Board, rho: float, noise: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (models, OUTCOMES, worlds) of which those under attack follow one benchmark.

    rho     correlation of normal scores of the benchmark with accuracy under attack
    noise   of `accuracies`
    Returns them and the benchmark (worlds,) of each world, one that most models have. A model
    without a score has the median.
    """
    candidates = np.flatnonzero((~np.isnan(board.scores)).mean(axis=0) >= MOSTLY_KNOWN)
    chosen = rng.choice(candidates, noise.shape[2])
    filled = pd.DataFrame(board.scores).fillna(pd.DataFrame(board.scores).median()).to_numpy()
    quantiles = (stats.rankdata(filled, axis=0) - 0.375) / (len(filled) + 0.25)
    scores = stats.norm.ppf(quantiles)
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    found = noise.copy()
    found[:, 1:] = rho * scores[:, None, chosen] + np.sqrt(1 - rho**2) * noise[:, 1:]
    return found, chosen
