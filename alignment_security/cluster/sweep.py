"""The folder of a sweep on HTCondor: submit files, DAG, code and lists, ready for condor_submit_dag.

    python utilities.py make_sweep --staged staged.tsv --out DIR -- --dataset sample Linf --eps 1/255

One model is one node: a node a model -> merge -> plot, and a report at the end whatever became of them.
"""
from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from alignment_security.cluster import job as chtc
from alignment_security.records import run as records

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "htcondor"
COPIED = ["job.inc", "evaluate.inc", "evaluate.sub", "sweep.sub", "step.sub", "job.sh", "step.sh", "keep_rows.sh"]
MODELS, ARGUMENTS, DAG, CODE = "models.txt", "arguments.txt", "sweep.dag", "code.tar.gz"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]*")     # what submit files, DAGs and shells all take as it is
# settings of the submit files (htcondor/README.md): file -> the names that it reads
SETTINGS = {"evaluate_settings.inc": ["staging", "image", "git_commit", "python", "use_container", "images", "chunk_seconds",
                                      "job_length", "device", "cuda", "cpus", "memory", "disk", "retries", "release_after",
                                      "hung_after"],
            "step_settings.inc": ["staging", "image", "git_commit", "python", "use_container", "step_memory", "step_disk"]}
CODE_FILES = ["*.py", "alignment_security/**/*.py", "lists/**/*", "requirements.txt", ".env"]
DEFAULTS = {"image": "alignment-security.sif", "chunk_seconds": "1800", "job_length": "short", "cuda": "13.0"}
MAX_JOBS = 200          # models in the queue at once
# the jobs set these themselves
OWN_OPTIONS = {"--model_name", "--results_dir", "--stop_after", "--chtc", "--overwrite", "--dry_run", "--checkpoint", "--device"}


class SweepError(records.RecordError):
    """A sweep that cannot be made or read; the message says what mends it."""


def node_name(number: int, slug: str) -> str:
    """A DAG node's name: it may hold neither `.` nor `+`, and two slugs may differ in these alone."""
    return f"E{number:04d}_{re.sub('[.+]', '_', slug)}"


def dag_text(models: pd.DataFrame) -> str:
    """The DAG of the sweep. models: name, slug, gpu_memory_mb, a row a model."""
    lines = ["# made by `python utilities.py make_sweep`; change that, not this", ""]
    nodes = [node_name(number, slug) for number, slug in enumerate(models["slug"], start=1)]
    for node, row in zip(nodes, models.itertuples()):
        lines += [f"JOB {node} evaluate.sub",
                  f'VARS {node} model="{row.name}" slug="{row.slug}" gpu_memory_mb="{row.gpu_memory_mb}"',
                  f"SCRIPT PRE {node} keep_rows.sh {row.slug}", f"CATEGORY {node} evaluate", ""]
    lines += ["JOB MERGE step.sub", 'VARS MERGE step="merge"', "JOB PLOT step.sub", 'VARS PLOT step="plot"',
              "# runs whatever became of the rest, and fails where something failed",
              "FINAL REPORT step.sub", 'VARS REPORT step="report" retries="0"', "",
              f"PARENT {' '.join(nodes)} CHILD MERGE", "PARENT MERGE CHILD PLOT", "",
              f"MAXJOBS evaluate {MAX_JOBS}", "NODE_STATUS_FILE sweep.status 60", ""]
    return "\n".join(lines)


def settings_text(settings: dict[str, str], names: list[str]) -> str:
    """What a submit file includes: those of the settings that it reads, for condor_submit warns of every other line."""
    return "# made by `python utilities.py make_sweep`\n" + "".join(f"{k} = {v}\n" for k, v in settings.items() if k in names)


def check_settings(settings: dict[str, str]) -> None:
    """Refuse a name that no submit file reads (HTCondor would only warn), and values that would not stay one line."""
    known = sorted({name for names in SETTINGS.values() for name in names})
    for name, value in settings.items():
        if name not in known or not value or re.search(r"[\n\r]|\$\(", value):
            raise SweepError(f"--set {name}={value}: write NAME=VALUE with one of {', '.join(known)}")
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", settings.get("staging", "")):
        raise SweepError(f"staging {settings.get('staging', '')!r}: write the folder of the staged files, e.g. "
                         "/staging/n/netid/alignment-security, as STAGING_DIR into .env, or --set staging=...")


def chosen_models(table: pd.DataFrame, only: list[str]) -> pd.DataFrame:
    """Rows of staged.tsv that hold models as name, slug, gpu_memory_mb; `only` these where it is not empty."""
    models = table[table["name"] != ""]
    missing = [name for name in only if name not in set(models["name"])]
    if missing:
        raise SweepError(f"{missing[0]}: not in {chtc.TABLE} ({len(missing)} such); prestage it first")
    models = models[models["name"].isin(only)] if only else models
    wrong = [name for name in models["name"] if not MODEL_NAME.fullmatch(name)]
    if wrong or models.empty:
        raise SweepError(f"{wrong[0]!r}: a submit file cannot hold this name; letters, digits and ._:/@+=- can" if wrong
                         else f"{chtc.TABLE}: holds no model")
    return pd.DataFrame({"name": models["name"], "slug": models["name"].map(records.file_name),
                         "gpu_memory_mb": models["gpu_memory_mb"]})


def check_arguments(arguments: list[str]) -> None:
    """Refuse what a job sets itself, and what a line of arguments.txt cannot hold."""
    own = [a for a in arguments if a.split("=")[0] in OWN_OPTIONS]
    if own or not arguments or any("\n" in a for a in arguments):
        raise SweepError(f"{own[0]}: each job sets it itself; leave it out" if own else
                         "no arguments for evaluate_robustness.py; put them after --, e.g. -- --dataset big12 Linf --eps 1/255")


def pack_code(path: Path) -> None:
    """The files that a job runs, as they are now."""
    files = sorted({file for pattern in CODE_FILES for file in ROOT.glob(pattern) if file.is_file()})
    with tarfile.open(path, "w:gz") as archive:
        for file in files:
            archive.add(file, file.relative_to(ROOT).as_posix())


def make_sweep(out: Path, staged: Path, arguments: list[str], settings: dict[str, str], only: Sequence[str] = (),
               images: str | None = None) -> int:
    """Write the sweep's folder and return its number of models. Refuses a folder that is not empty.

    staged     staged.tsv of prestage; it travels with every job
    arguments  of evaluate_robustness.py, threat included
    settings   of the submit files: staging, image, ... (htcondor/README.md)
    images     tar of the images in the staging folder, for --data_dir
    """
    table = chtc.read_table(staged)
    models = chosen_models(table, list(only))
    check_arguments(arguments)
    if images:
        chtc.row_of(table, staged, tar=images)
        arguments = ["--data_dir", images, *arguments]
        settings = settings | {"images": images}
    check_settings(settings)
    if out.exists() and any(out.iterdir()):
        raise SweepError(f"{out}: is not empty; a sweep has a folder of its own")
    for folder in ("logs", "results/records", *(f"resume/{slug}/previous" for slug in models["slug"])):
        (out / folder).mkdir(parents=True)
    for name in COPIED:
        shutil.copy(TEMPLATES / name, out / name)
    shutil.copy(staged, out / chtc.TABLE)
    pack_code(out / CODE)
    (out / ARGUMENTS).write_text("\n".join(arguments) + "\n")
    for name, names in SETTINGS.items():
        (out / name).write_text(settings_text(settings, names))
    (out / MODELS).write_text("".join(f"{m.name}, {m.slug}, {m.gpu_memory_mb}\n" for m in models.itertuples()))
    (out / DAG).write_text(dag_text(models))
    return len(models)


# ---- commands of utilities.py ----------------------------------------------------------------------------------

def prestage_command(args) -> None:
    from alignment_security.cluster import prestage

    if not args.models and not args.images:
        raise records.RecordError("prestage: nothing to do; give --models LIST, --images DIR or both")
    failed = prestage.prestage(prestage.read_models(args.models) if args.models else [], args.out, args.images,
                               args.checkpoint_dir)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        raise records.RecordError(f"{len(failed)} not staged; all else lies in {args.out}")


def make_sweep_command(args) -> None:
    given = dict(text.partition("=")[::2] for text in args.set)
    staging = {"staging": args.staging_dir} if args.staging_dir else {}
    settings = staging | DEFAULTS | {"git_commit": args.git_state()} | given
    count = make_sweep(args.out, args.staged, args.arguments, settings, args.only, args.images)
    print(f"{count} models; go on with: cd {args.out} && condor_submit_dag sweep.dag")


def sweep_status_command(args) -> None:
    from alignment_security.cluster import status as sweep_status

    sweep_status.sweep_status(args.sweep, args.out)


def add_commands(commands, setting: Callable[[str], str | None], git_state: Callable[[], str]) -> None:
    """The commands of a sweep on HTCondor (htcondor/README.md)."""
    staging = commands.add_parser("prestage", help="one tar of weights a model, with its sha256, for workers without network")
    staging.add_argument("--models", help="a list of lists/models/, or a file with a name a line")
    staging.add_argument("--images", nargs="*", type=Path, default=[], help="image folders, a tar each")
    staging.add_argument("--out", type=Path, required=True)
    staging.add_argument("--checkpoint_dir", type=Path, default=setting("CHECKPOINT_DIR") or ".",
                         help="folder of the files that a list names; default CHECKPOINT_DIR of .env")
    staging.set_defaults(run=prestage_command)
    making = commands.add_parser("make_sweep", help="submit files, DAG and code of a sweep in one folder")
    making.add_argument("--staged", type=Path, default=Path("staged.tsv"), help="the table that prestage made")
    making.add_argument("--only", nargs="*", default=[], help="these models of it")
    making.add_argument("--images", help="the images' tar, as staged.tsv names it")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the submit files")
    making.add_argument("arguments", nargs="*", help="after --: options and threat of evaluate_robustness.py")
    making.set_defaults(run=make_sweep_command, staging_dir=setting("STAGING_DIR"), git_state=git_state)
    progress = commands.add_parser("sweep_status", help="done, running, held, failed; GPU hours")
    progress.add_argument("--sweep", type=Path, default=Path())
    progress.add_argument("--out", type=Path, help="write it to this file too")
    progress.set_defaults(run=sweep_status_command)
