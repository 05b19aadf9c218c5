"""Feng 2025's set: pairs of image and human map drawn out of ClickMe's files, in both layouts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tfrecord
import torch
from PIL import Image

import dataloading
from alignment_security.images.clickme import clickme_sample, clickme_set
from alignment_security.images.human_maps import human_map, map_source
from alignment_security.images.image_sets import DataError
from alignment_security.images.loading import load_image_set
from alignment_security.images.subsets import groupings

SIDE = 16
CLASSES = [label for labels in groupings()["big_12"].values() for label in labels]
LAYOUTS = ("tfrecords", "pth")
PLAIN = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a map of ClickMe's kind: grey of a level, a click at a place, by its number."""
    image = np.full((SIDE, SIDE, 3), number % 200, np.uint8)
    heatmap = np.zeros((SIDE, SIDE), np.uint8)
    heatmap[number % SIDE, number // SIDE % SIDE] = 255
    return image, heatmap


def jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_clickme(root: Path, labels: list[int], layout: str) -> Path:
    """Pairs of these labels as ClickMe's shards, 300 a shard, or as Feng 2025's .pth files."""
    root.mkdir(parents=True)
    writer = None
    for i, label in enumerate(labels):
        image, heatmap = pair(i)
        if layout == "pth":
            maps = torch.tensor(heatmap)[None]
            images = torch.tensor(image).permute(2, 0, 1)
            torch.save({"image": images, "heatmap": maps, "label": label}, root / f"{i}.pth")
            continue
        if i % 300 == 0:
            writer = tfrecord.TFRecordWriter(str(root / f"val-{i // 300}.tfrecords"))
        writer.write(
            {
                "image": (jpeg(image), "byte"),
                "heatmap": (jpeg(heatmap), "byte"),
                "label": (label, "int"),
            }
        )
    if writer:
        writer.close()
    return root


def pairs_of_each(count: int) -> list[int]:
    """Labels of so many pairs of each class of Big-12, and of a few of other classes, shuffled."""
    others = [label for label in range(1000) if label not in CLASSES][:40]
    return np.random.default_rng(0).permutation(count * CLASSES + others).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_960_pairs_are_drawn_and_written(tmp_path, capsys, layout):
    source = write_clickme(tmp_path / "clickme", pairs_of_each(5), layout)
    command = ["clickme_big12", "--clickme", str(source)]
    assert dataloading.main(command) == 0
    said = capsys.readouterr().out
    assert "960 pairs of image and map, 12 superclasses x 20 classes x 4" in said
    assert dataloading.main([*command, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert said.splitlines()[1] == out.splitlines()[1]  # sha256 of the list

    images = load_image_set("big12", str(tmp_path / "out"))
    assert images.name == "big12" and map_source(images) == "ClickMe"
    assert images.list_sha256 in out and images.contents_sha256() in out
    assert len(images) == 960 and len(set(images.groups)) == 12
    assert sorted(images.labels) == sorted(4 * CLASSES)
    lines = (tmp_path / "out" / "big12.txt").read_text().splitlines()
    assert lines[0] == f"{images.ids[0]} {images.labels[0]} {images.groups[0]}"
    whole = clickme_set(source)
    for i in (0, 400, 959):  # the same picture, map and label as in ClickMe
        ours, theirs = (
            clickme_sample(images, i),
            clickme_sample(whole, whole.position(images.ids[i])),
        )
        assert (ours.image == theirs.image).all() and (ours.heatmap == theirs.heatmap).all()
        assert ours.label == theirs.label
        assert human_map(images, i, PLAIN, blur=True).shape == (224, 224)

    assert not images.notes  # its own list is no stranger


def test_an_export_is_the_same_again_and_a_part_of_a_larger_one(tmp_path, capsys):
    source = write_clickme(tmp_path / "clickme", pairs_of_each(3), "pth")
    command = ["clickme_big12", "--clickme", str(source), "--per_class"]

    def export(per_class: int, folder: str) -> int:
        return dataloading.main([*command, str(per_class), "--out", str(tmp_path / folder)])

    assert export(2, "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert export(2, "out") == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert export(1, "one") == 0
    out, one = (load_image_set("big12", str(tmp_path / name)) for name in ("out", "one"))
    assert len(one) == 240 and set(one.ids) < set(out.ids)
    capsys.readouterr()
    assert export(1, "out") == 2
    assert "240 pairs that are not of this set" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "big12"])
def test_clickmes_own_folder_is_never_written_to(tmp_path, capsys, place):
    source = write_clickme(tmp_path / "clickme", CLASSES, "pth")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    command = ["clickme_big12", "--clickme", str(source), "--per_class", "1"]
    assert dataloading.main([*command, "--out", str(source / place)]) == 2
    said = capsys.readouterr().err
    assert f"is inside {source}, which is never altered" in said and said.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in source.rglob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_with_too_few_pairs_are_named(tmp_path, capsys, layout):
    labels = 4 * CLASSES
    labels.remove(CLASSES[0])
    labels = [label for label in labels if label != CLASSES[25]]
    source = write_clickme(tmp_path / "clickme", labels, layout)
    out = tmp_path / "out"
    assert dataloading.main(["clickme_big12", "--clickme", str(source), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"class {CLASSES[0]} (dog) has 3, class {CLASSES[25]} " in said
    assert "has 0 (2 such classes)" in said
    assert said.count("\n") == 1 and not out.exists()


def test_the_studys_own_folder_is_read_as_it_is(tmp_path):
    """imagenet_big12/*.pth of Feng 2025's code: every pair, in the order of the superclasses."""
    labels = [CLASSES[30], CLASSES[0], CLASSES[30]]
    images = load_image_set("big12", str(write_clickme(tmp_path / "pairs", labels, "pth")))
    assert images.ids == ("1", "0", "2")
    assert images.labels == tuple(sorted(labels, key=CLASSES.index))
    other = next(label for label in range(1000) if label not in CLASSES)
    with pytest.raises(DataError, match="1 of 2 pairs are of no class of Big-12, e.g. 1; draw"):
        load_image_set("big12", str(write_clickme(tmp_path / "o", [CLASSES[0], other], "pth")))


def test_a_pair_that_is_gone_is_noticed(tmp_path, capsys):
    source = write_clickme(tmp_path / "clickme", CLASSES, "pth")
    command = ["clickme_big12", "--clickme", str(source), "--per_class", "1"]
    assert dataloading.main([*command, "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "7.pth").unlink()
    with pytest.raises(DataError, match="lists 240 pairs, the folder has 239; .*, e.g. in 7; "):
        load_image_set("big12", str(tmp_path / "out"))


def test_a_map_of_real_numbers_keeps_its_order(tmp_path):
    """ClickMe's older shards hold float32; the .pth has 256 levels of it."""
    heatmap = np.linspace(0, 3.7, 224 * 224, dtype="<f4").reshape(224, 224, 1)
    picture = np.zeros((224, 224, 3), "<f4")
    (tmp_path / "in").mkdir()
    writer = tfrecord.TFRecordWriter(str(tmp_path / "in" / "val-0.tfrecords"))
    for label in CLASSES:
        writer.write(
            {
                "image": (picture.tobytes(), "byte"),
                "heatmap": (heatmap.tobytes(), "byte"),
                "label": (label, "int"),
            }
        )
    writer.close()
    command = ["clickme_big12", "--clickme", str(tmp_path / "in"), "--per_class", "1"]
    assert dataloading.main([*command, "--out", str(tmp_path / "out")]) == 0
    found = clickme_sample(load_image_set("big12", str(tmp_path / "out")), 0).heatmap
    assert found.max() == 255 and np.abs(found / 255 - heatmap[..., 0] / 3.7).max() < 0.002
