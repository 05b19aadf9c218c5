"""Commands of utilities.py on sweeps: prestage, make_sweep, sweep_status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from alignment_security.cluster.arguments import check_requests
from alignment_security.cluster.status import print_status
from alignment_security.cluster.studies import Study, read_study
from alignment_security.cluster.sweep import make_sweep, staged_names
from alignment_security.cluster.sweep_settings import submit_settings
from alignment_security.common.command_line import new_folder
from alignment_security.common.files import UserError
from alignment_security.common.settings import setting
from alignment_security.models.lists import read_wanted

MODELS_HELP = "lists of lists/models/, files with a name a line, or brainscore:NAME"


def prestage_command(args) -> None:
    # torch and timm, for this command alone
    from alignment_security.cluster.prestage import prestage

    if not args.models and not args.images:
        raise UserError("prestage: nothing to do; give --models LIST, --images DIR or both")
    wanted = read_wanted(*args.models)
    failed = prestage(wanted, args.out, args.images, args.checkpoint_dir)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} not staged; the others are in {args.out}")


Check = Callable[[Study | None, list[str]], None]


def make_sweep_command(args, check: Check) -> None:
    study = read_study(args.study) if args.study else None
    check(study, args.arguments)
    check_requests(study, args.arguments, args.images)
    settings = submit_settings(args.set)
    only = [*args.only, *staged_names(args.staged, read_wanted(*args.models))]
    count = make_sweep(args.out, args.staged, args.arguments, settings, only, args.images, study)
    print(f"{count} models; go on with: cd {args.out} && condor_submit_dag sweep.dag")
    print("on SLURM: sbatch FILE, for each sweep*.sbatch there")


def sweep_status_command(args) -> None:
    print_status(args.sweep, args.out)


def add_sweep_commands(commands, check: Check) -> None:
    """Add the commands.

    check   (study, arguments): refuses options that every job would refuse
    """
    staging = commands.add_parser(
        "prestage", help="pack the weights of each model into a tar, for workers without network"
    )
    staging.add_argument(
        "--models", nargs="*", default=[], metavar="LIST", help=f"{MODELS_HELP}; these are packed"
    )
    staging.add_argument(
        "--images", nargs="*", type=Path, default=[], help="image folders, a tar each"
    )
    staging.add_argument("--out", type=new_folder, required=True, help="folder of the tars")
    staging.add_argument(
        "--checkpoint_dir",
        type=Path,
        default=setting("CHECKPOINT_DIR") or ".",
        help="folder of the files that a list names; default CHECKPOINT_DIR of .env",
    )
    staging.set_defaults(run=prestage_command)

    making = commands.add_parser(
        "make_sweep", help="submit files, DAG and code of a sweep in one folder"
    )
    making.add_argument(
        "--staged", type=Path, default=Path("staged.tsv"), help="the table that prestage made"
    )
    making.add_argument("--only", nargs="*", default=[], help="these models of it")
    making.add_argument(
        "--models",
        nargs="*",
        default=[],
        metavar="LIST",
        help=f"{MODELS_HELP}; those of them that are staged",
    )
    making.add_argument("--images", help="the images' tar, as staged.tsv names it")
    making.add_argument(
        "--study", help="a study: its staged models get a job each, under all its threats"
    )
    making.add_argument("--out", type=new_folder, required=True, help="the new folder")
    making.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the submit files"
    )
    making.add_argument(
        "arguments",
        nargs="*",
        help="after --: options and threat of evaluate_robustness.py; with --study, options",
    )
    making.set_defaults(run=partial(make_sweep_command, check=check))

    progress = commands.add_parser("sweep_status", help="done, running, held, failed; GPU hours")
    progress.add_argument(
        "--sweep", type=Path, default=Path(), help="the folder that make_sweep wrote"
    )
    progress.add_argument("--out", type=Path, help="write it to this file too")
    progress.set_defaults(run=sweep_status_command)
