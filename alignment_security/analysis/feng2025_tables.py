"""Tables 1 and 2 of Feng et al. (2025), and the statistics of its text: as claimed, recomputed, and what does not reproduce.

Everything is recomputed from public numbers (--published); the same statistics of our own norms stand below, a row each.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from alignment_security.analysis import statistics as inference
from alignment_security.analysis.feng2025 import PUBLISHED, ROBUST_NAME, Source, paper_tables, sources
from alignment_security.plots.feng2025 import FEWEST, LACKING, MEASURES, correlation, harmonized_pairs, paired_test
from alignment_security.plots.style import Drawing, Results

NAMES = {"pt": "Perturbation Tolerance", "alignment": "human alignment"}
NOT_PUBLIC, REPRODUCED, DIFFERS, NEW = "not public", "yes", "no", ""
TRUNCATED = "Welch; df truncated to an integer, as in the paper"
# two groups of the text: what they are, (first, second) masks, and the claims (measure -> T, df)
COMPARISONS: list[tuple[str, str, Callable, Callable, dict[str, tuple[float, int]]]] = [
    ("SSL vs Other", "Other: standard models that are not SSL", lambda rows: rows["group"].eq("SSL"),
     lambda rows: ~rows["group"].isin(["SSL", "robust", "harmonized"]), {"pt": (7.85, 65), "alignment": (-7.49, 98)}),
    ("robust vs Other", "Other: all standard models, SSL among them", lambda rows: rows["group"].eq("robust"),
     lambda rows: ~rows["group"].isin(["robust", "harmonized"]), {"pt": (6.41, 41), "alignment": (20.85, 106)}),
    ("ViT vs CNN", "our own reading of names: the paper does not list its groups", lambda rows: rows["group"].eq("ViT"),
     lambda rows: rows["group"].eq("CNN"), {"pt": (9.11, 163)})]
SPEARMAN = {"pt": 0.81, "alignment": -0.74}     # with multi-label accuracy
EXTREMES = {"most accurate": -0.03, "least accurate": 0.22}     # human alignment of those models
ROBUST_ROWS = 33        # of Table 2


# ---- rows of the table -----------------------------------------------------------------------------------------

def row(source: str, statistic: str, measure: str, claimed: str, recomputed: str, verdict: str, rule: str, **numbers) -> dict:
    return {"source": source, "statistic": statistic, "measure": NAMES.get(measure, measure), "claimed": claimed,
            "recomputed": recomputed, "reproduces": verdict, "value": numbers.get("value", np.nan),
            "df": numbers.get("df", np.nan), "p": numbers.get("p", np.nan), "n": numbers.get("n", ""), "rule": rule}


def welch_text(t: float, df: float) -> str:
    """As the paper prints a t-test: degrees of freedom truncated, not rounded."""
    return f"T({int(df)}) = {t:.2f}"


def verdict(claimed: str, recomputed: str, of_the_paper: bool) -> str:
    if not of_the_paper or not claimed:
        return NEW
    return REPRODUCED if claimed == recomputed else DIFFERS


def comparisons(source: Source, of_the_paper: bool) -> Iterator[dict]:
    """Welch's tests of the text, for each measure that both groups have."""
    for name, groups, first, second, claims in COMPARISONS:
        for measure in MEASURES:
            samples = [source.rows.loc[mask(source.rows), measure].dropna() for mask in (first, second)]
            t, df, p = inference.welch(*samples)
            claimed = welch_text(*claims[measure]) if of_the_paper and measure in claims else ""
            if np.isfinite(t):
                recomputed = welch_text(t, df)
                yield row(source.rows["source"].iat[0], name, measure, claimed, recomputed,
                          verdict(claimed, recomputed, of_the_paper), f"{TRUNCATED}. {groups}", value=t, df=df, p=p,
                          n=", ".join(str(len(sample)) for sample in samples))


def correlations(source: Source, of_the_paper: bool) -> Iterator[dict]:
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
                yield row(source.rows["source"].iat[0], f"Spearman with {source.accuracy_label.split(' (')[0]}{what}", measure,
                          claimed, recomputed, verdict(claimed, recomputed, of_the_paper),
                          f"{rows['estimated'].sum()} accuracies estimated from top-1; 95 % bootstrap interval "
                          f"[{found['low']:.3f}, {found['high']:.3f}]", value=found["rho"],
                          p=inference.correlation_p(found["rho"], int(found["n"])), n=str(found["n"]))


def extremes(source: Source) -> Iterator[dict]:
    """Human alignment of the most and of the least accurate standard model."""
    known = source.standard.dropna(subset=["accuracy"]).sort_values("accuracy")
    for place, (name, claimed) in zip((-1, 0), EXTREMES.items()):
        if len(known) >= FEWEST:
            model, value = known["model"].iat[place], known["alignment"].iat[place]
            yield row(PUBLISHED, f"{name} model", "alignment", f"{claimed:.2f}", f"{value:.2f}",
                      verdict(f"{claimed:.2f}", f"{value:.2f}", True), model, value=value, n="1")


def harmonization(results: Results) -> Iterator[dict]:
    """Figures 6 and 7: the paper's baselines are not public, so the test is one of our own."""
    pairs = harmonized_pairs(results)
    for measure in MEASURES if len(pairs) else ():
        test = paired_test(pairs, measure)
        yield row(PUBLISHED, "harmonized vs baseline (Figures 6 and 7)", measure, "", f"{test['difference']:+.2f}", NOT_PUBLIC,
                  "the paper's baselines are not public; mean difference to the public models of the same architecture, "
                  "Wilcoxon's signed ranks over architectures", value=test["difference"], p=test["p"], n=str(test["n"]))


def table_2_equal(results: Results) -> Iterator[dict]:
    """Table 2 against the published CSV, row for row."""
    if (table := robust_table(results)) is not None and table["equal"].ne("").any():
        equal = int(table["equal"].eq("yes").sum())
        yield row(PUBLISHED, "Table 2, rows equal", "both", str(ROBUST_ROWS), str(equal),
                  verdict(str(ROBUST_ROWS), str(equal), True),
                  "four decimals of PT, two of the alignment in percent, and their standard errors", value=equal, n=str(len(table)))


def text_statistics(results: Results) -> Iterator[Drawing]:
    """The statistics of the text as one table: claimed, recomputed, n, groups and rule; then the same of our own records."""
    if not (tables := sources(results)):
        return
    rows: list[dict] = []
    for source in tables:
        paper = source.name == PUBLISHED
        rows += [*correlations(source, paper), *comparisons(source, paper)]
        if paper:
            rows += [*extremes(source), *table_2_equal(results), *harmonization(results),
                     row(PUBLISHED, "Big Data vs Other", "both", "", "", NOT_PUBLIC, "the paper does not list its Big Data models")]
    if not rows:
        return
    table = pd.DataFrame(rows)
    lost = table.loc[table["reproduces"].isin([DIFFERS, NOT_PUBLIC]), "statistic"]
    caption = "\n".join([
        "Statistics of Feng et al. (2025) as claimed and as recomputed from public numbers. reproduces: equal to the digits "
        "printed; no: differs; not public: what it takes was not published; empty: not in the paper. value, df and p are in full.",
        f"Does not reproduce from public numbers: {', '.join(dict.fromkeys(lost)) or 'nothing'}.",
        *(source.note for source in tables)])
    yield "text_statistics", None, table, caption


# ---- Tables 1 and 2 --------------------------------------------------------------------------------------------

def plus_minus(value: float, error: float, factor: float, digits: int) -> str:
    """`2.9369 ± 0.0785`; empty where there is no value."""
    if np.isnan(value):
        return ""
    return f"{factor * value:.{digits}f}" + ("" if np.isnan(error) else f" ± {factor * error:.{digits}f}")


def printed(rows: pd.DataFrame, suffix: str = "") -> dict[str, list[str]]:
    """Both measures of some rows as the paper prints them: PT to four decimals, alignment in percent to two."""
    return {f"{name}{' (%)' if factor == 100 else ''}": [
        plus_minus(value, error, factor, digits) for value, error in zip(rows[f"{measure}{suffix}"],
                                                                        rows[f"{measure}_sem{suffix}"])]
        for (measure, (_, factor)), name, digits in zip(MEASURES.items(), NAMES.values(), (4, 2))}


def robust_table(results: Results) -> pd.DataFrame | None:
    """Table 2 as printed, beside what the published CSV says of the same net: `equal` yes, no, or empty without a row."""
    tables = paper_tables(results)
    if tables is None:
        return None
    known = [source.rows for source in sources(results) if source.name == PUBLISHED]
    columns = ["pt", "pt_sem", "alignment", "alignment_sem"]
    public = (known[0] if known else pd.DataFrame(columns=["model", *columns]))[["model", *columns]]
    both = tables[tables["table"] == 2].merge(public, how="left", on="model", suffixes=("_printed", ""))
    same = np.all([np.isclose(both[f"{column}_printed"], both[column].astype(float), rtol=0, atol=tolerance)
                   for column, tolerance in zip(columns, (5e-5, 5e-7, 5.1e-5, 5.1e-5))], axis=0)
    both["equal"] = np.select([both["pt"].isna(), same], ["", "yes"], "no")
    return both


def paper_drawings(results: Results) -> Iterator[Drawing]:
    """Tables 1 (harmonized nets) and 2 (robust nets), and a table like them for every protocol of ours."""
    if (tables := paper_tables(results)) is not None:
        first = tables[tables["table"] == 1]
        yield "table_1_harmonized", None, pd.DataFrame({"model": first["model"], **printed(first)}), (
            "Feng et al. (2025), Table 1: harmonized nets, mean ± standard error. Printed only: no public file holds these rows.")
    if (both := robust_table(results)) is not None:
        nets = both["model"].str.extract(ROBUST_NAME)
        recomputed = printed(both.assign(**{name: both[name].astype(float) for name in MEASURES}))
        table = pd.DataFrame({
            "model": nets["net"], "norm": nets["norm"].map({"l2": "L2", "linf": "Linf"}), "eps": nets["eps"],
            **printed(both, "_printed"), **{f"{name}, public file": values for name, values in recomputed.items()},
            "equal": both["equal"]})
        yield "table_2_robust", None, table, (
            f"Feng et al. (2025), Table 2: robust nets of microsoft/robust-models-transfer, mean ± standard error; eps of L2 in "
            f"pixel units, of Linf in 255ths. equal: the public file says the same to the digits printed: "
            f"{both['equal'].eq('yes').sum()} of {len(both)} rows.")
    for source in sources(results):
        if source.name != PUBLISHED:
            yield own_drawing(source)


def own_drawing(source: Source) -> Drawing:
    """A protocol of ours as a table like Tables 1 and 2, the most tolerant model first."""
    rows = source.rows.sort_values("pt", ascending=False)
    table = pd.DataFrame({"model": rows["model"], "group": rows["group"], source.accuracy_label: rows["accuracy"],
                          **printed(rows)})
    return f"table_{source.image_set}_{source.threat}", None, table, (
        f"Perturbation Tolerance and human alignment, mean ± standard error.\n{source.note}")


FIGURES = {"text_statistics": (text_statistics, LACKING), "tables_1_2": (paper_drawings, LACKING)}
