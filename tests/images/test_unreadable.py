"""Files that are whole and cannot be read now: another error than that of a damaged one."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import tfrecord
from PIL import Image

from alignment_security.common.file_kinds import foreign_kind
from alignment_security.common.files import TryAgain, UserError, sha256_file, sha256_text_file
from alignment_security.common.text import read_text
from alignment_security.images import clickme, decoding
from alignment_security.images.clickme import read_pth
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import load_image_set, stream_images
from alignment_security.images.map_files import read_map_file
from alignment_security.models.checkpoint_files import read_checkpoint
from alignment_security.records.record import read_record, read_run_file
from alignment_security.records.training import read_training_log

PLAIN = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "number, words, again",
    [
        (errno.EIO, "the disk or the network failed, run the same", True),
        (errno.ESTALE, "the disk or the network failed, run the same", True),
        (errno.EMFILE, "a limit of this machine", True),
        (errno.EACCES, "make it readable", False),
        (errno.ENOENT, "bring it back", False),
    ],
)
@pytest.mark.parametrize("at", ["open", "read"])
def test_a_photograph_that_cannot_be_read_is_not_called_damaged(
    monkeypatch, tmp_path, number, words, again, at, workers
):
    """Where the file is opened, and where the decoder reads it; from a worker, too."""
    if at == "read" and number in (errno.EACCES, errno.ENOENT):
        return
    images = ImageSet("mine", ("a.jpg",), (tmp_path / "a.jpg",), (0,))
    (tmp_path / "a.jpg").write_bytes(jpeg())
    failure = OSError(number, os.strerror(number))

    def fails(*_, **__):
        raise failure

    place = (decoding.Image, "open") if at == "read" else (decoding, "open")
    monkeypatch.setattr(*place, fails, raising=False)
    with pytest.raises(UserError, match=f"a.jpg: cannot be read .*{words}") as raised:
        list(stream_images(images, PLAIN, workers))
    assert isinstance(raised.value, TryAgain) == again


class FailingDisk(io.BytesIO):
    """An open file of which nothing can be read after its first bytes."""

    def __init__(self, path, good: int):
        super().__init__(Path(path).read_bytes())
        self.good = good

    def read(self, size=-1):
        if self.tell() >= self.good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("good", [0, 12, 600])
@pytest.mark.parametrize("when", ["listed", "evaluated"])
def test_a_shard_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, good, when):
    """The first byte, the first payload, and where the image itself is read."""
    writer = tfrecord.TFRecordWriter(str(tmp_path / "val-1.tfrecords"))
    for label in (1, 2):
        pair = {"image": (jpeg(), "byte"), "heatmap": (jpeg(), "byte"), "label": (label, "int")}
        writer.write(pair)
    writer.close()
    images = load_image_set("clickme", str(tmp_path)) if when == "evaluated" else None
    monkeypatch.setattr(clickme, "open", lambda path, _: FailingDisk(path, good), raising=False)
    says = r"val-1.tfrecords: cannot be read \(Input/output error\); the disk or the network failed"
    with pytest.raises(TryAgain, match=says):
        list(stream_images(images, PLAIN)) if images else load_image_set("clickme", str(tmp_path))


def read_png_map(path):
    return read_map_file(path.rename(path.with_suffix(".png")), (8, 8))


@pytest.mark.parametrize(
    "read",
    [
        *(read_text, sha256_file, sha256_text_file, foreign_kind, read_record, read_run_file),
        *(read_checkpoint, read_pth, read_png_map, read_training_log),
    ],
)
def test_no_reader_calls_a_file_of_a_failing_disk_damaged(tmp_path, read):
    """`/proc/self/mem` can be opened, and read at no place that is not mapped: EIO."""
    path = tmp_path / "file"
    path.symlink_to("/proc/self/mem")
    says = r"^\S+file\S*: cannot be read \(Input/output error\); the disk or the network failed"
    with pytest.raises(TryAgain, match=says):
        read(path)


def test_a_folder_that_cannot_be_listed_now(tmp_path, monkeypatch):
    def fails(folder, onerror, **_):
        onerror(OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder)))

    monkeypatch.setattr(os, "walk", fails)
    with pytest.raises(TryAgain, match=f"^{tmp_path}: cannot be read"):
        load_image_set("clickme", str(tmp_path))
