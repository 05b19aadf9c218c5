"""What a training measures on --val_dataset: accuracy, robust accuracy, human alignment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

import training
from alignment_security.attacks.autoattack import Budget
from alignment_security.evaluation import AutoAttack, Clean, Saliency, evaluate
from alignment_security.images import loading
from alignment_security.images.decoded import DecodedImages
from alignment_security.images.image_sets import synsets
from alignment_security.images.loading import stream_images
from alignment_security.images.slices import take_slice
from alignment_security.images.variants import VARIANTS
from alignment_security.models.loading import load_model
from alignment_security.records.training import read_training_log, read_training_run
from alignment_security.trainer.run import widened
from alignment_security.trainer.validation import Validation

EPS = 0.5 / 255
TRAINING = (
    "--model_name test_resnet --dataset sample --val_dataset sample --batch_size 10 --epochs 2 "
    "--optimizer adamw --lr 3e-3 --no_augmentation --workers 0 --log_every 100 --name mine "
    "--device cpu"
)
EVALUATED = "--evaluate_every 5 --evaluate_eps 0.5/255 --evaluate_images 12"
VALIDATED = ["val_accuracy", "val_robust", "val_alignment"]


def train(results: Path, *options: str) -> int:
    command = f"{TRAINING} --results_dir {results}".split()
    return training.main([*command, *" ".join(options).split()])


def log(results: Path) -> pd.DataFrame:
    return read_training_log(results / "training/mine/log.csv")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, signals_kept) -> Path:
    """The results of a training of two epochs, the last of which is evaluated."""
    results = tmp_path_factory.mktemp("evaluated")
    with signals_kept():
        assert train(results, EVALUATED) == 0
    return results


def assert_last_row_is_of_the_weights(results: Path, sample) -> None:
    """The last row of the log is what `evaluate` finds of the saved weights."""
    model = load_model("test_resnet", results / "training/mine/model.safetensors")
    images = take_slice(sample, 0, 12)
    attack = AutoAttack("Linf", [EPS], Budget(("apgd-ce",), steps=20))
    clean = evaluate(model, sample, Clean())["clean_correct"].mean()
    robust = evaluate(model, images, attack)["robust"].mean()
    alignment = evaluate(model, images, Saliency())["human_alignment"].mean()
    assert 0 < robust < 1
    found = log(results)[VALIDATED].iloc[-1].tolist()
    assert found == pytest.approx([clean, robust, alignment], rel=1e-5)


def test_the_log_has_what_evaluating_the_weights_gives(tmp_path, sample, signals_kept, monkeypatch):
    decoded: list[int] = []
    load = loading.load_photograph
    monkeypatch.setattr(
        loading, "load_photograph", lambda images, i: decoded.append(i) or load(images, i)
    )
    monkeypatch.setattr(loading, "DECODED", DecodedImages())
    with signals_kept():
        assert train(tmp_path, EVALUATED, "--epochs 12") == 0
    assert len(decoded) == len(sample)  # once for all epochs and measures
    rows = log(tmp_path)
    measured = rows.dropna(subset="val_robust")
    assert measured["epoch"].tolist() == [5, 10, 12] and rows["val_accuracy"].notna().all()
    assert measured.index.equals(rows.dropna(subset="val_alignment").index)
    assert_last_row_is_of_the_weights(tmp_path, sample)


@pytest.mark.slow
def test_two_processes_evaluate_the_weights_that_are_saved(tmp_path, sample):
    """Their batch norms have seen other images; the statistics of the first one are saved."""
    options = f"{TRAINING} {EVALUATED} --epochs 12 --processes 2 --results_dir {tmp_path}"
    command = [sys.executable, str(ROOT / "training.py"), *options.split()]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert_last_row_is_of_the_weights(tmp_path, sample)


def test_the_run_file_says_what_was_measured(evaluated):
    settings = read_training_run(evaluated / "training/mine/run.json")["settings"]["run"]
    found = settings["evaluation"]
    assert found["attack"] == "reduced: apgd-ce(20)" and found["human_map"].startswith("hand-drawn")
    assert (found["norm"], found["eps"], found["every"], found["images"]) == ("Linf", EPS, 5, 12)


def test_evaluating_changes_no_weight(evaluated, tmp_path, signals_kept):
    with signals_kept():
        assert train(tmp_path) == 0
    name = "training/mine/model.safetensors"
    assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
    trained = [name for name in log(tmp_path) if name not in VALIDATED[1:]]
    assert log(tmp_path)[trained].equals(log(evaluated)[trained])
    assert log(tmp_path)[VALIDATED[1:]].isna().all(axis=None)


def test_an_interrupted_training_has_the_log_of_the_whole(evaluated, tmp_path, signals_kept):
    with signals_kept():
        assert train(tmp_path, EVALUATED, "--stop_after 0") == 85
        begun = (tmp_path / "training/mine/log.csv").read_bytes()
        assert train(tmp_path, EVALUATED) == 0
        assert train(tmp_path, EVALUATED, "--evaluate_eps 1/255") == 2
    whole = (evaluated / "training/mine/log.csv").read_bytes()
    assert whole.startswith(begun) and begun != whole
    assert (tmp_path / "training/mine/log.csv").read_bytes() == whole


def test_a_log_of_an_earlier_version_is_read_and_continued(evaluated, tmp_path):
    """It has no columns of the evaluation: they are empty."""
    now = (evaluated / "training/mine/log.csv").read_text().splitlines(keepends=True)
    then = [",".join(line.split(",")[:9]) + "\n" for line in now]
    (tmp_path / "log.csv").write_text("".join(then))
    rows = read_training_log(tmp_path / "log.csv")
    assert rows[VALIDATED[1:]].isna().all(axis=None) and len(rows) == len(now) - 1
    assert [widened(line) for line in now[1:]] == now[1:]
    assert {line.count(",") for line in map(widened, then[1:])} == {now[0].count(",")}


@pytest.mark.parametrize(
    "options, message",
    [
        ("--evaluate_eps 1/255", "--evaluate_eps: is of --evaluate_every"),
        ("--evaluate_images 5", "--evaluate_images: is of --evaluate_every"),
        ("--evaluate_every 2", "needs --evaluate_eps, e.g. 1/255"),
        ("--evaluate_every 2 --evaluate_eps 8", "8 is above 1 in Linf; write 8/255"),
        ("--evaluate_every 0 --evaluate_eps 1/255", "at least 1"),
    ],
)
def test_a_wrong_evaluation_is_one_line(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, options)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_an_evaluation_needs_images(capsys):
    with pytest.raises(SystemExit):
        training.main(["--model_name", "test_resnet", "--evaluate_every", "2"])
    assert "--evaluate_every 2 needs --val_dataset" in capsys.readouterr().err


def test_imagenet_a_is_validated_over_its_classes(tiny, sample, tmp_path):
    """The net's one answer is none of the 200: restricted, it is the best of these."""
    model = load_model(tiny.name, tiny.checkpoint)
    classes = VARIANTS["imagenet-a"].classes
    _, image, _ = next(stream_images(sample, model.preprocessing))
    logits = model.module(image[None])[0].detach()
    best = max(classes, key=lambda label: logits[label])
    assert int(logits.argmax()) not in classes
    for label in classes:
        folder = tmp_path / synsets()[label]
        folder.mkdir()
        if label == best:
            shutil.copy(sample.paths[0], folder)
    args = Namespace(
        val_dataset="imagenet-a",
        val_dir=str(tmp_path),
        class_order=None,
        workers=0,
        batch_size=4,
        pass_size=0,
        epochs=2,
        objective="adversarial",
        norm="L2",
        eps=0.0,
        evaluate_every=2,
        evaluate_eps=None,
        evaluate_images=None,
    )
    validation = Validation.from_args(args, model)
    assert validation is not None and validation(model.module, 1) == {"val_accuracy": 1}
    measured = validation(model.module, 2)
    assert measured["val_robust"] == 1 and pd.isna(measured["val_alignment"])  # no maps


def test_processes_share_the_images(sample, lite0, monkeypatch):
    """The means over all images come from the sums of each process, whatever their shares."""
    images = sample.take(range(7))
    validation = Validation(lite0, images, epochs=1, pass_size=4, workers=0)
    sums = []
    monkeypatch.setattr("alignment_security.trainer.validation.world_size", lambda: 2)
    monkeypatch.setattr(
        "alignment_security.trainer.validation.sum_over_processes",
        lambda values: sums.append(values) or values,
    )
    for rank in (0, 1):
        monkeypatch.setattr("alignment_security.trainer.validation.rank", lambda rank=rank: rank)
        validation._mean(lambda _, share: map(float, share.labels), lite0, images)
    assert sum(sums).tolist() == [sum(images.labels), 7]
