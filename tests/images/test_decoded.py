"""Decoded images that stay in memory: decoded once, the same pixels, never more than the bound."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from alignment_security.attacks import clean
from alignment_security.attacks.attacked_model import AttackedModel
from alignment_security.attacks.clean import run_clean
from alignment_security.common.pixels import in_unit_range
from alignment_security.images import loading
from alignment_security.images.decoded import DecodedImages
from alignment_security.images.image_sets import Corruption, DataError
from alignment_security.images.loading import stream_bytes, stream_images

PLAIN = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
IMAGE_BYTES = 3 * 32 * 32


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each image was decoded, by its id."""
    counts: Counter = Counter()
    load = loading.load_photograph

    def counted(images, i):
        counts[images.ids[i]] += 1
        return load(images, i)

    monkeypatch.setattr(loading, "load_photograph", counted)
    monkeypatch.setattr(loading, "DECODED", DecodedImages())
    return counts


@pytest.fixture
def five(sample, tmp_path):
    """Five photographs as files that a test may change."""
    paths = tuple(tmp_path / path.name for path in sample.paths[:5])
    for path, copy in zip(sample.paths, paths):
        shutil.copy(path, copy)
    return replace(sample.take(range(5)), paths=paths)


def pixels(images, preprocessing=PLAIN, workers=0) -> list[torch.Tensor]:
    return [in_unit_range(x) for _, x, _ in stream_bytes(images, preprocessing, workers)]


def assert_same(found, images, preprocessing=PLAIN) -> None:
    want = [x for _, x, _ in stream_images(images, preprocessing)]
    assert len(found) == len(want) and all(map(torch.equal, found, want))


def test_an_image_is_decoded_once_a_preprocessing(five, decoded):
    squash = PLAIN | {"crop_mode": "squash"}
    for preprocessing in (PLAIN, squash, PLAIN, squash):
        for images in (five.take([3]), five, five.take([4, 1])):
            found = pixels(images, preprocessing)
            counts = decoded.copy()
            assert_same(found, images, preprocessing)
            decoded.clear()
            decoded.update(counts)
    assert decoded == dict.fromkeys(five.ids, 2)


def test_images_that_are_kept_and_others_stay_in_the_order_of_the_list(five, monkeypatch):
    kept = DecodedImages()
    monkeypatch.setattr(loading, "DECODED", kept)
    pixels(five.take([1, 4]))
    found = list(stream_bytes(five, PLAIN, workers=2))
    assert [name for name, _, _ in found] == list(five.ids)
    assert_same([in_unit_range(x) for _, x, _ in found], five)
    (held,) = kept.pixels.values()
    assert {x.untyped_storage().nbytes() for x in held.values()} == {IMAGE_BYTES}  # no messages
    monkeypatch.setattr(loading, "worker_loader", None)  # no process starts where none is needed
    assert_same(pixels(five, workers=2), five)


def test_a_file_that_changed_is_decoded_again(five, decoded):
    pixels(five)
    shutil.copy(five.paths[1], five.paths[0])
    os.utime(five.paths[2], ns=(1, 1))  # as of another photograph of that size
    found = pixels(five)
    assert [decoded[name] for name in five.ids] == [2, 1, 2, 1, 1]
    assert torch.equal(found[0], found[1])
    five.paths[3].unlink()
    with pytest.raises(DataError, match=five.paths[3].name):
        pixels(five)


def test_what_else_decides_the_pixels_keeps_them_apart(five, decoded, monkeypatch):
    """A border, a crop that is there already, and a corruption made while loading, by its seed."""
    monkeypatch.setattr(
        loading, "corrupt", lambda image, corruption, name: image.rotate(90 * corruption.seed)
    )
    others = [
        replace(five, border=40),
        replace(five, cropped=True),
        *(replace(five, corruption=Corruption("turn", 1, "made up", seed)) for seed in (1, 2)),
    ]
    wide = PLAIN | {"crop_pct": 0.5}
    for images in [five, *others, five, *others]:
        assert_same(pixels(images, wide), images, wide)
    assert set(decoded.values()) == {5 + 10}  # 10 of stream_images


def test_a_bad_image_is_named_each_time(five, decoded):
    five.paths[2].write_bytes(b"nothing")
    for _ in range(2):
        source = stream_bytes(five, PLAIN)
        assert [next(source)[0] for _ in range(2)] == list(five.ids[:2])
        with pytest.raises(DataError, match=five.paths[2].name):
            next(source)
    assert [decoded[name] for name in five.ids] == [1, 1, 2, 0, 0]


def test_memory_is_bound_and_other_preprocessings_make_room(five, decoded, monkeypatch):
    kept = DecodedImages(most_bytes=3 * IMAGE_BYTES + 100)
    monkeypatch.setattr(loading, "DECODED", kept)
    squash = PLAIN | {"crop_mode": "squash"}
    for preprocessing, counts in [
        (PLAIN, [1, 1, 1, 1, 1]),
        (PLAIN, [1, 1, 1, 2, 2]),  # the first three are kept
        (squash, [2, 2, 2, 3, 3]),
        (PLAIN, [3, 3, 3, 4, 4]),  # dropped for the others
    ]:
        pixels(five, preprocessing)
        held = [x for images in kept.pixels.values() for x in images.values()]
        assert kept.n_bytes == sum(x.untyped_storage().nbytes() for x in held) == 3 * IMAGE_BYTES
        assert [decoded[name] for name in five.ids] == counts


def test_images_go_to_the_device_as_bytes(five, lite0, monkeypatch):
    sent, to_device = [], clean.to_device
    monkeypatch.setattr(
        clean, "to_device", lambda x, device: sent.append(x.dtype) or to_device(x, device)
    )
    preprocessing = lite0.preprocessing | {"input_size": (3, 64, 64)}
    model = AttackedModel(lite0.module, 1000)
    rows = list(run_clean(model, stream_bytes(five, preprocessing)))
    assert rows == list(run_clean(model, stream_images(five, preprocessing)))
    assert sent == [torch.uint8, torch.float32]


def test_levels_are_those_of_a_division():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(in_unit_range(levels).double(), (levels.double() / 255).float().double())
    assert in_unit_range(levels.float()).max() == 255
