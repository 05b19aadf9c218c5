"""Each benchmark script runs at its smallest input, and writes only where it is asked to."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from conftest import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = [path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text()]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """benchmarks.<script>.main in this process: (script, *options) -> the JSON that it wrote."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "path", list(sys.path))  # scripts put folders on it

    def call(script: str, *options: str) -> dict:
        output = tmp_path / "results.json"
        module = importlib.import_module(f"benchmarks.{script}")
        module.main([*options, "--quick", "--output", str(output)])
        return json.loads(output.read_text())

    yield call
    torch.set_num_threads(threads)


def test_machine_has_hardware_and_versions():
    found = importlib.import_module("benchmarks.machine").machine()
    assert found["processor"] and found["cores"] >= 1 and found["git"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_output_file_is_the_committed_one_only_without_quick():
    output = importlib.import_module("benchmarks.output")
    parser = output.get_args_parser("")
    script = FOLDER / "alignment.py"
    assert output.output_file(parser.parse_args([]), script) == FOLDER / "alignment.json"
    assert output.output_file(parser.parse_args(["--quick"]), script) is None


def test_every_script_is_tested_here():
    assert sorted(SCRIPTS) == ["alignment", "attacks", "loading", "sweep", "training"]


def committed(script: str) -> dict:
    return json.loads((FOLDER / f"{script}.json").read_text())


def test_alignment(run):
    found = run("alignment")
    assert committed("alignment").keys() == found.keys() and len(found["seconds"]) == 2


def test_loading(run):
    found = run("loading")
    assert committed("loading").keys() == found.keys()
    assert found["images_per_second"]["500 x 375"]["0 workers"] > 0
    assert len(found["mib_after_images"]["1 workers"]) == 7


@pytest.mark.slow
def test_sweep(run):
    """Seven processes: in one, in two chunks, with an eviction."""
    found = run("sweep")
    assert committed("sweep").keys() == found.keys()
    for name in ("merge", "checkpoints", "eviction", "row"):
        assert committed("sweep")[name].keys() == found[name].keys()
    assert found["checkpoints"]["images"] == 2 and found["checkpoints"]["checkpoints"] >= 1


@pytest.mark.parametrize("table", ["agreement", "growth", "norms_digits", "norms_digits_linf"])
def test_attacks_on_digits(run, table):
    found = run("attacks", table)
    assert found.keys() == {table} and found[table]["machine"]["threads"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        "early_exit",
        "memory",
        "norms_lite0_1000",
        "norms_lite0_animate",
        "overhead",
        "survivor",
    ],
)
def test_attacks_on_photographs(run, table):
    found = run("attacks", table, "--threads", "1")[table]
    assert found["machine"]["processor"]
    if not table.startswith("norms"):  # their keys hold the number of steps
        assert committed("attacks")[table].keys() == found.keys()


def test_training_speed(run):
    options = ["speed", "--models", "test_resnet", "--batch_size", "2"]
    found = run("training", *options)["speed"]
    assert committed("training")["speed"].keys() == found.keys()
    assert found["results"]["test_resnet"]["times_plain"]["plain"] == 1


def test_training_digits(run):
    found = run("training", "digits")["digits"]
    assert committed("training")["digits"]["results"].keys() == found["results"].keys()
