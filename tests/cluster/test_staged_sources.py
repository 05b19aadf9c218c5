"""Nets of a Python file and of torchvision through staging and a job without network."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import run_utilities

from alignment_security.cluster.job import STAGED_FACTS, STAGED_TABLE, read_staged_table
from alignment_security.cluster.prestage import prestage
from alignment_security.common.files import UserError
from alignment_security.models.lists import WantedModel, read_wanted
from alignment_security.records.record import read_record

NET = """
import torch
from torch import nn


def made(checkpoint="gone.pth"):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1000))
    net.load_state_dict(torch.load(checkpoint))
    return net, {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "crop_pct": 1,
    }
"""
pytestmark = pytest.mark.usefixtures("forked")
COMMON = ["--device", "cpu", "--workers", "0", "-s", "4"]


@pytest.fixture
def net(tmp_path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layer = torch.nn.Linear(3 * 32 * 32, 1000)
    state = {f"1.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save(state, tmp_path / "mine.pth")
    return tmp_path / "net.py"


def settings_of(results: Path, name: str) -> dict:
    path = results / f"records/sample/clean/{name}.json"
    return json.loads(path.read_text())["settings"]["model"]


def job(cli, monkeypatch, staged: Path, scratch: Path, results: Path, name: str) -> None:
    """Evaluate a staged net as a job does."""
    monkeypatch.setenv("STAGING_DIR", str(staged))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(scratch))
    request = ["--chtc", "--model_name", name, *COMMON, "--results_dir", results, "clean"]
    status, _, err = cli(*request)
    assert status == 0, err


def test_a_python_net_goes_with_its_file_and_checkpoint(net, cli, tmp_path, monkeypatch):
    """The job's record and run file are those of the command with --source."""
    own = ["--model_name", "mine", "--source", f"python:{net}:made", "--checkpoint"]
    own += [tmp_path / "mine.pth", *COMMON, "--results_dir", tmp_path / "own", "clean"]
    assert cli(*own)[0] == 0
    models = tmp_path / "models.txt"
    models.write_text(f"mine\tpython:{net}:made\tfile:mine.pth\tNet\tmine\n")
    command = ["prestage", "--models", str(models), "--out", str(tmp_path / "staged")]
    command += ["--checkpoint_dir", str(tmp_path)]
    assert run_utilities(*command) == 0
    (row,) = read_staged_table(tmp_path / "staged" / STAGED_TABLE).to_dict("records")
    assert row["weights"] == "python:net.py:made"
    with tarfile.open(tmp_path / "staged" / row["tar"]) as archive:
        assert archive.getnames() == [STAGED_FACTS, "home/mine.pth", "home/net.py"]
    net.unlink()
    (tmp_path / "mine.pth").unlink()
    job(cli, monkeypatch, tmp_path / "staged", tmp_path / "scratch", tmp_path / "job", "mine")
    records = [tmp_path / name / "records/sample/clean/mine.csv" for name in ("own", "job")]
    assert read_record(records[0]).equals(read_record(records[1]))
    assert settings_of(tmp_path / "own", "mine") == settings_of(tmp_path / "job", "mine")


def test_a_torchvision_net_goes_with_the_weights_that_it_fetched(cli, tmp_path, monkeypatch):
    """They lie where the download would be: there is no network in a test."""
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    cache = tmp_path / "staged/caches/squeeze/.cache/torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1()
    torch.save(net.state_dict(), cache / Path(weights.url).name)
    wanted = WantedModel("squeeze", None, source="torchvision:squeezenet1_1")
    assert prestage([wanted], tmp_path / "staged") == {}
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    job(cli, monkeypatch, tmp_path / "staged", tmp_path / "scratch", tmp_path / "job", "squeeze")
    settings = settings_of(tmp_path / "job", "squeeze")
    assert settings["weights"] == "torchvision:squeezenet1_1:IMAGENET1K_V1"
    assert not list((tmp_path / "staged" / "caches").iterdir())


@pytest.mark.parametrize(
    "source, checkpoint, message",
    [
        ("python:gone.py:made", None, "gone.py: no such file"),
        ("python:net.py:made", "gone.pth", "gone.pth: no such file"),
        ("python:net.py:made", None, "net.py:.* FileNotFoundError.*gone.pth"),
        ("python:net.py:other", "mine.pth", "no function other; it has made"),
    ],
)
def test_what_cannot_be_staged_is_one_line(net, tmp_path, monkeypatch, source, checkpoint, message):
    monkeypatch.chdir(tmp_path)
    wanted = WantedModel("mine", None, checkpoint, source)
    (reason,) = prestage([wanted], tmp_path / "staged", checkpoints=tmp_path).values()
    assert re.search(message, reason) and "\n" not in reason
    assert not list((tmp_path / "staged").glob("*.tar"))


def test_a_list_names_sources(tmp_path):
    path = tmp_path / "models.txt"
    rows = ["a\tpython:net.py:made\tfile:a.pth\tNet\tmine", "b\ttorchvision:alexnet\tsource\tA\tb"]
    rows += ["c\ttimm:resnet18\ttimm:resnet18\tR\tc", "d\tbrainscore:alexnet\tplugin\tA\td"]
    path.write_text("\n".join(rows))
    assert read_wanted(path) == [
        WantedModel("a", None, "a.pth", "python:net.py:made"),
        WantedModel("b", None, None, "torchvision:alexnet"),
        WantedModel("c", "resnet18"),
        WantedModel("d", None, None, "brainscore:alexnet"),
    ]
    for source in ("hub:x", "torchvision2", "brainscorer:alexnet", "timm:"):
        path.write_text(f"a\t{source}\tsource\tNet\tmine\n")
        message = f"source '{source}'; write timm:NAME, brainscore, python:FILE"
        with pytest.raises(UserError, match=message):
            read_wanted(path)
