"""Plugins of Brain-Score through staging and a job, with a small package in its place."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_utilities
from huggingface_hub import constants
from stand_in_plugins import SIDE, write_package

from alignment_security.cluster.job import STAGED_FACTS, STAGED_TABLE, read_staged_table
from alignment_security.cluster.plugins import CACHES
from alignment_security.cluster.prestage import prestage
from alignment_security.common.files import UserError
from alignment_security.models.lists import WantedModel, read_wanted
from alignment_security.models.loading import load_model
from alignment_security.records.record import read_record

FETCHED = [".cache/huggingface/hub/models--made--net/refs/main"]
FETCHED += [".cache/huggingface/hub/models--made--net/snapshots/abc/scale.pt"]
FETCHED += [".cache/torch/hub/checkpoints/net.pth", ".made/shift.pt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder with the stand-in package, and what its plugins fetch: far_away.pth."""
    root = tmp_path_factory.mktemp("plugins")
    write_package(root, root / "far_away.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        patch.syspath_prepend(root)
        yield root


@pytest.fixture(autouse=True)
def imported_anew():
    sys.modules.pop("brainscore_vision", None)
    yield
    sys.modules.pop("brainscore_vision", None)


@pytest.fixture(scope="module")
def staged(folder) -> Path:
    """The plugin `fetches`, staged."""
    out = folder / "staged"
    assert stage(out, "fetches") == {}
    return out


@pytest.fixture
def job(staged, tmp_path, monkeypatch) -> Path:
    """The environment of a job whose staging folder is `staged`."""
    monkeypatch.setenv("STAGING_DIR", str(staged))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path / "scratch"))
    return tmp_path


def stage(out: Path, *names: str) -> dict[str, str]:
    return prestage([WantedModel(name, None) for name in names], out)


def test_a_plugin_is_staged_with_what_it_fetched(staged):
    (row,) = read_staged_table(staged / STAGED_TABLE).to_dict("records")
    assert row["name"] == "fetches" and row["weights"] == "brainscore:fetches"
    with tarfile.open(staged / row["tar"]) as archive:
        assert archive.getnames() == [STAGED_FACTS, *(f"home/{name}" for name in FETCHED)]
        assert all(member.isreg() for member in archive.getmembers())  # the link as its file
        facts = json.load(archive.extractfile(STAGED_FACTS))
    assert facts["preprocessing"]["input_size"] == [3, SIDE, SIDE]
    assert facts["weights_sha256"] == row["weights_sha256"] and int(row["gpu_memory_mb"]) > 0
    files = sorted(path.name for path in staged.iterdir() if path.is_file())
    assert files == sorted([row["tar"], STAGED_TABLE, f".{STAGED_TABLE}.lock"])
    assert not list((staged / "caches").iterdir())


def test_a_staged_plugin_is_evaluated_without_network(folder, job, cli, monkeypatch):
    """The record is that of the plugin itself, under its own name, with and without --source."""
    common = ["--device", "cpu", "--workers", "0", "--batch_size", "4", "-s", "4"]
    linf = ["Linf", "--eps", "1/255", "--attacks", "apgd-ce", "--steps", "3"]
    with monkeypatch.context() as own:
        own_caches(own, job)
        request = ["--model_name", "fetches", "--source", "brainscore", *common]
        assert cli(*request, "--results_dir", job / "own", *linf)[0] == 0
    (folder / "far_away.pth").rename(folder / "farther.pth")  # nothing can be fetched any more
    before, offline = dict(os.environ), constants.HF_HUB_OFFLINE
    for results, source in (("one", []), ("two", ["--source", "brainscore"])):
        request = ["--chtc", "--model_name", "fetches", *source, *common, "--results_dir"]
        status, _, err = cli(*request, job / results, *linf)
        assert status == 0, err
    (folder / "farther.pth").rename(folder / "far_away.pth")
    paths = [*(job / name / "records/sample/Linf/fetches.csv" for name in ("own", "one", "two"))]
    own_rows, *rows = map(read_record, paths)
    assert len(own_rows) == 4 and all(found.equals(own_rows) for found in rows)
    models = [json.loads(p.with_suffix(".json").read_text())["settings"]["model"] for p in paths]
    assert models[0] == models[1] == models[2] and models[0]["weights"] == "brainscore:fetches"
    assert dict(os.environ) == before  # and the hub's library and the network are as they were
    assert socket.getaddrinfo("localhost", 80) and constants.HF_HUB_OFFLINE == offline


def own_caches(monkeypatch, root: Path) -> None:
    for name, folder in CACHES.items():
        monkeypatch.setenv(name, str(root / "caches" / folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "caches" / CACHES["HF_HUB_CACHE"]))


def test_a_plugin_of_the_stand_in_package_has_its_weights(folder, tmp_path, monkeypatch):
    own_caches(monkeypatch, tmp_path)
    model = load_model("fetches", source="brainscore")
    state, x = torch.load(folder / "far_away.pth"), torch.rand(2, 3, SIDE, SIDE)
    want = 2.5 * ((2 * x - 1).flatten(1) @ state["weight"].T + state["bias"])
    torch.testing.assert_close(model.module(x), want, atol=1e-5, rtol=1e-5)


REFUSED = {
    "random": "has other weights each time that it is loaded",
    "asks": r"brainscore-vision cannot load it \(OSError: it wants the network, which a job",
    "litters": "writes net.pth into the working folder",
    "dies": "its process ends",
}


def test_a_plugin_that_no_job_could_load_is_not_staged(folder, tmp_path, forked):
    out = tmp_path / "staged"
    failed = stage(out, *REFUSED)
    for name, message in REFUSED.items():
        assert re.match(message, failed[name]) and "\n" not in failed[name], failed[name]
    assert not list(out.glob("*.tar*")) and not (out / STAGED_TABLE).exists()
    assert (out / "caches/asks/.made/shift.pt").exists()  # fetched: for a second try


def test_a_job_of_a_plugin_that_wants_the_network_is_one_line(folder, job, cli, monkeypatch):
    import brainscore_vision

    load = brainscore_vision.load_model
    monkeypatch.setattr(brainscore_vision, "load_model", lambda _: load("asks"))
    status, out, err = cli(
        "--chtc", "--model_name", "fetches", "--results_dir", job / "results", "clean"
    )
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "it wants the network, which a job has not; run prestage" in err
    assert not (job / "results").exists()


def test_lists_mix_timm_and_plugins(staged, tmp_path, tiny, capsys, forked):
    """prestage takes both, and goes on after one that fails; make_sweep takes what is staged."""
    rows = ["name\tsource\tweights\tfamily\tgroup"]
    rows += [f"plain\ttimm:test_resnet\tfile:{tiny.checkpoint.name}\tOther\tx"]
    rows += [f"{name}\tbrainscore\tplugin\tOther\tx" for name in ("fetches", "nobody")]
    (tmp_path / "mixed.txt").write_text("\n".join(rows) + "\n")
    out = shutil.copytree(staged, tmp_path / "staged")
    models = ["--models", tmp_path / "mixed.txt"]
    assert (
        run_utilities("prestage", *models, "--out", out, "--checkpoint_dir", tiny.checkpoint.parent)
        == 2
    )
    message = "failed: nobody: brainscore-vision cannot load it (KeyError: 'nobody')"
    assert message in capsys.readouterr().err
    options = ["--staged", out / STAGED_TABLE, "--set", "staging=/staging/x", "--out"]
    assert run_utilities("make_sweep", *models, *options, tmp_path / "sweep", "--", "clean") == 0
    assert "1 of 3 models are not staged and get no job: nobody" in capsys.readouterr().err
    lines = (tmp_path / "sweep/models.txt").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in lines) == ["fetches", "plain"]
    models[1] = "brainscore:fetches"
    assert run_utilities("make_sweep", *models, *options, tmp_path / "one", "--", "clean") == 0
    assert (tmp_path / "one/models.txt").read_text().startswith("fetches, fetches, ")
    models[1] = "brainscore:nobody"
    assert run_utilities("make_sweep", *models, *options, tmp_path / "none", "--", "clean") == 2
    assert "has none of the 1 models" in capsys.readouterr().err


def test_read_wanted_of_plugins(tmp_path):
    (tmp_path / "names.txt").write_text("alexnet\nbrainscore:vgg_16:v2\n")
    wanted = read_wanted(tmp_path / "names.txt", "brainscore:resnet_50")
    assert [model.name for model in wanted] == ["alexnet", "vgg_16:v2", "resnet_50"]
    assert [model.net for model in wanted] == ["alexnet", None, None]
    listed = read_wanted("brainscore")
    assert len(listed) == 741 and sum(model.net is None for model in listed) == 697
    with pytest.raises(UserError, match="alexnet: listed twice"):
        read_wanted(tmp_path / "names.txt", "brainscore:alexnet")


def test_a_timm_net_is_no_plugin(tmp_path, tiny, cli, monkeypatch):
    out = tmp_path / "staged"
    assert prestage([WantedModel("plain", "test_resnet", str(tiny.checkpoint))], out) == {}
    monkeypatch.setenv("STAGING_DIR", str(out))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path / "scratch"))
    request = ["--chtc", "--source", "brainscore", "--model_name", "plain", "--results_dir"]
    status, _, err = cli(*request, tmp_path / "results", "clean")
    assert status == 2 and "not as a plugin; leave out --source brainscore" in err
