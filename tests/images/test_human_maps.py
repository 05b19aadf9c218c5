"""Maps align with their photographs; ClickMe's records in every encoding, and damaged ones."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate, zoom
from scipy.stats import spearmanr

from alignment_security.images.clickme import clickme_sample, masked_crc, read_tfrecords
from alignment_security.images.human_maps import (
    draw_ellipses,
    drawings,
    harmonization_blur,
    human_map,
    map_source,
    original_map,
)
from alignment_security.images.image_sets import DataError
from alignment_security.images.loading import (
    PixelDataset,
    load_image_set,
    read_image,
    stream_images,
)

tfrecord = pytest.importorskip("tfrecord")

PLAIN = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


# ---- geometry ------------------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """(x, y) -> ImageSet of a black 400 x 200 photograph with a bright spot, and its map: both are
    one ellipse at (x, y)."""

    def call(x: float, y: float):
        images = load_image_set("sample").take([0])
        ellipse = [x, y, 0.03, 0.06, 0.0, 1.0]  # a circle in pixels: 12 of them
        spot = (draw_ellipses([ellipse], 200, 400) * 255).astype(np.uint8)
        Image.fromarray(spot).convert("RGB").save(tmp_path / "spot.png")
        monkeypatch.setattr(
            "alignment_security.images.human_maps.drawings", lambda: {images.ids[0]: [ellipse]}
        )
        return replace(images, paths=(tmp_path / "spot.png",))

    return call


@pytest.mark.parametrize(
    "mode, size", [("center", 224), ("squash", 224), ("border", 224), ("center", 300)]
)
@pytest.mark.parametrize("x, y", [(0.5, 0.5), (0.4, 0.3), (0.65, 0.7)])
def test_human_map_aligns_with_its_photograph(marked, mode, size, x, y):
    """The map's peak is at the brightest pixel of the photograph that the model sees."""
    images, preprocessing = marked(x, y), PLAIN | {"crop_mode": mode, "input_size": (3, size, size)}
    seen, drawn = (
        PixelDataset(images, preprocessing)[0][0].numpy(),
        human_map(images, 0, preprocessing),
    )
    if mode == "border":
        seen = seen * (drawn > 0)  # padded with grey, where the map is 0
    assert drawn.shape == (size, size) and drawn.dtype == np.float32
    peaks = [np.array(np.unravel_index(m.argmax(), m.shape)) for m in (seen, drawn)]
    assert np.abs(peaks[0] - peaks[1]).max() <= 1
    assert np.corrcoef(seen.ravel(), drawn.ravel())[0, 1] > 0.99


def test_human_map_outside_the_crop_is_none(marked):
    images = marked(0.02, 0.5)
    preprocessing = PLAIN | {"crop_pct": 1.0}
    assert human_map(images, 0, preprocessing) is None
    zeros = replace(images, ids=("no such drawing",))
    assert human_map(zeros, 0, preprocessing) is None


def test_draw_ellipses_by_hand():
    """exp(-2) on the rim of an ellipse turned by 90 degrees; the maximum of two, not their sum."""
    one = draw_ellipses([[0.5, 0.5, 0.2, 0.1, 90.0, 0.8]], 1001, 1001)
    assert one[500, 500] == pytest.approx(0.8) and one.dtype == np.float32
    assert one[700, 500] == pytest.approx(0.8 * np.exp(-2), rel=1e-2) and one[
        500, 600
    ] == pytest.approx(0.8 * np.exp(-2), rel=1e-2)
    both = draw_ellipses(
        [[0.5, 0.5, 0.2, 0.1, 90.0, 0.8], [0.5, 0.5, 0.1, 0.1, 0.0, 0.5]], 1001, 1001
    )
    assert both[500, 500] == pytest.approx(0.8) and (both >= one).all()


def test_human_map_of_every_photograph_of_the_sample(sample, lite0):
    maps = [human_map(sample, i, lite0.preprocessing) for i in range(len(sample))]
    assert all(m.shape == (224, 224) and 0.5 < m.max() <= 1 and m.min() >= 0 for m in maps)
    assert map_source(sample).startswith("hand-drawn, sha256 ")
    assert set(drawings()) == set(sample.ids)


# ---- ClickMe -------------------------------------------------------------------------------------


def encode(image: np.ndarray, kind: str) -> bytes:
    if kind.startswith("jpeg"):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        return file.getvalue()
    return (image.astype("<f4") / (255 if kind.endswith("unit") else 1)).tobytes()


def photographs(sample, side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """uint8 (side, side, 3) and the drawn map as uint8 (side, side)."""
    pairs = []
    for i in range(4):
        image = read_image(sample.paths[i]).resize((side, side))
        drawn = original_map(sample, i)
        assert drawn is not None
        heatmap = np.asarray(Image.fromarray(drawn).resize((side, side)))
        levels = (heatmap * 255).round().clip(0, 255).astype(np.uint8)
        pairs.append((np.asarray(image), levels))
    return pairs


def write_shard(path: Path, pairs, labels, kind="jpeg", **more) -> None:
    """A TFRecord as TensorFlow writes it, by the library's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = tfrecord.TFRecordWriter(str(path))
    for (image, heatmap), label in zip(pairs, labels):
        writer.write(
            {
                "image": (encode(image, kind), "byte"),
                "heatmap": (encode(heatmap, kind), "byte"),
                "label": (label, "int"),
            }
            | more
        )
    writer.close()


ENCODINGS = {
    "jpeg": (256, 3.0, {}),
    "float 224": (224, 0.5, {}),
    "float 256": (256, 0.5, {"click_count": (7, "int")}),
    "float unit": (224, 0.51, {}),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_clickme_set_reads_every_encoding(tmp_path, sample, kind):
    """The mean absolute difference from what was written is that of JPEG, or of rounding."""
    side, near, more = ENCODINGS[kind]
    pairs, labels = photographs(sample, side), [243, 0, 999, 990]
    write_shard(tmp_path / "val" / "val-10.tfrecords", pairs[2:], labels[2:], kind, **more)
    write_shard(tmp_path / "val" / "val-2.tfrecords", pairs[:2], labels[:2], kind, **more)
    images = load_image_set("clickme", str(tmp_path / "val"))
    assert images.ids == (
        "val-2-00000",
        "val-2-00001",
        "val-10-00000",
        "val-10-00001",
    ) and images.labels == tuple(labels)
    for i in (3, 0, 2):
        found = clickme_sample(images, i)
        assert found.image.dtype == np.uint8 and found.label == labels[i]
        assert np.abs(found.image.astype(float) - pairs[i][0]).mean() < near
        heatmap = found.heatmap * (255 if kind.endswith("unit") else 1)
        assert heatmap.shape == (side, side) and np.abs(heatmap - pairs[i][1]).mean() < near
    streamed = list(stream_images(images.take([2, 1]), PLAIN, workers=1))
    assert [(name, label) for name, _, label in streamed] == [
        ("val-10-00000", 999),
        ("val-2-00001", 0),
    ]
    crop = np.asarray(Image.fromarray(pairs[1][0]).resize((256, 256), Image.Resampling.BICUBIC))[
        16:240, 16:240
    ]
    assert np.abs(streamed[1][1].permute(1, 2, 0).numpy() * 255 - crop).mean() < near + 1
    assert human_map(images, 0, PLAIN).shape == (224, 224) and map_source(images) == "ClickMe"


def test_read_tfrecords_by_hand(tmp_path):
    """Length, masked crc32c, payload, masked crc32c. RFC 3720: crc32c("123456789") = 0xE3069283."""

    def masked(crc):
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    assert masked_crc(b"123456789") == masked(0xE3069283)
    length = struct.pack("<Q", 9)
    (tmp_path / "a.tfrecords").write_bytes(
        2 * (length + masked_crc(length) + b"123456789" + masked(0xE3069283))
    )
    assert list(read_tfrecords(tmp_path / "a.tfrecords")) == [(0, b"123456789"), (25, b"123456789")]


@pytest.fixture
def shard(tmp_path, sample) -> Path:
    write_shard(tmp_path / "val-0.tfrecords", photographs(sample, 256), [1, 2, 3, 4])
    return tmp_path / "val-0.tfrecords"


@pytest.mark.parametrize("cut", [1, 4, 5, 2000, 17])
def test_a_truncated_shard_names_file_and_record(shard, cut):
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf"^{shard}: record 3 is cut off"):
        load_image_set("clickme", str(shard.parent))


@pytest.mark.parametrize("position", ["header", "payload"])
def test_a_damaged_shard_names_file_and_record(shard, position):
    content, second = bytearray(shard.read_bytes()), list(read_tfrecords(shard))[1][0]
    content[second + (3 if position == "header" else 400)] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{shard}: record 1 is damaged \(checksum"):
        load_image_set("clickme", str(shard.parent))


@pytest.mark.parametrize("label", [1000, -1])
def test_clickme_set_refuses_a_label_out_of_range(tmp_path, sample, label):
    write_shard(tmp_path / "val-0.tfrecords", photographs(sample, 256)[:2], [5, label])
    with pytest.raises(
        DataError, match=f"val-0.tfrecords: record 1 has label {label}, outside 0..999"
    ):
        load_image_set("clickme", str(tmp_path))


def test_clickme_set_refuses_other_records(tmp_path):
    odd = {"image": (b"x", "byte"), "heatmap": (b"x", "byte"), "label": (1, "int")}
    for record, message in (
        ({"image": (b"x", "byte")}, "no feature heatmap, label"),
        (odd, "neither JPEG nor float32"),
    ):
        writer = tfrecord.TFRecordWriter(str(tmp_path / "val-0.tfrecords"))
        writer.write(record)
        writer.close()
        with pytest.raises(DataError, match=message):
            next(stream_images(load_image_set("clickme", str(tmp_path)), PLAIN))


def test_clickme_set_keeps_an_image_with_a_map_of_zeros(tmp_path, sample):
    pairs = photographs(sample, 256)
    pairs[1] = (pairs[1][0], np.zeros((256, 256), np.uint8))
    write_shard(tmp_path / "val-0.tfrecords", pairs, [1, 2, 3, 4])
    images = load_image_set("clickme", str(tmp_path))
    assert len(images) == 4
    assert [human_map(images, i, PLAIN) is None for i in range(4)] == [False, True, False, False]


def test_clickme_set_refuses_two_splits_or_none(tmp_path, sample):
    with pytest.raises(DataError, match="no .tfrecords and no .pth files"):
        load_image_set("clickme", str(tmp_path))
    for split in ("train", "val"):
        write_shard(tmp_path / split / f"{split}-0.tfrecords", photographs(sample, 256)[:1], [1])
    with pytest.raises(DataError, match="files in 2 folders .*--data_dir DIR/val"):
        load_image_set("clickme", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "val-0.tfrecords").touch()
    with pytest.raises(DataError, match="no images"):
        load_image_set("clickme", str(tmp_path / "empty"))


def test_clickme_set_reads_pth_files(tmp_path, sample):
    pairs = photographs(sample, 256)
    for k, (image, heatmap) in enumerate(pairs):
        torch.save(
            {
                "image": torch.tensor(image).permute(2, 0, 1),
                "heatmap": torch.tensor(heatmap)[None],
                "label": 7 + k,
            },
            tmp_path / f"{k + 9}.pth",
        )
    images = load_image_set("clickme", str(tmp_path))
    assert images.ids == ("9", "10", "11", "12") and images.labels == (7, 8, 9, 10)
    found = clickme_sample(images, 2)
    assert (found.image == pairs[2][0]).all() and (found.heatmap == pairs[2][1]).all()
    whole = PLAIN | {"input_size": (3, 256, 256), "crop_pct": 1.0}
    assert torch.equal(
        next(stream_images(images.take([2]), whole))[1],
        torch.tensor(pairs[2][0]).permute(2, 0, 1) / 255,
    )


class Code:
    def __reduce__(self):
        return print, ("ran",)


def pth(image=(3, 8, 8), heatmap=(1, 8, 8), label=1, dtype=torch.uint8) -> dict:
    return {
        "image": torch.zeros(image, dtype=dtype),
        "heatmap": torch.zeros(heatmap, dtype=dtype),
        "label": label,
    }


@pytest.mark.parametrize(
    "loaded, message",
    [
        ({"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "label": 1}, "KeyError"),
        (pth(dtype=torch.float32), "not uint8"),
        (pth(heatmap=(1, 9, 8)), "not uint8"),
        (pth(image=(8, 8)), "not uint8"),
        (pth(label=1000), "label 1000"),
        (Code(), "UnpicklingError"),
        (b"", "EOFError|RuntimeError|UnpicklingError"),
    ],
)
def test_another_pth_is_refused_and_runs_nothing(tmp_path, loaded, message, capsys):
    path = tmp_path / "a.pth"
    if isinstance(loaded, bytes):
        path.write_bytes(loaded)
    else:
        torch.save(loaded, path)
    with pytest.raises(DataError, match=f"a.pth: .*({message})") as error:
        load_image_set("clickme", str(tmp_path))
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_harmonization_blur_is_a_plain_sum(sample):
    """TensorFlow's SAME correlation of a 64 x 64 map with the 10 x 10 kernel."""
    drawn = draw_ellipses([[0.4, 0.6, 0.2, 0.1, 0.0, 1.0]], 64, 64)
    x, y = np.arange(-5, 5), np.arange(4, -6, -1)
    kernel = np.exp(-(x[None] ** 2 + y[:, None] ** 2) / 200)
    expected = correlate(np.pad(drawn, 10), kernel / kernel.sum(), mode="constant", origin=-1)[
        10:-10, 10:-10
    ]
    np.testing.assert_allclose(harmonization_blur(drawn), expected, atol=1e-6)


def test_human_map_blurred_aligns_with_the_map(sample, lite0):
    plain, blurred = (human_map(sample, 0, lite0.preprocessing, blur=b) for b in (False, True))
    assert blurred.shape == (224, 224)
    near = zoom(zoom(plain, 1 / 14), 14)
    assert np.corrcoef(near.ravel(), blurred.ravel())[0, 1] > 0.85


# serre-lab/Harmonization's parse_clickme_prototype (TensorFlow 2.21) on `clicks(seed)`, every 32nd
# pixel of its map of 224 x 224 from (8, 8)
HARMONIZATION = {
    0: [
        [0.0, 9.734, 8.006, 12.883, 16.94, 0.0, 0.0],
        [6.245, 0.011, 3.826, 5.148, 3.143, 6.047, 0.0],
        [0.0, 7.825, 0.0, 6.194, 0.0, 0.0, 0.0],
        [9.835, 0.012, 0.0, 10.846, 7.544, 0.0, 0.0],
        [10.477, 0.003, 10.587, 18.999, 2.584, 11.73, 3.761],
        [0.0, 15.769, 13.547, 4.814, 1.606, 4.425, 4.606],
        [0.0, 0.547, 0.016, 5.12, 13.414, 0.0, 0.0],
    ],
    1: [
        [0.0, 5.701, 0.0, 0.0, 0.0, 0.0, 0.0],
        [9.837, 4.42, 0.0, 0.0, 0.0, 2.993, 20.218],
        [2.43, 13.95, 9.344, 11.345, 0.0, 11.853, 3.67],
        [0.0, 6.331, 15.599, 22.371, 5.9, 20.563, 1.034],
        [0.004, 0.0, 0.0, 0.0, 5.171, 2.555, 0.001],
        [7.876, 0.013, 8.12, 6.245, 0.0, 5.946, 0.405],
        [0.0, 8.292, 0.0, 0.0, 1.246, 21.229, 0.0],
    ],
}


def clicks(seed: int) -> np.ndarray:
    """25 clicks of 7 x 7 pixels, uint8 (256, 256)."""
    heatmap = np.zeros((256, 256), np.uint8)
    for x, y in np.random.default_rng(seed).integers(20, 236, (25, 2)):
        heatmap[y - 3 : y + 4, x - 3 : x + 4] = 255
    return heatmap


def test_a_blurred_map_is_harmonizations(tmp_path):
    """As its evaluation reads ClickMe before it divides by the ceiling."""
    black = np.zeros((256, 256, 3), np.uint8)
    pairs = [(black, clicks(seed)) for seed in HARMONIZATION]
    write_shard(tmp_path / "val" / "val-0.tfrecords", pairs, [7, 7])
    images = load_image_set("clickme", str(tmp_path / "val"))
    whole = PLAIN | {"crop_pct": 1.0}  # Harmonization does not crop
    for seed, expected in HARMONIZATION.items():
        ours = human_map(images, seed, whole, blur=True)[8::32, 8::32]
        np.testing.assert_allclose(ours, expected, atol=0.3)  # JPEG decoders differ
        plain = human_map(images, seed, whole)[8::32, 8::32]
        assert spearmanr(ours.ravel(), np.ravel(expected))[0] > 0.98
        assert spearmanr(plain.ravel(), np.ravel(expected))[0] < 0.7


def test_a_blurred_map_keeps_the_proportions_of_its_photograph(marked):
    images = marked(0.65, 0.7)  # 400 x 200 pixels
    peaks = []
    for blur in (False, True):
        drawn = human_map(images, 0, PLAIN, blur)
        y, x = np.indices(drawn.shape)
        peaks.append([(y * drawn).sum() / drawn.sum(), (x * drawn).sum() / drawn.sum()])
    assert np.abs(np.subtract(*peaks)).max() < 8  # a pixel of 64 is 6 of the 400's
