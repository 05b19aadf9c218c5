"""Commands of utilities.py on Brain-Score's scores: setup_scores, compare_scores, join."""

from __future__ import annotations

from pathlib import Path

from alignment_security.analysis.brainscore_join import join_results
from alignment_security.analysis.brainscore_scores import compare_scores, merge_leaderboard
from alignment_security.analysis.model_vs_human import write_model_scores
from alignment_security.common.command_line import RESULTS_HELP
from alignment_security.common.settings import setting


def setup_scores_command(args) -> None:
    package_path = args.package_path or setting("BRAINSCORE_VISION_PATH")
    merge_leaderboard(package_path, args.scores_path, args.results_dir, args.date)


def compare_scores_command(args) -> None:
    compare_scores(args.a, args.b)


def join_command(args) -> None:
    join_results(args.results_dir, args.scores)


def model_vs_human_command(args) -> None:
    write_model_scores(args.folder, args.out)


def add_score_commands(commands) -> None:
    scores = commands.add_parser(
        "setup_scores", help="Brain-Score leaderboard -> names of its model registry"
    )
    scores.add_argument(
        "--package_path",
        help="an unpacked or installed brainscore-vision; default BRAINSCORE_VISION_PATH of .env, "
        "else importlib",
    )
    scores.add_argument(
        "--scores_path",
        help="leaderboard, CSV or ZIP; default the newest in RESULTS_DIR/benchmark_scores",
    )
    scores.add_argument("--date", help="day of the download, YYYY-MM-DD")
    scores.add_argument("--results_dir", default="results", help=RESULTS_HELP)
    scores.set_defaults(run=setup_scores_command)

    compare = commands.add_parser(
        "compare_scores", help="which models and benchmarks changed between two leaderboard files"
    )
    compare.add_argument("a", metavar="A", help="the older file, CSV or ZIP")
    compare.add_argument("b", metavar="B", help="the newer one")
    compare.set_defaults(run=compare_scores_command)

    join = commands.add_parser("join", help="evaluation_results.csv with the scores of each model")
    join.add_argument("--results_dir", default="results", help=RESULTS_HELP)
    join.add_argument(
        "--scores",
        nargs="+",
        type=Path,
        default=[],
        metavar="CSV",
        help="more scores, by timm name; the figures of Hoak 2025 draw them too",
    )
    join.set_defaults(run=join_command)

    trials = commands.add_parser(
        "model_vs_human", help="error consistency and shape bias from trials, for join --scores"
    )
    trials.add_argument(
        "folder", type=Path, metavar="DIR", help="model-vs-human's raw-data: <dataset>/*.csv"
    )
    trials.add_argument("--out", type=Path, required=True, help="the new table")
    trials.set_defaults(run=model_vs_human_command)
