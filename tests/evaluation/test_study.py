"""Studies: lines that are wrong, failures that leave others alone, processes that share a queue."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_utilities
from PIL import Image

import evaluate_robustness
import utilities
from alignment_security.cluster import queue as queue_module
from alignment_security.cluster.queue import FAILED, RUNNING, STOPPED, StudyQueue
from alignment_security.cluster.studies import available_studies, read_study
from alignment_security.common import command_line
from alignment_security.common.files import TryAgain, UserError, write_atomic
from alignment_security.common.out_of_memory import of_one_image
from alignment_security.evaluation import run_study
from alignment_security.evaluation import study as study_module
from alignment_security.evaluation.dry_run import duration
from alignment_security.evaluation.options import parse_args
from alignment_security.evaluation.read_ahead import READ_BYTES, read_ahead, weights_file
from alignment_security.evaluation.rehearsal import Rehearsal
from alignment_security.evaluation.run_study import StudyProcesses
from alignment_security.evaluation.study import (
    STUDY_BEGAN,
    check_study,
    described_requests,
    study_requests,
)
from alignment_security.evaluation.study_dry_run import (
    RehearsedModel,
    macs_text,
    scaled,
    study_text,
)
from alignment_security.evaluation.study_screen import StudyScreen
from alignment_security.images import loading
from alignment_security.images.decoded import DecodedImages
from alignment_security.models.heads import ModelError
from alignment_security.models.lists import WantedModel
from alignment_security.models.macs import multiply_adds
from alignment_security.records.names import name_with_weights, record_stem

CLEAN = "clean"
LINF = "Linf --eps 0.25/255 1/255 --attacks apgd-ce square --steps 3 --queries 5"
L2 = "L2 --head animate --steps 3"
THREATS = (CLEAN, LINF, L2)
OPTIONS = ["--device", "cpu", "--batch_size", "4", "--workers", "0"]
NAMES = ["first", "second", "third"]


@pytest.fixture
def study(tmp_path, tiny, monkeypatch):
    """Writes a study of tiny nets: (names, threats) -> (file, options of the command)."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()

    def call(names=NAMES, threats=THREATS) -> tuple[Path, list[str]]:
        for name in names:
            shutil.copy(tiny.checkpoint, tmp_path / "weights" / f"{name}.pth")
        rows = [f"{name}\ttimm:test_resnet\tfile:{name}.pth\tOther\tCNN\n" for name in names]
        (tmp_path / "nets.txt").write_text("".join(rows))
        file = tmp_path / "mine.txt"
        text = ["# of tiny nets", "models nets.txt", "images --dataset mine -s 6", *threats]
        file.write_text("\n".join(text) + "\n")
        options = ["--data_dir", str(tiny.data), "--results_dir", str(tmp_path / "results")]
        return file, [*options, *OPTIONS]

    return call


def rows_of(results: Path) -> dict[str, bytes]:
    records = results / "records"
    return {str(file.relative_to(records)): file.read_bytes() for file in records.rglob("*.csv")}


def single_commands(cli, tiny, names, options, results: Path) -> dict[str, bytes]:
    """The records of a command for each model and threat."""
    for name in names:
        for threat in THREATS:
            weights = ["--architecture", "test_resnet", "--checkpoint", tiny.checkpoint]
            words = ["--model_name", name, *weights, "--dataset", "mine", "-s", "6"]
            assert cli(*words, *options, "--results_dir", results, *threat.split())[0] == 0
    return rows_of(results)


def states_of(results: Path) -> dict[str, dict]:
    files = sorted((results / "studies/mine").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


# ---- files of studies ----------------------------------------------------------------------------


def test_the_studies_of_the_project_are_read_and_their_lines_are_commands():
    assert available_studies() == ["feng2025", "hoak2025"]
    for name, models in (("feng2025", 351), ("hoak2025", 741)):
        study = read_study(name)
        assert len(study.models) == models and len(study.threats) >= 2
        for model in study.models[:: models // 5]:
            requests = study_requests(study, model, [])
            assert len(requests) == len(study.threats) and requests[0].threat == "clean"


def test_weights_of_a_study_are_those_of_its_list():
    """A file that is missing is never replaced by timm's weights of the architecture."""
    by_name = {model.name: model for model in read_study("feng2025").models}
    robust = next(model for model in by_name.values() if model.checkpoint)
    (request, *_) = study_requests(read_study("feng2025"), robust, [])
    assert request.checkpoint.name == robust.checkpoint and request.architecture == robust.net
    plugins = [model for model in read_study("hoak2025").models if model.net is None]
    assert study_requests(read_study("hoak2025"), plugins[0], [])[0].source == "brainscore"


@pytest.mark.parametrize(
    "text, message",
    [
        ("models nolist\nclean\n", "line 1: nolist: no such model list"),
        ("models nets.txt\nclean\nmodels nets.txt\n", "line 3: models is on line 1 too"),
        ("images --dataset sample\nclean\n", "write `models LIST`"),
        ("models a b\nclean\n", "line 1: write `models LIST`"),
        ("models nets.txt\n# nothing\n", "names no threat"),
        ("models nets.txt\n\n# x\nLinff --eps 1/255\n", "line 4: .*Linff"),
        ("models nets.txt\nLinf\n", "line 2: Linf needs --eps"),
        ("models nets.txt\nclean\nLinf --eps 3\n", "line 3: "),
        ("models nets.txt\nclean --steps 3\n", "line 2: --steps: clean does not read it"),
        ("models nets.txt\nclean --steps\n", "line 2: "),
        ("models nets.txt\nclean 'x\n", "line 2: no closing quotation"),
        ("models nets.txt\nclean --device cpu\n", "line 2: --device does not say what"),
        (
            "models nets.txt\nclean\nclean --head animate\n",
            "line 3: records/mine/clean is of line 2",
        ),
        ("models nets.txt\nclean\nL2 --dataset clickme --data_dir /no\n", "line 3: /no: no such"),
        ("models nets.txt\nclean --dataset imagenet-val\n", "line 2: .*"),
    ],
)
def test_a_wrong_study_says_which_line(study, tiny, tmp_path, text, message):
    study()
    (tmp_path / "wrong.txt").write_text(text)
    options = [] if "--data" in text else ["--dataset", "mine", "--data_dir", str(tiny.data)]
    with pytest.raises(UserError, match=f"^{tmp_path}/wrong.txt.*{message}"):
        check_study(read_study(tmp_path / "wrong.txt"), options)


@pytest.mark.parametrize(
    "bad, options, message",
    [
        (None, "", None),
        ("b", "", "20 x 64 pixels, its photograph has"),
        ("b", "-s 1", None),  # takes an image of class a
        ("b", "--class_order {order}", "20 x 64 pixels, its photograph has"),
        (None, "--map_dir /no/maps", "--map_dir /no/maps: no such folder"),
        (None, "--class_order /no/order", "--class_order /no/order: no such file"),
    ],
)
def test_maps_are_checked_before_the_first_model(study, mapped, tmp_path, bad, options, message):
    """Of own classes too; those of images that are not taken may be wrong."""
    study()
    images, maps = mapped
    shutil.copytree(maps, tmp_path / "maps")
    for path in (tmp_path / "maps" / bad).iterdir() if bad else []:
        Image.new("L", (20, 64)).save(path)
    (tmp_path / "order").write_text("c\na\nb\n")
    file = tmp_path / "maps.txt"
    words = f"--map_dir {tmp_path}/maps {options.format(order=tmp_path / 'order')}"
    file.write_text(f"models nets.txt\nclean\nL2 --steps 3 {words}\n")
    data = ["--dataset", "own", "--data_dir", str(images)]
    if message is None:
        check_study(read_study(file), data)
        return
    with pytest.raises(UserError, match=f"^{file}, line 3: .*{message}"):
        check_study(read_study(file), data)


def test_an_unknown_study_or_model_is_named(study, cli, tmp_path):
    assert "nothing.txt: no such study" in cli("--study", tmp_path / "nothing.txt")[2]
    file, options = study()
    status, _, err = cli("--study", file, *options, "--model_name", "fourth")
    assert status == 2 and "line 2: the list has no model fourth" in err


# ---- one process ---------------------------------------------------------------------------------


def test_rows_are_those_of_single_commands_and_each_model_is_loaded_once(
    study, cli, tiny, tmp_path, monkeypatch
):
    file, options = study()
    loaded = []
    load = evaluate_robustness.requested_model
    monkeypatch.setattr(
        evaluate_robustness,
        "requested_model",
        lambda request, device: loaded.append(request.model_name) or load(request, device),
    )
    assert cli("--study", file, *options)[0] == 0
    assert loaded == NAMES
    want = single_commands(cli, tiny, NAMES[:2], options, tmp_path / "single")
    rows = rows_of(tmp_path / "results")
    assert len(rows) == 9 and want == {name: rows[name] for name in want}

    # started again, nothing is loaded; a record that was deleted is made again
    assert cli("--study", file, *options)[0] == 0 and len(loaded) == 5 + 4
    gone = tmp_path / "results/records/mine/clean/second"
    gone.with_suffix(".csv").unlink()
    gone.with_suffix(".json").unlink()
    assert cli("--study", file, *options)[0] == 0 and loaded[-1] == "second"
    assert rows_of(tmp_path / "results") == rows


def test_images_are_told_by_their_list_not_by_their_folder(study, cli, tiny, tmp_path, monkeypatch):
    """Added ones are evaluated, others are refused, and a folder may have another place."""
    file, options = study(NAMES[:2], [CLEAN])
    file.write_text(file.read_text().replace(" -s 6", ""))
    folder, moved = tmp_path / "images", tmp_path / "moved"
    shutil.copytree(tiny.data, folder)
    options += ["--data_dir", str(folder)]
    assert cli("--study", file, *options)[0] == 0
    before = rows_of(tmp_path / "results")

    image = next(path for path in sorted(folder.glob("*/*")) if path.is_file())
    shutil.copy(image, image.with_stem("added"))
    assert cli("--study", file, *options)[0] == 0
    grown = rows_of(tmp_path / "results")
    for name, rows in before.items():
        assert set(rows.splitlines()) < set(grown[name].splitlines())

    folder.rename(moved)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_robustness, "requested_model", None)  # fails if it is called
        status, out, _ = cli("--study", file, *options, "--data_dir", moved)
    assert status == 0 and out == "mine: no model is left to evaluate\n"

    (moved / image.relative_to(folder)).unlink()
    status, _, err = cli("--study", file, *options, "--data_dir", moved)
    assert status == 2 and err.count("begun with other settings") == 2
    assert rows_of(tmp_path / "results") == grown


def test_the_list_of_images_is_read_once_for_all_threats(study, monkeypatch):
    file, options = study(NAMES[:1])
    read, load = [], study_module.requested_image_set
    monkeypatch.setattr(
        study_module, "requested_image_set", lambda *asked: read.append(1) or load(*asked)
    )
    asked = read_study(file)
    requests = study_requests(asked, asked.models[0], options)
    described = described_requests(requests)
    assert len(described) == len(THREATS) and len(read) == 1
    assert all("list_sha256=" in text for text in described.values())
    shorter = described_requests(study_requests(asked, asked.models[0], [*options, "-s", "5"]))
    assert shorter.keys() == described.keys() and len(read) == 2


def test_a_finished_record_that_was_edited_fails_its_model_alone(study, cli, tmp_path):
    file, options = study(NAMES[:2], [CLEAN])
    assert cli("--study", file, *options)[0] == 0
    record = tmp_path / "results/records/mine/clean/second.csv"
    edited = record.read_text().replace(",1,1,", ",0,1,", 1)
    assert edited != record.read_text()
    record.write_text(edited)
    status, _, err = cli("--study", file, *options)
    assert status == 2 and "sha256 differs" in err and "first" not in err
    states = states_of(tmp_path / "results")
    assert [states[name]["status"] for name in NAMES[:2]] == ["done", "failed"]


def test_a_study_decodes_each_image_once(study, cli, tmp_path, monkeypatch):
    """For all threats of all models with one preprocessing, and for what is checked before them."""
    file, options = study(NAMES[:2], [LINF, CLEAN, L2])
    decoded: list[str] = []
    load = loading.load_photograph
    monkeypatch.setattr(
        loading, "load_photograph", lambda images, i: decoded.append(i) or load(images, i)
    )
    monkeypatch.setattr(loading, "DECODED", DecodedImages())
    assert cli("--study", file, *options, "--examples", "2")[0] == 0
    assert len(rows_of(tmp_path / "results")) == 6 and len(decoded) == 6


def test_a_model_that_fails_leaves_the_others_alone(study, cli, tmp_path, monkeypatch):
    """Damaged weights, missing ones, a device without memory; and they are tried again."""
    names = ["damaged", "missing", "large", "sound"]
    file, options = study(names, [CLEAN, L2])
    weights = tmp_path / "weights"
    sound = (weights / "sound.pth").read_bytes()
    (weights / "damaged.pth").write_bytes(sound[: len(sound) // 2])
    (weights / "missing.pth").unlink()
    evaluate = evaluate_robustness.evaluate_request

    def without_memory(request, model):
        if request.model_name == "large":
            with of_one_image():
                raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(request, model)

    monkeypatch.setattr(evaluate_robustness, "evaluate_request", without_memory)
    status, _, err = cli("--study", file, *options)
    assert status == 2 and err.count("error: ") == 4  # large: once a threat
    states = states_of(tmp_path / "results")
    assert {name: state["status"] for name, state in states.items()} == {
        "damaged": "failed",
        "missing": "failed",
        "large": "failed",
        "sound": "done",
    }
    assert not any(state["try_again"] for state in states.values())
    assert "damaged.pth" in str(states["damaged"]["failures"])
    assert "missing.pth" in str(states["missing"]["failures"])
    assert sorted(path for path in rows_of(tmp_path / "results")) == [
        "mine/L2-crossing/sound.csv",
        "mine/clean/sound.csv",
    ]
    for name in ("damaged", "missing"):
        (weights / f"{name}.pth").write_bytes(sound)
    monkeypatch.setattr(evaluate_robustness, "evaluate_request", evaluate)
    assert cli("--study", file, *options)[0] == 0
    assert {state["status"] for state in states_of(tmp_path / "results").values()} == {"done"}


def test_stop_after_is_of_the_whole_study(study, cli, tmp_path):
    file, options = study(NAMES, [CLEAN])
    status, _, err = cli("--study", file, *options, "--stop_after", "0.0001")
    assert status == 85 and "run the same command again" in err
    assert [state["status"] for state in states_of(tmp_path / "results").values()] == ["stopped"]


# ---- the queue -----------------------------------------------------------------------------------


def test_processes_share_the_queue_and_take_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(queue_module, "SECONDS_TO_WAIT", 0.01)
    models = [f"net{k}" for k in range(20)]

    def work(_) -> list[str]:
        taken = []
        for turn in StudyQueue(tmp_path, "mine", time.time()).turns(models, {}):
            with turn:
                taken.append(turn.state.model)
                time.sleep(0.005)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(work, range(4)))
    assert sorted(sum(taken, [])) == sorted(models) and all(taken)


def test_the_weights_of_the_next_model_are_read_while_the_present_one_is_attacked(
    study, cli, tmp_path, monkeypatch
):
    """Of the next in the list that nobody has; nothing is locked, and no file is no failure yet."""
    file, options = study([*NAMES, "fourth"], [CLEAN])
    results = tmp_path / "results"
    queue = StudyQueue(results, "mine", time.time())
    state = queue.state("third")
    state.status, state.host = RUNNING, "another machine"
    queue.save(state)
    (tmp_path / "weights/second.pth").unlink()
    ahead: list[tuple[str, bool, bool]] = []

    def note(model):
        lock = (results / "studies/mine" / f"{model.name}.lock").exists()
        ahead.append((model.name, lock, queue.state("first").status == RUNNING))
        return read_ahead(model)

    monkeypatch.setattr(study_module, "read_ahead", note)
    assert cli("--study", file, *options)[0] == 2
    assert ahead[:2] == [("second", False, True), ("fourth", False, False)]
    assert {name for name, *_ in ahead[2:]} == {"fourth"}
    assert [states_of(results)[name]["status"] for name in (*NAMES, "fourth")] == [
        "done",
        "failed",
        "done",  # its lock was free
        "done",
    ]


def test_reading_ahead_reads_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    model = WantedModel("net", "resnet18", checkpoint="net.pth")
    os.mkfifo(tmp_path / "net.pth")
    thread = read_ahead(model)
    written = (tmp_path / "net.pth").write_bytes(bytes(2 * READ_BYTES + 5))  # waits for a reader
    thread.join(60)
    assert written == 2 * READ_BYTES + 5 and not thread.is_alive()
    (tmp_path / "net.pth").unlink()
    read_ahead(model).join(60)  # prints no traceback: pytest would fail
    assert weights_file(WantedModel("tf_efficientnet_lite0", "tf_efficientnet_lite0")) is None


def test_a_model_whose_process_died_is_taken_over(tmp_path):
    queue = StudyQueue(tmp_path, "mine", time.time())
    state = queue.state("net")
    state.status, state.pid = RUNNING, 1  # its lock is free
    queue.save(state)
    with next(queue.turns(["net"], {})):
        assert queue.state("net").pid == os.getpid()
    (tmp_path / "studies/mine/net.json").write_text("{")
    assert queue.state("net").status == STOPPED


def test_a_full_disk_ends_the_study_before_the_next_model(study, cli, tmp_path, monkeypatch):
    file, options = study(NAMES, [CLEAN])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(queue_module.os, "fsync", full)
    monkeypatch.setattr(evaluate_robustness, "requested_model", None)  # fails if it is called
    status, _, err = cli("--study", file, *options)
    assert status == 1 and "make room" in err
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *options])
    assert utilities.main(args) == 1


def test_a_broken_gpu_takes_no_model(study, cli, tmp_path):
    """Else it would fail one after the other, faster than the others are evaluated."""
    file, options = study(NAMES, [CLEAN])
    status, _, err = cli("--study", file, *options, "--device", "cuda:77")
    assert status == 2 and "--device cuda:77: " in err
    assert states_of(tmp_path / "results") == {}


# ---- the dry run ---------------------------------------------------------------------------------


def rehearsed(gmacs: float, seconds: float, passes: float = 30) -> RehearsedModel:
    """A model whose pass takes so many seconds, and an attack so many passes an image."""
    clean = Rehearsal(100, [1.0] * 10, 0, seconds, 1.0, 0.5, 0, [4], 2**31)
    threats = {
        "records/mine/clean": clean,
        "records/mine/Linf": replace(clean, work=[passes] * 10, start=1.9, decode=0.0),
    }
    return RehearsedModel(f"net{gmacs}", gmacs, 2.0, threats)


def test_time_follows_the_multiply_adds():
    assert scaled(10, [1, 100], [0.1, 10]) == pytest.approx(1)
    assert scaled(0.5, [1, 100], [0.1, 5]) == pytest.approx(0.05)
    assert scaled(400, [1, 100], [0.1, 5]) == pytest.approx(20)
    assert scaled(4, [2], [1]) == pytest.approx(2)


def test_time_of_a_study_by_hand():
    """Two models rehearsed, two others between them and unknown: loading, and for each threat its
    start, decoding once, and the attack."""
    gmacs = {"net1": 1, "net4": 4, "two": 2, "unknown": None}
    text = study_text("mine", [rehearsed(1, 1), rehearsed(4, 4)], gmacs, ["cuda:0"] * 2)
    lines = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    clean = 4 * 1 + 100 * (1 + 4 + 2 * 2 + 4 * 0.5)  # the unknown one is the median, 2
    linf = 4 * 1.9 + 100 * 30 * (1 + 4 + 2 * 2)
    want = {"mine/clean": clean, "mine/Linf": linf, "loading": 8}
    assert {name: lines[name].strip() for name in want} == {
        name: duration(seconds) for name, seconds in want.items()
    }
    total = duration((clean + linf + 8) / 2)
    assert f"{total} with 2 process(es)" in text and "2.00 GiB of a GPU" in text
    longest = 2 + 1 + 100 * 4.5 + 1.9 + 100 * 30 * 4  # 3 h 28 min, and half of it again
    assert lines["longest model"].strip() == (
        f"{duration(longest)}; in a sweep on SLURM: --set slurm_time=06:00:00"
    )
    assert "1 models, whose multiply-adds are not known" in text


def test_models_take_their_own_time_or_the_mean_passes():
    """Two of a size, of which one takes 30 passes and one 60; two that are not rehearsed take 45,
    as much as 90 of 100 images alike, in 92 rows."""
    both = [rehearsed(2, 1), replace(rehearsed(2, 1, passes=60), name="robust")]
    gmacs: dict[str, float | None] = {"net2": 2, "robust": 2, "a": 2, "b": 2}
    lines = study_text("mine", both, gmacs, ["cpu"]).splitlines()
    assert lines[3].split()[:2] == ["mine/Linf", duration(4 * 1.9 + 100 * (30 + 60 + 2 * 46))]


def test_multiply_adds_are_those_that_timm_publishes():
    """results/benchmark-infer tables of timm: 4.11 GMACs for ResNet-50, 1.82 for ResNet-18."""
    assert multiply_adds("resnet18") == pytest.approx(1.82, rel=0.01)
    assert multiply_adds("no_such_net") is None


def test_dry_run_of_a_study_writes_nothing(study, tmp_path, capsys):
    file, options = study(["first"])
    (tmp_path / "nets.txt").write_text(
        (tmp_path / "nets.txt").read_text() + "far\ttimm:resnet18\tfile:far.pth\tOther\tCNN\n"
    )
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *options, "--dry_run"])
    assert utilities.main(args) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "mine: 2 models, 1.92 GMACs in all" in out and "rehearsed first (103 MMACs)" in out
    assert "mine/L2-crossing" in out and "estimated time" in out and "peak memory" in out
    assert not (tmp_path / "results").exists()


def test_multiply_adds_have_three_digits():
    shown = [macs_text(gmacs) for gmacs in (1234.5, 100.4, 4.089, 0.0975, 0.000123)]
    assert shown == ["1,234 GMACs", "100 GMACs", "4.09 GMACs", "97.5 MMACs", "0.123 MMACs"]


def test_dry_run_of_saliency_whose_records_hold_no_passes(study, tmp_path, capsys):
    file, options = study(["first"])
    file.write_text("models nets.txt\nimages --dataset sample -s 3\nsaliency\nclean\n")
    command = ["run_study", str(file), *options[2:], "--dry_run"]  # without --data_dir
    assert run_utilities(*command) == 0
    assert re.search(r"\nsample/saliency +0:00:0\d\n", capsys.readouterr().out)


def test_dry_run_goes_on_after_a_model_with_damaged_weights(study, tmp_path, capsys):
    file, options = study(NAMES[:2])
    (tmp_path / "weights/second.pth").write_bytes(b"PK")
    command = ["run_study", str(file), *options, "--dry_run"]
    assert run_utilities(*command) == 0
    out, err = capsys.readouterr()
    assert "mine: 2 models" in out and "first (103 MMACs); up to 6 images" in out
    assert "second: would be refused: " in err and "second.pth: not a readable" in err
    (tmp_path / "weights/first.pth").write_bytes(b"PK")
    assert run_utilities(*command) == 2
    assert "none of its models can be rehearsed" in capsys.readouterr().err


def test_dry_run_of_a_study_names_the_models_that_their_records_refuse(study, capsys):
    file, options = study(NAMES[:2], [CLEAN])
    begun = ["--model_name", "second", "--architecture", "test_resnet", *options, "--dataset"]
    weights = ["--checkpoint", str(file.parent / "weights/second.pth")]
    assert evaluate_robustness.main([*begun, "mine", *weights, "-s", "8", "clean"]) == 0
    command = ["run_study", str(file), *options, "--dry_run"]
    assert run_utilities(*command) == 0
    out, err = capsys.readouterr()
    assert "first (103 MMACs); up to 6 images" in out
    assert "second: would be refused: " in err and "run.images: 8 -> 6" in err


def test_dry_run_of_a_study_looks_at_the_records_of_models_that_it_does_not_load(study, capsys):
    names = ["first", "second", "third", "fourth", "fifth"]  # two of them are not rehearsed
    file, options = study(names, [CLEAN])
    for name, number in (("second", "8"), ("fourth", "4")):  # a clean record of 4 grows
        begun = ["--model_name", name, "--architecture", "test_resnet", *options]
        weights = ["--checkpoint", str(file.parent / f"weights/{name}.pth")]
        images = ["--dataset", "mine", "-s", number, "clean"]
        assert evaluate_robustness.main([*begun, *weights, *images]) == 0
    command = ["run_study", str(file), *options, "--dry_run"]
    assert run_utilities(*command) == 0
    out, err = capsys.readouterr()
    assert "second" not in out.partition("rehearsed")[2].partition(";")[0]
    assert err.count("second: would be refused: ") == 1 and "run.images: 8 -> 6" in err
    assert "fourth: would be refused" not in err


# ---- processes -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_said_before_the_first_model(study, capsys, tmp_path):
    file, options = study(NAMES, [CLEAN])
    (tmp_path / "results").write_text("a file")
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *options])
    assert utilities.main(args) == 2
    assert f"{tmp_path}/results" in capsys.readouterr().err


def test_a_process_that_dies_twice_without_a_row_fails_its_model(study, tmp_path, monkeypatch):
    file, options = study(NAMES, [CLEAN])
    queue = StudyQueue(tmp_path / "results", "mine", time.time())
    screen = StudyScreen("mine", queue, NAMES, {"records/mine/clean": ""})
    processes = StudyProcesses(read_study(file), options, queue, screen)
    started: list[str] = []
    monkeypatch.setattr(processes, "start", started.append)
    for pid in (1, 2):
        for model, host in (("first", socket.gethostname()), ("second", "another machine")):
            state = queue.state(model)
            state.status, state.pid, state.host = RUNNING, pid, host
            queue.save(state)
        processes.after_death("cpu", pid, -signal.SIGKILL)
    assert queue.state("second").status == RUNNING
    state = queue.state("first")
    assert state.status == FAILED and "signal 9" in str(state.failures) and started == ["cpu"] * 2
    with pytest.raises(UserError, match="ended before its first model: exit status 1"):
        processes.log("cpu").touch()
        processes.after_death("cpu", 3, 1)


def test_processes_that_end_and_leave_models_are_not_started_for_ever(study, tmp_path, monkeypatch):
    file, options = study(NAMES, [CLEAN])
    queue = StudyQueue(tmp_path / "results", "mine", time.time())
    screen = StudyScreen("mine", queue, NAMES, {"records/mine/clean": ""})
    processes = StudyProcesses(read_study(file), options, queue, screen)
    monkeypatch.setattr(processes, "start", lambda device: None)
    state = queue.state("first")
    state.status, state.pid, state.requests = "done", 7, {"records/mine/clean": ""}
    state.host = socket.gethostname()
    queue.save(state)  # but there is no record
    processes.after_death("cpu", 7, 0)
    with pytest.raises(UserError, match="cpu: the processes end .exit status 0. and models are"):
        processes.after_death("cpu", 7, 0)


def test_a_record_beside_another_counts(study, cli, tmp_path):
    """One of other settings was there before the study: its record gets a name of its own."""
    file, options = study(["first"], ["L2 --steps 2 --head animate"])
    assert cli("--study", file, *options, "--steps", "3")[0] == 0
    assert cli("--study", file, *options)[0] == 0
    records = sorted(path.name for path in (tmp_path / "results/records/mine").glob("*/*.json"))
    assert len(records) == 2 and records[0].startswith("first+")
    rows = rows_of(tmp_path / "results")

    # it is made again where it was deleted, though the first record is still there
    gone = tmp_path / "results/records/mine/L2-crossing" / records[0]
    gone.unlink()
    gone.with_suffix(".csv").unlink()
    assert cli("--study", file, *options)[0] == 0
    assert gone.is_file() and rows_of(tmp_path / "results") == rows

    # the first record is not of the study
    (tmp_path / "results/records/mine/L2-crossing/first.json").unlink()
    assert cli("--study", file, *options)[0] == 0


@pytest.mark.parametrize("name", ["net", "lab/net:v1", "net-0123abcd"])
def test_records_of_other_weights_under_a_models_name_count(tmp_path, name):
    """Whatever its name is as a file's; those of another model do not."""
    queue = StudyQueue(tmp_path, "mine", since=0)
    others = name_with_weights(name, "0123abcd" * 8)
    own = [record_stem(name), record_stem(others), record_stem(others, {"seed": 1})]
    for stem in (*own, record_stem(f"{name}2"), record_stem(f"{name}.weights_2")):
        write_atomic(tmp_path / "records/mine/clean" / f"{stem}.json", "{}")
    assert {path.stem for path in queue.run_files(name, "records/mine/clean")} == set(own)


@pytest.mark.parametrize("error", [UserError("wrong"), TryAgain("a disk"), ValueError("a bug")])
def test_another_try_is_advised_only_where_it_may_help(tmp_path, monkeypatch, capsys, error):
    queue = StudyQueue(tmp_path, "mine", time.time() - 10)

    def fail(*_):
        raise error

    monkeypatch.setattr(evaluate_robustness, "requested_model", fail)
    request = parse_args(["--model_name", "first", "clean"])
    with contextlib.suppress(ValueError):
        for turn in queue.turns(["first"], {}):
            with turn:
                evaluate_robustness.evaluate_requests([request], turn)
    StudyScreen("mine", queue, ["first"], {}).finish()
    advice = "run the same command again"
    assert (advice in capsys.readouterr().out) == (type(error) is not UserError)


def test_the_screen_replaces_its_lines_and_keeps_what_is_settled(study, tmp_path, capsys):
    queue = StudyQueue(tmp_path / "results", "mine", time.time() - 10)
    screen = StudyScreen("mine", queue, NAMES, {"records/mine/clean": ""})
    screen.on_terminal = True
    screen.show({})
    state = queue.state("first")
    state.status, state.ended, state.seconds = FAILED, time.time(), 5
    state.failures = {"records/mine/clean": "no weights " + 200 * "x"}
    queue.save(state)
    screen.next = 0
    screen.show({})
    first, second = capsys.readouterr().out.split("\x1b[1F\x1b[J")
    assert first.startswith("mine: 0 of 3 models done, 00:00 gone") and first.count("\n") == 1
    failure, counts = second.splitlines()
    assert failure.startswith("  first: failed: no weights xxx") and len(failure) > 200
    assert counts.startswith("mine: 0 of 3 models done, 1 failed")


def test_the_screen_lists_no_folder_for_the_models_that_are_done(tmp_path, monkeypatch, capsys):
    """741 models under three threats took 12 seconds a look."""
    queue = StudyQueue(tmp_path, "mine", time.time())
    record = tmp_path / "records/mine/clean/first.json"
    record.parent.mkdir(parents=True)
    for file in (record, record.with_suffix(".csv")):
        file.touch()
    with next(queue.turns(["first"], {"records/mine/clean": ""})):
        pass
    screen = StudyScreen("mine", queue, ["first", "second"], {"records/mine/clean": ""})
    monkeypatch.setattr(queue_module, "run_files_of_model", None)  # fails if it is called
    screen.show({})
    assert "1 of 2 models done" in capsys.readouterr().out
    state = queue.state("first")
    assert not queue.is_done(state, {"records/mine/clean": "", "records/mine/Linf": ""})
    state.requests["records/mine/Linf"] = ""
    assert not queue.is_done(state, state.requests)  # no record in that folder
    record.with_suffix(".csv").unlink()
    screen.next, screen.lines = 0, 0
    screen.show({})
    assert "0 of 2 models done" in capsys.readouterr().out


# ---- GPUs that are not here: Popen notes what it was asked, or calls the script ------------------

MIG = "MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7"


@pytest.mark.parametrize(
    ("visible", "count", "options", "want"),
    [
        (None, 2, [], [(None, "cuda:0"), (None, "cuda:1")]),
        ("5,GPU-1f", 2, [], [("5,GPU-1f", "cuda:0"), ("5,GPU-1f", "cuda:1")]),
        ("", 0, [], [("", "cpu")]),
        ("5,6", 2, ["--device", "cuda:1"], [("5,6", "cuda:1")]),
        (f"{MIG}/0,{MIG}/1", 1, [], [(f"{MIG}/0", "cuda:0"), (f"{MIG}/1", "cuda:0")]),
        (f"{MIG}/0", 1, [], [(f"{MIG}/0", "cuda:0")]),
    ],
)
def test_each_visible_gpu_gets_a_process(study, monkeypatch, visible, count, options, want):
    """All that CUDA_VISIBLE_DEVICES names; of several parts of a GPU, CUDA shows a process one."""
    file, words = study()
    words = [*words[:4], *words[6:], *options]  # without --device cpu
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    started = []

    class Noted:
        def __init__(self, command, env, stdout, **options):
            device = command[command.index("--device", len(words)) + 1]
            started.append((env.get("CUDA_VISIBLE_DEVICES"), command[-1]))
            logs.add(stdout.name)
            self.pid, self.device = 0, device

        def poll(self):
            return 85  # as after a signal: it is not replaced

    logs: set[str] = set()
    monkeypatch.setattr(run_study, "subprocess", SimpleNamespace(Popen=Noted, DEVNULL=None))
    monkeypatch.setattr(run_study, "LOOKS", 0)
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *words])
    assert utilities.main(args) == 85
    assert started == want and len(logs) == len(want)


@pytest.mark.parametrize(("options", "workers"), [([], 4), (["--workers", "7"], 7)])
def test_processes_share_the_cpus_for_decoding(study, monkeypatch, options, workers):
    """64 CPUs, 8 GPUs."""
    file, words = study()
    monkeypatch.setattr(command_line, "usable_cpus", lambda: 64)
    monkeypatch.setattr(run_study, "devices_of", lambda request: [f"cuda:{k}" for k in range(8)])
    given = []
    monkeypatch.setattr(StudyProcesses, "run", lambda self, devices: given.append(self.words) or 0)
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *words[:8], *options])
    assert utilities.main(args) == 0
    asked = read_study(file)
    found = {request.workers for request in study_requests(asked, asked.models[0], given[0])}
    assert found == {workers}


ENDINGS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ModelError("plugin: cannot be loaded (CUDA error: unspecified launch failure)"),
]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: str(error)[-20:])
def test_a_cuda_error_fails_one_model_and_another_process_goes_on(
    study,
    tmp_path,
    monkeypatch,
    capsys,
    error,
):
    """After such an error each call of CUDA in that process fails, whoever caught the first one."""
    file, words = study(NAMES, [CLEAN])
    evaluate, pick = evaluate_robustness.evaluate_request, evaluate_robustness.pick_device
    pids = itertools.count(1)

    class InThisProcess:
        """A process whose GPU works until `error`."""

        def __init__(self, command, env, **_):
            self.pid, self.broken = next(pids), False
            monkeypatch.setenv(STUDY_BEGAN, env[STUDY_BEGAN])

            def on_gpu(work):
                def call(*arguments):
                    if self.broken:
                        return pick("cuda:77")  # raises
                    return work(*arguments)

                return call

            def evaluated(request, model):
                if request.model_name == "second":
                    self.broken = True
                    raise error
                return evaluate(request, model)

            monkeypatch.setattr(queue_module.os, "getpid", lambda: self.pid)
            monkeypatch.setattr(evaluate_robustness, "evaluate_request", on_gpu(evaluated))
            for module in (evaluate_robustness, study_module):
                monkeypatch.setattr(module, "pick_device", on_gpu(pick))
            try:
                self.status = evaluate_robustness.main(command[2:])
            except RuntimeError:
                self.status = 1

        def poll(self):
            return self.status

    monkeypatch.setattr(run_study, "subprocess", SimpleNamespace(Popen=InThisProcess, DEVNULL=None))
    monkeypatch.setattr(run_study, "LOOKS", 0)
    args = utilities.get_args_parser().parse_args(["run_study", str(file), *words])
    assert utilities.main(args) != 0
    states = states_of(tmp_path / "results")
    assert [states[name]["status"] for name in NAMES] == ["done", "failed", "done"]
    assert str(error)[:20] in str(states["second"]["failures"])
    assert [states[name]["pid"] for name in NAMES] == [1, 1, 2]
    assert str(error)[:20] in capsys.readouterr().out  # the last words say why


# ---- kills ---------------------------------------------------------------------------------------


def start(file: Path, options: list[str], tmp_path: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "utilities.py"), "run_study", str(file), *options]
    with open(tmp_path / "screen", "a") as screen:
        return subprocess.Popen(command, stdout=screen, stderr=screen)


def wait_for_a_row(results: Path, seconds: float = 120) -> None:
    begin, before = time.monotonic(), sum(map(len, rows_of(results).values()))
    while sum(map(len, rows_of(results).values())) == before:
        assert time.monotonic() < begin + seconds
        time.sleep(0.02)


@pytest.mark.slow
def test_run_study_survives_kills_of_the_command_and_of_its_processes(study, cli, tiny, tmp_path):
    file, options = study()
    results = tmp_path / "results"
    rows: dict[str, bytes] = {}
    for kill in range(3):
        process = start(file, options, tmp_path)
        wait_for_a_row(results)
        if kill == 1:  # the process that evaluates; another takes its place
            running = [s for s in states_of(results).values() if s["status"] == "running"]
            os.kill(running[0]["pid"], signal.SIGKILL)
            wait_for_a_row(results)
        process.kill()
        process.wait()
        after = rows_of(results)
        assert all(set(rows[name].splitlines()) <= set(after[name].splitlines()) for name in rows)
        rows = after
    both = [start(file, options, tmp_path) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], (tmp_path / "screen").read_text()
    want = single_commands(cli, tiny, NAMES, options, tmp_path / "single")
    assert rows_of(results) == want
    assert "mine: 3 of 3 models done" in (tmp_path / "screen").read_text()
