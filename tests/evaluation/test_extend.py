"""The examples of docs/extend.md: a model, an image set, an attack and a figure."""

from __future__ import annotations

import re
import shutil
import sys
import types

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT
from nets import attack_rows, two_class
from torch import nn

from alignment_security.attacks.minimum_norm import run_minimum_norm
from alignment_security.records.record import read_record, read_run_file


@pytest.fixture(scope="module")
def examples() -> list[str]:
    """The Python code of the page: model, image set, attack, figure."""
    page = (ROOT / "docs" / "extend.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.S)


def test_the_model_of_the_page_is_evaluated(examples, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(examples[0])
    net = nn.Sequential(nn.Conv2d(3, 16, 7, 4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 1000))
    torch.save(net.state_dict(), "my_net.pth")
    source = ["--model_name", "mine", "--source", "python:my_net.py:my_net"]
    assert cli(*source, "-s", "3", "clean")[0] == 0
    settings = read_run_file(tmp_path / "results/records/sample/clean/mine.json")["settings"]
    assert settings["model"]["preprocessing"]["input_size"] == [3, 64, 64]


def test_the_image_set_the_attack_and_the_figure_of_the_page_run(
    examples, sample, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for path in sample.paths[:6]:
        shutil.copy(path, tmp_path / "photographs")
    module = types.ModuleType("extend")
    monkeypatch.setitem(sys.modules, "extend", module)  # dataclasses look it up
    names = vars(module)
    for example in examples[1:]:
        exec(example, names)
    assert names["images"].labels == sample.labels[:6]
    assert names["accuracy"] > 0.5
    assert names["norms"].gt(0).sum() >= 4
    record = read_record(tmp_path / "results/records/mine/L2-gradient/tf_efficientnet_lite0.csv")
    ((name, figure, table, caption),) = names["drawings"]
    assert name == "norms_mine_L2-gradient_tf_efficientnet_lite0"
    assert "gradient 20 steps" in caption and set(table["threat"]) == {"L2-gradient"}
    assert set(table["image_id"]) == set(record["image_id"][record["success"] == 1])
    plt.close(figure)

    net, x = two_class(distance=0.52, norm="L2")
    rows = attack_rows(
        run_minimum_norm, net, [("a", x, 0)], names["GradientSteps"](20, 0.05), n_outputs=2
    )
    assert rows["l2"].tolist() == pytest.approx([0.55], abs=1e-5)  # eleven steps of 0.05
