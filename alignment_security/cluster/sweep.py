"""Write the folder of a sweep on HTCondor: submit files, DAG, code and lists (`make_sweep`).

    python utilities.py make_sweep --staged staged.tsv --out DIR \\
        -- --dataset sample Linf --eps 1/255
    cd DIR && condor_submit_dag sweep.dag

The DAG has one node per model, then merge, then plot. A report runs last, even when a node failed.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alignment_security.cluster.arguments import SweepError, check_arguments
from alignment_security.cluster.job import (
    STAGED_TABLE,
    read_staged_table,
    same_networks_staged,
    staged_row,
)
from alignment_security.cluster.slurm import (
    SLURM_FILE,
    TEMPLATE_FILE,
    batch_files,
    slurm_settings_text,
)
from alignment_security.cluster.studies import Study
from alignment_security.cluster.sweep_settings import parsed_settings
from alignment_security.common.files import safe_file_name
from alignment_security.common.folders import visible
from alignment_security.common.process import print_line
from alignment_security.common.settings import ROOT
from alignment_security.common.temporary import temporary_beside
from alignment_security.common.text import read_text, some_of
from alignment_security.models.lists import WantedModel

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
MODELS_FILE = "models.txt"
ARGUMENTS_FILE = "arguments.txt"
DAG_FILE = "sweep.dag"
CODE_FILE = "code.tar.gz"
# names that submit files, DAGs and shells take without quoting
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]*")
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
# patterns of the files that a job needs
CODE_FILES = [
    "*.py",
    "alignment_security/**/*.py",
    "lists/**/*",
    "requirements.txt",
    ".env",
    ".env.local",
]
MAX_JOBS = 200  # models in the queue at once


def node_name(number: int, slug: str) -> str:
    """The name of a DAG node, without `.` and `+`, which DAGMan does not allow.

    The number keeps the names of slugs apart that differ in these characters only.
    """
    return f"E{number:04d}_{re.sub('[.+]', '_', slug)}"


def dag_text(models: pd.DataFrame) -> str:
    """The DAG of the sweep.

    models   columns name, slug, gpu_memory_mb; one row per model
    """
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
        "# runs even when other nodes failed, and then fails too",
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
    """The file of settings that a submit file includes.

    names   the settings that the submit file reads; condor_submit warns about any other
    """
    lines = [f"{name} = {value}\n" for name, value in settings.items() if name in names]
    return "# made by `python utilities.py make_sweep`\n" + "".join(lines)


def chosen_models(table: pd.DataFrame, only: list[str]) -> pd.DataFrame:
    """The staged models as columns name, slug (their file name) and gpu_memory_mb.

    table   staged.tsv
    only    names to keep; empty: all
    Raises SweepError when one is not staged or has a name that a submit file cannot hold.
    """
    models = table[table["name"] != ""]  # the other rows are images
    missing = [name for name in only if name not in set(models["name"])]
    if missing:
        raise SweepError(
            f"{some_of(missing)}: not in {STAGED_TABLE}; prestage first, or leave out of --only"
        )
    if only:
        models = models[models["name"].isin(only)]
    if models.empty:
        raise SweepError(f"{STAGED_TABLE}: holds no model")
    for name in models["name"]:
        if not MODEL_NAME.fullmatch(name):
            raise SweepError(
                f"{name!r}: a submit file cannot hold this name; allowed are letters, digits and "
                "._:/@+=-"
            )
    return pd.DataFrame(
        {
            "name": models["name"],
            "slug": models["name"].map(safe_file_name),
            "gpu_memory_mb": models["gpu_memory_mb"],
        }
    )


def check_images_tar(table: pd.DataFrame, staged: Path, images: str) -> None:
    """Raise SweepError or StagingError unless staged.tsv has this tar of images."""
    if model := staged_row(table, staged, "tar", images)["name"]:
        tars = ", ".join(table.loc[table["name"] == "", "tar"]) or "none, prestage them first"
        raise SweepError(f"--images {images}: is the model {model}; tars of images: {tars}")


def staged_names(staged: Path, wanted: Sequence[WantedModel]) -> list[str]:
    """Those of some models that staged.tsv has; says how many it lacks.

    Raises SweepError when it has none of them.
    """
    if not wanted:
        return []
    has = set(read_staged_table(staged)["name"])
    names = [model.name for model in wanted if model.name in has]
    lacking = [model.name for model in wanted if model.name not in has]
    if not names:
        raise SweepError(
            f"{staged}: has none of the {len(lacking)} models ({some_of(lacking)}); prestage them "
            "first"
        )
    if lacking:
        print_line(
            f"note: {len(lacking)} of {len(wanted)} models are not staged and get no job: "
            f"{some_of(lacking)}",
            sys.stderr,
        )
    return names


def pack_code(path: Path, study: Study | None = None) -> None:
    """Write a tar of the code that a job runs, as it is now, and of the study that it evaluates."""
    files = sorted(
        {file for pattern in CODE_FILES for file in ROOT.glob(pattern) if file.is_file()}
    )
    with tarfile.open(path, "w:gz") as archive:
        for file in files:
            archive.add(file, file.relative_to(ROOT).as_posix())
        if study:
            archive.add(study.path, study_file(study))


def study_file(study: Study) -> str:
    """The study's file in the folder of a job."""
    return f"{safe_file_name(study.name)}.txt"


def make_sweep(
    out: Path,
    staged: Path,
    arguments: list[str],
    settings: dict[str, str],
    only: Sequence[str] = (),
    images: str | None = None,
    study: Study | None = None,
) -> int:
    """Write the sweep's folder and return its number of models.

    staged     staged.tsv of prestage; every job gets a copy
    arguments  of evaluate_robustness.py, threat included unless there is a study
    settings   of the submit files: staging, image, ... (htcondor/README.md)
    only       names of models; empty: all that are staged
    images     tar of the images in the staging folder, for --data_dir
    study      whose staged models each get a job, under all its threats
    Raises SweepError, e.g. when the folder is not empty.
    """
    table = read_staged_table(staged)
    if study and not only:
        only = staged_names(staged, study.models)
    models = chosen_models(table, list(only))
    check_arguments(arguments, study)
    if study:
        arguments = ["--study", study_file(study), *arguments]
    if images:
        check_images_tar(table, staged, images)
        arguments = ["--data_dir", images, *arguments]
        settings = settings | {"images": images}
    settings = parsed_settings(settings)
    if out.exists() and visible(out):
        raise SweepError(f"{out}: is not empty; give --out a new folder")
    for note in same_networks_staged(table[table["name"].isin(models["name"])]):
        print_line(f"note: {note}", sys.stderr)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as unfinished:
        _write_sweep(unfinished, staged, arguments, settings, models, study)
        if not out.exists():
            unfinished.rename(out)
        else:  # empty, but for what tools left in it
            for path in unfinished.iterdir():
                path.rename(out / path.name)
    return len(models)


def _write_sweep(
    out: Path,
    staged: Path,
    arguments: list[str],
    settings: dict[str, str],
    models: pd.DataFrame,
    study: Study | None,
) -> None:
    """Write the files of a sweep into `out`; see `make_sweep`."""
    (out / "logs").mkdir(parents=True)
    (out / "results/records").mkdir(parents=True)
    for slug in models["slug"]:
        (out / f"resume/{slug}/previous").mkdir(parents=True)
    for name in COPIED_TEMPLATES:
        shutil.copy(TEMPLATES / name, out / name)
    shutil.copy(staged, out / STAGED_TABLE)
    pack_code(out / CODE_FILE, study)
    (out / ARGUMENTS_FILE).write_text("\n".join(arguments) + "\n", encoding="utf-8")
    for name, names in SETTINGS_FILES.items():
        (out / name).write_text(settings_text(settings, names), encoding="utf-8")
    (out / SLURM_FILE).write_text(slurm_settings_text(settings), encoding="utf-8")
    template = read_text(TEMPLATES / TEMPLATE_FILE)
    for name, text in batch_files(models, settings, template).items():
        (out / name).write_text(text, encoding="utf-8")
    lines = [f"{row.name}, {row.slug}, {row.gpu_memory_mb}\n" for row in models.itertuples()]
    (out / MODELS_FILE).write_text("".join(lines), encoding="utf-8")
    (out / DAG_FILE).write_text(dag_text(models), encoding="utf-8")
