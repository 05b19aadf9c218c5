"""The ledger: the numbers that both papers claim, a row each, beside ours with a verdict.

Statistics of Feng 2025 are those of feng2025_statistics. Hoak 2025's need its table of accuracies,
which is not public. Whatever needs data that is not at hand says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from alignment_security.analysis.brainscore_leaderboard import (
    benchmark_columns,
    leaf_benchmarks,
)
from alignment_security.analysis.feng2025 import published_norm_table
from alignment_security.analysis.feng2025_statistics import (
    DIFFERS,
    NEW,
    NOT_PUBLIC,
    REPRODUCED,
    ROBUST_ROWS,
    TRUNCATED,
    text_statistics_table,
)
from alignment_security.analysis.hoak2025 import MIN_MODELS, Study, studies
from alignment_security.analysis.hoak2025_accuracies import HOAK2025_KEY, HOAK2025_TABLE
from alignment_security.analysis.hoak2025_regression import regression_rows
from alignment_security.analysis.hoak2025_statistics import robust_correlations
from alignment_security.analysis.norm_table import PUBLISHED, NormTable
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.analysis.scores import read_scores

COLUMNS = ("paper", "claim", "where", "claimed", "ours", "verdict", "why", "command")
HOAK, FENG = "Hoak 2025", "Feng 2025"
IS_REPRODUCED, IS_NOT, UNCHECKED = "reproduced", "not reproduced", "cannot be checked"
VERDICTS = {REPRODUCED: IS_REPRODUCED, DIFFERS: IS_NOT, NOT_PUBLIC: UNCHECKED}
PLOT = "plotting.py --published DIR --plots "
STATISTICS = PLOT + "text_statistics"
# the beginning of a statistic -> where the paper has it, if not in its text
PLACES = {"Table 2": "Table 2", "harmonized": "Figures 6 and 7", "models per group": "a table"}
NO_MEASURE = ("both", "count")
IN_ABSTRACT, IN_README = "abstract, README of its code", "README of its code"
MODELS, BENCHMARKS, BEHAVIORAL = 144, 105, 0.06  # Hoak 2025, arXiv v2
NO_TABLE = f"its accuracies ({HOAK2025_TABLE}) are not public"
TEXTURE_OR_SHAPE = re.compile("texture|shape", re.IGNORECASE)  # in a benchmark's name
# optimality of the attack in AttackBench's CIFAR-10 tables (attackbench/AttackBench@cb475a2,
# compiled/cifar10/{standard,wang_2023_small,zhang_2020_small}_l2.json): attack FMN
OPTIMALITY = {"Foolbox": "0.662, 0.480, 0.348", "Original": "0.976, 0.964, 0.747"}
# claims that no public file can decide, and that of the abstract: the cells of a row
FURTHER_CLAIMS = [
    (
        "Table 1, rows of harmonized networks",
        "Table 1",
        "9",
        "",
        UNCHECKED,
        "printed only: no public file holds them",
        PLOT + "tables_1_2",
    ),
    (
        "Perturbation Tolerance and human alignment of the standard and robust networks",
        "public file",
        "702 values",
        "",
        UNCHECKED,
        "which ClickMe images were attacked is not published",
        "evaluate_robustness.py --model_name NAME --head animate --dataset clickme --data_dir DIR "
        "L2 --protocol feng2025",
    ),
    (
        "images, 12 superclasses x 20 classes x 4",
        "text",
        "960",
        "960",
        UNCHECKED,
        "which 4 of a class is not published; all public standard errors are SD / sqrt(240)",
        "dataloading.py big12 --imagenet DIR",
    ),
    (
        "norm of the smallest perturbation that changes the decision",
        "abstract",
        "minimal",
        f"foolbox {OPTIMALITY['Foolbox']}; authors' code {OPTIMALITY['Original']}",
        IS_NOT,
        "foolbox's L2 FMN never projects; ours: its optimality in AttackBench, three networks",
        PLOT + "protocols_compared",
    ),
]


def claims_table(results: Results) -> pd.DataFrame:
    """A row per claim, with COLUMNS.

    Empty without the public numbers of Feng 2025.
    """
    published = published_norm_table(results)
    if published is None:
        return pd.DataFrame()
    return pd.DataFrame([*feng_claims(results, published), *hoak_claims(results)])


def claim_row(paper: str, *cells: str) -> dict[str, str]:
    """A row: the paper, then claim, where, claimed, ours, verdict, why and command."""
    return dict(zip(COLUMNS, (paper, *cells), strict=True))


# ---- Feng 2025 -----------------------------------------------------------------------------------


def feng_claims(results: Results, published: NormTable) -> Iterator[dict]:
    """The statistics of the text, and what they leave out."""
    statistics = text_statistics_table(results)
    claimed = statistics[statistics["source"].eq(PUBLISHED) & statistics["reproduces"].ne(NEW)]
    for _, row in claimed.iterrows():
        name = row["statistic"]
        places = [place for start, place in PLACES.items() if name.startswith(start)]
        yield claim_row(
            FENG,
            name if row["measure"] in NO_MEASURE else f"{name}: {row['measure']}",
            *(places or ["text"]),
            row["claimed"] or "tests of each network",
            row["recomputed"],
            VERDICTS[row["reproduces"]],
            "" if row["reproduces"] == REPRODUCED else row["rule"].removeprefix(f"{TRUNCATED}. "),
            STATISTICS,
        )
    yield robust_count(published)
    yield from (claim_row(FENG, *cells) for cells in FURTHER_CLAIMS)


def robust_count(published: NormTable) -> dict:
    """The text's number of robust networks against the public file."""
    count = int(published.rows["group"].eq("robust").sum())
    return claim_row(
        FENG,
        "adversarially trained networks",
        "text",
        str(ROBUST_ROWS),
        str(count),
        IS_REPRODUCED if count == ROBUST_ROWS else IS_NOT,
        "the public file has more, and the t-tests come out with all of them",
        STATISTICS,
    )


# ---- Hoak 2025 -----------------------------------------------------------------------------------


def hoak_claims(results: Results) -> Iterator[dict]:
    """What its abstract and its code's README say; with its own table, recomputed."""
    study, lacking = papers_study(results)
    count = str(len(study.scores)) if study else ""
    yield hoak_row("models", IN_ABSTRACT, str(MODELS), count, lacking, "robust_only_correlation")
    count, source = benchmark_count(results)
    yield hoak_row(
        "Brain-Score benchmarks", IN_ABSTRACT, str(BENCHMARKS), count, source, "benchmark_table"
    )
    yield hoak_row(
        "variance of robust accuracy explained by behavioral alignment",
        IN_README,
        f"{BEHAVIORAL:.0%}",
        explained_by_behavior(study) if study else "",
        lacking or f"fewer than {MIN_MODELS} of its models have an average of behavior",
        "regression_table",
    )
    yield claim_row(
        HOAK,
        "benchmarks of texture or shape predict robust accuracy",
        IN_ABSTRACT,
        "no number",
        surviving_by_name(study) if study else "",
        UNCHECKED,
        lacking
        or "the abstract gives no number; ours: benchmarks with texture or shape in their "
        "names, and all others, by the rule of survivors_forest",
        "plotting.py --plots robust_only_correlation survivors_forest",
    )


def hoak_row(claim: str, where: str, claimed: str, ours: str, why: str, plots: str) -> dict:
    """Reproduced if `claimed` is one of our numbers; without any, it cannot be checked."""
    verdict = UNCHECKED
    if ours:
        verdict = IS_REPRODUCED if claimed in ours.split(", ") else IS_NOT
    reason = why if verdict == UNCHECKED else ""
    return claim_row(
        HOAK, claim, where, claimed, ours, verdict, reason, f"plotting.py --plots {plots}"
    )


def papers_study(results: Results) -> tuple[Study | None, str]:
    """(the study of the paper's own table of accuracies, ""), or (None, what is missing)."""
    if not (results.folder / HOAK2025_TABLE).exists():
        return None, NO_TABLE
    try:
        found = studies(results)
    except NothingToDraw as lacking:
        return None, str(lacking)
    for study in found:
        if study.runs["attack"] == HOAK2025_KEY["attack"]:
            return study, ""
    return None, f"fewer than {MIN_MODELS} models of {HOAK2025_TABLE} have scores"


def explained_by_behavior(study: Study) -> str:
    """R2 in the sample, in percent, at each eps."""
    rows = regression_rows(study)
    if rows.empty:
        return ""
    return ", ".join(f"{r2:.0%}" for r2 in rows.loc[rows["alignment"] == "behavioral", "R2"])


def surviving_by_name(study: Study) -> str:
    """How many benchmarks survive at any eps, by whether TEXTURE_OR_SHAPE is in their names."""
    survives = robust_correlations(study).groupby("benchmark")["survives"].max()
    named = survives.index.str.contains(TEXTURE_OR_SHAPE)
    return (
        f"{survives[named].sum()} of {named.sum()} survive, of the others "
        f"{survives[~named].sum()} of {(~named).sum()}"
    )


def benchmark_count(results: Results) -> tuple[str, str]:
    """(number of benchmarks that are no averages, ""), or ("", why there are no scores)."""
    try:
        scores, _ = read_scores(results)
    except NothingToDraw:
        return "", "needs a leaderboard of Brain-Score"
    return str(len(leaf_benchmarks(benchmark_columns(scores)))), ""
