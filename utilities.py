"""Commands on results, models and scores; `from utilities import setup_scores` as in Hoak 2025.

    python utilities.py merge [--results_dir DIR]       records -> DIR/evaluation_results.csv
    python utilities.py audit [DIR] [--reattack K]      re-check a results folder, a line a problem
    python utilities.py trace FIGURE.csv [--line N]     runs and commits behind a figure's numbers
    python utilities.py models [NAME ...] [--list LIST] which models run here, what others need
    python utilities.py export_plugin NAME --out DIR    a timm network as a Brain-Score plugin
    python utilities.py setup_scores [--date DATE]      Brain-Score leaderboard -> registry names
    python utilities.py compare_scores A B              what changed between two leaderboard files
    python utilities.py join [--results_dir DIR]        our summary with the scores of each model
    python utilities.py model_vs_human DIR --out CSV    error consistency and shape bias of trials
    python utilities.py run_study STUDY [OPTION ...]    all models of a study, on this machine
    python utilities.py prestage --models LIST --out DIR    pack weights of models for HTCondor
    python utilities.py make_sweep --out DIR -- THREAT ...  the folder that condor_submit_dag runs
    python utilities.py sweep_status --sweep DIR            the progress of a sweep
    python utilities.py publish --out ARCHIVE           an archive of results to cite and check
    python utilities.py verify ARCHIVE                  check such an archive

`python -c "from utilities import setup_scores; setup_scores()"` is the command of Hoak 2025.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from alignment_security.analysis.brainscore_scores import merge_leaderboard
from alignment_security.analysis.commands import add_score_commands
from alignment_security.analysis.merge_formats import FORMATS
from alignment_security.cluster.commands import add_sweep_commands
from alignment_security.cluster.studies import Study
from alignment_security.common.command_line import (
    RESULTS_HELP,
    Parser,
    new_folder,
    positive_int,
    whole_number,
)
from alignment_security.common.files import UserError
from alignment_security.common.process import print_line, report_error, run_command, run_script
from alignment_security.common.settings import setting
from alignment_security.models.lists import WantedModel, available_lists
from alignment_security.records.audit import audit
from alignment_security.records.commands import add_archive_commands
from alignment_security.records.summary import SUMMARY_NAME, merge_records, notes_on, summary_table
from alignment_security.records.trace import print_trace

EXAMPLES = {
    "merge": "merge --results_dir results/mine",
    "audit": "audit results/mine --reattack 20",
    "trace": "trace figures/accuracy_vs_eps.csv --line 2",
    "models": "models resnet50 convnext_tiny.fb_in1k",
    "export_plugin": "export_plugin resnet50.a1_in1k --out plugins",
    "setup_scores": "setup_scores --package_path brainscore --date 2026-05-07",
    "compare_scores": "compare_scores old_leaderboard.csv leaderboard.csv",
    "join": "join --results_dir results/mine",
    "model_vs_human": "model_vs_human raw-data --out model_vs_human.csv",
    "run_study": "run_study feng2025 --data_dir DIR",
    "prestage": "prestage --models feng2025 --images imagenet/val --out staging",
    "make_sweep": "make_sweep --staged staging/staged.tsv --out sweep "
    "-- --dataset sample Linf --eps 1/255",
    "sweep_status": "sweep_status --sweep sweep",
    "publish": "publish --results_dir results/mine --out archive --licence cc-by-4.0",
    "verify": "verify archive",
}

# ---- records -------------------------------------------------------------------------------------


def merge_command(args) -> int:
    """The exit status: 1 where a damaged record is not in the summary."""
    log = None if args.strict else partial(print_line, stream=sys.stderr)
    damaged: list[str] = []
    summary = merge_records(args.results_dir, args.allow_partial, log, damaged.append)
    print(summary_table(summary))
    for note in notes_on(args.results_dir, summary):
        print_line(f"note: {note}", sys.stderr)
    print(Path(args.results_dir) / SUMMARY_NAME)
    if args.format:
        print(FORMATS[args.format](summary, Path(args.results_dir)))
    for problem in damaged:
        print_line(problem, sys.stderr)
    return int(bool(damaged))


def audit_command(args) -> None:
    if args.folder and args.results_dir:
        raise UserError(f"{args.folder} and --results_dir {args.results_dir}: one of them")
    args.results_dir = args.folder or args.results_dir or "results"
    found = audit(args.results_dir, args.figures_dir)
    if args.reattack:
        # torch and timm, for this option alone
        from alignment_security.evaluation.reattack import confirm_examples

        findings, sentence = confirm_examples(
            Path(args.results_dir), args.reattack, args.seed, args.checkpoint_dir
        )
        found += findings
        print(sentence, file=sys.stderr)
    if not found:
        print(f"{args.results_dir}: nothing found")
        return
    print("\n".join(found))
    print(f"{len(found)} finding(s)")
    raise SystemExit(1)


def trace_command(args) -> None:
    print_trace(args.figure, args.results_dir, args.line)


def add_record_commands(commands) -> None:
    merge = commands.add_parser("merge", help="records -> evaluation_results.csv")
    merge.add_argument("--results_dir", default="results", help=RESULTS_HELP)
    merge.add_argument(
        "--allow_partial",
        action="store_true",
        help="summarise unfinished records too, marked partial=1",
    )
    merge.add_argument(
        "--strict",
        action="store_true",
        help="refuse where a record is unfinished, damaged or not comparable, instead of leaving "
        "it out",
    )
    merge.add_argument(
        "--format", choices=list(FORMATS), help="write the table of that project too"
    )
    merge.set_defaults(run=merge_command)

    check = commands.add_parser("audit", help="re-check a results folder from its files alone")
    check.add_argument("folder", nargs="?", metavar="DIR", help="the same as --results_dir DIR")
    check.add_argument("--results_dir", help=f"{RESULTS_HELP} (default: results)")
    check.add_argument(
        "--figures_dir",
        metavar="DIR",
        help="folder of the figures drawn from it, whose tables are checked too; default: figures "
        "in the results folder",
    )
    check.add_argument(
        "--reattack",
        type=whole_number,
        default=0,
        metavar="K",
        help="run K random saved adversarial examples through their models again",
    )
    check.add_argument("--seed", type=whole_number, default=0, help="of the choice of examples")
    check.add_argument(
        "--checkpoint_dir",
        type=Path,
        default=setting("CHECKPOINT_DIR"),
        metavar="DIR",
        help="folder of checkpoints and Python files of runs; default CHECKPOINT_DIR of .env",
    )
    check.set_defaults(run=audit_command)

    trace = commands.add_parser("trace", help="the runs, weights and commits behind a figure")
    trace.add_argument(
        "figure", type=Path, metavar="FIGURE.csv", help="the table that plotting.py wrote with it"
    )
    trace.add_argument(
        "--line", type=positive_int, help="only that line of the file (its header is line 1)"
    )
    trace.add_argument("--results_dir", type=Path, default=Path("results"), help=RESULTS_HELP)
    trace.set_defaults(run=trace_command)


# ---- models --------------------------------------------------------------------------------------


def models_command(args) -> None:
    # torch and timm, for this command alone
    from alignment_security.models.names import find_entries, model_table, weights_state

    def states_of(list_name: str) -> list[str]:
        entries = find_entries([], list_name)
        return [weights_state(entry, args.checkpoint_dir) for entry in entries]

    if not args.names and not args.list:
        for name in available_lists():
            print(f"{name}: {count_states(states_of(name))}")
        return
    table = model_table(find_entries(args.names, args.list), args.checkpoint_dir)
    shown = table.drop(columns="note").astype(object).where(table.notna(), "")
    print(shown.to_string(index=False))
    for name, note in zip(table["name"], table["note"]):
        if note:
            print(f"{name}: {note.removeprefix(f'{name}: ')}")
    print(count_states(table["state"]))


def export_plugin_command(args) -> None:
    # torch and timm, for this command alone
    from alignment_security.models.plugin_export import export_plugin

    print(export_plugin(args.name, args.out, args.architecture, args.checkpoint))


def count_states(states: Iterable[str]) -> str:
    """`12 here, 3 to be fetched`"""
    return ", ".join(f"{count} {state}" for state, count in Counter(states).most_common())


def add_models_command(commands) -> None:
    models = commands.add_parser("models", help="which models run here, and what the others need")
    models.add_argument("names", nargs="*", metavar="NAME", help="a timm name, or one of a list")
    models.add_argument(
        "--list",
        help=f"{', '.join(available_lists())}, or a file: a name a line, or as in lists/models/",
    )
    models.add_argument(
        "--checkpoint_dir",
        default=setting("CHECKPOINT_DIR"),
        help="folder of the files that a list names; default CHECKPOINT_DIR of .env",
    )
    models.set_defaults(run=models_command)

    plugin = commands.add_parser("export_plugin", help="a timm network as a Brain-Score plugin")
    plugin.add_argument("name", metavar="NAME", help="as --model_name of evaluate_robustness.py")
    plugin.add_argument("--architecture", help="timm name, where NAME is your own")
    plugin.add_argument("--checkpoint", type=Path, help="weights, where they are your own")
    plugin.add_argument("--out", type=new_folder, required=True, help="gets the plugin's folder")
    plugin.set_defaults(run=export_plugin_command)


# ---- Brain-Score ---------------------------------------------------------------------------------


def setup_scores(package_path=None, scores_path=None, results_dir="results", date=None):
    """Translate a Brain-Score leaderboard to registry names: the entry point of Hoak 2025.

    The package defaults to BRAINSCORE_VISION_PATH of `.env`. See
    `alignment_security.analysis.brainscore_scores.merge_leaderboard`.
    """
    package_path = package_path or setting("BRAINSCORE_VISION_PATH")
    try:
        return merge_leaderboard(package_path, scores_path, results_dir, date)
    except UserError as error:  # for `python -c`, which would print a traceback
        raise SystemExit(report_error(error)) from None


# ---- studies -------------------------------------------------------------------------------------


def run_study_command(args) -> int:
    # torch and timm, for this command alone
    from alignment_security.evaluation.run_study import run_study

    return run_study(args.study, args.options)


def add_study_commands(commands) -> None:
    study = commands.add_parser(
        "run_study", help="all models of a study under its threats, a process per GPU"
    )
    study.add_argument("study", help="feng2025, hoak2025, or a file like those of lists/studies/")
    study.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="of evaluate_robustness.py: --data_dir, --results_dir, --model_name (these models "
        "only), --dry_run, ...",
    )
    study.set_defaults(run=run_study_command)


def check_job_arguments(study: Study | None, arguments: list[str]) -> None:
    """Refuse what every job would refuse; where torch is missing, say what is not checked."""
    try:
        from alignment_security.evaluation.options import parse_args
        from alignment_security.evaluation.study import study_requests
    except ModuleNotFoundError as missing:
        print(
            f"of the jobs' arguments, threats, --dataset and --eps alone are checked: no "
            f"{missing.name} here",
            file=sys.stderr,
        )
        return
    if study is None:
        parse_args(["--model_name", "NAME", *arguments])
    else:
        study_requests(study, WantedModel("NAME", "NAME"), arguments)


# ---- command line --------------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_record_commands(commands)
    add_models_command(commands)
    add_score_commands(commands)
    add_study_commands(commands)
    add_sweep_commands(commands, check_job_arguments)
    add_archive_commands(commands)
    for name, command in commands.choices.items():
        command.description = f"Example:\n\n    python utilities.py {EXAMPLES[name]}"
    return parser


def main(args) -> int:
    return run_command(lambda: args.run(args))


if __name__ == "__main__":
    run_script(lambda: main(get_args_parser().parse_args()))
