"""Class folders: labels that are no guess, what tools leave, what is left out and said."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from alignment_security.common.remarks import is_remark
from alignment_security.images.class_folders import check_label_names, folder_set, label_folders
from alignment_security.images.decoding import read_image
from alignment_security.images.image_sets import (
    IMAGE_LISTS,
    DataError,
    read_image_list,
    synsets,
)
from alignment_security.images.labels import real_labels
from alignment_security.images.loading import load_image_set
from alignment_security.models.timm_nets import label_names

SYNSETS = synsets()


def jpeg(kind: str = "JPEG", size=(8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(file, kind)
    return file.getvalue()


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    return root


def labels(images) -> dict[str, int]:
    return {name.split("/")[0]: label for name, label in zip(images.ids, images.labels)}


# ---- labels --------------------------------------------------------------------------------------


def test_folders_0_to_999_are_those_classes(tmp_path):
    """ImageNetV2: as text, folder 10 would come before folder 2."""
    chosen = [0, 2, 10, 100, 999]
    for k in range(1000):
        (tmp_path / str(k)).mkdir()
    write(tmp_path, *(f"{k}/a.jpg" for k in chosen))
    images = load_image_set("imagenetv2", str(tmp_path))
    assert labels(images) == {str(k): k for k in chosen} and images.class_names == ()
    assert "995 class folders hold no image" in images.notes[0]


@pytest.mark.parametrize(
    "folders",
    [
        [f"class{k}" for k in range(1000)],
        [str(k) for k in range(1, 1001)],
        [f"{k:04d}" for k in range(1000)],
        [*SYNSETS[:-1], "dog"],
        [SYNSETS[0], "0"],
        [str(k) for k in range(10)],
        [str(k) for k in range(999)],
    ],
)
def test_1000_outputs_need_synsets_or_numbers(tmp_path, folders):
    with pytest.raises(DataError, match="labels would be a guess"):
        label_folders(tmp_path, sorted(folders), 1000)


@pytest.mark.parametrize("order", [None, "text", "classes.txt"])
@pytest.mark.parametrize("outputs, named", [(1000, "its ImageNet synset"), (2, "it ")])
def test_a_folder_of_images_alone_has_no_classes(tmp_path, outputs, named, order):
    """The error says how class folders are named, and where more is."""
    write(tmp_path, "a.jpg", "b.jpg")
    says = rf"has no class folders; .* named after {named}.*docs/images.md#your-own-images"
    with pytest.raises(DataError, match=says):
        load_image_set("mine", str(tmp_path), outputs, class_order=order)


@pytest.mark.parametrize("names", [["a", "b", "c"], SYNSETS[:3]])
def test_another_number_of_folders_than_outputs_is_the_reason(tmp_path, names):
    """Also where the folders are synsets; a folder without an image is named."""
    write(tmp_path, *(f"{name}/a.jpg" for name in names))
    with pytest.raises(DataError, match="3 class folders, and the model has 2 outputs: .* guess;"):
        label_folders(tmp_path, sorted(names), 2)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"guess; 1 hold no image \(nothing\)"):
        label_folders(tmp_path, sorted([*names, "nothing"]), 3)


@pytest.mark.parametrize(
    "folders",
    [
        ["class1", "class2", "class10"],
        ["1", "2", "3", "10"],
        ["v1.9", "v1.10"],
        ["Zebra", "cat"],
        ["img_9_a", "img_10_a"],
    ],
)
def test_an_order_that_loaders_disagree_on_is_asked_for(tmp_path, folders):
    write(tmp_path, *(f"{name}/a.jpg" for name in folders))
    (tmp_path / "order.txt").write_text("\n".join(reversed(folders)) + "\n")
    k = len(folders)
    with pytest.raises(DataError, match="guess: class . is .*--class_order text, natural, or"):
        load_image_set("mine", str(tmp_path), k)

    by_text = load_image_set("mine", str(tmp_path), k, class_order="text")
    natural = load_image_set("mine", str(tmp_path), k, class_order="natural")
    listed = load_image_set("mine", str(tmp_path), k, class_order=tmp_path / "order.txt")
    assert by_text.class_names == tuple(sorted(folders))
    assert listed.class_names == tuple(reversed(folders))
    assert set(natural.class_names) == set(folders) and natural.labels != by_text.labels
    for images, order in ((by_text, "text"), (natural, "natural"), (listed, "order.txt")):
        assert labels(images) == {name: i for i, name in enumerate(images.class_names)}
        assert images.facts == {"class_order": order}


def test_natural_order_is_timms(tmp_path):
    from timm.data.readers.reader_image_folder import find_images_and_targets

    names = [f"{word}{k}" for word in ("a", "B") for k in (1, 9, 10, 11, 100)]
    random.Random(0).shuffle(names)
    write(tmp_path, *(f"{name}/a.jpg" for name in names))
    theirs = find_images_and_targets(str(tmp_path))[1]
    images = load_image_set("mine", str(tmp_path), len(names), class_order="natural")
    assert labels(images) == theirs


def test_an_order_that_does_not_matter_is_not_asked_for(tmp_path):
    images = load_image_set("mine", str(write(tmp_path, "cat/a.jpg", "dog/a.jpg")), 2)
    assert images.class_names == ("cat", "dog") and images.facts == {} and images.notes == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat\n", "1 lines with 1 names, for a model with 2 outputs"),
        ("cat\ncat\n", "2 lines with 1 names"),
        ("cat\nbird\n", r"1 class folders are not in .*order.txt \(dog\)"),
    ],
)
def test_a_file_of_classes_has_to_fit(tmp_path, text, message):
    write(tmp_path / "set", "cat/a.jpg", "dog/a.jpg")
    (tmp_path / "order.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_image_set("mine", str(tmp_path / "set"), 2, class_order=tmp_path / "order.txt")
    with pytest.raises(DataError, match="nowhere: no such file, and neither"):
        load_image_set("mine", str(tmp_path / "set"), 2, class_order="nowhere")


def test_a_file_of_classes_may_name_more_than_the_folder_has(tmp_path):
    write(tmp_path / "set", "dog/a.jpg")
    (tmp_path / "order.txt").write_bytes("cat\r\ndog\r\n".encode("utf-8-sig"))
    images = load_image_set("m", str(tmp_path / "set"), 2, class_order=str(tmp_path / "order.txt"))
    assert labels(images) == {"dog": 1}


def test_names_of_macos_are_those_of_the_file(tmp_path):
    """A Mac writes an accent as a letter of its own; the two look alike in any message."""
    write(tmp_path / "set", "cafe\u0301/a.jpg", "thé/a.jpg")
    (tmp_path / "classes.txt").write_text("thé\ncafé\n", encoding="utf-8")
    images = folder_set("mine", tmp_path / "set", 2, tmp_path / "classes.txt")
    assert images.labels == (1, 0) and images.ids[0] == "cafe\u0301/a.jpg"


@pytest.mark.parametrize(
    "names, is_refused",
    [(["a", "b"], False), (["b", "a"], True), (["x", "y"], False), ([], False)],
)
def test_a_networks_own_names_of_its_outputs_are_their_order(tmp_path, names, is_refused):
    """label_names of timm's configuration of a network that somebody trained."""
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    net = timm.create_model(
        "test_vit", num_classes=2, pretrained_cfg_overlay={"label_names": names}
    )
    assert label_names(nn.Sequential(net)) == tuple(names)
    with pytest.raises(DataError, match="class 0 is a, .* 0 b") if is_refused else nullcontext():
        check_label_names(folder_set("mine", tmp_path, 2), names)


def test_a_set_with_imagenets_classes_takes_no_other_order():
    with pytest.raises(DataError, match="sample has the order of ImageNet's classes"):
        load_image_set("sample", class_order="natural")


# ---- what tools leave, and what is left out ------------------------------------------------------

LEFT = [".ipynb_checkpoints", "__MACOSX", ".Trash-1000", "@eaDir", "lost+found", "$RECYCLE.BIN"]


@pytest.mark.parametrize("folder", LEFT)
def test_a_folder_that_a_tool_leaves_is_no_class(tmp_path, folder):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg", f"{folder}/a.jpg")
    with pytest.raises(DataError, match="2 class folders"):
        load_image_set("mine", str(tmp_path), 3)
    images = load_image_set("mine", str(tmp_path), 2)
    assert labels(images) == {"cat": 0, "dog": 1} and folder in images.notes[0]


def write_val(root: Path, *more: str) -> Path:
    return write(root, *(f"{synset}/{k}.JPEG" for k, synset in enumerate(SYNSETS)), *more)


@pytest.mark.parametrize("folder", LEFT)
@pytest.mark.parametrize("name", ["imagenet-val", "mine"])
def test_no_set_takes_what_tools_leave(tmp_path, folder, name):
    inside = f"{SYNSETS[0]}/{folder}/0.JPEG/thumb.jpg"
    root = write_val(tmp_path, f"{folder}/x.JPEG", inside, f"{SYNSETS[1]}/._1.JPEG")
    images = load_image_set(name, str(root))
    assert len(images) == 1000 and "3 files or folders that tools leave" in images.notes[0]


def test_imagenet_c_takes_no_hidden_types_and_severities(tmp_path):
    write_val(tmp_path / "fog" / "1")
    (tmp_path / ".cache" / "1").mkdir(parents=True)
    assert len(load_image_set("imagenet-c", str(tmp_path), corruption=("fog", 1))) == 1000
    with pytest.raises(DataError, match="in the folder: fog$"):
        load_image_set("imagenet-c", str(tmp_path), corruption=(".cache", 1))


def test_a_flat_folder_counts_what_it_leaves_out(tmp_path):
    write(tmp_path, "b.JPEG", "a.JPEG", "._a.JPEG", "@eaDir/a.JPEG")
    (tmp_path / "notes.doc").touch()
    (tmp_path / "val.txt").write_bytes("a.JPEG 1\r\nb.JPEG 2\r\n".encode("utf-8-sig"))
    images = load_image_set("imagenet-val", str(tmp_path))
    assert dict(zip(images.ids, images.labels)) == {"a.JPEG": 1, "b.JPEG": 2}
    assert "2 files or folders" in images.notes[0] and "(.doc: 1)" in images.notes[1]
    assert all(map(is_remark, images.notes))


def test_files_that_are_no_images_are_counted(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg", "dog/raw.heic", "dog/none", "beside.jpg", "readme.md")
    others, in_root = load_image_set("mine", str(tmp_path), 2).notes
    assert "3 files are left out" in others and "no ending: 1" in others
    assert "1 images are in no class folder" in in_root


@pytest.mark.parametrize(
    "ending, kind",
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("pgm", "PPM")],
)
def test_every_ending_that_is_decoded_is_taken(tmp_path, ending, kind):
    write(tmp_path, f"cat/a.{ending}", "dog/a.jpg")
    (tmp_path / "cat" / f"a.{ending}").write_bytes(jpeg(kind))
    images = load_image_set("mine", str(tmp_path), 2)
    assert len(images) == 2 and read_image(images.paths[0]).size == (8, 8)


def test_a_class_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"dog: cannot be read \(Permission denied\)"):
        load_image_set("mine", str(tmp_path), 2)


def test_names_of_other_systems_get_ids_that_a_record_can_hold(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    for name in (b"caf\xe9.jpg", b"a\rb.jpg", "ü é.jpg".encode()):
        shutil.copy(tmp_path / "cat" / "a.jpg", os.path.join(os.fsencode(tmp_path / "cat"), name))
    images = load_image_set("mine", str(tmp_path), 2)
    assert set(images.ids) == {
        "cat/a.jpg", r"cat/caf\xe9.jpg", r"cat/a\rb.jpg", "cat/ü é.jpg", "dog/a.jpg"
    }  # fmt: skip
    assert len(images.list_sha256) == 64


def test_a_link_to_nothing_is_not_told_as_a_missing_file(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    (tmp_path / "cat" / "b.jpg").symlink_to("/nowhere/b.jpg")
    with pytest.raises(DataError, match="b.jpg: a link to a file that is missing .*mount or copy"):
        load_image_set("mine", str(tmp_path), 2)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_file_is_told_as_what_it_is(tmp_path, monkeypatch, kind):
    """Opening a pipe would wait for ever, and a device has no end."""
    write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    monkeypatch.chdir(tmp_path / "cat")
    if kind == "fifo":
        os.mkfifo("b.jpg")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("b.jpg")
    else:
        os.symlink("/dev/zero", "b.jpg")
    with pytest.raises(
        DataError, match="b.jpg: a pipe, socket or device, and no file .*take it out"
    ):
        load_image_set("mine", str(tmp_path), 2)


# ---- files that are no photographs ---------------------------------------------------------------


@pytest.mark.parametrize(
    "data, message",
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n", "PostScript program"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><html></html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF photograph"),
    ],
)
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path, data, message):
    (tmp_path / "a.JPEG").write_bytes(data)
    with pytest.raises(DataError, match=f"a.JPEG: cannot be decoded: it is .*{message}") as error:
        read_image(tmp_path / "a.JPEG")
    assert "again" not in str(error.value)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "IM", "DDS"])
def test_only_formats_of_photographs_are_opened(tmp_path, kind):
    """EPS starts Ghostscript; others have rarely used decoders."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", kind)
    with pytest.raises(DataError, match="a.jpg: cannot be decoded"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "size, refused", [((1, 1), 0), ((20, 1000), 0), ((1, 51), 1), ((40000, 1), 1), ((99, 5000), 1)]
)
def test_an_image_that_scaling_makes_huge_is_refused(tmp_path, size, refused):
    Image.new("1", size).save(tmp_path / "a.png")
    if not refused:
        assert read_image(tmp_path / "a.png").size == size
        return
    with pytest.raises(DataError, match=f"a.png: {size[0]} x {size[1]} pixels, one side more than"):
        read_image(tmp_path / "a.png")


def test_an_image_beyond_pillows_own_guard_is_one_line(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png: .*(14000|196000000)") as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value) and "fetch it again" not in str(error.value)


@pytest.mark.parametrize("kind", ["profile", "text"])
def test_metadata_that_are_too_large_leave_the_picture_whole(tmp_path, kind):
    texts = PngInfo()
    texts.add_text("comment", "x" * (80_000_000 if kind == "text" else 1), zip=True)
    profile = bytes(2_000_000) if kind == "profile" else None
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", icc_profile=profile, pnginfo=texts)
    with pytest.raises(DataError, match="a.png: .* save it without its metadata") as error:
        read_image(tmp_path / "a.png")
    assert "fetch it again" not in str(error.value)


def test_what_decoders_say_about_metadata_is_not_shown(tmp_path, recwarn):
    picture = Image.new("P", (8, 8))
    picture.save(tmp_path / "a.png", transparency=bytes(16))
    read_image(tmp_path / "a.png")
    assert not recwarn.list


@pytest.mark.parametrize("shift", [0, 1, -1, 500])
def test_labels_that_people_do_not_see_are_another_order(tmp_path, shift):
    """ReaL's labels judge 12 validation images that are not in big12.txt."""
    known = {name for name, _ in read_image_list(IMAGE_LISTS / "big12.txt")}
    real = {name: seen for name, seen in real_labels().items() if seen and name not in known}
    chosen = sorted(real)[:12]
    write(tmp_path, *chosen)
    lines = [f"{name} {(real[name][0] + shift) % 1000}\n" for name in chosen]
    (tmp_path / "val.txt").write_text("".join(lines))
    if not shift:
        assert len(load_image_set("imagenet-val", str(tmp_path))) == 12
        return
    with pytest.raises(DataError, match="people see its class in . of 12 images.*count from 1"):
        load_image_set("imagenet-val", str(tmp_path))


@pytest.mark.parametrize("name", ["val-0.tfrecords", "0.pth"])
def test_a_shard_of_another_kind_is_told_as_what_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="no file of ClickMe but a Git LFS pointer"):
        load_image_set("clickme", str(tmp_path))
