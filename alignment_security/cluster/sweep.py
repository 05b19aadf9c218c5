"""The folder of a sweep on HTCondor: submit files, DAG, code and lists, ready for condor_submit_dag.

    python utilities.py make_sweep --staged staged.tsv --out DIR -- --dataset sample Linf --eps 1/255

One model is one node: a node a model -> merge -> plot, and a report at the end whatever became of them.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alignment_security.cluster.job import STAGED_TABLE, read_staged_table, staged_row
from alignment_security.common.files import UserError, safe_file_name
from alignment_security.common.settings import ROOT

TEMPLATES = ROOT / "htcondor"
COPIED_TEMPLATES = [
    "job.inc",
    "evaluate.inc",
    "evaluate.sub",
    "sweep.sub",
    "step.sub",
    "job.sh",
    "step.sh",
    "keep_rows.sh",
]
MODELS_FILE, ARGUMENTS_FILE, DAG_FILE, CODE_FILE = (
    "models.txt",
    "arguments.txt",
    "sweep.dag",
    "code.tar.gz",
)
MODEL_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]*"
)  # what submit files, DAGs and shells all take as it is
# settings of the submit files (htcondor/README.md): file -> the names that it reads
SETTINGS_FILES = {
    "evaluate_settings.inc": [
        "staging",
        "image",
        "git_commit",
        "python",
        "use_container",
        "images",
        "chunk_seconds",
        "job_length",
        "device",
        "cuda",
        "cpus",
        "memory",
        "disk",
        "retries",
        "release_after",
        "hung_after",
    ],
    "step_settings.inc": [
        "staging",
        "image",
        "git_commit",
        "python",
        "use_container",
        "step_memory",
        "step_disk",
    ],
}
CODE_FILES = ["*.py", "alignment_security/**/*.py", "lists/**/*", "requirements.txt", ".env"]
DEFAULTS = {
    "image": "alignment-security.sif",
    "chunk_seconds": "1800",
    "job_length": "short",
    "cuda": "13.0",
}
MAX_JOBS = 200  # models in the queue at once
# the jobs set these themselves
OWN_OPTIONS = {
    "--model_name",
    "--results_dir",
    "--stop_after",
    "--chtc",
    "--overwrite",
    "--dry_run",
    "--checkpoint",
    "--device",
}


class SweepError(UserError):
    """A sweep that cannot be made or read; the message says what mends it."""


def node_name(number: int, slug: str) -> str:
    """A DAG node's name: it may hold neither `.` nor `+`, and two slugs may differ in these alone."""
    return f"E{number:04d}_{re.sub('[.+]', '_', slug)}"


def dag_text(models: pd.DataFrame) -> str:
    """The DAG of the sweep. models: name, slug, gpu_memory_mb, a row a model."""
    lines = ["# made by `python utilities.py make_sweep`; change that, not this", ""]
    nodes = [node_name(number, slug) for number, slug in enumerate(models["slug"], start=1)]
    for node, row in zip(nodes, models.itertuples()):
        lines += [
            f"JOB {node} evaluate.sub",
            f'VARS {node} model="{row.name}" slug="{row.slug}" gpu_memory_mb="{row.gpu_memory_mb}"',
            f"SCRIPT PRE {node} keep_rows.sh {row.slug}",
            f"CATEGORY {node} evaluate",
            "",
        ]
    lines += [
        "JOB MERGE step.sub",
        'VARS MERGE step="merge"',
        "JOB PLOT step.sub",
        'VARS PLOT step="plot"',
        "# runs whatever became of the rest, and fails where something failed",
        "FINAL REPORT step.sub",
        'VARS REPORT step="report" retries="0"',
        "",
        f"PARENT {' '.join(nodes)} CHILD MERGE",
        "PARENT MERGE CHILD PLOT",
        "",
        f"MAXJOBS evaluate {MAX_JOBS}",
        "NODE_STATUS_FILE sweep.status 60",
        "",
    ]
    return "\n".join(lines)


def settings_text(settings: dict[str, str], names: list[str]) -> str:
    """What a submit file includes: those of the settings that it reads, for condor_submit warns of every other line."""
    return "# made by `python utilities.py make_sweep`\n" + "".join(
        f"{k} = {v}\n" for k, v in settings.items() if k in names
    )


def check_settings(settings: dict[str, str]) -> None:
    """Refuse a name that no submit file reads (HTCondor would only warn), and values that would not stay one line."""
    known = sorted({name for names in SETTINGS_FILES.values() for name in names})
    for name, value in settings.items():
        if name not in known or not value or re.search(r"[\n\r]|\$\(", value):
            raise SweepError(
                f"--set {name}={value}: write NAME=VALUE with one of {', '.join(known)}"
            )
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", settings.get("staging", "")):
        raise SweepError(
            f"staging {settings.get('staging', '')!r}: write the folder of the staged files, e.g. "
            "/staging/n/netid/alignment-security, as STAGING_DIR into .env, or --set staging=..."
        )


def chosen_models(table: pd.DataFrame, only: list[str]) -> pd.DataFrame:
    """Rows of staged.tsv that hold models as name, slug, gpu_memory_mb; `only` these where it is not empty."""
    models = table[table["name"] != ""]
    missing = [name for name in only if name not in set(models["name"])]
    if missing:
        raise SweepError(
            f"{missing[0]}: not in {STAGED_TABLE} ({len(missing)} such); prestage it first"
        )
    models = models[models["name"].isin(only)] if only else models
    wrong = [name for name in models["name"] if not MODEL_NAME.fullmatch(name)]
    if wrong or models.empty:
        raise SweepError(
            f"{wrong[0]!r}: a submit file cannot hold this name; letters, digits and ._:/@+=- can"
            if wrong
            else f"{STAGED_TABLE}: holds no model"
        )
    return pd.DataFrame(
        {
            "name": models["name"],
            "slug": models["name"].map(safe_file_name),
            "gpu_memory_mb": models["gpu_memory_mb"],
        }
    )


def check_arguments(arguments: list[str]) -> None:
    """Refuse what a job sets itself, and what a line of arguments.txt cannot hold."""
    own = [a for a in arguments if a.split("=")[0] in OWN_OPTIONS]
    if own or not arguments or any("\n" in a for a in arguments):
        raise SweepError(
            f"{own[0]}: each job sets it itself; leave it out"
            if own
            else "no arguments for evaluate_robustness.py; put them after --, e.g. -- --dataset big12 Linf --eps 1/255"
        )


def pack_code(path: Path) -> None:
    """The files that a job runs, as they are now."""
    files = sorted(
        {file for pattern in CODE_FILES for file in ROOT.glob(pattern) if file.is_file()}
    )
    with tarfile.open(path, "w:gz") as archive:
        for file in files:
            archive.add(file, file.relative_to(ROOT).as_posix())


def make_sweep(
    out: Path,
    staged: Path,
    arguments: list[str],
    settings: dict[str, str],
    only: Sequence[str] = (),
    images: str | None = None,
) -> int:
    """Write the sweep's folder and return its number of models. Refuses a folder that is not empty.

    staged     staged.tsv of prestage; it travels with every job
    arguments  of evaluate_robustness.py, threat included
    settings   of the submit files: staging, image, ... (htcondor/README.md)
    images     tar of the images in the staging folder, for --data_dir
    """
    table = read_staged_table(staged)
    models = chosen_models(table, list(only))
    check_arguments(arguments)
    if images:
        staged_row(table, staged, "tar", images)
        arguments = ["--data_dir", images, *arguments]
        settings = settings | {"images": images}
    check_settings(settings)
    if out.exists() and any(out.iterdir()):
        raise SweepError(f"{out}: is not empty; a sweep has a folder of its own")
    for folder in (
        "logs",
        "results/records",
        *(f"resume/{slug}/previous" for slug in models["slug"]),
    ):
        (out / folder).mkdir(parents=True)
    for name in COPIED_TEMPLATES:
        shutil.copy(TEMPLATES / name, out / name)
    shutil.copy(staged, out / STAGED_TABLE)
    pack_code(out / CODE_FILE)
    (out / ARGUMENTS_FILE).write_text("\n".join(arguments) + "\n")
    for name, names in SETTINGS_FILES.items():
        (out / name).write_text(settings_text(settings, names))
    (out / MODELS_FILE).write_text(
        "".join(f"{m.name}, {m.slug}, {m.gpu_memory_mb}\n" for m in models.itertuples())
    )
    (out / DAG_FILE).write_text(dag_text(models))
    return len(models)
