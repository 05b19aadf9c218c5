"""The batch size of `auto` is measured once a network and card: here on cards that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignment_security.models import batch_sizes
from alignment_security.models.batch_sizes import remembered_batch_size, sizes_file
from alignment_security.models.forward import auto_batch_size
from alignment_security.models.heads import Model

GIB = 2**30
CARD = {"name": "NVIDIA H100 80GB HBM3", "free": 76 * GIB, "total": 80 * GIB, "reserved": 0}


@pytest.fixture
def measured(tmp_path, monkeypatch) -> list:
    """A call for each batch size that was measured."""
    found: list = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(batch_sizes, "device_of", lambda module: torch.device("cuda", 0))

    def measure(*arguments) -> int:
        found.append(arguments)
        return 256

    monkeypatch.setattr(batch_sizes, "auto_batch_size", measure)
    return found


@pytest.fixture
def card(monkeypatch):
    """Puts another card, or its memory in another state, into the machine."""

    def call(**changed):
        now = CARD | changed
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (now["free"], now["total"]))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: now["reserved"])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: now["name"])

    call()
    return call


class Timed(torch.nn.Module):
    """A network on a made-up card of so many rows, with a clock: ms a pass, and ms a row."""

    def __init__(self, fits: int, a_pass: float, a_row: float):
        super().__init__()
        self.fits, self.a_pass, self.a_row, self.clock = fits, a_pass, a_row, 0.0

    def forward(self, x):
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.clock += self.a_pass + self.a_row * len(x)
        return x.flatten(1)


@pytest.mark.parametrize(
    "fits, a_pass, a_row, images, size",
    [
        (2000, 9, 0.1, 5000, 1024),
        (2000, 1, 0.1, 5000, 128),  # 256 rows gain less than 5 %
        (2000, 9, 0.1, 100, 128),  # which hold all images
        (300, 9, 0.1, 5000, 256),
        (20, 9, 0.1, 5000, 16),
        (3, 9, 0.1, 5000, 2),
        (1, 9, 0.1, 5000, 1),
    ],
)
def test_auto_is_the_largest_batch_that_fits_and_gains(
    monkeypatch, fits, a_pass, a_row, images, size
):
    net, rand = Timed(fits, a_pass, a_row), torch.rand

    class Event:
        def __init__(self, timed):
            self.at = 0.0

        def record(self):
            self.at = net.clock

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: rand(*shape))
    assert auto_batch_size(net, (1, 2, 2), torch.device("cuda", 0), images) == size


def model(**settings) -> Model:
    known = {"name": "net", "weights_sha256": "ab12", "head": "none"} | settings
    return Model(torch.nn.Identity(), known, {"input_size": (3, 224, 224)}, 1000)


def test_a_batch_size_is_measured_once(measured, card):
    net = model()
    for _ in range(3):
        assert remembered_batch_size(net, "float32", 960) == 256
    # after a threat, this process holds the network and what its allocator keeps
    card(free=40 * GIB, reserved=36 * GIB)
    remembered_batch_size(net, "float32", 960)
    assert len(measured) == 1
    remembered_batch_size(net, "float32", 5000)
    remembered_batch_size(net, "float32", 50_000)  # both fill the largest batch
    assert len(measured) == 2


@pytest.mark.parametrize(
    "state",
    [
        {"name": "NVIDIA A40"},
        {"total": 40 * GIB, "free": 38 * GIB},
        {"free": 30 * GIB},  # another process uses the card
    ],
)
def test_it_is_never_used_on_another_card(measured, card, state):
    remembered_batch_size(model(), "float32", 960)
    card(**state)
    remembered_batch_size(model(), "float32", 960)
    assert len(measured) == 2


def test_it_is_of_one_network_precision_and_torch(measured, card, monkeypatch):
    remembered_batch_size(model(), "float32", 960)
    remembered_batch_size(model(), "bf16", 960)
    remembered_batch_size(model(weights_sha256="cd34"), "float32", 960)
    remembered_batch_size(model(head="animate"), "float32", 960)
    larger = replace(model(), preprocessing={"input_size": (3, 384, 384)})
    remembered_batch_size(larger, "float32", 960)
    monkeypatch.setattr(torch, "__version__", "9.9")
    remembered_batch_size(model(), "float32", 960)
    assert len(measured) == 6


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": "b"}', "\0"])
def test_a_damaged_file_is_as_if_it_were_not_there(measured, card, content):
    sizes_file().parent.mkdir()
    sizes_file().write_text(content)
    for _ in range(2):
        assert remembered_batch_size(model(), "float32", 960) == 256
    assert len(measured) == 1


def test_a_folder_that_cannot_be_written_is_no_error(measured, card, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert remembered_batch_size(model(), "float32", 960) == 256
    assert len(measured) == 2
