"""Tables 1 and 2 of Feng et al. (2025), and the statistics of its text: as claimed, recomputed, and what does not reproduce.

Everything is recomputed from public numbers (--published); the same statistics of our own norms stand below, a row each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    PUBLISHED,
    NormTable,
    correlation,
    harmonized_pairs,
    norm_tables,
    paired_test,
    paper_tables,
)
from alignment_security.analysis.results import Results
from alignment_security.analysis.statistics import correlation_p, welch_test

TABLE_HEADINGS = {"pt": "Perturbation Tolerance", "alignment": "human alignment"}
NOT_PUBLIC, REPRODUCED, DIFFERS, NEW = "not public", "yes", "no", ""
TRUNCATED = "Welch; df truncated to an integer, as in the paper"
# two groups of the text: what they are, (first, second) masks, and the claims (measure -> T, df)
COMPARISONS: list[tuple[str, str, Callable, Callable, dict[str, tuple[float, int]]]] = [
    (
        "SSL vs Other",
        "Other: standard models that are not SSL",
        lambda rows: rows["group"].eq("SSL"),
        lambda rows: ~rows["group"].isin(["SSL", "robust", "harmonized"]),
        {"pt": (7.85, 65), "alignment": (-7.49, 98)},
    ),
    (
        "robust vs Other",
        "Other: all standard models, SSL among them",
        lambda rows: rows["group"].eq("robust"),
        lambda rows: ~rows["group"].isin(["robust", "harmonized"]),
        {"pt": (6.41, 41), "alignment": (20.85, 106)},
    ),
    (
        "ViT vs CNN",
        "our own reading of names: the paper does not list its groups",
        lambda rows: rows["group"].eq("ViT"),
        lambda rows: rows["group"].eq("CNN"),
        {"pt": (9.11, 163)},
    ),
]
SPEARMAN = {"pt": 0.81, "alignment": -0.74}  # with multi-label accuracy
EXTREMES = {"most accurate": -0.03, "least accurate": 0.22}  # human alignment of those models
ROBUST_ROWS = 33  # of Table 2


# ---- rows of the table -----------------------------------------------------------------------------------------


def statistic_row(
    source: str,
    statistic: str,
    measure: str,
    claimed: str,
    recomputed: str,
    verdict: str,
    rule: str,
    **numbers,
) -> dict:
    return {
        "source": source,
        "statistic": statistic,
        "measure": TABLE_HEADINGS.get(measure, measure),
        "claimed": claimed,
        "recomputed": recomputed,
        "reproduces": verdict,
        "value": numbers.get("value", np.nan),
        "df": numbers.get("df", np.nan),
        "p": numbers.get("p", np.nan),
        "n": numbers.get("n", ""),
        "rule": rule,
    }


def welch_text(t: float, df: float) -> str:
    """As the paper prints a t-test: degrees of freedom truncated, not rounded."""
    return f"T({int(df)}) = {t:.2f}"


def verdict(claimed: str, recomputed: str, of_the_paper: bool) -> str:
    if not of_the_paper or not claimed:
        return NEW
    return REPRODUCED if claimed == recomputed else DIFFERS


def comparisons(source: NormTable, of_the_paper: bool) -> Iterator[dict]:
    """Welch's tests of the text, for each measure that both groups have."""
    for name, groups, first, second, claims in COMPARISONS:
        for measure in MEASURES:
            samples = [
                source.rows.loc[mask(source.rows), measure].dropna() for mask in (first, second)
            ]
            t, df, p = welch_test(*samples)
            claimed = welch_text(*claims[measure]) if of_the_paper and measure in claims else ""
            if np.isfinite(t):
                recomputed = welch_text(t, df)
                yield statistic_row(
                    source.rows["source"].iat[0],
                    name,
                    measure,
                    claimed,
                    recomputed,
                    verdict(claimed, recomputed, of_the_paper),
                    f"{TRUNCATED}. {groups}",
                    value=t,
                    df=df,
                    p=p,
                    n=", ".join(str(len(sample)) for sample in samples),
                )


def correlations(source: NormTable, of_the_paper: bool) -> Iterator[dict]:
    """Spearman with accuracy over the standard models: all of them, and without those whose accuracy is estimated."""
    views = [(source.standard, "")]
    if source.standard["estimated"].any():
        views.append((source.standard[~source.standard["estimated"]], ", measured accuracies only"))
    for rows, what in views:
        for measure in MEASURES:
            found = correlation(rows, "accuracy", measure)
            claimed = f"{SPEARMAN[measure]:.2f}" if of_the_paper and not what else ""
            if found["n"] >= FEWEST:
                recomputed = f"{found['rho']:.2f}"
                yield statistic_row(
                    source.rows["source"].iat[0],
                    f"Spearman with {source.accuracy_label.split(' (')[0]}{what}",
                    measure,
                    claimed,
                    recomputed,
                    verdict(claimed, recomputed, of_the_paper),
                    f"{rows['estimated'].sum()} accuracies estimated from top-1; 95 % bootstrap interval "
                    f"[{found['low']:.3f}, {found['high']:.3f}]",
                    value=found["rho"],
                    p=correlation_p(found["rho"], int(found["n"])),
                    n=str(found["n"]),
                )


def extremes(source: NormTable) -> Iterator[dict]:
    """Human alignment of the most and of the least accurate standard model."""
    known = source.standard.dropna(subset=["accuracy"]).sort_values("accuracy")
    for place, (name, claimed) in zip((-1, 0), EXTREMES.items()):
        if len(known) >= FEWEST:
            model, value = known["model"].iat[place], known["alignment"].iat[place]
            yield statistic_row(
                PUBLISHED,
                f"{name} model",
                "alignment",
                f"{claimed:.2f}",
                f"{value:.2f}",
                verdict(f"{claimed:.2f}", f"{value:.2f}", True),
                model,
                value=value,
                n="1",
            )


def harmonization(results: Results) -> Iterator[dict]:
    """Figures 6 and 7: the paper's baselines are not public, so the test is one of our own."""
    pairs = harmonized_pairs(results)
    for measure in MEASURES if len(pairs) else ():
        test = paired_test(pairs, measure)
        yield statistic_row(
            PUBLISHED,
            "harmonized vs baseline (Figures 6 and 7)",
            measure,
            "",
            f"{test['difference']:+.2f}",
            NOT_PUBLIC,
            "the paper's baselines are not public; mean difference to the public models of the same architecture, "
            "Wilcoxon's signed ranks over architectures",
            value=test["difference"],
            p=test["p"],
            n=str(test["n"]),
        )


def table_2_equal(results: Results) -> Iterator[dict]:
    """Table 2 against the published CSV, row for row."""
    if (table := robust_table(results)) is not None and table["equal"].ne("").any():
        equal = int(table["equal"].eq("yes").sum())
        yield statistic_row(
            PUBLISHED,
            "Table 2, rows equal",
            "both",
            str(ROBUST_ROWS),
            str(equal),
            verdict(str(ROBUST_ROWS), str(equal), True),
            "four decimals of PT, two of the alignment in percent, and their standard errors",
            value=equal,
            n=str(len(table)),
        )


# ---- Tables 1 and 2 --------------------------------------------------------------------------------------------


def plus_minus(value: float, error: float, factor: float, digits: int) -> str:
    """`2.9369 ± 0.0785`; empty where there is no value."""
    if np.isnan(value):
        return ""
    return f"{factor * value:.{digits}f}" + (
        "" if np.isnan(error) else f" ± {factor * error:.{digits}f}"
    )


def printed_columns(rows: pd.DataFrame, suffix: str = "") -> dict[str, list[str]]:
    """Both measures of some rows as the paper prints them: PT to four decimals, alignment in percent to two."""
    return {
        f"{name}{' (%)' if factor == 100 else ''}": [
            plus_minus(value, error, factor, digits)
            for value, error in zip(rows[f"{measure}{suffix}"], rows[f"{measure}_sem{suffix}"])
        ]
        for (measure, (_, factor)), name, digits in zip(
            MEASURES.items(), TABLE_HEADINGS.values(), (4, 2)
        )
    }


def robust_table(results: Results) -> pd.DataFrame | None:
    """Table 2 as printed, beside what the published CSV says of the same net: `equal` yes, no, or empty without a row."""
    tables = paper_tables(results)
    if tables is None:
        return None
    known = [source.rows for source in norm_tables(results) if source.name == PUBLISHED]
    columns = ["pt", "pt_sem", "alignment", "alignment_sem"]
    public = (known[0] if known else pd.DataFrame(columns=["model", *columns]))[["model", *columns]]
    both = tables[tables["table"] == 2].merge(
        public, how="left", on="model", suffixes=("_printed", "")
    )
    same = np.all(
        [
            np.isclose(
                both[f"{column}_printed"], both[column].astype(float), rtol=0, atol=tolerance
            )
            for column, tolerance in zip(columns, (5e-5, 5e-7, 5.1e-5, 5.1e-5))
        ],
        axis=0,
    )
    both["equal"] = np.select([both["pt"].isna(), same], ["", "yes"], "no")
    return both
