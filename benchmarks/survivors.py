"""How often benchmarks of Brain-Score seem to matter by chance, and how often planted ones do.

    python benchmarks/survivors.py                          prints, and writes survivors.json
    python benchmarks/survivors.py null --leaderboard FILE  one table, of Brain-Score's leaderboard

Tables: methods (several ways to test, some worlds), null and planted (the way in use, other
worlds), clean (benchmarks that work through clean accuracy only), shapes (accuracies that are not
normal), loose (a harder made-up leaderboard), few (few models), groups (the comparisons of Feng
2025), intervals (over families). No GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment_security.analysis.family_tests import rank_tests
from alignment_security.analysis.hoak2025 import ALPHA
from alignment_security.analysis.statistics import (
    benjamini_hochberg,
    rank_correlations,
    without_each,
)
from benchmarks.family_comparisons import few, groups, intervals
from benchmarks.family_methods import CELLWISE, GRIDWISE
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, share, update_table
from benchmarks.worlds import Board, accuracies, made_board, planted, real_board

Sizes = tuple[tuple[int, int], ...]
ICC = (0.0, 0.35, 0.65)
NULL_BOARDS = ((144, 31), (60, 8))  # models, lineages
PLANTED_BOARDS = ((60, 31), (60, 8))
RHO = 0.5
# the method is chosen on leaderboards and worlds of one seed, and measured on those of the other
CHOICE_SEED, REPORT_SEED = 1, 2
BLOCK = 250  # worlds at a time


def rejected(p: np.ndarray) -> np.ndarray:
    """Cells (..., worlds) with q <= ALPHA in each world (Benjamini & Hochberg 1995)."""
    flat = p.reshape(-1, p.shape[-1])
    return np.column_stack([benjamini_hochberg(world) <= ALPHA for world in flat.T]).reshape(
        p.shape
    )


def grid_p(
    board: Board, found: np.ndarray, method: Callable, given: np.ndarray | None = None
) -> np.ndarray:
    """p (benchmarks, outcomes, worlds) of `method(score, outcomes, families, given)`."""
    count, worlds = found.shape[1:]
    p = np.full((board.scores.shape[1], count, worlds), np.nan)
    for i, scores in enumerate(board.scores.T):
        known = board.known(i)
        flat = found[known].reshape(known.sum(), -1)
        arguments = [scores[known], flat, board.families[known]]
        if given is not None:
            arguments.append(np.tile(given[known], count))
        p[i] = method(*arguments).reshape(count, worlds)
    return p


def family_p(
    score: np.ndarray, found: np.ndarray, families: np.ndarray, given: np.ndarray | None = None
) -> np.ndarray:
    """p (r,) of the test in use."""
    return rank_tests(score, found, families, given).p


def independent_p(score: np.ndarray, found: np.ndarray, families: np.ndarray) -> np.ndarray:
    """p (r,) of Spearman's correlation as if models were independent."""
    return rank_tests(score, found, families, independent=True).p


def one_sign(board: Board, found: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The hits (benchmarks, outcomes, worlds) of one sign whichever family is left out."""
    stable = hits.copy()
    for i, j, world in np.argwhere(hits):
        known = board.known(i)
        columns = np.column_stack([board.scores[known, i], found[known, j, world]])
        rho = rank_correlations(columns, without_each(board.families[known])[1])[:, 0, 1]
        stable[i, j, world] = np.nanmin(rho) * np.nanmax(rho) > 0
    return stable


def survive(board: Board, found: np.ndarray) -> dict[str, np.ndarray]:
    """Marks (benchmarks, outcomes, worlds) of worlds (models, OUTCOMES, worlds).

    independent, dots: q over the grid, of either test
    partial            dots given clean accuracy; none for clean accuracy
    survivors          the rule of `hoak2025_statistics.survival`
    """
    dots = rejected(grid_p(board, found, family_p))
    given_clean = np.zeros_like(dots)
    given_clean[:, 1:] = rejected(grid_p(board, found[:, 1:], family_p, given=found[:, 0]))
    under_attack = dots.copy()
    under_attack[:, 0] = False
    return {
        "independent": rejected(grid_p(board, found, independent_p)),
        "dots": dots,
        "partial": given_clean,
        "survivors": one_sign(board, found, under_attack & given_clean),
    }


def in_blocks(worlds: int, seed: int, run: Callable[[int, np.random.Generator], dict]) -> dict:
    """Concatenated results of `run(worlds of a block, generator)`."""
    rng = np.random.default_rng(seed)
    blocks = [run(min(BLOCK, worlds - start), rng) for start in range(0, worlds, BLOCK)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


# ---- null and planted worlds ---------------------------------------------------------------------


def null_cell(board: Board, icc: float, worlds: int, seed: int, shape: str = "normal") -> dict:
    """Shares of null worlds with any false mark, and false marks in a world."""

    def run(count: int, rng: np.random.Generator) -> dict:
        marks = survive(board, accuracies(board.families, icc, count, rng, shape))
        return {name: mark.sum(axis=(0, 1)) for name, mark in marks.items()}

    counts = in_blocks(worlds, seed, run)
    return {
        "worlds_with_any": {name: share(count > 0) for name, count in counts.items()},
        "in_a_world": {name: share(count) for name, count in counts.items()},
    }


def planted_cell(board: Board, icc: float, worlds: int, seed: int) -> dict:
    """Shares of worlds in which the planted benchmark is found, at any eps."""

    def run(count: int, rng: np.random.Generator) -> dict:
        noise = accuracies(board.families, icc, count, rng)
        found, chosen = planted(board, RHO, noise, rng)
        at = np.arange(count)
        marks = survive(board, found).items()
        return {name: mark[chosen, 1:, at].any(axis=1) for name, mark in marks}

    hits = in_blocks(worlds, seed, run)
    known = hits["independent"]
    return {
        "found": {name: share(hit) for name, hit in hits.items()},
        "of_those_found_as_independent": {
            name: share(hit[known]) for name, hit in hits.items() if name != "independent"
        },
    }


def clean_cell(board: Board, icc: float, worlds: int, seed: int) -> dict:
    """Accuracy under attack is clean accuracy and noise, and clean accuracy follows a benchmark."""

    def run(count: int, rng: np.random.Generator) -> dict:
        noise = accuracies(board.families, icc, count, rng)
        follows, chosen = planted(board, RHO, noise[:, ::-1], rng)
        found = noise.copy()
        found[:, 0] = follows[:, -1]
        found[:, 1:] = 0.8 * found[:, :1] + 0.6 * accuracies(board.families, icc, count, rng)[:, 1:]
        at = np.arange(count)
        marks = survive(board, found).items()
        return {name: mark[chosen, 1:, at].any(axis=1) for name, mark in marks}

    return {name: share(hit) for name, hit in in_blocks(worlds, seed, run).items()}


def of_ranks(
    method: Callable, score: np.ndarray, found: np.ndarray, families: np.ndarray
) -> np.ndarray:
    """p (r,) of a method of CELLWISE, of scores and accuracies."""
    return method(stats.rankdata(score), stats.rankdata(found, axis=0), families)


def method_marks(board: Board, found: np.ndarray, rng: np.random.Generator) -> dict:
    """Method -> marks (benchmarks, outcomes, worlds)."""
    ranked = [stats.rankdata(scores[~np.isnan(scores)]) for scores in board.scores.T]
    x = np.zeros(board.scores.shape)
    for i, ranks in enumerate(ranked):
        x[board.known(i), i] = ranks - ranks.mean() + 1e-6  # 0 is kept for no score
    marks = {}
    for name, method in CELLWISE.items():
        with np.errstate(all="ignore"):
            marks[name] = rejected(grid_p(board, found, partial(of_ranks, method)))
    y = stats.rankdata(found, axis=0) - (len(found) + 1) / 2
    for name, resample in GRIDWISE.items():
        worlds = [resample(x, world, board.families, rng) for world in np.moveaxis(y, 2, 0)]
        marks[name] = np.stack(worlds, axis=2) <= ALPHA
    return marks


def methods_cell(null: Board, planted_board: Board, icc: float, worlds: int, seed: int) -> dict:
    """Method -> share of null worlds with any mark, and of planted effects found."""

    def run(count: int, rng: np.random.Generator) -> dict:
        found = accuracies(null.families, icc, count, rng)
        false = method_marks(null, found, rng)
        noise = accuracies(planted_board.families, icc, count, rng)
        found, chosen = planted(planted_board, RHO, noise, rng)
        true, at = method_marks(planted_board, found, rng), np.arange(count)
        hits = {f"hit {name}": mark[chosen, 1:, at].any(axis=1) for name, mark in true.items()}
        return hits | {f"any {name}": mark.any(axis=(0, 1)) for name, mark in false.items()}

    results = in_blocks(worlds, seed, run)
    known = results["hit independent models"]
    return {
        name: {
            "null_worlds_with_any": share(results[f"any {name}"]),
            "planted_found": share(results[f"hit {name}"]),
            "of_those_found_as_independent": share(results[f"hit {name}"][known]),
        }
        for name in [*CELLWISE, *GRIDWISE]
    }


# ---- tables --------------------------------------------------------------------------------------


def board_of(
    args: argparse.Namespace, models: int, lineages: int, seed: int = REPORT_SEED
) -> Board:
    """A part of args.leaderboard, or scores that are made up."""
    if args.leaderboard:
        return real_board(args.leaderboard, models, lineages, seed)
    return made_board(models, lineages, seed, args.loose)


def cell_name(models: int, lineages: int, icc: float) -> str:
    return f"{models} models of {lineages} lineages, icc {icc}"


def over_cells(args: argparse.Namespace, boards: Sizes, cell: Callable, **options: Any) -> dict:
    """`cell` of every board and intraclass correlation."""
    return {
        cell_name(*size, icc): cell(board_of(args, *size), icc, args.worlds, REPORT_SEED, **options)
        for size in boards
        for icc in ICC
    }


def methods(args: argparse.Namespace) -> dict:
    """Several ways to test."""
    return {
        f"{null[1]} lineages, icc {icc}": methods_cell(
            board_of(args, *null, CHOICE_SEED),
            board_of(args, *with_effect, CHOICE_SEED),
            icc,
            args.worlds,
            CHOICE_SEED,
        )
        for null, with_effect in zip(NULL_BOARDS, PLANTED_BOARDS)
        for icc in ICC
    }


def null(args: argparse.Namespace) -> dict:
    """Accuracies that have nothing to do with scores of the same families."""
    return over_cells(args, NULL_BOARDS, null_cell)


def planted_effects(args: argparse.Namespace) -> dict:
    """Accuracies under attack that follow one benchmark."""
    return over_cells(args, PLANTED_BOARDS, planted_cell)


def clean(args: argparse.Namespace) -> dict:
    """A benchmark that works through clean accuracy only."""
    return over_cells(args, PLANTED_BOARDS, clean_cell)


def shapes(args: argparse.Namespace) -> dict:
    """Null worlds of accuracies that are not normal."""
    return {
        shape: over_cells(args, NULL_BOARDS, null_cell, shape=shape)
        for shape in ("heavy", "unequal", "floor")
    }


def loose(args: argparse.Namespace) -> dict:
    """`null` and `planted` with benchmarks that are less alike and more alike in a family."""
    return {"null": null(args), "planted": planted_effects(args)}


# table -> (function, its share of --worlds)
TABLES: dict[str, tuple[Callable[[argparse.Namespace], dict], float]] = {
    "null": (null, 1),
    "planted": (planted_effects, 1),
    "methods": (methods, 0.25),
    "clean": (clean, 0.25),
    "shapes": (shapes, 0.25),
    "loose": (loose, 0.25),
    "few": (lambda args: few(args.worlds), 5),
    "groups": (lambda args: groups(args.worlds), 0.25),
    "intervals": (lambda args: intervals(NULL_BOARDS, ICC, RHO, args.worlds), 0.25),
}


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser(__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="default: all")
    parser.add_argument("--leaderboard", type=Path, help="Brain-Score's, instead of a made-up one")
    parser.add_argument("--worlds", type=int, default=1000, help="of a cell (default: 1000)")
    args = parser.parse_args(argv)
    total, suffix = args.worlds, f", {args.leaderboard.name}" if args.leaderboard else ""
    for name in args.tables or TABLES:
        function, part = TABLES[name]
        args.loose = name == "loose"
        args.worlds = 12 if args.quick else max(1, round(part * total))
        table = {"worlds": args.worlds, "cells": function(args), "machine": machine()}
        update_table(name + suffix, table, output_file(args, __file__))


if __name__ == "__main__":
    main()
