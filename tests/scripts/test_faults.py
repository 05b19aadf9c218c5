"""Faults injected into runs of the script: no row is lost, no number is wrong (tests/README.md)."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
import victims
from conftest import ROOT, loaded_from_hub_cache
from PIL import Image, ImageFile
from torch import nn

from alignment_security.common.files import UserError
from alignment_security.common.remarks import is_remark
from alignment_security.images.image_sets import DataError, checked_set
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.models.loading import load_model
from alignment_security.records.adversarial_examples import load_example
from alignment_security.records.record import CLEAN_COLUMNS, read_record, read_run_file
from alignment_security.records.run import Run

RUNS = {
    "clean": ["clean"],
    "Linf": [
        "Linf",
        "--eps",
        "16/255",
        "48/255",
        "96/255",
        "--steps",
        "4",
        "--targets",
        "2",
        "--queries",
        "20",
    ],
    "L2": ["L2", "--protocol", "fmn", "--steps", "30"],
    "crossing": ["L2", "--steps", "20"],
}
IMAGES = 8  # of the twelve; four a batch
MANY_EPS = [
    "Linf",
    "--eps",
    *(f"{8 * k}/255" for k in range(1, 16)),
    "--attacks",
    "apgd-ce",
    "--steps",
    "2",
]  # a long record


def csv_of(results: Path) -> bytes:
    """The only record under a folder."""
    (path,) = results.glob("records/*/*/*.csv")
    return path.read_bytes()


def record(results: Path) -> tuple[pd.DataFrame, dict]:
    """Rows of the only record under a folder, whatever state it is in, and its run file."""
    (path,) = results.glob("records/*/*/*.json")
    csv = path.with_suffix(".csv")
    return read_record(csv, torn=True) if csv.exists() else pd.DataFrame(), read_run_file(path)


# ---- processes of their own ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the script in a process that has imported it already.

    (argv, prepare) -> (process, file with its output)
    """
    said = tmp_path_factory.mktemp("said")
    context, numbers, processes = multiprocessing.get_context("forkserver"), itertools.count(), []
    context.set_forkserver_preload(["victims"])

    def call(argv: list[str], prepare=None):
        path = said / str(next(numbers))
        processes.append(
            context.Process(target=victims.script, args=(list(map(str, argv)), str(path), prepare))
        )
        processes[-1].start()
        return processes[-1], path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        context.Process(
            target=os.getpid
        ).start()  # returns when the server has imported: the runs are timed without it
        yield call
    for process in processes:
        process.kill()


def ended(process_and_said) -> tuple[int, str]:
    """Exit status of a process, and what it said."""
    process, said = process_and_said
    process.join(120)
    return process.exitcode, said.read_text()


@pytest.fixture(scope="module")
def whole(start, tiny, tmp_path_factory):
    """The uninterrupted run of a threat: name -> (rows, seconds, its CSV file)."""
    found: dict[str, tuple[pd.DataFrame, float, bytes]] = {}

    def call(threat: str) -> tuple[pd.DataFrame, float, bytes]:
        if threat not in found:
            results, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
            assert ended(start(command(tiny, results, threat)))[0] == 0
            seconds = time.monotonic() - begin
            found[threat] = record(results)[0], seconds, csv_of(results)
        return found[threat]

    return call


def command(tiny, results, threat: str) -> list[str]:
    return [
        *tiny.arguments(results),
        "--workers",
        "0",
        "-s",
        str(IMAGES),
        *(RUNS.get(threat) or MANY_EPS),
    ]


def same_results(rows: pd.DataFrame, wanted: pd.DataFrame, rtol: float = 1e-4) -> None:
    """The same images, clean predictions and verdicts in the same order.

    Norms are equal to rounding where the same attack found them.

    An image that goes on at its next eps has lost FAB's memory: another attack may break it there.
    """
    exact = [
        name for name in (*CLEAN_COLUMNS, "clean_top5", "eps", "robust", "success") if name in rows
    ]
    pd.testing.assert_frame_equal(rows[exact], wanted[exact], check_exact=True)
    if "l2" in rows:
        alike = (
            (
                rows[["broken_by", "from_eps"]].fillna(0)
                == wanted[["broken_by", "from_eps"]].fillna(0)
            ).all(axis=1)
            if "broken_by" in rows
            else rows["success"] == 1
        )
        assert alike.mean() > 0.8
        pd.testing.assert_series_equal(rows.loc[alike, "l2"], wanted.loc[alike, "l2"], rtol=rtol)


def watch(process, results: Path, known: set, seconds: float) -> set:
    """Read the record until the time is over: it is readable at every moment and loses no row."""
    deadline = time.monotonic() + seconds
    while True:
        last = time.monotonic() > deadline or not process.is_alive()
        if any(results.glob("records/*/*/*.json")):
            rows, _ = record(results)
            keys = list(zip(rows.get("image_id", []), rows.get("eps", itertools.repeat(None))))
            assert len(set(keys)) == len(keys) and known <= set(keys)
            known = set(keys)
        else:
            assert not any(results.glob("records/*/*/*.csv"))
        if last:
            return known
        time.sleep(0.02)


def kill_at_random_moments(start, tiny, whole, root: Path, threat: str, kills: int) -> None:
    """Kill runs and start them again until they are done, with `kills` kills before the end.

    The record is the same bytes as that of a run that nobody killed.
    """
    (_, seconds, wanted), moments, landed = whole(threat), random.Random(threat), 0
    for number in itertools.count():
        results, done = root / str(number), False
        known: set = set()
        while landed < kills and not done:
            process, said = start(command(tiny, results, threat))
            known = watch(process, results, known, moments.uniform(0, seconds))
            process.kill()
            process.join()
            done = (
                any(results.glob("records/*/*/*.json")) and record(results)[1]["status"] == "done"
            )
            landed += not done
            assert process.exitcode in (0, -signal.SIGKILL), said.read_text()
        assert ended(start(command(tiny, results, threat)))[0] == 0
        _, info = record(results)
        assert info["status"] == "done" and info["record_sha256"]
        assert csv_of(results) == wanted
        if landed >= kills:
            return


@pytest.mark.flaky(reruns=2)
@pytest.mark.parametrize("threat", RUNS)
def test_kill_9_at_three_random_moments(start, tiny, whole, tmp_path, threat):
    kill_at_random_moments(start, tiny, whole, tmp_path, threat, 3)


@pytest.mark.slow
@pytest.mark.parametrize("threat", RUNS)
def test_kill_9_at_twenty_random_moments(start, tiny, whole, tmp_path, threat):
    kill_at_random_moments(start, tiny, whole, tmp_path, threat, 20)


@pytest.mark.parametrize("step", ["save", "_begin_session"])
def test_a_kill_while_the_files_of_a_run_are_made_is_no_obstacle(open_run, monkeypatch, step):
    """A record without its run file would be refused: the run file comes first."""

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, step, dies)
        open_run()
    with open_run() as run:
        assert run.known() == {}


@pytest.mark.flaky(reruns=2)
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGHUP", 85)])
def test_a_signal_ends_a_run_cleanly_and_it_goes_on(start, tiny, whole, tmp_path, name, status):
    running = start(command(tiny, tmp_path, "L2"))
    while running[0].is_alive() and not any(
        p.read_bytes().count(b"\n") > 1 for p in tmp_path.glob("records/*/*/*.csv")
    ):
        time.sleep(0.01)
    os.kill(running[0].pid, getattr(signal, name))
    found, said = ended(running)
    rows, info = record(tmp_path)
    assert (found, info["status"]) == (status, "checkpointed") and 0 < len(rows) < IMAGES
    assert said.endswith("run the same command again to go on\n") and "Traceback" not in said
    assert ended(start(command(tiny, tmp_path, "L2")))[0] == 0
    same_results(record(tmp_path)[0], whole("L2")[0])


def test_under_nohup_a_hang_up_changes_nothing(start, tiny, tmp_path):
    running = start(command(tiny, tmp_path, "L2"), victims.ignore_hang_up)
    while running[0].is_alive() and not any(tmp_path.glob("records/*/*/*.csv")):
        time.sleep(0.01)
    os.kill(running[0].pid, signal.SIGHUP)
    assert ended(running)[0] == 0 and record(tmp_path)[1]["status"] == "done"


def test_a_pipe_that_nobody_reads_ends_no_run(start, tiny, tmp_path):
    status, said = ended(start(command(tiny, tmp_path, "clean"), victims.nobody_reads))
    assert (status, said, record(tmp_path)[1]["status"]) == (0, "", "done")


# ---- the disk ------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_in_the_middle(start, tiny, whole, tmp_path):
    """The run file fits, the record does not: one line, whole rows, and it goes on with room."""
    status, said = ended(
        start(command(tiny, tmp_path, "many eps"), partial(victims.small_files, 6000))
    )
    rows, info = record(tmp_path)
    (path,) = tmp_path.glob("records/*/*/*.csv")
    assert (
        status == 1
        and said.count("\n") <= 3  # what would run, a note on the images, and why it does not
        and said.splitlines()[-1].startswith(
            f"error: {path}: File too large; what is written stays"
        )
    )
    assert (
        0 < len(rows) < 15 * IMAGES
        and info["status"] != "done"
        and path.read_bytes().endswith(b"\n")
    )
    assert not any(tmp_path.rglob("*.tmp"))
    assert ended(start(command(tiny, tmp_path, "many eps")))[0] == 0
    same_results(record(tmp_path)[0], whole("many eps")[0])


def test_a_small_disk(cli, tiny, tmp_path):
    """A real one, where one can be mounted."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", tmp_path / "disk"], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        status, _, err = cli(*command(tiny, tmp_path / "disk", "many eps"))
        assert (
            status == 1
            and err.count("\n") == 1
            and "No space left on device; what is written stays" in err
        )
        assert not any((tmp_path / "disk").rglob("*.tmp"))
        rows, info = record(tmp_path / "disk")
        assert info["status"] != "done" and not rows.duplicated(["image_id", "eps"]).any()
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_results_folder_turned_read_only(start, tiny, whole, tmp_path):
    """From the beginning, and in the middle: root gives up its privilege first."""
    results = tmp_path / "results"
    results.mkdir()
    results.chmod(0o555)
    status, said = ended(start(command(tiny, results, "L2"), victims.bound_by_permissions))
    assert (
        status == 2
        and said.count("\n") == 1
        and "cannot be written (Permission denied); give another --results_dir" in said
    )
    results.chmod(0o755)
    assert ended(start(["--stop_after", "1e-9", *command(tiny, results, "L2")]))[0] in (0, 85)
    (folder,) = results.glob("records/*/*")
    before, info = record(results)
    assert info["status"] == "checkpointed"
    folder.chmod(0o555)
    try:
        status, said = ended(start(command(tiny, results, "L2"), victims.bound_by_permissions))
        assert status == 2 and said.count("\n") == 1 and "cannot be written" in said
    finally:
        folder.chmod(0o755)
    pd.testing.assert_frame_equal(record(results)[0], before)
    assert ended(start(command(tiny, results, "L2")))[0] == 0
    same_results(record(results)[0], whole("L2")[0])


def test_a_finished_record_that_was_cut_is_never_reported(cli, tiny, tmp_path):
    assert cli(*command(tiny, tmp_path, "clean"))[0] == 0
    (path,) = tmp_path.glob("records/*/*/*.csv")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    status, out, err = cli(*command(tiny, tmp_path, "clean"))
    assert (status, out) == (2, "") and f"{path}: not the file that the run finished with" in err
    assert cli("--overwrite", *command(tiny, tmp_path, "clean"))[0] == 0


def test_a_row_that_lost_its_end_is_never_filled_up(open_run):
    """In the middle of an unfinished record, where no torn tail is looked for."""
    with open_run() as run:
        run.append(
            [
                {"image_id": name, "label": 1, "clean_pred": 1, "clean_correct": 1, "l2": 0.5}
                for name in "abc"
            ]
        )
    lines = run.csv.read_text().splitlines()
    run.csv.write_text("\n".join([*lines[:2], lines[2][:9], lines[3], ""]))
    with pytest.raises(UserError, match=f"{run.csv}, line 3, . cells and not 12"):
        open_run()


# ---- images --------------------------------------------------------------------------------------


def begun_on_a_copy(cli, tiny, tmp_path) -> tuple[Path, list]:
    """A run that stopped after its first batch, on a copy of the images."""
    data = shutil.copytree(tiny.data, tmp_path / "data")
    arguments = [*tiny.arguments(tmp_path / "results"), "--data_dir", data, "--workers", "0"]
    assert cli("--stop_after", "0", *arguments, "clean")[0] == 85
    return data, [*arguments, "clean"]


def test_images_that_are_replaced_between_two_sessions_are_noticed(cli, tiny, tmp_path):
    """The same names, other photographs: one record would be of both."""
    data, arguments = begun_on_a_copy(cli, tiny, tmp_path)
    before = record(tmp_path / "results")[0]
    for path in data.rglob("*.jpg"):
        Image.new("RGB", (200, 200), (255, 0, 0)).save(path)
    status, _, err = cli(*arguments)
    assert (status, err.count("\n")) == (
        2,
        1,
    ) and "were replaced since this record was begun" in err
    pd.testing.assert_frame_equal(record(tmp_path / "results")[0], before)
    assert cli("--overwrite", *arguments)[0] == 0


def test_images_of_a_finished_record_that_are_replaced(cli, tiny, tmp_path):
    """It is no report of other photographs; a copy with other times is fine."""
    data, arguments = begun_on_a_copy(cli, tiny, tmp_path)
    assert cli(*arguments)[0] == 0
    before = record(tmp_path / "results")[1]
    for path in data.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert cli(*arguments)[0] == 0
    Image.new("RGB", (300, 300), (0, 255, 0)).save(next(data.rglob("*.jpg")))
    status, _, err = cli(*arguments)
    assert status == 2 and "were replaced since this record was begun" in err
    assert record(tmp_path / "results")[1] == before


def test_images_that_are_copied_between_two_sessions_are_a_warning(cli, tiny, tmp_path):
    data, arguments = begun_on_a_copy(cli, tiny, tmp_path)
    for path in data.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert cli(*arguments)[0] == 0
    assert any("copied or changed" in line for line in record(tmp_path / "results")[1]["warnings"])


def test_no_advice_leads_to_a_record_that_cannot_be_finished(cli, tiny, tmp_path):
    """A record is of one list: an image less is another list."""
    data, arguments = begun_on_a_copy(cli, tiny, tmp_path)
    image = max(data.rglob("*.jpg"))
    good = image.read_bytes()
    image.write_bytes(good[: len(good) - 600] + b"x" * 600)
    os.utime(image, (1, 1))
    status, _, err = cli(*arguments)
    if status == 0:
        pytest.skip("this decoder takes the damaged image")
    assert "take it off" not in err and "another --results_dir" in err
    image.write_bytes(good)
    assert cli(*arguments)[0] == 0


# ---- examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["after the example", "after the row"])
def test_an_example_is_there_before_its_row(cli, tiny, tmp_path, monkeypatch, moment):
    """A kill between the two costs no example: an image with a row is never attacked again."""
    append, calls = Run.append, []

    def killed(run, rows):
        calls.append(rows)
        if moment == "after the row":
            append(run, rows)
        raise KeyboardInterrupt

    arguments = [*tiny.arguments(tmp_path), "--examples", "6", "-s", "6", "--workers", "0"]
    arguments += ["L2", "--protocol", "crossing", "--steps", "10"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", killed)
        assert cli(*arguments)[0] == 130 and len(calls) == 1
    assert cli(*arguments)[0] == 0
    fooled = (record(tmp_path)[0]["success"] == 1).sum()
    assert fooled == len(list(tmp_path.rglob("*.npz"))) > 0
    example = load_example(next(iter(tmp_path.rglob("*.npz"))))
    assert example["delta"].dtype == "float32"
    assert np.linalg.norm(example["delta"]) == pytest.approx(example["l2"], rel=1e-6)


# ---- lists ---------------------------------------------------------------------------------------


def test_a_list_that_changed_is_refused_and_said_how(cli, tiny, tmp_path):
    data = shutil.copytree(tiny.data, tmp_path / "data")
    arguments = [
        *tiny.arguments(tmp_path / "results"),
        "--workers",
        "0",
        "--data_dir",
        data,
        "clean",
    ]
    assert cli("--stop_after", "1e-9", *arguments)[0] == 85
    image = min(data.rglob("*.jpg"))
    image.rename(image.with_name("another.jpg"))
    status, _, err = cli(*arguments)
    assert status == 2 and "begun with other settings (run.list_sha256: " in err


# ---- models --------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """f(net, x) in place of net(x)."""

    def __init__(self, net, f):
        super().__init__()
        self.net, self.f = net, f

    def forward(self, x):
        return self.f(self.net, x)


@pytest.fixture
def with_net(monkeypatch):
    """From here on the script's model is f(net, x)."""
    load = load_model

    def call(f, train=False, **changes):
        def loaded(*args, **names):
            model = load(*args, **names)
            return replace(model, module=Wrapped(model.module, f).train(train), **changes)

        monkeypatch.setattr("alignment_security.evaluation.setup.load_model", loaded)

    return call


@pytest.mark.parametrize("when", ["at the start", "in the middle"])
@pytest.mark.parametrize("threat", ["clean", "Linf", "L2"])
def test_out_of_memory_halves_the_batch_and_changes_no_verdict(
    cli, tiny, with_net, whole, tmp_path, monkeypatch, threat, when
):
    calls = itertools.count()

    def greedy(net, x):
        if len(x) > (1 if when == "at the start" or next(calls) > 2 else 4):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return net(x)

    with_net(greedy)
    # the fast copy is tried on two images before the attack has a batch to halve
    monkeypatch.setattr(
        "alignment_security.evaluation.threats.threat.fast_copy", lambda module, *_: module
    )
    assert cli(*command(tiny, tmp_path, threat))[0] == 0
    rows, info = record(tmp_path)
    same_results(
        rows, whole(threat)[0], rtol=1e-2
    )  # alone in a batch an image's logits are rounded otherwise at every step
    assert "out of device memory: batch size is now 1" in info["warnings"]
    assert is_remark("out of device memory: batch size is now 1")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError], ids=["device", "machine"])
def test_too_little_memory_for_one_image_is_a_wrong_request(
    cli, tiny, with_net, tmp_path, error, monkeypatch
):
    """In a pass; where the attack keeps its images, others may have taken the device's memory."""

    def full(*_):
        raise error("out of memory\nof 20 GiB")

    with_net(full)
    status, _, err = cli(*command(tiny, tmp_path, "clean"))
    assert status == 2 and err.startswith("error: out of memory with one image at a time (out of m")
    with_net(lambda net, x: net(x))
    monkeypatch.setattr("alignment_security.attacks.engine.AttackBatch.fill", full)
    status, _, err = cli(*command(tiny, tmp_path, "Linf"))
    assert status == 1 and "run the same command again" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), KeyError("x"), ValueError("odd")],
)
def test_what_is_not_out_of_memory_is_not_swallowed(cli, tiny, with_net, tmp_path, error):
    calls = itertools.count()

    def breaks(net, x):
        if next(calls) == 9:  # the second batch: two passes lay it out, six check it
            raise error
        return net(x)

    with_net(breaks)
    with pytest.raises(type(error)):
        cli(*command(tiny, tmp_path, "clean"))
    rows, info = record(tmp_path)
    assert info["status"] == "failed" and info["error"] == repr(error) and len(rows) == 4
    assert cli(*command(tiny, tmp_path, "clean"))[0] == 0 and len(record(tmp_path)[0]) == IMAGES


def nan_but_for_the_first(seen=None):
    seen = [] if seen is None else seen
    passes = itertools.count()

    def f(net, x):
        if next(passes) < 2:  # on random pixels, which lay the network out
            return net(x)
        seen.append(x[:1].detach().clone()) if not seen else None
        return torch.where((x == seen[0]).flatten(1).all(1)[:, None], net(x), torch.nan)

    return f


REFUSED = {  # id -> (f(net, x), what else is changed, what the one line says)
    "NaN for some images": (
        nan_but_for_the_first(),
        {},
        r"\.jpg: the model gives NaN or infinite logits \(3 image",
    ),
    "infinite": (lambda net, x: net(x) / 0, {}, "NaN or infinite logits"),
    "random": (
        lambda net, x: net(x) + torch.randn(len(x), 1000),
        {},
        "other logits for the same images",
    ),
    "train mode": (lambda net, x: net(x), {"train": True}, "is in train mode"),
    "999 outputs": (
        lambda net, x: net(x)[:, 1:],
        {},
        "gives .999,. outputs an image, 1000 are wanted",
    ),
    "1001 outputs": (
        lambda net, x: nn.functional.pad(net(x), (1, 0)),
        {},
        "gives .1001,. outputs an image, 1000 are wanted",
    ),
    "999 outputs and says so": (
        lambda net, x: net(x)[:, 1:],
        {"n_outputs": 999},
        "sample: has 1000 classes, the model 999 outputs",
    ),
    "1001 outputs and says so": (
        lambda net, x: nn.functional.pad(net(x), (1, 0)),
        {"n_outputs": 1001},
        "sample: has 1000 classes, the model 1001 outputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_evaluated_is_refused(cli, tiny, with_net, tmp_path, case):
    f, changes, message = REFUSED[case]
    with_net(f, **changes)
    arguments = command(tiny, tmp_path, "clean")
    if "says so" in case:
        at = arguments.index("--dataset")
        arguments[at : at + 4] = ["--dataset", "sample"]  # without --data_dir
    status, out, err = cli(*arguments)
    assert (
        status == 2
        and out.count("\n") <= 2  # what would run, and a note on the images
        and err.count("\n") == 1
        and pd.Series([err]).str.contains(message).all()
    ), err
    assert not any(tmp_path.rglob("*.csv"))


FLAGGED = {  # id -> (f(net, x), threat, what the run file says)
    "softmax": (lambda net, x: net(x).softmax(1), ["clean"], ["look like probabilities"]),
    "ignores its input": (lambda net, x: net(0 * x), ["clean"], ["zero input gradient"]),
    "detached": (
        lambda net, x: net(x.detach()),
        ["clean"],
        ["do not depend on the image in a differentiable way"],
    ),
    "masked": (
        lambda net, x: net((8 * x).round() / 8),
        ["Linf", "--eps", "96/255", "--steps", "2", "--targets", "1", "--queries", "60"],
        ["zero input gradient", "masked gradients"],
    ),
}


@pytest.mark.parametrize("case", FLAGGED)
def test_a_model_that_attacks_are_weak_on_is_flagged(cli, tiny, with_net, tmp_path, case):
    f, threat, messages = FLAGGED[case]
    with_net(f)
    status, out, _ = cli(*tiny.arguments(tmp_path), "--workers", "0", *threat)
    _, info = record(tmp_path)
    assert status == 0 and info["status"] == "done"
    for message in messages:
        assert any(message in warning for warning in info["warnings"]) and message in out


# ---- images --------------------------------------------------------------------------------------

PLAIN = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
RED, BLUE = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))


def pixels(path: Path) -> torch.Tensor:
    return next(stream_images(checked_set("mine", [(path.name, path, 0)]), PLAIN))[1]


@pytest.mark.parametrize("name", ["animated.gif", "animated.png", "animated.webp", "pages.tiff"])
def test_of_an_animation_the_first_picture_is_seen(tmp_path, name):
    path = tmp_path / name
    RED.save(
        path,
        save_all=True,
        append_images=[BLUE],
        **({"lossless": True} if name.endswith("webp") else {}),
    )
    assert pixels(path).mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.01)


def test_one_pixel_fills_the_picture(tmp_path):
    Image.new("RGB", (1, 1), (255, 0, 51)).save(tmp_path / "1x1.png")
    torch.testing.assert_close(
        pixels(tmp_path / "1x1.png"), torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 32, 32)
    )


@pytest.mark.parametrize("name", ["png.jpg", "png.JPEG", "jpg.png"])
def test_a_wrong_ending_is_read_by_content(tmp_path, name):
    RED.save(tmp_path / name, name[:3].replace("jpg", "jpeg"))
    assert pixels(tmp_path / name).mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.01)


def test_a_picture_of_20000_x_20000_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png", compress_level=1)

    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(DataError, match=r"huge.png: .*\(400000000 pixels\)"):
        pixels(tmp_path / "huge.png")


def test_links_are_followed_and_one_to_nowhere_is_named(tmp_path):
    folder = tmp_path / "set" / "n01440764"
    folder.mkdir(parents=True)
    RED.save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    images = load_image_set("mine", str(tmp_path / "set"))
    assert next(stream_images(images, PLAIN))[1][0].min() == 1
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="gone.png: a link to a file that is missing"):
        load_image_set("mine", str(tmp_path / "set"))


# ---- around a run --------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(cli, tiny, whole, tmp_path, monkeypatch):
    """An hour back after each look at it, while --stop_after counts."""
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))
    monkeypatch.setattr(
        "alignment_security.common.locked_run.utc_now",
        lambda: f"2026-11-{28 - next(hours) % 28:02d}T00:00:00+00:00",
    )
    assert cli("--stop_after", "600", *command(tiny, tmp_path, "clean"))[0] == 0
    rows, info = record(tmp_path)
    same_results(rows, whole("clean")[0])
    assert 0 < info["sessions"][0]["seconds"] < 600


def test_without_a_terminal_progress_is_lines(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("alignment_security.common.progress.PROGRESS_SECONDS", 0)
    status, _, err = cli(*command(tiny, tmp_path, "clean"))
    assert (
        status == 0
        and "\r" not in err
        and err.splitlines()[-1].startswith("20")
        and "8/8" in err.splitlines()[-1]
    )


def test_versions_that_drift_are_recorded_and_warned_of(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "alignment_security.common.settings.pinned_versions",
        lambda: {"torch": "0.0.1", "timm": timm.__version__},
    )
    status, out, _ = cli(*command(tiny, tmp_path, "clean"))
    _, info = record(tmp_path)
    sentence = f"torch {torch.__version__.partition('+')[0]}"
    assert status == 0 and info["sessions"][0]["versions"]["torch"].startswith(
        torch.__version__.partition("+")[0]
    )
    assert [
        w
        for w in info["warnings"]
        if w.startswith(sentence) and w.endswith("requirements.txt pins 0.0.1")
    ] and sentence in out


def test_half_a_download_in_the_cache_names_what_mends_it(tmp_path):
    """Half a safetensors file, half a torch file, an unfinished part: never random weights."""
    for name, file in {
        "test_resnet": "model.safetensors",
        "test_vit": "pytorch_model.bin",
        "test_efficientnet": "x.incomplete",
    }.items():
        repository = tmp_path / "hub" / f"models--timm--{name}.r160_in1k"
        for folder in ("refs", "blobs", f"snapshots/{'0' * 40}"):
            (repository / folder).mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        path = repository / ("blobs" if file == "x.incomplete" else f"snapshots/{'0' * 40}") / file
        state = timm.create_model(name).state_dict()
        safetensors.torch.save_file(state, path) if file.endswith("tensors") else torch.save(
            state, path
        )
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    names = ("test_resnet.r160_in1k", "test_vit.r160_in1k", "test_efficientnet.r160_in1k")
    half, torn, absent = loaded_from_hub_cache(tmp_path, names)
    for line, name in ((half, "test_resnet"), (torn, "test_vit")):
        assert (
            line.startswith(f"{name}.r160_in1k: its file in the cache cannot be loaded (")
            and "remove its folder" in line
        )
        assert f"timm.create_model('{name}.r160_in1k', pretrained=True)" in line
    assert absent.startswith("test_efficientnet.r160_in1k: its weights are not in the local cache")


def test_the_table_of_faults_names_tests_that_exist():
    known = [
        name
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in (path.stem, *re.findall(r"def test_(\w+)", path.read_text()))
    ]
    rows = [
        line.split(" | ")[2]
        for line in (ROOT / "tests" / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(rows) > 15 and all(re.findall(r"`(\w+)`", row) for row in rows)
    assert [
        name
        for row in rows
        for name in re.findall(r"`(\w+)`", row)
        if not any(name == test or (len(name) > 9 and test.startswith(name)) for test in known)
    ] == []


def test_a_run_file_never_holds_half_a_session(open_run):
    """The run file is replaced whole: at any moment it is the one before or the one after."""
    with open_run() as run:
        before = run.json.read_text()
        handle = open(run.json)
        run.warn("something")
        assert handle.read() == before and json.loads(run.json.read_text())["warnings"] == [
            "something"
        ]
        handle.close()
