"""Decoding processes: how images travel, and how a killed, hanging or impossible one ends."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import sys
import time
from collections import namedtuple

import pytest
import torch
from conftest import ROOT
from torch.utils.data import Dataset

from alignment_security.common.files import TryAgain, UserError
from alignment_security.images import workers
from alignment_security.images.workers import shared_memory_suffices, worker_loader

Pair = namedtuple("Pair", "ids x")


class Squares(Dataset):
    def __init__(self, act=lambda i: None):
        self.act = act

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.act(i)
        return i, torch.full((2,), float(i * i))


def collate(rows) -> Pair:
    return Pair([i for i, _ in rows], (torch.stack([x for _, x in rows]), None))


def pairs(data, n=2, **options):
    return list(worker_loader(data, n, collate, 100, batch_size=3, **options))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n", [0, 2])
def test_images_are_the_same_by_shared_memory_and_by_pipe(monkeypatch, shared, n):
    monkeypatch.setattr(workers, "shared_memory_suffices", lambda *_: shared)
    found = pairs(Squares(), n)
    assert [i for pair in found for i in pair.ids] == list(range(12))
    for pair in found:
        assert isinstance(pair, Pair) and pair.x[1] is None
        assert pair.x[0][:, 0].tolist() == [i * i for i in pair.ids]


def test_images_are_decoded_before_they_are_asked_for_and_not_all_before_the_first(tmp_path):
    """An attack begins with the first message, and the next ones are decoded meanwhile."""

    def decoded() -> int:
        return (tmp_path / "decoded").stat().st_size

    def decode(i: int) -> None:
        with open(tmp_path / "decoded", "a") as file:
            file.write("x")

    messages = worker_loader(Squares(decode), 1, collate, 100, batch_size=3)
    next(messages)
    deadline = time.monotonic() + 30
    while decoded() < 9 and time.monotonic() < deadline:  # two messages wait while one is attacked
        time.sleep(0.01)
    time.sleep(0.1)
    assert decoded() == 9
    assert len(list(messages)) == 3 and decoded() == 12


def test_workers_that_cannot_start_leave_one_line(monkeypatch):
    """torch's half-made loader prints no traceback when it is freed."""
    printed: list = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 9, limits[1]))
    said = ""
    try:
        pairs(Squares(), 4)
    except UserError as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()
    assert "--workers 4: the processes cannot start" in said and not printed


def test_little_shared_memory_is_not_relied_on(monkeypatch):
    """Docker gives 64 MB; eight workers that send 16 images of 384 pixels need more."""
    usage = shutil._ntuple_diskusage(64 << 20, 0, 64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert not shared_memory_suffices(8, 16 * 3 * 384 * 384)
    assert shared_memory_suffices(2, 16 * 3 * 224 * 224)
    monkeypatch.setattr(workers, "SHARED_MEMORY", "/nowhere")
    monkeypatch.undo()
    monkeypatch.setattr(workers, "SHARED_MEMORY", "/nowhere")
    assert not shared_memory_suffices(1, 1)


def test_a_killed_worker_is_one_line_and_worth_another_try():
    def kill(i):
        if i == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TryAgain, match="--workers 2: a decoding process ended") as error:
        pairs(Squares(kill))
    assert "\n" not in str(error.value)


def test_a_worker_that_hangs_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(workers, "LONGEST_WAIT", 1)
    with pytest.raises(TryAgain, match="no image for 1 s"):
        pairs(Squares(lambda i: time.sleep(60 if i == 7 else 0)))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EAGAIN, errno.EMFILE, errno.ENOMEM])
def test_processes_that_cannot_start_are_one_line(monkeypatch, number):
    """No semaphores, `ulimit -u`, `ulimit -n`, no memory for a copy of the process."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workers, "DataLoader", refuse)
    with pytest.raises(UserError, match="--workers 2: the processes cannot start.*--workers 0"):
        pairs(Squares())


def test_other_errors_of_a_data_set_stay_what_they_are():
    def fail(i):
        raise KeyError(i)

    with pytest.raises(KeyError):
        pairs(Squares(fail), 0)


def test_no_image_is_sent_another_way():
    """torch's DataLoader is used in one place."""
    users = [
        path.name
        for path in (ROOT / "alignment_security").rglob("*.py")
        if "DataLoader(" in path.read_text(encoding="utf-8")
    ]
    assert users == ["workers.py"]
