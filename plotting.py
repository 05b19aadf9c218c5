"""Figures, and the exact tables they draw, from a results folder alone: no torch, no GPU.

    python plotting.py                                                every figure that the records allow -> figures/
    python plotting.py --plots accuracy_vs_eps --models resnet50.a1_in1k convnext_tiny.fb_in1k
    python plotting.py --results_dir results/demo --figures_dir figures/demo
    python plotting.py --plots all --specifier appendix --save_to_paper ../paper/figures

A figure is written four times: PDF (vector, fonts embedded), PNG, the table it draws as CSV, and its caption as .txt.
Only finished records are drawn; the others are named on the screen and in the caption. Exit status 2: nothing to draw.
"""
from __future__ import annotations

import argparse
import io
import json
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from itertools import compress, groupby, islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import metrics
import records
import utilities

COLUMN, PAGE = 3.4, 7.0     # inches: one column of a two-column paper, and both
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "lines.linewidth": 1.2, "lines.markersize": 4, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.handlelength": 2.6, "pdf.fonttype": 42}
# Okabe and Ito's colours (and wine for VGG); a model belongs to the first family that has a prefix of its name
FAMILIES = {
    "ConvNeXt": ("#0072B2", ("convnext",)),
    "EfficientNet": ("#009E73", ("efficientnet", "effnet")),
    "MobileNet": ("#E69F00", ("mobilenet",)),
    "ResNet": ("#D55E00", ("resnet", "resnext", "wide_resnet", "seresne", "legacy_seresne")),
    "ViT": ("#CC79A7", ("vit", "deit", "flexivit")),
    "BEiT, EVA": ("#000000", ("beit", "eva")),
    "Swin": ("#56B4E9", ("swin",)),
    "VGG": ("#882255", ("vgg",)),
    "Other": ("#888888", ("",)),
}
MARKERS, DASHES = "osD^vP*X", ("-", "--", ":", "-.")    # tell the models of a family apart
MAX_NAMED = 24              # models in a legend; above it plain lines, and the legend gives families
PHOTOGRAPHS, EXAMPLE_MODELS, CELL = 4, 3, 1.62      # columns and rows of examples; inches a picture
NORMS = {"Linf": "$L_\\infty$", "L2": "$L_2$", "L1": "$L_1$"}
NOT_KEPT = "fooled, no example kept"
EVALUATE = "python evaluate_robustness.py --model_name tf_efficientnet_lite0 --results_dir {} --examples 4 Linf --eps 1/255"
Drawing = tuple[str, Figure, pd.DataFrame, str]     # name, figure, the table drawn, caption


# ---- what is drawn ---------------------------------------------------------------------------------------------

def load_runs(results_dir, models: list[str] | None = None) -> list[dict]:
    """Every run file, finished or not, with its record's path as `csv`. Raises RecordError when none is finished."""
    root = Path(results_dir) / "records"
    runs = [records.read_run(path) | {"csv": path.with_suffix(".csv")} for path in sorted(root.glob("*/*/*.json"))]
    have = sorted({run["model"] for run in runs})
    if have and (unknown := sorted(set(models or []) - set(have))):
        raise records.RecordError(f"{root}: no record of {', '.join(unknown)}; --models takes {', '.join(have)}")
    runs = [run for run in runs if not models or run["model"] in models]
    if not any(run["status"] == "done" for run in runs):
        raise records.RecordError(f"{root}: no finished record; `{EVALUATE.format(results_dir)}` makes one")
    return runs


def read_rows(run: dict) -> pd.DataFrame:
    """Rows of a finished record. Raises RecordError when the file is not the one that the run finished with."""
    rows = records.read_record(run["csv"])
    if records.sha256_file(run["csv"]) != run["record_sha256"]:
        raise records.RecordError(f"{run['csv']}: changed since its run finished; evaluate it again with --overwrite")
    return rows


def finished(runs: list[dict], kinds: tuple[str, ...], key: Callable) -> list[list[dict]]:
    """Finished runs of these kinds, those of one key together."""
    chosen = sorted((run for run in runs if run["status"] == "done" and run["kind"] in kinds), key=key)
    return [list(group) for _, group in groupby(chosen, key)]


def folder(run: dict) -> tuple[str, str]:
    return run["image_set"], run["threat"]


def budget(run: dict) -> str:
    return run["settings"]["run"].get("attack", "not given")


def family(model: str) -> str:
    """The family of a model, by the prefix of its name without `hub/` and `tf_`."""
    name = model.lower().split("/")[-1].removeprefix("tf_").removeprefix("tv_")
    return next(key for key, (_, prefixes) in FAMILIES.items() if name.startswith(prefixes))


def model_styles(models: set[str]) -> dict[str, dict]:
    """Keywords of a line: colour by family, marker and dashes by the place within it."""
    styles, seen = {}, dict.fromkeys(FAMILIES, 0)
    for model in sorted(models):
        name = family(model)
        styles[model] = {"color": FAMILIES[name][0]} | ({"linewidth": 0.6} if len(models) > MAX_NAMED else {
            "marker": MARKERS[seen[name] % len(MARKERS)], "linestyle": DASHES[seen[name] % len(DASHES)]})
        seen[name] += 1
    return styles


def describe(group: list[dict], runs: list[dict]) -> str:
    """A line of a caption: n, protocol, budget and dates of the runs drawn, and which models of the image set are not."""
    settings, (image_set, threat) = [run["settings"]["run"] for run in group], folder(group[0])
    values = {"n =": {str(run["images"]) for run in group}, "protocol": {str(s.get("protocol")) for s in settings},
              "head": {s.get("head", "none") for s in settings} - {"none"}, "budget": {budget(run) for run in group}}
    facts = [f"{len(group)} model(s)", *(f"{name} {' or '.join(sorted(value))}" for name, value in values.items() if value)]
    days = sorted(session["started"][:10] for run in group for session in run["sessions"])
    status = {run["model"]: "not evaluated" for run in runs if run["image_set"] == image_set}
    status |= {run["model"]: run["status"] for run in runs if folder(run) == (image_set, threat)}
    missing = [f"Missing ({why}): {', '.join(model for model in status if status[model] == why)}."
               for why in dict.fromkeys(status.values()) if why != "done"]
    return (f"{image_set}, {threat}: {', '.join(facts)}, evaluated {' to '.join(dict.fromkeys([days[0], days[-1]]))}. "
            f"{' '.join(missing) or 'No model is missing.'}")


# ---- accuracy against eps --------------------------------------------------------------------------------------

def accuracy_table(run: dict) -> pd.DataFrame:
    """Accuracy on all images and its 95 % Wilson interval, a row per eps; at eps 0 it is clean accuracy."""
    rows, table = read_rows(run), []
    hits: list[tuple[Any, Any]] = [(0.0, rows.drop_duplicates("image_id")["clean_correct"])]
    hits += [(eps, part["robust"]) for eps, part in rows.groupby("eps") if eps != 0]
    for eps, hit in hits:
        correct, n = int(hit.sum()), len(hit)
        low, high = metrics.accuracy_interval(correct, n)
        table.append({"image_set": run["image_set"], "threat": run["threat"], "budget": budget(run), "model": run["model"],
                      "family": family(run["model"]), "eps": eps, "correct": correct, "n": n, "accuracy": correct / n,
                      "low": low, "high": high})
    return pd.DataFrame(table)


def accuracy_vs_eps(runs: list[dict]) -> Iterator[Drawing]:
    """Accuracy under attack against eps: a panel per image set, threat and budget, a line per model."""
    def panel(run):     # its models share every setting of the run but the list of eps
        return *folder(run), json.dumps(run["settings"]["run"] | {"eps": None}, sort_keys=True)
    if not (groups := finished(runs, ("ball",), panel)):
        return
    tables = [pd.concat(map(accuracy_table, group)).assign(panel=i) for i, group in enumerate(groups, start=1)]
    styles = model_styles({run["model"] for group in groups for run in group})
    figure, axes = panels(len(groups), legend_handles(styles))
    for ax, group, table in zip(axes, groups, tables):
        draw_accuracy(ax, table, styles, group[0]["settings"]["run"].get("norm", group[0]["threat"]))
        ax.set_title(panel_title(group[0], groups), loc="left")
    bars = ("Bars: 95 % Wilson intervals; models stand a little apart along the axis so that their bars can be told apart."
            if len(styles) <= MAX_NAMED else "The 95 % Wilson intervals are in the table.")
    caption = "\n".join([f"Accuracy under attack, of all images, against the radius eps (at 0: without attack). {bars}",
                         *(describe(group, runs) for group in groups)])
    yield "accuracy_vs_eps", figure, pd.concat(tables, ignore_index=True), caption


def panels(count: int, legend: list[Line2D]) -> tuple[Figure, list]:
    """`count` axes, one to a column or two to a page, above a legend with as many columns as fit."""
    width, columns = (COLUMN, 1) if count == 1 else (PAGE, 2)
    rows, fit = -(-count // columns), max(1, int(width / max(0.45 + 0.062 * len(str(line.get_label())) for line in legend)))
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(width, 2.3 * rows + 0.15 * -(-len(legend) // fit)))
    figure.legend(handles=legend, loc="outside lower center", ncols=min(fit, len(legend)))
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def legend_handles(styles: dict[str, dict]) -> list[Line2D]:
    """A line per model, or per family where there are too many models to name."""
    if len(styles) <= MAX_NAMED:
        return [Line2D([], [], label=model, **style) for model, style in styles.items()]
    return [Line2D([], [], label=name, color=FAMILIES[name][0]) for name in FAMILIES if name in map(family, styles)]


def panel_title(run: dict, groups: list[list[dict]]) -> str:
    """Image set, threat and n; below it the budget, and what else tells panels of the same name apart."""
    settings = run["settings"]["run"]
    others = [group[0]["settings"]["run"] for group in groups if folder(group[0]) == folder(run)]
    facts = [f"{name} {str(value)[:12]}" for name, value in settings.items() if name not in ("attack", "attacks", "eps")
             and any(other.get(name) != value for other in [*others, settings | {"head": "none"}])]
    below = textwrap.fill(", ".join([budget(run), *facts]), 46)
    return f"{run['image_set']}, {NORMS.get(run['threat'], run['threat'])} (n = {run['images']})\n{below}"


def draw_accuracy(ax, table: pd.DataFrame, styles: dict[str, dict], norm: str) -> None:
    models, radii = sorted(table["model"].unique()), np.unique(table["eps"])
    span, bars = radii[-1] or 1.0, len(styles) <= MAX_NAMED
    apart = min(0.012 * span, 0.3 * np.diff(radii, prepend=-span).min() / len(models)) if bars else 0
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        low_high = np.clip([part["accuracy"] - part["low"], part["high"] - part["accuracy"]], 0, None)
        ax.errorbar(part["eps"] + (i - (len(models) - 1) / 2) * apart, 100 * part["accuracy"], 100 * low_high,
                    elinewidth=0.8 * bars, ecolor=(styles[model]["color"], 0.6), clip_on=False, **styles[model])
    ax.set(ylim=(0, 100), xlim=(-0.05 * span, 1.05 * span), ylabel="accuracy (%)")
    ax.spines[["left", "bottom"]].set_position(("outward", 3))
    radius_axis(ax, radii, norm)


def radius_axis(ax, eps, norm: str) -> None:
    """Ticks at the radii that were evaluated, the larger one where two would touch; Linf in 255ths."""
    ticks: list[float] = []
    for value in sorted(eps, reverse=True):
        if not ticks or ticks[-1] - value > 0.1 * max(eps):
            ticks.append(float(value))
    shown = [utilities.format_eps(value) if norm == "Linf" else f"{value:g}" for value in ticks]
    ax.set_xticks(ticks, [text.removesuffix("/255") for text in shown])
    ax.set_xlabel(f"radius ε in {NORMS.get(norm, norm)}" + (" (1/255)" if any("/255" in text for text in shown) else ""))


# ---- adversarial examples --------------------------------------------------------------------------------------

def example_path(run: dict, image_id: str) -> Path:
    """Where evaluate_robustness.py --examples keeps a photograph and its perturbation."""
    name = f"{records.file_name(image_id)}.npz"
    return run["csv"].parents[3].joinpath("examples", *folder(run), run["csv"].stem, name)


def read_example(run: dict, rows: pd.DataFrame, image_id: str) -> dict:
    """What a model made of a photograph: `verdict`, and image, delta, classes and norms where the record confirms them."""
    cell = {"image_set": run["image_set"], "threat": run["threat"], "budget": budget(run), "model": run["model"],
            "image_id": image_id}
    part, path = rows[rows["image_id"] == image_id], example_path(run, image_id)
    fooled = part[part["robust"] == 0] if "robust" in part else part[part["success"] == 1]
    robust = f"robust at ε = {utilities.format_eps(part['eps'].max())}" if "eps" in part else "no adversarial image found"
    for holds, verdict in [(part.empty, "not in its image list"),
                           (not part["clean_correct"].all(), "misclassified without attack"),
                           (fooled.empty, robust), (not path.exists(), NOT_KEPT)]:
        if holds:
            return cell | {"verdict": verdict}
    try:
        with np.load(path) as file:
            example = {name: file[name] if file[name].ndim else file[name].item()
                       for name in ("label", "pred", "eps", "l2", "linf", "image", "delta")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise records.RecordError(f"{path}: damaged example ({error}); delete it") from None
    if not np.isclose(fooled["l2"], example["l2"]).any():
        return cell | {"verdict": "fooled, the example kept is another run's"}
    size = np.abs(example["delta"].astype(float))
    factor = 0.5 / (np.quantile(size, 0.999) or size.max() or 0.5)      # the largest 0.1 % may leave black to white
    return cell | example | {"verdict": f"{example['label']} → {example['pred']}", "factor": float(f"{factor:.2g}")}


def example_columns(group: list[dict]) -> list[list[dict]]:
    """The first photographs of which any model has an example: what every model that has something to tell made of each."""
    rows = [read_rows(run) for run in group]
    names = dict.fromkeys(name for run, part in zip(group, rows) for name in part["image_id"].unique()
                          if example_path(run, name).exists())
    columns = ([read_example(run, part, name) for run, part in zip(group, rows)] for name in names)
    shown = list(islice((column for column in columns if any("image" in cell for cell in column)), PHOTOGRAPHS))
    told = [any(column[i]["verdict"] != NOT_KEPT for column in shown) for i in range(len(group))]
    return [list(compress(column, told)) for column in shown]


def adversarial_examples(runs: list[dict]) -> Iterator[Drawing]:
    """Photographs, and under each its amplified adversarial difference and the verdict, a row per model."""
    for group in finished(runs, ("ball", "minimum_norm"), folder):
        first = sorted(group, key=lambda run: not example_path(run, "any").parent.is_dir())[:EXAMPLE_MODELS]
        if not (columns := example_columns(first)):
            continue
        models = [cell["model"] for cell in columns[0]]
        table = pd.DataFrame([cell for column in columns for cell in column]).drop(columns=["image", "delta"])
        caption = ("Photographs, and under each what was added to fool a model, amplified by the factor given (grey: nothing; "
                   "the largest 0.1 % of the values may be clipped). A photograph is cropped as its first model takes it.\n"
                   + describe([run for run in group if run["model"] in models], runs))
        if left := [run["model"] for run in group if run["model"] not in models]:
            caption += f"\nNot drawn, for want of room or of examples (see --models): {', '.join(left)}."
        yield "_".join(["adversarial_examples", *folder(group[0])]), draw_examples(columns), table, caption


def draw_examples(columns: list[list[dict]]) -> Figure:
    """A column per photograph: the photograph as the first model sees it, and below it a row per model."""
    gap, line = 0.07, 0.117     # inches: between pictures, a line of text
    names = ["", *(cell["model"].replace(".", ".\n", len(cell["model"]) > 26) for cell in columns[0])]
    left = 0.08 + line * (1 + max(name.count("\n") for name in names))
    first = [next(cell for cell in column if "image" in cell) for column in columns]
    rows = [[{"image": cell["image"], "label": cell["label"]} for cell in first], *zip(*columns)]
    lines = [max(picture_text(cell).count("\n") + 1 for cell in row) for row in rows]
    tops = np.cumsum([0, *(CELL + gap + line * (count + 0.5) for count in lines)])
    width, height = left + len(columns) * (CELL + gap) - gap, tops[-1]
    figure = plt.figure(figsize=(width, height))
    for name, row, top in zip(names, rows, height - tops):
        figure.text(0.02 / width, (top - CELL / 2) / height, name, rotation=90, va="center", ma="center", fontsize=7)
        for j, cell in enumerate(row):
            ax = figure.add_axes(((left + j * (CELL + gap)) / width, (top - CELL) / height, CELL / width, CELL / height))
            ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
            ax.spines[:].set_visible(False)
            draw_picture(ax, cell)
            below = picture_text(cell)      # its last line stands on y
            ax.text(0.5, -line * (below.count("\n") + 1.1) / CELL, below, ha="center", fontsize=7, transform=ax.transAxes)
    return figure


def draw_picture(ax, cell: dict) -> None:
    """A photograph, an amplified difference, or the reason why there is none."""
    if "image" not in cell:
        why = textwrap.fill(cell["verdict"], 20)
        ax.text(0.5, 0.5, why, ha="center", va="center", color="#666666", fontsize=7, transform=ax.transAxes)
    elif "delta" in cell:   # (H,W,3), pixel units of [0, 1]
        grey = 127.5 + 255 * cell["factor"] * cell["delta"].astype(float)
        ax.imshow(grey.clip(0, 255).astype(np.uint8), interpolation="none")
    else:
        ax.imshow(cell["image"])


def picture_text(cell: dict) -> str:
    """Below a photograph its class; below a difference the verdict, the radius or norm, and the factor."""
    if "delta" not in cell:
        return cell.get("label", "")
    size = (f"ε = {utilities.format_eps(cell['eps'])}" if np.isfinite(cell["eps"]) else
            f"{NORMS['Linf']} = {255 * cell['linf']:.2g}/255" if cell["threat"].startswith("Linf") else
            f"{NORMS['L2']} = {cell['l2']:.3g}")
    verdict = cell["verdict"] if len(cell["verdict"]) <= 28 else cell["verdict"].replace("→ ", "→\n")
    return f"{verdict}\n{size}, ×{cell['factor']:g}"


# ---- writing ---------------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[list[dict]], Iterator[Drawing]]] = {
    "accuracy_vs_eps": accuracy_vs_eps,
    "adversarial_examples": adversarial_examples,
}


def write(args, name: str, figure: Figure, table: pd.DataFrame, caption: str) -> list[Path]:
    """The four files of a figure, and the paper's copy of the PDF; the same bytes for the same data: no date in them."""
    contents: dict[str, str | bytes] = {}
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        contents[kind] = buffer.getvalue()
    contents |= {"csv": table.to_csv(index=False, lineterminator="\n"), "txt": f"{caption}\n"}
    name = "_".join(filter(None, [name, args.specifier]))
    files = {Path(args.figures_dir) / f"{name}.{kind}": content for kind, content in contents.items()}
    if args.save_to_paper:
        files[Path(args.save_to_paper) / f"{name}.pdf"] = contents["pdf"]
    for path, content in files.items():
        records.write_atomic(path, content)
    return list(files)


def draw(args) -> int:
    """Every figure asked for. One that has nothing to draw says so; the exit status is 2 when that is true of all."""
    runs, drawn = load_runs(args.results_dir, args.models), []
    if unfinished := [f"{run['csv']} ({run['status']})" for run in runs if run["status"] != "done"]:
        print(f"unfinished, not drawn: {', '.join(unfinished)}", file=sys.stderr)
    for name in FIGURES if "all" in args.plots else dict.fromkeys(args.plots):
        for drawing in FIGURES[name](runs):
            drawn.append(name)
            if not args.no_save:
                print(*write(args, *drawing), sep="\n")
            if not args.show_plots:
                plt.close(drawing[1])
        if name not in drawn:
            print(f"{name}: nothing to draw; `{EVALUATE.format(args.results_dir)}` makes it (a finished run: with --overwrite)",
                  file=sys.stderr)
    if args.show_plots:
        plt.show()
    return 0 if drawn else 2


# ---- command line ----------------------------------------------------------------------------------------------

def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", nargs="+", choices=[*FIGURES, "all"], default=["all"], metavar="NAME",
                        help=f"any of {', '.join(FIGURES)}; default all")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these; default every model with a record")
    parser.add_argument("--results_dir", default="results")
    parser.add_argument("--figures_dir", default="figures")
    parser.add_argument("--specifier", help="a word added to the names of the files")
    parser.add_argument("--save_to_paper", metavar="DIR", help="write each PDF to that folder too")
    parser.add_argument("--show_plots", action="store_true", help="open a window with each figure")
    parser.add_argument("--no_save", action="store_true", help="write no file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_args_parser().parse_args(argv)
    if not args.show_plots:
        plt.switch_backend("Agg")
    try:
        with plt.rc_context(STYLE):
            return draw(args)
    except (records.RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
