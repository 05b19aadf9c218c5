"""What the first paper lacks: which benchmarks survive, how far they hang on one family of models, and what is explained.

A benchmark survives if its correlation with accuracy under attack has q <= 0.05 over the whole grid of the heat map, an
interval over families of models that does not hold 0, and one sign whichever family is left out (alignment_study.survives).
"""
from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alignment_security.analysis import brainscore_leaderboard as brainscore
from alignment_security.analysis import statistics as inference
from alignment_security.analysis.hoak2025 import ALPHA, CLEAN, GROUPS, MIN_FAMILIES, MIN_MODELS, Study, correlation_table, studies
from alignment_security.models.families import FAMILIES
from alignment_security.plots.hoak2025 import COMPARABLE, GREY, LINE, NEEDS, RADII, SMALL, drawn, put_heading, short, show
from alignment_security.plots.style import PAGE, Drawing, Results

LEGEND = 5                              # columns
MOST, IF_NONE, LISTED = 45, 10, 10      # rows of a forest plot; of one where none survives; of each sign in the table
GROUP_COLORS = dict(zip(["neural", "behavioral", "engineering", "other"], ("#009E73", "#E69F00", "#0072B2", "#000000")))
ALPHAS = np.logspace(-1, 5, 13)         # penalties that ridge regression chooses from by generalised cross-validation
LOWEST = 0.5                            # of negative R2 that is drawn; what is worse stands at the edge
EXPLAINED = {"in_sample": ("o", "white", "black", "in the sample"), "unseen_models": ("o", RADII[2], "none", "unseen models"),
             "unseen_families": ("^", RADII[1], "none", "unseen families")}
SURVIVES = (f"q <= {ALPHA} over the whole grid of `robust_only_correlation`, an interval over families of models without 0, and "
            "one sign whichever family is left out")


# ---- survivors -------------------------------------------------------------------------------------------------

def ranked(study: Study, most: int = MOST) -> tuple[pd.DataFrame, str]:
    """Rows of the benchmarks that survive at any eps, by their correlation at the largest, and a sentence that counts them.

    The strongest ones where none survives, and where they are too many for a page.
    """
    table = correlation_table(study)
    table = table[(table["leaf"] == 1) & (table["accuracy"] != CLEAN) & table["rho"].notna()]
    largest = table["accuracy"].max()       # at which accuracies differ: all may be 0 at larger ones
    strength = table[table["accuracy"] == largest].set_index("benchmark")["rho"]
    alive = strength.index.intersection(table.loc[table["survives"] == 1, "benchmark"])
    chosen = strength[alive] if len(alive) else strength.reindex(strength.abs().nlargest(IF_NONE).index)
    chosen = chosen.reindex(chosen.abs().nlargest(most).index).sort_values(ascending=False)
    counted = f"{len(alive)} of {len(strength)} benchmarks survive ({SURVIVES})"
    shown = "" if len(chosen) == len(alive) else f"; shown: the {len(chosen)} strongest at {show(largest)}"
    rank = {name: i for i, name in enumerate(chosen.index)}
    rows = table[table["benchmark"].isin(rank)].assign(row=table["benchmark"].map(rank))
    return rows.sort_values(["row", "accuracy"]).astype({"row": int}), f"{counted}{shown}."


def row_panels(study: Study, labels: list[str], quantity: str, handles: list[Line2D], row: float = 0.11, **legend):
    """Figure and axes: a row per label, top down, and a panel per eps, with a line at 0 and a legend below."""
    radii, lines = drawn(study), -(-len(handles) // LEGEND) + ("title" in legend)
    figure, axes = plt.subplots(1, len(radii), figsize=(PAGE, row * max(len(labels), 4) + 0.85 + LINE * lines), sharey=True,
                                sharex=True, squeeze=False, layout="constrained")
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND, title_fontsize=7, **legend)
    axes[0, (len(radii) - 1) // 2].set_xlabel(quantity)
    for ax, title in zip(axes.flat, map(show, radii)):
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.hlines(range(len(labels)), 0, 1, transform=ax.get_yaxis_transform(), color="#EEEEEE", linewidth=0.5, zorder=0)
        ax.set_title(title, loc="left", fontsize=7)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes.flat[0].set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.flat[0].set_ylim(len(labels) - 0.4, -0.6)
    put_heading(figure, study)
    return figure, list(axes.flat)


def survivors_forest(results: Results) -> Iterator[Drawing]:
    """Forest plot of the benchmarks that survive, ranked, a panel per eps."""
    for study in studies(results):
        rows, counted = ranked(study)
        if len(rows):
            caption = (f"Spearman's correlation with accuracy under attack. {counted} Filled: survives at that eps. Thick: 95 % "
                       f"bootstrap interval over models; thin: over families ({inference.RESAMPLES} resamples each, percentiles; "
                       "rough where families are few and uneven). Diamond: partial correlation given clean accuracy. What is "
                       "selected for being large tends to be smaller on new models.")
            yield f"survivors_forest{study.name}", draw_forest(study, rows), rows, f"{caption}\n{study.facts}"


def draw_forest(study: Study, rows: pd.DataFrame) -> Figure:
    names = rows.drop_duplicates("row")
    labels = [f"{short(name)} (n={n})" for name, n in zip(names["benchmark"], names["n"])]
    handles = [Line2D([], [], color=color, marker="o", label=group) for group, color in GROUP_COLORS.items()
               if group in set(rows["group"])]
    handles.append(Line2D([], [], color=GREY, marker="D", markerfacecolor="white", linestyle="", label="given clean accuracy"))
    figure, axes = row_panels(study, labels, "Spearman's ρ", handles)
    for ax, eps in zip(axes, drawn(study)):
        part = rows[rows["accuracy"] == eps]
        colors = part["group"].map(GROUP_COLORS).fillna("#000000")
        ax.hlines(part["row"], part["family_low"], part["family_high"], color=colors, linewidth=0.7)
        ax.hlines(part["row"], part["low"], part["high"], color=colors, linewidth=2)
        ax.scatter(part["partial_rho"], part["row"], s=9, marker="D", facecolor="white", edgecolor=GREY, linewidth=0.6, zorder=2.5)
        ax.scatter(part["rho"], part["row"], s=13, facecolor=np.where(part["survives"] == 1, colors, "white"), edgecolor=colors,
                   linewidth=0.8, zorder=3)
    return figure


def leave_one_family_out(results: Results) -> Iterator[Drawing]:
    """The same benchmarks with each family of models left out in turn."""
    for study in studies(results):
        rows, counted = ranked(study)
        if rows.empty or len(np.unique(study.families)) < MIN_FAMILIES:
            continue
        table = pd.concat([without_families(study, row) for row in rows.to_dict("records")], ignore_index=True)
        handles = [Line2D([], [], color=color, marker="o", linestyle="", markersize=3, label=name)
                   for name, (color, _) in FAMILIES.items() if name in {*table["left_out"], "Other"}]
        handles.append(Line2D([], [], color="black", marker="|", linestyle="", markersize=7, label="all models"))
        labels = [short(name) for name in rows["benchmark"].unique()]
        figure, axes = row_panels(study, labels, "Spearman's ρ", handles, title="without")
        for ax, eps in zip(axes, drawn(study)):
            draw_left_out(ax, table[table["accuracy"] == eps])
        caption = (f"Spearman's correlation with accuracy under attack, with each of {len(np.unique(study.families))} families of "
                   f"models left out in turn (a dot each; Other: one of the small families, in the table by name). {counted}")
        yield f"leave_one_family_out{study.name}", figure, table, f"{caption}\n{study.facts}"


def without_families(study: Study, row: dict) -> pd.DataFrame:
    """The correlation of one row of `ranked` with each family left out."""
    columns = np.column_stack([study.scores[row["benchmark"]], study.accuracy[row["accuracy"]]])
    whole = ~np.isnan(columns).any(axis=1)
    names, weights = inference.without_each(study.families[whole])
    rho = inference.rank_correlations(columns[whole], weights)[:, 0, 1]
    cell = {name: row[name] for name in ("row", "benchmark", "accuracy", "rho")}
    return pd.DataFrame({"left_out": names, "models_left": weights.sum(axis=1), "rho_without": rho}).assign(**cell)


def draw_left_out(ax, part: pd.DataFrame) -> None:
    large = part["left_out"].isin(FAMILIES)
    for rows, size in ((part[~large], 4), (part[large], 10)):     # the families with a colour of their own on top
        colors = [FAMILIES.get(name, FAMILIES["Other"])[0] for name in rows["left_out"]]
        ax.scatter(rows["rho_without"], rows["row"], s=size, color=colors, linewidth=0)
    ax.scatter(part["rho"], part["row"], s=30, marker="|", color="black", linewidth=1, zorder=2)


# ---- variance explained ----------------------------------------------------------------------------------------

def predictors(study: Study) -> dict[str, tuple[pd.DataFrame, BaseEstimator]]:
    """What accuracy under attack is predicted from, and by which regression."""
    leaves = study.scores[brainscore.leaf_benchmarks(study.scores.columns)]
    leaves = leaves.loc[:, leaves.notna().mean() >= COMPARABLE]
    ridge = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(),
                          RidgeCV(ALPHAS, alpha_per_target=True))
    found: dict = {f"{group} alignment": (study.scores[[column]], LinearRegression()) for column, group in GROUPS.items()
             if column in study.scores}
    found["clean accuracy"] = study.accuracy[[CLEAN]], LinearRegression()
    if count := leaves.shape[1]:
        found[f"all {count} benchmarks"] = leaves, ridge
        found[f"all {count} benchmarks, clean"] = leaves.join(study.accuracy[[CLEAN]]), ridge
    return {name: (table, estimator) for name, (table, estimator) in found.items() if table.notna().any().all()}


def explained(study: Study) -> pd.DataFrame:
    """R2 in the sample, of unseen models and of unseen families: a row per predictor and eps, over the same models."""
    sets = predictors(study)
    single = [table for table, estimator in sets.values() if isinstance(estimator, LinearRegression)]
    whole = pd.concat([*single, study.accuracy], axis=1).notna().all(axis=1).to_numpy()
    families, y = study.families[whole], study.accuracy.loc[whole, study.radii].to_numpy()
    if whole.sum() < 2 * MIN_MODELS:
        return pd.DataFrame()
    rows = []
    for name, (table, estimator) in sets.items():
        x = table[whole].to_numpy()
        guess = estimator.fit(x, y).predict(x).reshape(y.shape)
        in_sample = np.where(np.ptp(y, axis=0) > 0, r2_score(y, guess, multioutput="raw_values"), np.nan)
        cells = {"in_sample": in_sample} | cross_validated(estimator, x, y, families)
        rows += [{"predictor": name, "features": x.shape[1], "eps": eps, "n": len(x), "families": len(np.unique(families))}
                 | {column: values[i] for column, values in cells.items()} for i, eps in enumerate(study.radii)]
    return pd.DataFrame(rows)


def cross_validated(estimator: BaseEstimator, x: np.ndarray, y: np.ndarray, families: np.ndarray) -> dict[str, np.ndarray]:
    """R2 (outcomes,) of unseen models and of unseen families; nan where there are too few families."""
    splits = {"unseen_models": inference.folds(families, whole_families=False)}
    if len(np.unique(families)) >= MIN_FAMILIES:
        splits["unseen_families"] = inference.folds(families, whole_families=True)
    found = {name: inference.cross_validated_r2(estimator, x, y, parts) for name, parts in splits.items()}
    return {"unseen_families": np.full(y.shape[1], np.nan)} | found


def variance_explained(results: Results) -> Iterator[Drawing]:
    """Variance of accuracy under attack explained in the sample, in unseen models and in unseen families."""
    for study in studies(results):
        table = explained(study)
        if table.empty:
            continue
        caption = (f"Variance of accuracy under attack explained (R2), of {table['n'][0]} models that have all averages and "
                   "accuracies. Unseen models: ten folds drawn at random, five times; unseen families: ten folds of whole "
                   "families; 0 is the mean of the models seen, and less is worse than it (values below -0.5 are drawn "
                   "there). One predictor: least squares. All benchmarks: ridge regression on standardised scores, its "
                   "penalty chosen and missing scores set to the benchmark's median within each training part; benchmarks known "
                   f"of at least {COMPARABLE:.0%} of the models.")
        yield f"variance_explained{study.name}", draw_explained(study, table), table, f"{caption}\n{study.facts}"


def draw_explained(study: Study, table: pd.DataFrame) -> Figure:
    names, shown = list(table["predictor"].unique()), table[list(EXPLAINED)].clip(lower=-LOWEST)
    handles = [Line2D([], [], marker=marker, markerfacecolor=color, linestyle="", label=label, markeredgecolor=edge)
               for marker, color, edge, label in EXPLAINED.values()]
    figure, axes = row_panels(study, names, "variance explained (R²)", handles, row=0.17)
    for ax, eps in zip(axes, drawn(study)):
        for column, (marker, color, edge, _) in EXPLAINED.items():
            ax.scatter(shown.loc[table["eps"] == eps, column], range(len(names)), s=16, marker=marker, facecolor=color,
                       edgecolor=edge, linewidth=0.7, zorder=3)
    return figure


# ---- tables ----------------------------------------------------------------------------------------------------

def regression_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the regressions of accuracy under attack on each kind of alignment."""
    for study in studies(results):
        rows = [fit for (column, group), eps in product(GROUPS.items(), study.radii) if column in study.scores
                if (fit := regression_row(study, column, eps, {"alignment": group}))]
        caption = ("Accuracy under attack regressed on alignment: least squares, R2 in the sample and of unseen models (ten folds, "
                   "five times) and families (ten folds), p of the slope, and p with its covariance summed over families.")
        if rows:
            yield f"regression_table{study.name}", None, pd.DataFrame(rows), f"{caption}\n{study.facts}"


def regression_row(study: Study, column: str, eps: float, names: dict) -> dict:
    """One regression; empty where fewer than MIN_MODELS have both values."""
    part = pd.DataFrame({"x": study.scores[column], "y": study.accuracy[eps], "family": study.families}).dropna()
    if len(part) < MIN_MODELS:
        return {}
    x, y, families = (part[name].to_numpy() for name in part)
    fit, r2 = inference.regression(x, y, families), cross_validated(LinearRegression(), x[:, None], y[:, None], families)
    return names | {"eps": show(eps).removeprefix("ε = "), "n": fit["n"], "slope": fit["slope"], "R2": fit["r2"],
                    "R2, unseen models": r2["unseen_models"][0], "R2, unseen families": r2["unseen_families"][0],
                    "p": fit["p"], "p over families": fit["p_family"]}


def benchmark_table(results: Results) -> Iterator[Drawing]:
    """LaTeX: the benchmarks that go most with, and most against, accuracy at the largest eps."""
    for study in studies(results):
        table = correlation_table(study)
        table = table[(table["leaf"] == 1) & (table["accuracy"] != CLEAN) & table["rho"].notna()]
        if table.empty:
            continue
        largest = table["accuracy"].max()
        table = table[table["accuracy"] == largest].sort_values("rho", ascending=False)
        table = pd.concat([table[:LISTED], table[LISTED:][-LISTED:]])
        shown = pd.DataFrame({"benchmark": table["benchmark"].map(short), "kind": table["group"], "n": table["n"],
                              "rho": table["rho"], "95 % interval": interval(table["low"], table["high"]),
                              "over families": interval(table["family_low"], table["family_high"]), "q": table["q"],
                              "given clean": table["partial_rho"], "survives": table["survives"].map({1: "yes", 0: "no"})})
        caption = (f"Spearman's correlation with accuracy at {show(largest)}: the strongest benchmarks of either sign, "
                   f"with bootstrap intervals over models and over families. {ranked(study)[1]} Given clean: partial correlation "
                   f"given clean accuracy.\n{study.facts}")
        yield f"benchmark_table{study.name}", None, shown, caption


def interval(low: pd.Series, high: pd.Series) -> list[str]:
    return ["" if np.isnan(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high)]


FIGURES = {name: (function, NEEDS) for name, function in {
    "survivors_forest": survivors_forest, "leave_one_family_out": leave_one_family_out,
    "variance_explained": variance_explained, "regression_table": regression_table,
    "benchmark_table": benchmark_table}.items()}
