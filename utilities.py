"""Paths and settings from .env, eps and provenance, and the commands that work on results.

    python utilities.py merge [--results_dir results] [--allow_partial]      records -> results/evaluation_results.csv
    python utilities.py audit [results/] [--reattack K]                      what of it would not stand up in review
    python utilities.py trace FIGURE.csv [--line N]                          the runs and commits behind a figure's numbers
    python utilities.py models [NAME ...] [--list LIST]                      which can be run here, and what they need
    python utilities.py prestage --models LIST --out DIR                     one tar of weights a model, for HTCondor
    python utilities.py make_sweep --out DIR -- THREAT ...                   the folder that condor_submit_dag runs
    python utilities.py sweep_status --sweep DIR                             how far it is
    python -c "from utilities import setup_scores; setup_scores()"           Brain-Score leaderboard -> registry names
    python utilities.py setup_scores [--package_path DIR] [--scores_path FILE] [--date YYYY-MM-DD]         the same
    python utilities.py compare_scores A B                                   two leaderboard files: what moved
    python utilities.py join [--results_dir results]                         our summary with the scores of each model
"""
from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import pandas as pd
from dotenv import dotenv_values

from alignment_security.analysis import brainscore_leaderboard as brainscore
from alignment_security.analysis.brainscore_join import join_results
from alignment_security.cluster import sweep
from alignment_security.models import lists as model_lists
from alignment_security.records import audit
from alignment_security.records import run as records

ROOT = Path(__file__).resolve().parent
PACKAGES = ["torch", "torchvision", "timm", "pyautoattack", "foolbox", "numpy", "scipy", "pandas", "pillow",
            "brainscore-vision"]


def setting(name: str, default: str | None = None) -> str | None:
    """A value of the environment, else of the .env beside this file; an empty one counts as not set."""
    return os.environ.get(name) or dotenv_values(ROOT / ".env").get(name) or default


# ---- eps -------------------------------------------------------------------------------------------------------

def parse_eps(text: str) -> float:
    """`8/255` or `0.031` as a float in pixel units of [0, 1]. Never guesses a unit: a value above 1 is refused."""
    value = parse_radius(text)
    if value > 1:
        raise ValueError(f"eps {text} is above 1; pixels are in [0, 1], so write {text}/255 if you mean {text} of 255 levels")
    return value


def parse_radius(text: str) -> float:
    """A radius in any norm: a fraction or a float, not negative, in pixel units of [0, 1]; in L1 and L2 it may exceed 1."""
    parts = text.split("/")
    try:
        value = float(Fraction(parts[0]) / Fraction(parts[1] if len(parts) == 2 else 1)) if len(parts) <= 2 else math.nan
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"eps {text!r} is not a number; write a fraction (8/255) or a float (0.031)")
    if value < 0:
        raise ValueError(f"eps {text} is negative; it is a distance in pixel units of [0, 1]")
    return value


def format_eps(eps: float) -> str:
    """eps as people write it: `8/255`, `0.25/255`; what is no multiple of 1/255000 stays a plain float."""
    levels = round(255 * eps, 3)
    return f"{levels:.10g}/255" if abs(255 * eps - levels) < 1e-9 and eps else f"{eps:g}"


# ---- provenance ------------------------------------------------------------------------------------------------

def git_state() -> str:
    """Commit of the code, `-dirty` when tracked files differ; `GIT_COMMIT` of the environment where there is no git."""
    git = ["git", "-C", str(ROOT)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return setting("GIT_COMMIT") or "unknown"
    return sha + ("-dirty" if dirty.strip() else "")


def installed_versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def pinned_versions() -> dict[str, str]:
    """`name==version` lines of requirements.txt."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


def version_drift() -> list[str]:
    """Packages whose installed version is not the pinned one, as sentences for the run file."""
    pinned, found = pinned_versions(), installed_versions()
    return [f"{name} {found[name]} is installed, requirements.txt pins {pinned[name]}"
            for name in PACKAGES if name in found and name in pinned and found[name].split("+")[0] != pinned[name]]


# ---- commands --------------------------------------------------------------------------------------------------

def merge_command(args) -> None:
    summary = records.merge(args.results_dir, args.allow_partial)
    print(summary_table(summary))
    print(Path(args.results_dir) / records.SUMMARY_NAME)


def summary_table(summary) -> str:
    """The summary as a table to read: a line per model x threat x eps, percent and norms rounded."""
    shown = summary[["image_set", "threat", "model", "eps", "n"]].copy()
    shown["eps"] = [format_eps(eps) if eps >= 0 else "" for eps in summary["eps"].astype(float)]
    for column in ("clean_acc", "robust_acc"):
        if column in summary:
            shown[column] = [f"{100 * v:.1f} %" if pd.notna(v) else "" for v in summary[column]]
    for column in ("l2_mean", "l2_sem", "human_alignment"):
        if column in summary:
            shown[column] = [f"{v:.3f}" if pd.notna(v) else "" for v in summary[column]]
    shown["attack"] = summary["attack"].fillna("")
    return shown.to_string(index=False)


def setup_scores(package_path=None, scores_path=None, results_dir="results", date=None) -> pd.DataFrame:
    """The first paper's entry point: `brainscore.setup_scores`, with the package that BRAINSCORE_VISION_PATH names, if any."""
    return brainscore.setup_scores(package_path or setting("BRAINSCORE_VISION_PATH"), scores_path, results_dir, date)


def models_command(args) -> None:
    from alignment_security.models import names as zoo  # torch and timm, for this command alone

    def counts(states) -> str:
        return ", ".join(f"{count} {state}" for state, count in pd.Series(states).value_counts().items())
    if not args.names and not args.list:
        for name in model_lists.available():
            print(f"{name}: {counts([zoo.state_of(entry, args.checkpoint_dir) for entry in zoo.entries([], name)])}")
        return
    table = zoo.listing(zoo.entries(args.names, args.list), args.checkpoint_dir)
    print(table.drop(columns="note").astype(object).where(table.notna(), "").to_string(index=False))
    for name, note in zip(table["name"], table["note"]):
        if note:
            print(f"{name}: {note.removeprefix(f'{name}: ')}")
    print(counts(table["state"]))


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="records -> evaluation_results.csv")
    merge.add_argument("--results_dir", default="results")
    merge.add_argument("--allow_partial", action="store_true", help="summarise unfinished records too, marked partial=1")
    merge.set_defaults(run=merge_command)
    audit.add_commands(commands, setting("CHECKPOINT_DIR"))
    scores = commands.add_parser("setup_scores", help="Brain-Score leaderboard -> names of its model registry")
    scores.add_argument("--package_path",
                        help="an unpacked or installed brainscore-vision; default BRAINSCORE_VISION_PATH of .env, else importlib")
    scores.add_argument("--scores_path", help="leaderboard, CSV or ZIP; default the newest in RESULTS_DIR/benchmark_scores")
    scores.add_argument("--date", help="day of the download, YYYY-MM-DD")
    scores.set_defaults(run=lambda args: setup_scores(args.package_path, args.scores_path, args.results_dir, args.date))
    join = commands.add_parser("join", help="evaluation_results.csv with the scores of each model")
    join.set_defaults(run=lambda args: join_results(args.results_dir))
    for command in (scores, join):
        command.add_argument("--results_dir", default="results")
    compare = commands.add_parser("compare_scores", help="two leaderboard files: which models and benchmarks moved, by how much")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.set_defaults(run=lambda args: brainscore.compare_scores(args.a, args.b))
    models = commands.add_parser("models", help="which models can be run here, and what the others need")
    models.add_argument("names", nargs="*", metavar="NAME", help="a timm name, or one of a list")
    models.add_argument("--list", help=f"{', '.join(model_lists.available())}, or a file like those of lists/models/")
    models.add_argument("--checkpoint_dir", default=setting("CHECKPOINT_DIR"),
                        help="folder of the files that a list names; default CHECKPOINT_DIR of .env")
    models.set_defaults(run=models_command)
    sweep.add_commands(commands, setting, git_state)
    return parser


def main(args) -> int:
    try:
        args.run(args)
    except (records.RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
