"""Both studies together: Brain-Score, robust accuracy and minimal norms of the same models, and one figure for a slide.

What joins is few: the number of models stands in every picture, and protocols and image sets are panels of their own.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from alignment_security.analysis.brainscore_join import join_scores
from alignment_security.analysis.brainscore_leaderboard import (
    MERGED_SCORES,
    benchmark_columns,
    drop_repeats,
    leaf_benchmarks,
    read_leaderboard,
    score_numbers,
)
from alignment_security.analysis.brainscore_registry import NAME_COLUMNS
from alignment_security.analysis.feng2025 import (
    FEWEST,
    MEASURES,
    PUBLISHED,
    NormTable,
    correlation,
    mark_pareto_front,
    norm_tables,
    published_table,
    read_number_table,
    read_summary,
    tables_with,
)
from alignment_security.analysis.results import NothingToDraw, Results
from alignment_security.analysis.statistics import benjamini_hochberg, correlation_p
from alignment_security.common.settings import ROOT, format_eps
from alignment_security.plots.feng2025 import (
    GROUP_STYLES,
    LACKING,
    draw_front,
    draw_series,
    tolerance_scale,
)
from alignment_security.plots.style import MARKERS, PAGE_WIDTH, Drawing, panels
from alignment_security.records.metrics import accuracy_interval

BRAINSCORE_NAMES = ROOT / "lists" / "models" / "brainscore.txt"
SETUP = 'python -c "from utilities import setup_scores; setup_scores()"'
AVERAGES = [
    "average_vision",
    "neural_vision",
    "V1",
    "V2",
    "V4",
    "IT",
    "behavior_vision",
    "engineering_vision",
]
LEAVES = 14  # benchmarks shown below the averages: those of smallest p in either panel
FALSE_DISCOVERY_RATE = 0.05  # false discovery rate
MAX_NAME = 40  # letters of a benchmark's name
EPS_COLOURS = ["#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#882255", "#000000"]


# ---- Brain-Score -----------------------------------------------------------------------------------------------


def leaderboard(results: Results) -> tuple[pd.DataFrame, str]:
    """Scores with the columns of setup_scores, and where they are from: its table, else the published leaderboard."""
    path = results.folder / "benchmark_scores" / f"{MERGED_SCORES}.csv"
    if path.exists():
        table = read_number_table(path, NAME_COLUMNS, f"make it again: {SETUP}", text=NAME_COLUMNS)
        sidecar = path.with_suffix(".json")
        date = json.loads(sidecar.read_text()).get("date") if sidecar.exists() else None
        return table, f"Brain-Score leaderboard of {date or 'a date not recorded'} ({path.name})"
    files = sorted(results.published.glob("brainscore/*leaderboard*")) if results.published else []
    if not files:
        raise NothingToDraw(f"no {path} and no published leaderboard")
    scores, facts = read_leaderboard(files[0])
    scores, _ = drop_repeats(scores)
    numbers = score_numbers(scores[benchmark_columns(scores)])
    names = {
        "og_model_name": scores["model_name"],
        "model_registry_name": scores["model_name"],
        "timm_name": scores["model_name"].map(timm_names(results)).fillna(""),
    }
    origin = f"Brain-Score leaderboard {files[0].name} ({facts['date'] or 'undated'})"
    return pd.concat([pd.DataFrame(names), numbers], axis=1), origin


def timm_names(results: Results) -> dict[str, str]:
    """Registry name -> timm model: lists/models/brainscore.txt, and names of architectures with one set of weights in timm."""
    listed = read_number_table(
        BRAINSCORE_NAMES,
        ["name", "weights"],
        "restore it: git checkout lists",
        sep="\t",
        comment="#",
        dtype=str,
    )
    listed = listed[listed["weights"].str.startswith("timm:")]
    known = dict(zip(listed["name"], listed["weights"].str.removeprefix("timm:")))
    if (table := published_table(results, "timm/results-imagenet_*.csv", ["model"])) is None:
        return known
    models = pd.Series(table["model"].unique())
    alone = models.groupby(models.str.partition(".")[0]).filter(lambda same: len(same) == 1)
    return dict(zip(alone.str.partition(".")[0], alone)) | known


def benchmark_table(source: NormTable, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman of every benchmark with both measures: a row each, with q over all leaves and both measures."""
    joined, _ = join_scores(scores, source.rows[["model", "weights", *MEASURES]])
    benchmarks = benchmark_columns(scores)
    leaves = set(leaf_benchmarks(benchmarks))
    rows = [
        {
            "source": source.rows["source"].iat[0],
            "benchmark": name,
            "leaf": int(name in leaves),
            "measure": measure,
            "models": len(joined),
            **correlation(joined, name, measure),
        }
        for name in benchmarks
        for measure in MEASURES
    ]
    table = pd.DataFrame(rows)
    table["p"] = [correlation_p(rho, n) for rho, n in zip(table["rho"], table["n"])]
    return table.assign(
        q=pd.Series(benjamini_hochberg(table["p"].where(table["leaf"] == 1).to_numpy()))
    )


def brainscore_vs_tolerance(results: Results) -> Iterator[Drawing]:
    """Brain-Score benchmarks against both measures: a figure per source, a row per benchmark, its n beside it."""
    if not (tables := tables_with(norm_tables(results), ["pt"])):
        return
    scores, origin = leaderboard(results)
    found = [(source, benchmark_table(source, scores)) for source in tables]
    large = [(source, table) for source, table in found if table["rho"].notna().any()]
    if not large:
        counts = ", ".join(
            f"{source.rows['source'].iat[0]}: {table['models'].max()}" for source, table in found
        )
        raise NothingToDraw(
            f"models with norms and Brain-Score scores ({counts}), {FEWEST} are needed"
        )
    for source, table in large:
        name = "" if source.name == PUBLISHED else f"_{source.image_set}_{source.threat}"
        few = [
            f"{other.rows['source'].iat[0]} ({rows['models'].max()})"
            for other, rows in found
            if rows["rho"].isna().all()
        ]
        caption = (
            f"Spearman of Brain-Score benchmarks with Perturbation Tolerance and human alignment, 95 % bootstrap intervals; "
            f"above the averages, below the {LEAVES} benchmarks of smallest p (all {table['leaf'].sum() // 2} stand in the "
            f"table). Filled: q <= {FALSE_DISCOVERY_RATE} (Benjamini-Hochberg over all benchmarks and both measures; averages are not "
            f"tested). Only {table['models'].max()} models have both; models of a family resemble each other.\n{origin}; "
            f"joined by timm name.\n{source.note}"
        )
        caption += f"\nToo few models with scores: {', '.join(few)}." if few else ""
        yield f"brainscore_vs_tolerance{name}", draw_benchmarks(table), table, caption


def draw_benchmarks(table: pd.DataFrame) -> plt.Figure:
    """Two panels of dots with intervals, averages above the benchmarks of smallest p."""
    leaves = table[table["leaf"] == 1].groupby("benchmark")["p"].min().nsmallest(LEAVES).index
    names = [*(name for name in AVERAGES if name in set(table["benchmark"])), *leaves]
    figure, axes = plt.subplots(
        1, 2, sharey=True, figsize=(PAGE_WIDTH, 0.7 + 0.155 * len(names)), layout="constrained"
    )
    for ax, (measure, (label, _)) in zip(axes, MEASURES.items()):
        part = table[table["measure"] == measure].set_index("benchmark").loc[names]
        for y, row in enumerate(part.itertuples()):
            colour = "#0072B2" if row.leaf else "#222222"
            ax.plot([row.low, row.high], [y, y], color=colour, linewidth=1)
            ax.plot(
                row.rho,
                y,
                "o",
                color=colour,
                markerfacecolor=colour if row.q <= FALSE_DISCOVERY_RATE else "white",
            )
            ax.annotate(
                f"{row.n}",
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=6,
                va="center",
            )
        ax.annotate(
            "n",
            (1.0, 1.0),
            xytext=(3, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=6,
        )
        ax.axvline(0, color="#888888", linewidth=0.6)
        ax.axhline(sum(part["leaf"] == 0) - 0.5, color="#BBBBBB", linewidth=0.6)
        ax.set(xlim=(-1, 1), ylim=(len(names) - 0.4, -0.6), xlabel="Spearman's ρ")
        ax.set_title(f"with {label.split(' (')[0]} ({part['n'].max()} models)", loc="left")
    axes[0].set_yticks(
        range(len(names)),
        [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in names],
        fontsize=6,
    )
    return figure


# ---- robust accuracy against Perturbation Tolerance ------------------------------------------------------------


def robust_pairs(results: Results) -> Iterator[tuple[str, NormTable, pd.DataFrame]]:
    """Balls of ours (image set, threat, budget) x sources of norms: models with both, a row per model and eps."""
    table = read_summary(results)
    table = table[table["robust_acc"].notna() & table["partial"].ne(1) & (table["eps"] > 0)]
    for (image_set, threat, attack), ball in table.groupby(
        ["image_set", "threat", "attack"], dropna=False
    ):
        for source in tables_with(norm_tables(results), ["pt"]):
            both = ball.merge(source.rows[["source", "model", "group", "pt", "pt_sem"]], on="model")
            if len(both) and (source.name == PUBLISHED or source.image_set == image_set):
                intervals = [
                    accuracy_interval(int(hits), int(n))
                    for hits, n in zip(both["robust"], both["n"])
                ]
                yield (
                    f"{image_set}, {threat}, {attack}",
                    source,
                    both.assign(
                        low=[low for low, _ in intervals], high=[high for _, high in intervals]
                    ),
                )


def robust_vs_tolerance(results: Results) -> Iterator[Drawing]:
    """Robust accuracy against Perturbation Tolerance: a panel per ball and protocol of norms, a colour per eps."""
    if not (pairs := list(robust_pairs(results))):
        if len(read_summary(results)):
            raise NothingToDraw("no model has both robust accuracies and minimal norms")
        return
    radii = sorted({eps for *_, both in pairs for eps in both["eps"]})
    colours = {eps: EPS_COLOURS[i % len(EPS_COLOURS)] for i, eps in enumerate(radii)}
    models = sorted({model for *_, both in pairs for model in both["model"]})
    markers = (
        dict(zip(models, MARKERS)) if len(models) <= len(MARKERS) else {}
    )  # a shape each, where they suffice
    figure, axes = panels(
        len(pairs),
        [
            *(Line2D([], [], color=colours[eps], label=f"ε = {format_eps(eps)}") for eps in radii),
            *(
                Line2D([], [], linestyle="none", marker=marker, color="#666666", label=model)
                for model, marker in markers.items()
            ),
        ],
    )
    found = []
    for ax, (ball, source, both) in zip(axes, pairs):
        for eps, part in both.groupby("eps"):
            for marker, points in part.groupby(part["model"].map(markers).fillna("o")):
                bars = np.clip(
                    [points["robust_acc"] - points["low"], points["high"] - points["robust_acc"]],
                    0,
                    None,
                )
                ax.errorbar(
                    points["pt"],
                    100 * points["robust_acc"],
                    100 * bars,
                    points["pt_sem"].fillna(0),
                    fmt=marker,
                    color=colours[eps],
                    elinewidth=0.6,
                    markersize=4 if markers else 3,
                    clip_on=False,
                )
            found.append(
                {
                    "ball": ball,
                    "source": source.rows["source"].iat[0],
                    "eps": eps,
                    **correlation(part, "pt", "robust_acc"),
                }
            )
        tolerance_scale(ax.xaxis, both["pt"])
        ax.spines[["left", "bottom"]].set_position(("outward", 3))
        ax.set(
            xlabel=f"{MEASURES['pt'][0]}, {source.name.splitlines()[0]}",
            ylabel="robust accuracy (%)",
        )
        ax.set_ylim(bottom=0)
        ax.set_title(f"{textwrap.fill(ball, 46)}\nn = {both['model'].nunique()} models", loc="left")
    rhos = [
        f"{cell['ball']} against {cell['source']}, eps {format_eps(cell['eps'])}: ρ = {cell['rho']:.2f} "
        f"[{cell['low']:.2f}, {cell['high']:.2f}], n = {cell['n']}."
        for cell in found
        if np.isfinite(cell["rho"])
    ]
    caption = "\n".join(
        [
            "Accuracy under attack against Perturbation Tolerance of the same models; bars: 95 % Wilson intervals, standard errors. "
            f"{' '.join(rhos) or f'Too few models for a correlation ({FEWEST} are needed).'}",
            *dict.fromkeys(source.note for _, source, _ in pairs),
        ]
    )
    yield (
        "robust_vs_tolerance",
        figure,
        pd.concat([both.assign(ball=ball) for ball, _, both in pairs], ignore_index=True),
        caption,
    )


# ---- one figure for a slide ------------------------------------------------------------------------------------


def slide(results: Results) -> Iterator[Drawing]:
    """The trade-off and the two ways out in one plane, coloured by accuracy: the published numbers, else our largest source."""
    tables = [
        source
        for source in tables_with(norm_tables(results), ["pt", "alignment"])
        if len(source.standard.dropna(subset=["pt", "alignment", "accuracy"])) >= FEWEST
    ]
    if not tables:
        if norm_tables(results):
            raise NothingToDraw(f"norms, alignment and accuracy of {FEWEST} models are needed")
        return
    best = max(tables, key=lambda source: (source.name == PUBLISHED, len(source.rows)))
    source = mark_pareto_front(best)
    with plt.rc_context(
        {"font.size": 10, "axes.labelsize": 11, "xtick.labelsize": 9, "ytick.labelsize": 9}
    ):
        figure = draw_slide(source)
    caption = (
        "Human alignment against Perturbation Tolerance. Each dot is a standard model, coloured by its accuracy, with which "
        "the correlations above are; black line: their Pareto front; coloured lines: one net trained against growing eps, "
        f"solid in L2, dotted in Linf.\n{source.note}"
    )
    yield "slide", figure, source.rows, caption


def draw_slide(source: NormTable) -> plt.Figure:
    """Wide enough for a slide, its words large enough to be read from the last row."""
    figure, ax = plt.subplots(figsize=(PAGE_WIDTH, 4.4), layout="constrained")
    standard = source.standard.dropna(subset=["accuracy"]).sort_values("accuracy")
    dots = ax.scatter(
        standard["pt"],
        100 * standard["alignment"],
        c=standard["accuracy"],
        cmap="cividis",
        s=22,
        linewidth=0.3,
        edgecolor="white",
        zorder=2,
        label=f"standard ({len(standard)}), coloured by accuracy",
    )
    figure.colorbar(dots, ax=ax, label=source.accuracy_label, pad=0.01)
    draw_front(ax, source.rows[source.rows["front"]])
    draw_series(ax, source.rows)
    for group, label in (
        ("robust", "adversarially trained"),
        ("harmonized", "harmonized with human maps"),
    ):
        part, (colour, marker) = source.rows[source.rows["group"] == group], GROUP_STYLES[group]
        if len(part):
            ax.scatter(
                part["pt"],
                100 * part["alignment"],
                color=colour,
                marker=marker,
                s=90 if marker == "*" else 26,
                linewidth=0.3,
                edgecolor="white",
                zorder=3,
                label=f"{label} ({len(part)})",
            )
    ax.plot([], [], color="#222222", linewidth=0.9, label="Pareto front of standard models")
    tolerance_scale(ax.xaxis, source.rows["pt"])
    rho = {measure: correlation(standard, "accuracy", measure)["rho"] for measure in MEASURES}
    ax.set_title(
        f"Spearman with accuracy of standard models: tolerance {rho['pt']:+.2f}, alignment {rho['alignment']:+.2f}",
        loc="left",
        fontsize=10,
    )
    ax.set(
        xlabel=MEASURES["pt"][0] + ": harder to fool →",
        ylabel="human alignment (% of ceiling):\nfooled where people look →",
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, handlelength=1.5)
    ax.margins(0.06)
    return figure


FIGURES = {
    "brainscore_vs_tolerance": (
        brainscore_vs_tolerance,
        f"`{SETUP}` joins the leaderboard; {LACKING}",
    ),
    "robust_vs_tolerance": (
        robust_vs_tolerance,
        "`python evaluate_robustness.py --model_name NAME --results_dir {} Linf --eps "
        "1/255`, L2 --protocol crossing, then `python utilities.py merge --results_dir {}`",
    ),
    "slide": (slide, LACKING),
}
