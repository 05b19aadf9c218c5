"""In a job: harmful and damaged tars, --chtc, and the progress that it reports."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from sweeps import NAMES, study_of

from alignment_security.cluster import job as job_module
from alignment_security.cluster.job import (
    PROGRESS,
    STAGED_FACTS,
    STAGED_TABLE,
    DamagedTar,
    StagingError,
    report_progress,
    staged_folder,
    unpack,
)
from alignment_security.cluster.prestage import pack_images, prestage
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import safe_file_name, sha256_file
from alignment_security.models.lists import WantedModel

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
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tar]
    assert not (tmp_path / "to" / "net").exists()


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
    # though the table names these bytes
    with pytest.raises(StagingError, match="not an uncompressed tar"):
        unpack(tmp_path / "net.tar", tmp_path / "to", sha256_file(tmp_path / "net.tar"))
    with pytest.raises(StagingError, match="gone.tar: not staged"):
        unpack(tmp_path / "gone.tar", tmp_path / "to", sha256)
    assert not (tmp_path / "to").exists()


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


# ---- --chtc --------------------------------------------------------------------------------------


@pytest.fixture
def chtc(staged, tmp_path, monkeypatch, cli):
    """The script in a job: its scratch folder, the staged files, and a folder of results."""
    monkeypatch.setenv("STAGING_DIR", str(staged))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path / "scratch"))

    def call(*arguments, name: str = NAMES[0]) -> tuple[int, str, str]:
        words = ["--chtc", "--model_name", name, "--results_dir", tmp_path / "results"]
        return cli(*words, *arguments, "clean")

    return call


def test_chtc_evaluates_what_was_staged(chtc, cli, tiny, tmp_path):
    """The record of a staged model is that of its checkpoint, under the model's own name."""
    images = f"images-{tiny.data.name}.tar"
    common = ["--device", "cpu", "--workers", "0", "--dataset", "mine"]
    assert chtc("--data_dir", images, *common)[0] == 0
    assert cli(*tiny.arguments(tmp_path / "results"), "--workers", "0", "clean")[0] == 0
    folder = tmp_path / "results/records/mine/clean"
    staged, plain = (folder / f"{safe_file_name(name)}.csv" for name in (NAMES[0], tiny.name))
    assert staged.read_bytes() == plain.read_bytes()
    staged, plain = (
        json.loads(Path(f"{path}"[:-4] + ".json").read_text())["settings"]["model"]
        for path in (staged, plain)
    )
    assert staged == plain | {"name": NAMES[0], "architecture": tiny.name}
    assert staged["weights"] == "file:net.pth"
    unpacked = {path.name.rpartition("-")[0] for path in (tmp_path / "scratch/staged").iterdir()}
    assert unpacked == {safe_file_name(NAMES[0]), images[:-4]}


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("other", [], "staged.tsv: has 0 lines for other"),
        (NAMES[0], ["--checkpoint", "x.pth"], "leave out --checkpoint"),
        (NAMES[0], ["--data_dir", "x.tar", "--dataset", "mine"], "has 0 lines for x.tar"),
    ],
)
def test_chtc_refuses_wrong_requests(chtc, tmp_path, name, arguments, message):
    status, out, err = chtc(*arguments, name=name)
    assert (status, out) == (2, "") and re.search(message, err) and err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_chtc_without_staging_dir(chtc, monkeypatch, tmp_path):
    for folder, message in (
        ("", "STAGING_DIR is not set"),
        (str(tmp_path), "staged.tsv: missing; `python utilities.py prestage"),
    ):
        monkeypatch.setenv("STAGING_DIR", folder)
        status, _, err = chtc()
        assert status == 2 and message in err


def test_chtc_exits_1_for_a_damaged_tar(chtc, staged, tmp_path, monkeypatch):
    """Exit status 1, not 2: the transfer may have failed, and HTCondor tries again."""
    tar = f"{safe_file_name(NAMES[0])}.tar"
    (tmp_path / STAGED_TABLE).write_bytes((staged / STAGED_TABLE).read_bytes())
    (tmp_path / tar).write_bytes((staged / tar).read_bytes()[:-1] + b"x")
    monkeypatch.setenv("STAGING_DIR", str(tmp_path))
    status, _, err = chtc()
    assert status == 1 and "its sha256 is" in err and err.count("\n") == 1


def test_chtc_refuses_a_table_that_leaves_the_staging_folder(chtc, staged, tmp_path, monkeypatch):
    text = (staged / STAGED_TABLE).read_text()
    (tmp_path / STAGED_TABLE).write_text(text.replace("lab--net", "../lab--net"))
    monkeypatch.setenv("STAGING_DIR", str(tmp_path))
    status, _, err = chtc()
    assert status == 2 and "column tar: '../lab--net" in err and "no name of a folder" in err


def test_chtc_refuses_other_weights_than_the_table_names(chtc, tmp_path, monkeypatch):
    """A sound tar of other weights under this name."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    wanted = WantedModel(NAMES[0], "test_resnet", str(tmp_path / "other.pth"))
    assert prestage([wanted], tmp_path / "other") == {}
    described = staged_folder(tmp_path / "other", "name", NAMES[0]) / STAGED_FACTS
    facts = json.loads(described.read_text())
    monkeypatch.setenv("STAGING_DIR", str(tmp_path / "other"))
    for change, message in (
        ({"weights_sha256": "0" * 64}, "not the weights that were staged"),
        ({"name": "another"}, "it is of another"),
    ):
        described.write_text(json.dumps(facts | change))
        status, _, err = chtc()
        assert status == 2 and message in err


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
