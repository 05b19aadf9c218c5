"""The statistics of the text of Feng et al. (2025), claimed and recomputed.

Recomputed from the public numbers (--published); the same statistics of our own norms follow, a row
each. Welch's t-tests between groups of models are GROUP_TESTS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from alignment_security.analysis.family_tests import group_test
from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURE_NAMES,
    MEASURES,
    correlation,
    correlation_tests,
    interval_text,
    norm_tables,
)
from alignment_security.analysis.feng2025_harmonized import harmonized_pairs, paired_test
from alignment_security.analysis.feng2025_tables import robust_table
from alignment_security.analysis.norm_table import NOT_STANDARD, PUBLISHED, NormTable
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import welch_test
from alignment_security.models.families import lineage

NUMBERS = ("value", "df", "p", "families", "family_p")  # columns of a statistic
REPRODUCED, DIFFERS, NOT_PUBLIC, NEW = "yes", "no", "not public", ""  # values of `reproduces`
TRUNCATED = "Welch; df truncated to an integer, as in the paper"


@dataclass(frozen=True)
class GroupTest:
    """A t-test of the paper's text between two groups of models, and what the text claims."""

    name: str
    groups: str  # how the two groups are made up
    first: str
    second: str | None  # None: all other standard models
    claims: dict[str, str]  # measure -> what the text prints

    def samples(self, rows: pd.DataFrame, measure: str) -> tuple[pd.Series, pd.Series]:
        """The measure of the models of either group that have it."""
        first = rows["group"].eq(self.first)
        if self.second is None:
            second = ~rows["group"].isin([self.first, *NOT_STANDARD])
        else:
            second = rows["group"].eq(self.second)
        return rows.loc[first, measure].dropna(), rows.loc[second, measure].dropna()


GROUP_TESTS = [
    GroupTest(
        "SSL vs Other",
        "Other: standard models that are not SSL",
        first="SSL",
        second=None,
        claims={"pt": "T(65) = 7.85", "alignment": "T(98) = -7.49"},
    ),
    GroupTest(
        "robust vs Other",
        "Other: all standard models, SSL among them. The text speaks of 33 robust nets; its t "
        "comes out with all 42 of the public file",
        first="robust",
        second=None,
        claims={"pt": "T(41) = 6.41", "alignment": "T(106) = 20.85", "accuracy": "T(45) = -8"},
    ),
    GroupTest(
        "ViT vs CNN",
        "our own reading of names: the paper does not list its groups",
        first="ViT",
        second="CNN",
        claims={"pt": "T(163) = 9.11", "alignment": "T(153) = -12.5"},
    ),
]
SPEARMAN_CLAIMS = {"pt": 0.81, "alignment": -0.74}  # with multi-label accuracy
# human alignment of the model at either end of the order by accuracy
EXTREME_CLAIMS = {"most accurate": -0.03, "least accurate": 0.22}
ROBUST_ROWS = 33  # of Table 2
GROUPS, GROUP_SIZES = ("CNN", "ViT", "Hybrid", "SSL"), "125, 78, 52, 54"
# by how many percent the most accurate standard model exceeds the best and the worst robust one
ACCURACY_GAP = "11.24 to 46.62"
# the test of models trained on more data, whose group is not listed
BIG_DATA_CLAIMS = {"pt": "T(32) = 5.65", "alignment": "T(40) = -2.54, p = 0.015"}


# ---- statistics of the text ----------------------------------------------------------------------


def text_statistics_table(results: Results) -> pd.DataFrame:
    """Every statistic of the text, a row each: claimed, recomputed, whether it reproduces, rule.

    First of the public numbers, then the same of each protocol of ours. Empty without norms.
    """
    rows: list[dict] = []
    for table in norm_tables(results):
        of_the_paper = table.name == PUBLISHED
        rows += correlation_rows(table, of_the_paper)
        rows += group_test_rows(table, of_the_paper)
        if of_the_paper:
            rows += extreme_rows(table)
            rows += robust_table_rows(results)
            rows += harmonization_rows(results)
            rows += big_data_rows()
            rows.append(group_size_row(table))
            rows += accuracy_gap_rows(table)
    return pd.DataFrame(rows)


def statistic_row(
    source: str,
    statistic: str,
    measure: str,
    *,
    claimed: str,
    recomputed: str,
    rule: str,
    reproduces: str | None = None,
    numbers: dict[str, float] | None = None,
    n: str = "",
) -> dict:
    """A row of the table of statistics; texts as the paper prints them.

    reproduces   by default the verdict on what is claimed and recomputed
    numbers      those of NUMBERS that the statistic has, in full
    """
    return {
        "source": source,
        "statistic": statistic,
        "measure": MEASURE_NAMES.get(measure, measure),
        "claimed": claimed,
        "recomputed": recomputed,
        "reproduces": verdict(claimed, recomputed) if reproduces is None else reproduces,
        **dict.fromkeys(NUMBERS, np.nan),
        **(numbers or {}),
        "n": n,
        "rule": rule,
    }


def welch_text(t: float, df: float) -> str:
    """A t-test as the paper prints it: degrees of freedom truncated, not rounded."""
    return f"T({int(df)}) = {t:.2f}"


def verdict(claimed: str, recomputed: str) -> str:
    """Whether a claim reproduces to the digits printed; NEW without a claim."""
    if not claimed:
        return NEW
    return REPRODUCED if claimed == recomputed else DIFFERS


def group_test_rows(table: NormTable, of_the_paper: bool) -> Iterator[dict]:
    """Welch's t-tests between groups of models, for each measure that both groups have."""
    for test in GROUP_TESTS:
        for measure, claim in test.claims.items():
            first, second = test.samples(table.rows, measure)
            t, df, p = welch_test(first.to_numpy(), second.to_numpy())
            if np.isnan(t):
                continue
            estimated = table.rows.loc[[*first.index, *second.index], "estimated"].sum()
            note = f"; {estimated} of them estimated from top-1" if measure == "accuracy" else ""
            yield statistic_row(
                table.source,
                test.name,
                measure,
                claimed=claim if of_the_paper else "",
                recomputed=welch_text(t, df),
                rule=f"{TRUNCATED}. {test.groups}{note}",
                numbers={"value": t, "df": df, "p": p}
                | group_test_over_families(table.rows["model"], first, second),
                n=f"{len(first)}, {len(second)}",
            )


def group_test_over_families(
    models: pd.Series, first: pd.Series, second: pd.Series
) -> dict[str, float]:
    """The same two samples with a random intercept per family (`group_test`).

    models          names
    first, second   values, with the index of `models`
    Returns families, the number of families in both, and family_p.
    """
    values = pd.concat([first, second])
    families = models[values.index].map(lineage).to_numpy()
    in_first = np.arange(len(values)) < len(first)
    p = group_test(in_first, values.to_numpy(float), families)
    return {"families": len(set(families)), "family_p": p}


def correlation_rows(table: NormTable, of_the_paper: bool) -> Iterator[dict]:
    """Spearman with accuracy over all standard models, and over those with a measured accuracy."""
    label = table.accuracy_label.split(" (")[0]
    views = [(table.standard, f"Spearman with {label}", of_the_paper)]
    if table.standard["estimated"].any():
        measured = table.standard[~table.standard["estimated"]]
        views.append((measured, f"Spearman with {label}, measured accuracies only", False))
    for rows, statistic, has_claim in views:
        for measure in MEASURES:
            found = correlation(rows, "accuracy", measure)
            if np.isnan(found["rho"]):
                continue
            yield statistic_row(
                table.source,
                statistic,
                measure,
                claimed=f"{SPEARMAN_CLAIMS[measure]:.2f}" if has_claim else "",
                recomputed=f"{found['rho']:.2f}",
                rule=f"{rows['estimated'].sum()} accuracies estimated from top-1; 95 % bootstrap "
                f"interval{interval_text(found, 3) or ' unknown'}",
                numbers={"value": found["rho"]} | correlation_tests(rows, "accuracy", measure),
                n=str(found["n"]),
            )


def extreme_rows(table: NormTable) -> Iterator[dict]:
    """Human alignment of the most and of the least accurate standard model."""
    known = table.standard.dropna(subset=["accuracy"]).sort_values("accuracy")
    if len(known) < FEWEST:
        return
    for name, row in (("most accurate", known.iloc[-1]), ("least accurate", known.iloc[0])):
        yield statistic_row(
            PUBLISHED,
            f"{name} model",
            "alignment",
            claimed=f"{EXTREME_CLAIMS[name]:.2f}",
            recomputed=f"{row['alignment']:.2f}",
            rule=row["model"],
            numbers={"value": row["alignment"]},
            n="1",
        )


def harmonization_rows(results: Results) -> Iterator[dict]:
    """Figures 6 and 7. The paper's baselines are not public, so this test is ours."""
    pairs = harmonized_pairs(results)
    if pairs.empty:
        return
    for measure in MEASURES:
        test = paired_test(pairs, measure)
        yield statistic_row(
            PUBLISHED,
            "harmonized vs baseline (Figures 6 and 7)",
            measure,
            claimed="",
            recomputed=f"{test['difference']:+.2f}",
            reproduces=NOT_PUBLIC,
            rule="the paper's baselines are not public; mean difference to the public models of "
            "the same architecture, Wilcoxon's signed ranks over architectures",
            numbers={"value": test["difference"], "p": test["p"]},
            n=str(test["n"]),
        )


def robust_table_rows(results: Results) -> Iterator[dict]:
    """Table 2 against the public file, row for row."""
    table = robust_table(results)
    if table is None or table["equal"].eq("").all():
        return
    equal = int(table["equal"].eq("yes").sum())
    yield statistic_row(
        PUBLISHED,
        "Table 2, rows equal",
        "both",
        claimed=str(ROBUST_ROWS),
        recomputed=str(equal),
        rule="four decimals of PT, two of the alignment in percent, and their standard errors",
        numbers={"value": equal},
        n=str(len(table)),
    )


def big_data_rows() -> Iterator[dict]:
    """The tests of models trained on more data, whose group is not public."""
    for measure, claimed in BIG_DATA_CLAIMS.items():
        yield statistic_row(
            PUBLISHED,
            "Big Data vs Other",
            measure,
            claimed=claimed,
            recomputed="",
            reproduces=NOT_PUBLIC,
            rule="the paper does not list its Big Data models",
        )


def group_size_row(table: NormTable) -> dict:
    """How many standard models are in each group; ours is a reading of their names."""
    counts = table.standard["group"].value_counts()
    return statistic_row(
        PUBLISHED,
        f"models per group ({', '.join(GROUPS)})",
        "count",
        claimed=GROUP_SIZES,
        recomputed=", ".join(str(counts.get(group, 0)) for group in GROUPS),
        rule="the paper does not list which models are in a group: ours is a reading of names",
        n=str(len(table.standard)),
    )


def accuracy_gap_rows(table: NormTable) -> Iterator[dict]:
    """How far the most accurate standard model is above the best and the worst robust one."""
    best = table.standard["accuracy"].max()
    robust = table.rows.loc[table.rows["group"].eq("robust"), "accuracy"].dropna()
    if np.isnan(best) or robust.empty:
        return
    yield statistic_row(
        PUBLISHED,
        "most accurate standard model above robust ones (%)",
        "accuracy",
        claimed=ACCURACY_GAP,
        recomputed=f"{best - robust.max():.2f} to {best - robust.min():.2f}",
        rule="our reading of the sentence; accuracies of robust nets are estimated from top-1",
        n=str(len(robust)),
    )
