"""Files that are whole and cannot be read now: another error than that of a damaged one."""

from __future__ import annotations

import errno
import io
import os

import pytest
from PIL import Image

from alignment_security.common.files import TryAgain, UserError
from alignment_security.images import decoding
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import stream_images

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
