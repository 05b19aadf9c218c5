"""Environments that lack what libraries expect: a user name, a home folder, a backend."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest
from conftest import ROOT
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from alignment_security.common.environment import forget_missing_backend, name_the_user

NAMES = ("USER", "LOGNAME", "LNAME", "USERNAME")


def test_a_uid_without_a_name_gets_one(monkeypatch):
    """torch calls its cache of compiled code after the user."""
    for name in (*NAMES, "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("USER", "")  # so that monkeypatch restores it
    monkeypatch.setenv("HOME", "")
    os.environ.pop("HOME")
    name_the_user()
    assert os.environ["USER"] == f"uid{os.getuid()}" and os.path.isdir(os.environ["HOME"])
    assert default_cache_dir().endswith(f"torchinductor_{os.environ['USER']}")


def test_a_user_with_a_name_keeps_it(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("HOME", "/home/ann")
    name_the_user()
    assert os.environ["LOGNAME"] == "ann" and os.environ["HOME"] == "/home/ann"


@pytest.mark.parametrize(
    "backend, kept",
    [("module://no_such_package.backend", False), ("module://json.tool", True), ("agg", True)],
)
def test_a_backend_that_is_not_there_is_forgotten(monkeypatch, backend, kept):
    monkeypatch.setenv("MPLBACKEND", backend)
    forget_missing_backend()
    assert os.environ.get("MPLBACKEND") == (backend if kept else None)


def test_figures_are_drawn_under_the_backend_of_a_notebook(tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "plotting.py", "--results_dir", "results/sample",
         "--figures_dir", tmp_path, "--plots", "accuracy_vs_eps"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "module://no_such_package.backend_inline"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-1000:]
