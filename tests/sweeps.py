"""Staged nets and sweeps of them, for the tests of cluster/."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from conftest import ROOT

from alignment_security.cluster.job import STAGED_TABLE, read_staged_table
from alignment_security.cluster.studies import Study, read_study
from alignment_security.cluster.sweep import make_sweep

# of one net; they differ in characters that a file name cannot hold
NAMES = ["lab/net:v1.0", "lab/net-v1.0", "lab:net.v1.0"]
SETTINGS = {
    "staging": "/staging/n/netid/robustness",
    "image": "a.sif",
    "chunk_seconds": "60",
    "job_length": "short",
    "git_commit": "abc",
}
STAGED_LINE = {
    "sha256": "ab" * 32,
    "tar": "m.tar",
    "name": "m",
    "bytes": "5",
    "weights": "pypi:x",
    "weights_sha256": "cd" * 32,
    "gpu_memory_mb": "5099",
}


def table_of(folder: Path) -> pd.DataFrame:
    return read_staged_table(folder / STAGED_TABLE).set_index("tar")


def make(staged: Path, out: Path, arguments=("clean",), **more) -> int:
    return make_sweep(
        out, staged / STAGED_TABLE, list(arguments), SETTINGS | more.pop("settings", {}), **more
    )


def study_of(tmp_path: Path, *lines: str) -> Study:
    (tmp_path / "nets.txt").write_text("\n".join([*NAMES[:2], "not_staged"]) + "\n")
    (tmp_path / "mine.txt").write_text("\n".join(["models nets.txt", *lines]) + "\n")
    return read_study(tmp_path / "mine.txt")


def submit_text(name: str) -> str:
    return (ROOT / "htcondor" / name).read_text()
