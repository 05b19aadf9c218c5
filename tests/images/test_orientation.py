"""Photographs whose EXIF tag asks for a turn: counted, named, and their pixels stay as stored."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from alignment_security.common.remarks import is_remark
from alignment_security.images import orientation
from alignment_security.images.decoding import read_image
from alignment_security.images.human_maps import check_maps
from alignment_security.images.image_sets import DataError, checked_set
from alignment_security.images.map_files import with_map_files
from alignment_security.images.orientation import is_turned, orientation_notes
from alignment_security.trainer.session import note_images

XMP = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def save(path, tag: int | None, size=(40, 24), **options):
    """A picture whose left half is white, with an EXIF orientation."""
    picture = np.zeros((*size[::-1], 3), np.uint8)
    picture[:, : size[0] // 2] = 255
    exif = Image.Exif()
    if tag is not None:
        exif[ExifTags.Base.Orientation] = tag
    Image.fromarray(picture).save(path, exif=exif, **options)
    return path


def image_set(folder, tags: dict, name="mine"):
    paths = [save(folder / image, tag) for image, tag in tags.items()]
    return checked_set(name, [(image, path, 0) for image, path in zip(tags, paths)])


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("tag", [None, 0, 1, 2, 3, 6, 8, 9])
def test_a_tag_is_found_in_each_format_and_pixels_stay(tmp_path, ending, tag):
    path = save(tmp_path / f"a.{ending}", tag)
    assert is_turned(path) == (tag in range(2, 9))
    picture = np.asarray(read_image(path))
    assert picture.shape == (24, 40, 3) and picture[:, :18].min() > 200 > 50 > picture[:, 22:].max()


def test_pillow_turns_tiff_itself(tmp_path):
    path = save(tmp_path / "a.tif", 6)
    assert read_image(path).size == (24, 40) and not is_turned(path)


def test_a_tag_of_xmp_counts(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 24)).save(path, xmp=XMP)
    assert is_turned(path)


def test_a_damaged_header_is_of_no_concern(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe1 no jpeg")
    assert not is_turned(tmp_path / "a.jpg")
    image = Image.new("RGB", (40, 24))
    image.save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert not is_turned(tmp_path / "b.jpg")


def test_turned_images_are_counted_named_and_a_warning(tmp_path):
    images = image_set(tmp_path, {"a.jpg": 6, "b.jpg": 1, "c.jpg": 3})
    (note,) = orientation_notes(images)
    assert note.startswith("2 of 3 images of mine") and note.endswith(": a.jpg, c.jpg")
    assert "EXIF" in note and "exif_transpose" in note and not is_remark(note)
    assert orientation_notes(images.take([1])) == []


def test_an_evaluation_says_it_at_once_and_keeps_it(cli, tiny, tmp_path):
    """Also where it ends before its first attack, and in a dry run; of its slice alone."""
    data = shutil.copytree(tiny.data, tmp_path / "photos")
    first = next(path for path in data.rglob("*") if path.is_file())
    with Image.open(first) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 8
        image.save(first, exif=exif)
    said = f"warning: 1 of 12 images of mine .*: {first.relative_to(data)}"
    arguments = tiny.arguments(tmp_path)
    arguments[arguments.index(str(tiny.data))] = str(data)
    threat = ["L2", "--steps", "3"]
    assert re.search(said, cli(*arguments, *threat, "--dry_run")[1])
    parts = [cli(*arguments, *threat, "--dry_run", "-s", str(k), str(k + 6))[1] for k in (0, 6)]
    assert sorted("EXIF" in out for out in parts) == [False, True]
    status, out, _ = cli(*arguments, *threat, "--stop_after", "0")
    assert status == 85 and re.search(said, out)
    (path,) = tmp_path.glob("records/mine/*/*.json")
    warnings = json.loads(path.read_text())["warnings"]
    assert any(re.search(said, f"warning: {warning}") for warning in warnings)


def test_a_training_says_it_and_keeps_it(tmp_path, capsys):
    """Of the images to train on, and of those that validate."""
    mine, other = (image_set(tmp_path, {name: 6}, name[0]) for name in ("a.jpg", "b.jpg"))
    run = SimpleNamespace(info={"warnings": []}, save=lambda **facts: None)
    for _ in range(2):  # sessions
        note_images(run, [mine], other)
    out = capsys.readouterr().out
    assert "warning: 1 of 1 images of a" in out and "warning: 1 of 1 images of b" in out
    assert [note.rpartition(": ")[2] for note in run.info["warnings"]] == ["a.jpg", "b.jpg"]


def test_sets_of_imagenet_are_read_as_everybody_reads_them(tmp_path):
    assert orientation_notes(image_set(tmp_path, {"a.jpg": 6}, "imagenet-val")) == []


def test_of_a_large_set_some_images_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(orientation, "MOST_READ", 3)
    images = image_set(tmp_path, {f"{i}.jpg": 6 if i == 4 else 1 for i in range(7)})
    assert orientation_notes(images) == []  # 0, 3 and 6 are looked at
    (note,) = orientation_notes(images.take([0, 1, 4, 2, 5, 6]))  # 0, 4 and 5
    assert note.startswith("1 of 3 images looked at of mine")


def test_the_error_about_an_upright_map_names_the_tag(tmp_path):
    images = image_set(tmp_path, {"a.jpg": 6, "b.jpg": 1})
    (tmp_path / "maps").mkdir()
    for name in "ab":
        np.save(tmp_path / "maps" / f"{name}.npy", np.eye(40, 24))
    with pytest.raises(DataError, match=r"40 x 24 as stored; the EXIF tag of a.jpg asks .*mogrify"):
        check_maps(with_map_files(images, tmp_path / "maps").take([0]))
    with pytest.raises(DataError, match="40 x 24 as stored; a map needs the size"):
        check_maps(with_map_files(images, tmp_path / "maps").take([1]))
