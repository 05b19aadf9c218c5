"""A net that is staged; and processes that load a net to stage it, forked.

This process has imported torch and timm.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from sweeps import NAMES

from alignment_security.cluster import plugins
from alignment_security.cluster.prestage import prestage
from alignment_security.models.lists import WantedModel


@pytest.fixture(scope="session")
def staged(tmp_path_factory, tiny) -> Path:
    """Weights of the tiny net under several names, and its photographs."""
    out = tmp_path_factory.mktemp("staged")
    wanted = [WantedModel(name, "test_resnet", tiny.checkpoint.name) for name in NAMES]
    assert prestage(wanted, out, [tiny.data], tiny.checkpoint.parent) == {}
    return out


@pytest.fixture
def forked(monkeypatch):
    """Staging starts its processes by a fork, in 0.1 s instead of the 3 s that imports take."""
    monkeypatch.setattr(plugins, "subprocess", SimpleNamespace(run=run_forked))


def run_forked(command, cwd, env, **_) -> subprocess.CompletedProcess:
    """subprocess.run for `python -m MODULE ...`, with what the process says in `stderr`."""
    with tempfile.TemporaryFile() as said:
        process = multiprocessing.get_context("fork").Process(
            target=run_module, args=(command[2:], cwd, env, said.fileno())
        )
        process.start()
        process.join()
        assert process.exitcode is not None
        said.seek(0)
        return subprocess.CompletedProcess(command, process.exitcode, "", said.read().decode())


def run_module(words, cwd, env, said: int) -> None:
    """The module as a new process would run it: its folder, environment and random numbers."""
    os.dup2(said, 2)
    sys.stderr = open(2, "w")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    importlib.reload(constants)  # the hub's library reads the environment when it is imported
    torch.seed()
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__")
