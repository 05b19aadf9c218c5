"""docs/hoak2025.md: each command of the paper's table of rows, run on made data of its form."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_utilities
from huggingface_hub import constants
from leaderboards import random_scores, write_study
from PIL import Image
from stand_in_plugins import write_package

import plotting
from alignment_security.cluster.plugins import CACHES
from alignment_security.images.image_sets import synsets
from alignment_security.records.record import read_record

PAGE = (ROOT / "docs/hoak2025.md").read_text(encoding="utf-8")
ROWS = re.findall(r"`python (\S+) ([^`]+)`", PAGE.partition("row by row")[2].split("\n## ")[0])
PLUGIN = "fetches"  # of stand_in_plugins
SCORES = f"model_name,average_vision,lab.X2020.V1-pls\n{PLUGIN},.5,.4\n"


def write_photographs(root: Path, folders: list[str]) -> Path:
    """A photograph for each class, their names in another order than the folders."""
    file = io.BytesIO()
    Image.effect_noise((16, 16), 90).convert("RGB").save(file, "JPEG")
    for i, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        (root / folder / f"ILSVRC2012_val_{len(folders) - i:08d}.JPEG").write_bytes(file.getvalue())
    return root


@pytest.fixture
def made(tmp_path, monkeypatch) -> dict[str, str]:
    """What stands for the words in capitals of the commands."""
    package = write_package(tmp_path / "package", tmp_path / "net.pth")
    plugin = package / f"brainscore_vision/models/{PLUGIN}/__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(f"model_registry['{PLUGIN}'] = lambda: None\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setitem(sys.modules, "brainscore_vision", None)  # what is imported goes afterwards
    monkeypatch.delitem(sys.modules, "brainscore_vision")
    for name, folder in CACHES.items():
        monkeypatch.setenv(name, str(tmp_path / "home" / folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    (tmp_path / "scores.csv").write_text(SCORES)
    write_photographs(tmp_path / "tiny/fog/3", synsets()[::5])
    return {
        "NAME": PLUGIN,
        "DIR": str(write_photographs(tmp_path / "val", synsets())),
        "TINY": str(tmp_path / "tiny"),
        "PACKAGE": str(package),
        "SCORES": str(tmp_path / "scores.csv"),
        "PUBLISHED": str(ROOT / "tests/data"),
        "960": "3",
    }


def test_every_row_of_the_paper_has_a_command_that_runs(made, tmp_path, cli):
    own, study = tmp_path / "own", tmp_path / "study"
    study.mkdir()
    write_study(study, random_scores(30))
    for script, text in ROWS:
        words = [made.get(word, word) for word in shlex.split(text)]
        if script == "evaluate_robustness.py":
            words += ["--results_dir", str(own), "--device", "cpu", "--workers", "0"]
            words += ["--batch_size", "4"]
            words += ["--attacks", "apgd-ce", "--steps", "2"] if "Linf" in words else []
            status, _, err = cli(*words, *(["-s", "3"] if "corruptions" in words else []))
            assert status == 0, err
        elif script == "utilities.py":
            words += ["--results_dir", str(own)] if words[0] != "models" else []
            assert run_utilities(*words) == 0
        else:
            options = ["--results_dir", str(study), "--figures_dir", str(tmp_path / "figures")]
            assert plotting.main([*words, *options]) == 0
    assert len(ROWS) == 10
    rows = read_record(own / f"records/imagenet-val/Linf/{PLUGIN}.csv")
    assert sorted(set(rows["eps"])) == pytest.approx([0.001, 0.00196, 0.00392], abs=5e-6)
    assert (own / "hoak2025/evaluation_results_merged_robust.csv").exists()
    drawn = {path.stem for path in (tmp_path / "figures").rglob("*.pdf")}
    assert {"robust_only_correlation", "avg_alignment_vs_robust", "tsne_plot"} <= drawn
    assert (tmp_path / "figures/claims.csv").exists()
