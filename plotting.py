r"""Figures, and the exact tables they draw, from a results folder alone: no torch, no GPU.

    python plotting.py                       every figure that the results allow -> figures/
    python plotting.py --plots accuracy_vs_eps --models resnet50.a1_in1k convnext_tiny.fb_in1k
    python plotting.py --results_dir results/demo --figures_dir figures/demo
    python plotting.py --report              and figures/report.html, one page with all of it
    python plotting.py --plots all --specifier appendix --save_to_paper ../paper/figures

A figure is written four times: PDF (vector, fonts embedded), PNG, the table it draws as CSV, and
its caption as .txt; a table three times: LaTeX (for \usepackage{booktabs}), CSV and caption.
Only finished records are drawn; the others are named on the screen and in the caption. Exit status
2: nothing to draw.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alignment_security.analysis.examples import check_images
from alignment_security.analysis.results import NothingToDraw, Results, load_results, stale_records
from alignment_security.common.command_line import Parser
from alignment_security.common.files import UserError, write_atomic
from alignment_security.common.folders import glob_visible
from alignment_security.common.process import run_command, run_script
from alignment_security.common.settings import setting
from alignment_security.common.text import some_of
from alignment_security.plots import (
    attacks,
    both_studies,
    claims,
    clean_robust,
    corruptions,
    cost,
    examples,
    feng2025,
    feng2025_harmonized,
    feng2025_pictures,
    feng2025_tables,
    hoak2025,
    hoak2025_heat_maps,
    hoak2025_survivors,
    hoak2025_tables,
    norm_distributions,
    norms,
    records,
    slide,
    training,
)
from alignment_security.plots.latex import latex
from alignment_security.plots.report import write_report
from alignment_security.plots.style import (
    STYLE,
    Drawing,
    Figure,
    check_windows,
    plt,
    titles_into_caption,
)
from alignment_security.records.summary import JOINED_NAME, SUMMARY_NAME

# section of the report -> modules whose FIGURES are drawn in it
SECTIONS: dict[str, list] = {
    "Accuracy under attack": [records, clean_robust, attacks],
    "Corruptions": [corruptions],
    "Minimal norms": [norms, norm_distributions],
    "Cost": [cost],
    "Adversarial examples": [examples],
    "Hoak 2025": [hoak2025_heat_maps, hoak2025, hoak2025_survivors, hoak2025_tables],
    "Feng 2025": [feng2025, feng2025_harmonized, feng2025_pictures, feng2025_tables],
    "Both studies": [both_studies, slide, claims],
    "Trainings": [training],
}
OTHER = "Other figures"
SECTION_OF = {
    name: title
    for title, modules in SECTIONS.items()
    for module in modules
    for name in module.FIGURES
}
# name -> (function that draws it, command that makes what it draws)
FIGURES = {
    name: figure
    for modules in SECTIONS.values()
    for module in modules
    for name, figure in module.FIGURES.items()
}

SAMPLE = "results/sample"


def rendered(figure: Figure) -> dict[str, bytes]:
    """PDF and PNG of a figure, without dates."""
    contents = {}
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        contents[kind] = buffer.getvalue()
    return contents


def write(args: argparse.Namespace, drawing: Drawing) -> list[Path]:
    """Write the files of a figure or table, and the paper's copy; same data, same bytes."""
    name, figure, table, caption = drawing
    contents: dict[str, str | bytes] = (
        {**rendered(figure)} if figure else {"tex": latex(table, name)}
    )
    paper_kind = "pdf" if figure else "tex"
    contents["csv"] = table.to_csv(index=False, lineterminator="\n")
    contents["txt"] = f"{caption}\n"
    if args.specifier:
        name = f"{name}_{args.specifier}"
    if name != Path(name).name:
        raise UserError(f"{name}: no name of a file; a figure is written to --figures_dir alone")
    files = {
        Path(args.figures_dir) / f"{name}.{kind}": content for kind, content in contents.items()
    }
    if args.save_to_paper:
        files[Path(args.save_to_paper) / f"{name}.{paper_kind}"] = contents[paper_kind]
    for path, content in files.items():
        write_atomic(path, content)
    return list(files)


def draw(args: argparse.Namespace) -> int:
    """Draw every figure asked for and print its files; returns the exit status.

    A figure without data is named with the command that makes them. The status is 2 if that is true
    of all.
    """
    if args.show_plots:
        check_windows()
    if not Path(args.results_dir).is_dir() and not args.published:
        raise UserError(
            f"--results_dir {args.results_dir}: no such folder; {SAMPLE} has the committed records"
        )
    results = load_results(
        args.results_dir, args.models, args.published, args.image_set, args.threat, args.images
    )
    check_images(results)
    for remark in left_out(results, args.results_dir):
        print(remark, file=sys.stderr)
    files: dict[str, list[Path]] = {}  # section of the report -> files; empty: nothing is drawn
    missing: dict[str, list[str]] = {}  # command that makes the data -> figures
    for name in FIGURES if "all" in args.plots else dict.fromkeys(args.plots):
        function, command = FIGURES[name]
        command = command_of(command, args.results_dir, results)
        drawn = False
        try:
            for drawing in function(results):
                drawn = True
                files.setdefault(SECTION_OF.get(name, OTHER), []).extend(finish(args, drawing))
        except NothingToDraw as reason:
            command = f"{reason}; {command}"
        if not drawn:
            missing.setdefault(command, []).append(name)
    if "all" in args.plots and not files and is_empty(results):
        raise UserError(
            f"{args.results_dir} has no records, so there is nothing to draw, and nothing to "
            "report; `python evaluate_robustness.py --model_name NAME --results_dir "
            f"{args.results_dir} clean` makes the first, --published DIR names published numbers, "
            f"and --results_dir {SAMPLE} draws the committed records"
        )
    if "all" in args.plots and files and missing:
        names = [name for figures in missing.values() for name in figures]
        command = f"`--plots {names[0]}` says what that one needs"
        missing = {command: names}
    for command, figures in missing.items():
        print(f"nothing to draw for {', '.join(figures)}: {command}", file=sys.stderr)
    if older := older_drawings(args, {path.stem for paths in files.values() for path in paths}):
        print(
            f"{args.figures_dir}: not drawn from {args.results_dir} now, so of earlier or of other "
            f"results: {some_of(older)}",
            file=sys.stderr,
        )
    if args.report:
        print(write_report(results, files, Path(args.figures_dir)))
    if args.show_plots:
        plt.show()
    return 0 if files or args.report else 2


def older_drawings(args: argparse.Namespace, drawn: set[str]) -> list[str]:
    """Names of drawings in --figures_dir that a run which draws everything did not write.

    drawn   the names of those that it wrote
    """
    chosen = args.models, args.image_set, args.threat, args.images, args.specifier, args.no_save
    if "all" not in args.plots or any(chosen):
        return []
    captions = glob_visible(Path(args.figures_dir), "*.txt")
    return [
        path.stem
        for path in captions
        if path.stem not in drawn and path.with_suffix(".csv").exists()
    ]


def is_empty(results: Results) -> bool:
    """Whether a results folder has nothing that figures read. It may hold other folders."""
    read = ("records", "training", "benchmark_scores", SUMMARY_NAME, JOINED_NAME)
    return not any((results.folder / name).exists() for name in read)


def command_of(text: str, results_dir: str, results: Results) -> str:
    """The command that makes what a figure lacks, for the image set that the records are of.

    text   as in FIGURES: `{}` is the results folder. What follows `--results_dir {}` belongs to an
           evaluation, which without --dataset is of `sample`; commands of `utilities.py` end there
    """
    sets = Counter(run["image_set"] for run in results.runs)
    image_set = next((name for name, _ in sets.most_common()), "sample")
    option = f" --dataset {image_set} --data_dir DIR" if image_set != "sample" else ""
    text = re.sub(r"(--results_dir \{\}) (?!--dataset)", rf"\1{option} ", text)
    return text.replace("{}", str(results_dir))


def left_out(results: Results, results_dir: str) -> Iterator[str]:
    """A line for each thing in a results folder that no figure shows."""
    for problem in results.problems:
        yield f"left out: {problem}"
    for reason in results.not_comparable.values():
        yield f"not in the summary and figures of it, elsewhere in panels of its own: {reason}"
    unfinished = [run for run in results.runs if run["status"] != "done"]
    if unfinished:
        names = ", ".join(f"{run['csv']} ({run['status']})" for run in unfinished)
        yield f"unfinished, not drawn: {names}"
    if stale := stale_records(results):
        yield (
            f"{results_dir}/{SUMMARY_NAME} is older than {len(stale)} record(s), e.g. "
            f"{stale[0]}: run `python utilities.py merge --results_dir {results_dir}` first"
        )


def finish(args: argparse.Namespace, drawing: Drawing) -> list[Path]:
    """Write a drawing and print its files, unless --no_save; close it, unless --show_plots."""
    name, figure, table, caption = drawing
    if args.no_titles and figure:
        drawing = name, figure, table, titles_into_caption(figure) + caption
    files = [] if args.no_save else write(args, drawing)
    for path in files:
        print(path)
    if figure and not args.show_plots:
        plt.close(figure)
    return files


# ---- command line --------------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    """The command line; its help is the docstring of this file."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--plots",
        nargs="+",
        choices=[*FIGURES, "all"],
        default=["all"],
        metavar="NAME",
        help=f"any of {', '.join(FIGURES)}; default: all",
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="only these; default every model with a record"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="photographs that figures of examples show, by image_id; default the first that have "
        "kept examples",
    )
    parser.add_argument(
        "--image_set", nargs="+", metavar="SET", help="only these; default every image set"
    )
    parser.add_argument(
        "--threat",
        nargs="+",
        metavar="THREAT",
        help="only these folders of records: Linf, L2-crossing, ...; default all",
    )
    parser.add_argument(
        "--no_titles",
        action="store_true",
        help="write titles and budgets into the captions, not into the pictures",
    )
    parser.add_argument("--results_dir", default="results", help="folder of records and tables")
    parser.add_argument("--figures_dir", default="figures", help="folder that gets the figures")
    parser.add_argument(
        "--published",
        default=setting("PUBLISHED_DIR"),
        metavar="DIR",
        help="public numbers, laid out as results/README.md says; default PUBLISHED_DIR of .env",
    )
    parser.add_argument("--specifier", help="a word added to the names of the files")
    parser.add_argument(
        "--save_to_paper",
        metavar="DIR",
        help="write each PDF (of a table, its .tex) to that folder too",
    )
    parser.add_argument("--show_plots", action="store_true", help="open a window with each figure")
    saving = parser.add_mutually_exclusive_group()
    saving.add_argument("--no_save", action="store_true", help="write no file")
    saving.add_argument(
        "--report",
        action="store_true",
        help="write FIGURES_DIR/report.html too: leaderboard, figures",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line (default sys.argv) and return the exit status."""
    args = get_args_parser().parse_args(argv)
    if not args.show_plots:
        plt.switch_backend("Agg")
    # not that of a matplotlibrc, in the current folder or at home: same data, same bytes
    with plt.style.context("default"), plt.rc_context(STYLE):
        return run_command(lambda: draw(args))


if __name__ == "__main__":
    run_script(main)
