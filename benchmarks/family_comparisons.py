"""Few models, groups of models and intervals over families, for benchmarks/survivors.py."""

from __future__ import annotations

import numpy as np
from scipy import stats

from alignment_security.analysis.family_tests import group_test, rank_tests
from alignment_security.analysis.feng2025_statistics import GROUP_TESTS
from alignment_security.analysis.statistics import (
    expanded_interval,
    family_counts,
    percentile_interval,
    rank_correlations,
    welch_test,
)
from alignment_security.models.families import lineage
from alignment_security.models.lists import read_model_list
from benchmarks.output import share
from benchmarks.worlds import made_board

SEED = 2


def few(worlds: int) -> dict:
    """Null worlds of a few independent models: share of p <= 0.05 and <= 0.001."""
    rng, found = np.random.default_rng(SEED), {}
    for models in (5, 6, 10, 20):
        x = rng.normal(size=models)
        y = rng.normal(size=(models, worlds))
        p = {
            "t": np.array([stats.spearmanr(x, outcome).pvalue for outcome in y.T]),
            "permutations": rank_tests(x, y, np.arange(models), independent=True).p,
        }
        found[f"{models} models"] = {
            name: {"0.05": share(values <= 0.05), "0.001": share(values <= 0.001)}
            for name, values in p.items()
        }
    return found


def groups(worlds: int) -> dict:
    """The groups of Feng 2025 without any difference: share of p <= 0.05, Welch and over families.

    The errors of the first group are as wide, three times as wide, or a third as wide.
    """
    listed = read_model_list("feng2025")
    families = listed["name"].map(lineage).to_numpy()
    rows = listed.assign(value=np.arange(float(len(listed))))
    rng, found = np.random.default_rng(SEED), {}
    for test in GROUP_TESTS:
        first, second = (sample.index.to_numpy() for sample in test.samples(rows, "value"))
        models = np.concatenate([first, second])
        in_first = np.arange(len(models)) < len(first)
        for icc in (0, 0.35, 0.65):
            for wide in (1, 3, 1 / 3):
                p = group_p(families[models], in_first, icc, wide, worlds, rng)
                found[f"{test.name}, icc {icc}, first {wide:.2g} times as wide"] = {
                    name: share(values <= 0.05) for name, values in p.items()
                }
    return found


def group_p(
    families: np.ndarray,
    in_first: np.ndarray,
    icc: float,
    wide: float,
    worlds: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """p of Welch's test and of `group_test` in null worlds."""
    place = np.unique(families, return_inverse=True)[1]
    effects = rng.normal(size=(place.max() + 1, worlds))[place]
    errors = rng.normal(size=effects.shape) * np.where(in_first, wide, 1)[:, None]
    values = np.sqrt(icc) * effects + np.sqrt(1 - icc) * errors
    return {
        "welch": np.array([welch_test(v[in_first], v[~in_first])[2] for v in values.T]),
        "families": np.array([group_test(in_first, v, families) for v in values.T]),
    }


def intervals(boards: tuple, iccs: tuple, planted_rho: float, worlds: int) -> dict:
    """Share of 95 % intervals over families that miss the correlation, and their mean length.

    boards   (models, lineages) of each
    """
    found = {}
    for models, lineages in boards:
        families = made_board(models, lineages).families
        for icc in iccs:
            for rho in (0, planted_rho):
                name = f"{models} models of {lineages} lineages, icc {icc}, rho {rho}"
                found[name] = interval_cell(families, icc, rho, worlds)
    return found


def interval_cell(families: np.ndarray, icc: float, rho: float, worlds: int) -> dict:
    """Kind of interval -> share that miss, mean length; normal values of correlation rho."""
    rng, place = np.random.default_rng(SEED), np.unique(families, return_inverse=True)[1]
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's (Kruskal 1958)
    ends: dict[str, list] = {"percentile": [], "expanded": []}
    for world in range(worlds):
        effects, errors = (
            rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], count)
            for count in (place.max() + 1, len(place))
        )
        columns = np.sqrt(icc) * effects[place] + np.sqrt(1 - icc) * errors
        drawn = rank_correlations(columns, family_counts(families, seed=world))[:, 0, 1]
        ends["percentile"].append(percentile_interval(drawn))
        ends["expanded"].append(expanded_interval(drawn, place.max() + 1))
    return {
        kind: {
            "miss": share([not low <= truth <= high for low, high in found]),
            "length": share([high - low for low, high in found]),
        }
        for kind, found in ends.items()
    }
