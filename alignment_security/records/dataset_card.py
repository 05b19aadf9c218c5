"""The README.md of an archive: a dataset card as Hugging Face reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from alignment_security.common.folders import glob_visible
from alignment_security.common.settings import VERSION, git_state
from alignment_security.records.comparable import attack_text
from alignment_security.records.record import read_run_file

TITLE = "Adversarial robustness and human alignment of vision models"


def dataset_card(archive: Path, summary: pd.DataFrame, licence: str) -> str:
    """YAML for the hub, then what the archive holds, how it was made, and how to check it.

    archive   with its records and tables
    summary   evaluation_results.csv
    """
    runs = [read_run_file(path) for path in glob_visible(archive, "records/*/*/*.json")]
    return f"""---
pretty_name: {TITLE}
license: {json.dumps(licence)}
task_categories:
- image-classification
tags:
- adversarial-robustness
- human-alignment
- image-classification
configs:
{yaml_configs(archive / "tables")}
---

# {TITLE}

{summary["model"].nunique()} models, {len(runs)} records, a row per image (and eps).

| image set | threat | models | images | attack |
|---|---|---|---|---|
{contents_table(runs)}

- `evaluation_results.csv` and `tables/summary.parquet`: a row per model, threat and eps.
- `tables/<image set>/<threat>.parquet`: the rows of every model.
- `records/`: the run file of each record (settings, seeds, sha256 of weights and image list,
  versions, devices){csv_note(archive)}.
- `COLUMNS.md`: what every column and key means. Pixels are in [0, 1], norms and eps in their unit.

Made by alignment-security at {commits(runs)}; published with version {VERSION} ({git_state()}).

## Check

`sha256sum -c SHA256SUMS` checks the files. alignment-security's `python utilities.py verify DIR`
also audits every record and compares the tables with the summary.

## Cite

As `CITATION.cff` says.
"""


def csv_note(archive: Path) -> str:
    if glob_visible(archive, "records/*/*/*.csv"):
        return ", and its rows as CSV"
    return "; the tables hold its rows, which `verify DIR --out DIR2` writes as CSV"


def yaml_configs(tables: Path) -> str:
    """A configuration of the hub for each table; the summary is the one that is shown first."""
    names = {"summary": "tables/summary.parquet"}
    for path in glob_visible(tables, "*/*.parquet"):
        names[f"{path.parent.name}-{path.stem}"] = f"tables/{path.parent.name}/{path.name}"
    return "\n".join(
        f"- config_name: {json.dumps(name)}\n  data_files: {json.dumps(files)}"
        + ("\n  default: true" if name == "summary" else "")
        for name, files in names.items()
    )


def contents_table(runs: list[dict]) -> str:
    """A line per image set, threat, budget and number of images."""
    table = pd.DataFrame(
        {
            "image_set": [run["image_set"] for run in runs],
            "threat": [run["threat"] for run in runs],
            "images": [run["images"] for run in runs],
            "attack": [attack_text(run) for run in runs],
        }
    )
    counts = table.groupby([*table], sort=True).size()
    return "\n".join(
        f"| {image_set} | {threat} | {models} | {images} | {attack} |"
        for (image_set, threat, images, attack), models in counts.items()
    )


def commits(runs: list[dict]) -> str:
    """The commits and versions of the code that made the records."""
    sessions = [session for run in runs for session in run["sessions"]]
    made_by = {
        f"commit {session.get('git') or 'unknown'}"
        + (f" (version {session['version']})" if "version" in session else "")
        for session in sessions
    }
    return ", ".join(sorted(made_by))
