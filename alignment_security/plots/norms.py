"""Figures straight from minimal norms: accuracy against eps without another attack, and how protocols rank models."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from alignment_security.analysis.feng2025 import (
    FEWEST,
    PUBLISHED,
    NormTable,
    correlation,
    norm_tables,
    rho_text,
)
from alignment_security.analysis.results import (
    NothingToDraw,
    Results,
    describe_runs,
    group_finished,
    read_finished_rows,
    run_budget,
    run_folder,
)
from alignment_security.models.families import FAMILIES, family
from alignment_security.plots.style import (
    COLUMN_WIDTH,
    MAX_NAMED,
    PAGE_WIDTH,
    Drawing,
    legend_handles,
    model_styles,
    panels,
    radius_axis,
)
from alignment_security.records.metrics import accuracy_interval, spearman

NORM_COLUMNS = {"L2": "l2", "Linf": "linf"}  # norm of a threat -> column of its records
POINTS = 100  # of a curve
MAX_LETTERS = 34  # of a name
NOT_MINIMAL = "feng2025"  # the protocol whose norms are no minima (README, Threats)


# ---- accuracy against eps --------------------------------------------------------------------------------------


def image_norms(run: dict) -> pd.Series:
    """Minimal norm by image: -inf for a misclassified one, inf where nothing was found."""
    rows = read_finished_rows(run).set_index("image_id")
    found = rows[NORM_COLUMNS[norm_of(run)]].astype(float).where(rows["success"] == 1, np.inf)
    return found.where(rows["clean_correct"] == 1, -np.inf)


def norm_of(run: dict) -> str:
    return run["threat"].split("-")[0]


def curve(run: dict) -> pd.DataFrame:
    """Share of all images that are right and whose minimal norm exceeds eps, and its 95 % Wilson interval: a row per eps.

    eps are 0 and the norms found, where the share falls; POINTS quantiles of them where there are more.
    """
    norms = image_norms(run).to_numpy()
    radii = np.unique(np.append(norms[np.isfinite(norms)], 0.0))
    if len(radii) > POINTS:
        radii = np.quantile(radii, np.linspace(0, 1, POINTS), method="nearest")
    correct = (norms[None] > radii[:, None]).sum(axis=1)
    low, high = np.transpose([accuracy_interval(count, len(norms)) for count in correct.tolist()])
    return pd.DataFrame(
        {
            "image_set": run["image_set"],
            "threat": run["threat"],
            "budget": run_budget(run),
            "model": run["model"],
            "eps": radii,
            "correct": correct,
            "n": len(norms),
            "accuracy": correct / len(norms),
            "low": low,
            "high": high,
        }
    )


def accuracy_vs_norm(results: Results) -> Iterator[Drawing]:
    """Accuracy against eps from minimal norms: a panel per image set and protocol, a line per model."""
    runs = [run for run in results.runs if norm_of(run) in NORM_COLUMNS]
    if not (
        groups := group_finished(
            runs, ("minimum_norm",), lambda run: (*run_folder(run), run_budget(run))
        )
    ):
        return
    styles = model_styles({run["model"] for group in groups for run in group})
    plain = {model: style | {"marker": ""} for model, style in styles.items()}
    figure, axes = panels(len(groups), legend_handles(plain))
    tables = []
    for i, (ax, group) in enumerate(zip(axes, groups), start=1):
        tables.append(pd.concat([curve(run) for run in group]).assign(panel=i))
        largest = float(tables[-1]["eps"].max()) or 1.0
        draw_curves(ax, tables[-1], plain)
        unit = 255 if norm_of(group[0]) == "Linf" else 1
        ticks = np.asarray(plt.MaxNLocator(5).tick_values(0, unit * largest)) / unit
        radius_axis(ax, ticks[ticks <= largest], norm_of(group[0]))
        ax.set(ylim=(0, 100), xlim=(0, 1.04 * largest), ylabel="accuracy (%)")
        ax.set_title(
            f"{', '.join(run_folder(group[0]))} (n = {group[0]['images']})\n{run_budget(group[0])}",
            loc="left",
        )
    caption = "\n".join(
        [
            "Accuracy against eps from minimal norms: the share of all images that are right and whose smallest perturbation found "
            f"is larger than eps; {'bands: 95 % Wilson intervals; ' if len(styles) <= MAX_NAMED else ''}an upper bound of robust "
            f"accuracy, far above it where norms are not minimal (protocol {NOT_MINIMAL}).",
            *(describe_runs(group, results.runs) for group in groups),
        ]
    )
    yield "accuracy_vs_norm", figure, pd.concat(tables, ignore_index=True), caption


def draw_curves(ax, table: pd.DataFrame, styles: dict[str, dict]) -> None:
    for model, part in table.groupby("model"):
        ax.plot(part["eps"], 100 * part["accuracy"], drawstyle="steps-post", **styles[model])
        if len(styles) <= MAX_NAMED:
            ax.fill_between(
                part["eps"],
                100 * part["low"],
                100 * part["high"],
                color=styles[model]["color"],
                alpha=0.12,
                linewidth=0,
                step="post",
            )


# ---- ranks under two protocols ---------------------------------------------------------------------------------


def protocol_pairs(results: Results) -> Iterator[tuple[NormTable, NormTable, pd.DataFrame]]:
    """Sources with the second paper's norms and ours, and the models that have both: a row each, with both ranks."""
    tables = [source for source in norm_tables(results) if source.rows["pt"].notna().any()]
    theirs = [
        source
        for source in tables
        if source.name == PUBLISHED or source.threat == f"L2-{NOT_MINIMAL}"
    ]
    for a, b in product(theirs, [source for source in tables if source not in theirs]):
        if a.name != PUBLISHED and a.image_set != b.image_set:
            continue
        both = a.rows[["model", "pt"]].merge(
            b.rows[["model", "pt"]], on="model", suffixes=("_feng2025", "_other")
        )
        if len(both) >= 2:
            ranks = (
                both[["pt_feng2025", "pt_other"]]
                .rank(ascending=False)
                .set_axis(["rank_feng2025", "rank_other"], axis=1)
            )
            yield (
                a,
                b,
                pd.concat([both, ranks], axis=1).assign(
                    feng2025=a.rows["source"].iat[0],
                    other=b.rows["source"].iat[0],
                    family=both["model"].map(family),
                    rho_images=[
                        image_correlation(results, model, a, b)
                        if len(both) <= MAX_NAMED
                        else np.nan
                        for model in both["model"]
                    ],
                ),
            )


def image_correlation(results: Results, model: str, *pair: NormTable) -> float:
    """Spearman of one model's norms of the images that have one in both sources; nan without both records."""
    runs = [
        run
        for source in pair
        for run in results.runs
        if run["model"] == model
        and run["status"] == "done"
        and run_folder(run) == (source.image_set, source.threat)
    ]
    if len(runs) != 2:
        return np.nan
    norms = pd.concat([image_norms(run) for run in runs], axis=1, join="inner").to_numpy()
    norms = norms[np.isfinite(norms).all(axis=1)]
    return spearman(*norms.T) if len(norms) >= FEWEST else np.nan


def rank_change(results: Results) -> Iterator[Drawing]:
    """Ranks of models by Perturbation Tolerance under feng2025 and under fmn or crossing, a panel per pair."""
    if not (pairs := list(protocol_pairs(results))):
        if norm_tables(results):
            raise NothingToDraw(
                f"two models with norms under {NOT_MINIMAL} and under fmn or crossing are needed"
            )
        return
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    height = 0.9 + 0.13 * min(MAX_NAMED, max(len(both) for *_, both in pairs))
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(PAGE_WIDTH if columns > 1 else COLUMN_WIDTH, rows * height),
    )
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    kinds = model_styles({model for *_, both in pairs for model in both["model"]})
    if len(kinds) > MAX_NAMED:
        figure.legend(
            handles=legend_handles(kinds), loc="outside lower center", ncols=5 if columns > 1 else 3
        )
    for ax, (a, b, both) in zip(axes.flat, pairs):
        draw_ranks(ax, both)
        ax.set_title(
            f"from {a.name.splitlines()[0]}\nto {b.name.splitlines()[0]}\n"
            f"{rho_text(correlation(both, 'pt_feng2025', 'pt_other'))}",
            loc="left",
        )
    caption = "\n".join(
        [
            "Models ranked by Perturbation Tolerance, the most tolerant first, under the second paper's protocol (whose norms are not "
            "minimal) and under one whose norms are; published numbers stand on other images than ours. Title: Spearman over models "
            "with its 95 % bootstrap interval; behind a name, Spearman over the images of that model.",
            *dict.fromkeys(source.note for pair in pairs for source in pair[:2]),
        ]
    )
    yield (
        "rank_change",
        figure,
        pd.concat([both.assign(panel=i) for i, (*_, both) in enumerate(pairs, start=1)]),
        caption,
    )


def draw_ranks(ax, both: pd.DataFrame) -> None:
    """A line per model from rank to rank, with its name where there is room."""
    few = len(both) <= MAX_NAMED
    for model, left, right, kin, rho in zip(
        both["model"], both["rank_feng2025"], both["rank_other"], both["family"], both["rho_images"]
    ):
        ax.plot(
            [0, 1], [left, right], marker="o", color=FAMILIES[kin][0], linewidth=0.8, markersize=3
        )
        if few:
            name = (model if len(model) <= MAX_LETTERS else f"{model[: MAX_LETTERS - 1]}…") + (
                "" if np.isnan(rho) else f" ({rho:.2f})"
            )
            ax.annotate(
                name, (1, right), (5, 0), textcoords="offset points", va="center", fontsize=6
            )
    ax.set(xlim=(-0.1, 3.3 if few else 1.1), ylim=(len(both) + 0.5, 0.5), ylabel="rank", xticks=[])
    ax.yaxis.set_major_locator(plt.MaxNLocator(integer=True))
    ax.spines[["bottom"]].set_visible(False)


MINIMAL_NORMS = "`python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol crossing` makes it"
BOTH_PROTOCOLS = (
    "run `python evaluate_robustness.py --model_name NAME --results_dir {} L2 --protocol feng2025`, the same with "
    "fmn or crossing, and `python utilities.py merge --results_dir {}`"
)
FIGURES = {
    "accuracy_vs_norm": (accuracy_vs_norm, MINIMAL_NORMS),
    "rank_change": (rank_change, BOTH_PROTOCOLS),
}
