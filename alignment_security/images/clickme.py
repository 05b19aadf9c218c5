"""alignment_security.images.clickme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.images.image_sets import DataError, ImageSet, checked_set

SHARD = re.compile(r"\.tfrecords?$")
JPEG_START = b"\xff\xd8"
RAW_SIDES = (224, 256)  # of the older float32 encodings
CLASSES = 1000


@dataclass(frozen=True)
class ClickMeSample:
    """One ClickMe image: uint8 (H, W, 3), where people clicked float32 (H, W), and its ImageNet class."""

    image: np.ndarray
    heatmap: np.ndarray
    label: int


# ---- TFRecord --------------------------------------------------------------------------------------------------


def read_tfrecords(path: Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, payload) of each record of a TFRecord file; one payload is in memory.

    A record is its length (uint64, little endian), the length's masked crc32c, the payload, and the payload's.
    Raises DataError naming the file and the record for one that is cut off or damaged.
    """
    with open(path, "rb") as file:
        offset, number, size = 0, 0, path.stat().st_size
        while offset < size:
            payload = read_payload(file, offset, size, f"{path}: record {number}")
            yield offset, payload
            offset, number = offset + len(payload) + 16, number + 1


def read_payload(file, offset: int, size: int, where: str) -> bytes:
    file.seek(offset)
    header = file.read(12)
    length = int.from_bytes(header[:8], "little")
    if (
        len(header) < 12
        or (damaged := header[8:] != masked_crc(header[:8]))
        or offset + length + 16 > size
    ):
        what = (
            "is damaged (checksum of its length)" if len(header) == 12 and damaged else "is cut off"
        )
        raise DataError(f"{where} {what}; download the file again")
    payload, checksum = file.read(length), file.read(4)
    if checksum != masked_crc(payload):
        raise DataError(f"{where} is damaged (checksum); download the file again")
    return payload


def masked_crc(data: bytes) -> bytes:
    return tfrecord_library().TFRecordWriter.masked_crc(data)


def tfrecord_library():
    """The tfrecord package, or a DataError that says how to get it. Its own reader checks no checksum: records_of does."""
    try:
        import tfrecord
    except ImportError as error:
        raise DataError(
            f"ClickMe's .tfrecords are read with the tfrecord package ({error}); pip install tfrecord"
        ) from None
    return tfrecord


def parse_example(payload: bytes, where: str) -> dict:
    """Features `image`, `heatmap` (bytes) and `label` (int) of a tf.Example. Raises DataError."""
    from google.protobuf.message import DecodeError

    try:
        feature = tfrecord_library().example_pb2.Example.FromString(payload).features.feature
        values = {
            "image": feature["image"].bytes_list.value,
            "heatmap": feature["heatmap"].bytes_list.value,
            "label": feature["label"].int64_list.value,
        }
    except DecodeError as error:
        raise DataError(f"{where} is no tf.Example ({error})") from None
    missing = [name for name, value in values.items() if len(value) != 1]
    if missing:
        raise DataError(
            f"{where} has no feature {', '.join(missing)}; ClickMe's records hold image, heatmap and label"
        )
    return {name: value[0] for name, value in values.items()}


def decode_feature(data: bytes, channels: int, where: str) -> np.ndarray:
    """A feature's bytes as uint8 (H, W, channels): JPEG, or raw float32 of 224 or 256 pixels, in [0, 255] or [0, 1]."""
    if data.startswith(JPEG_START):
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{where} cannot be decoded ({error})") from None
        return np.asarray(image).reshape(image.height, image.width, channels)
    side = next((s for s in RAW_SIDES if len(data) == 4 * s * s * channels), None)
    if side is None:
        raise DataError(
            f"{where} is neither JPEG nor float32 of 224 or 256 pixels a side ({len(data)} bytes)"
        )
    values = np.frombuffer(data, "<f4").reshape(side, side, channels)
    if not np.isfinite(values).all() or values.min() < 0 or (channels == 3 and values.max() > 255):
        raise DataError(
            f"{where} holds values outside [0, 255] ({values.min():.3g} to {values.max():.3g})"
        )
    if channels == 1:
        return values
    return (values * (255 if values.max() <= 1 else 1)).round().astype(np.uint8)


# ---- ClickMe ---------------------------------------------------------------------------------------------------


def natural_order(path: Path) -> list:
    """Sort key that puts val-2 before val-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def clickme_set(root: Path) -> ImageSet:
    """ClickMe (Linsley et al. 2019; Fel et al. 2022) from TFRecord shards, or from one .pth file an image.

    Every record is read once: a damaged one, or a label outside 0..999, is an error before anything is evaluated.
    image_id is the shard's name and the record's number in it (`val-3-00017`), or the .pth file's name.
    """
    shards = sorted(
        (p for p in root.rglob("*") if p.is_file() and SHARD.search(p.name)), key=natural_order
    )
    files = sorted(root.rglob("*.pth"), key=natural_order)
    folders = sorted({p.parent for p in shards or files})
    if len(folders) != 1:
        what = (
            "no .tfrecords and no .pth files"
            if not folders
            else f"files in {len(folders)} folders ({folders[0]}, ...)"
        )
        raise DataError(f"{root}: {what}; give one folder of ClickMe, e.g. --data_dir DIR/val")
    rows = (
        [row for p in shards for row in shard_rows(p)]
        if shards
        else [(p.stem, p, 0, read_pth(p).label) for p in files]
    )
    ids, paths, offsets, labels = zip(*rows) if rows else ((), (), (), ())
    return checked_set("clickme", ids, paths, labels, CLASSES, offsets=offsets)


def shard_rows(path: Path) -> Iterator[tuple[str, Path, int, int]]:
    """(image_id, path, offset, label) of each record."""
    name = SHARD.sub("", path.name)
    for number, (offset, payload) in enumerate(read_tfrecords(path)):
        label = parse_example(payload, f"{path}: record {number}")["label"]
        if not 0 <= label < CLASSES:
            raise DataError(f"{path}: record {number} has label {label}, outside 0..{CLASSES - 1}")
        yield f"{name}-{number:05d}", path, offset, label


def read_pth(path: Path) -> ClickMeSample:
    """A dict of uint8 `image` (3, H, W), uint8 `heatmap` (1, H, W) and `label`. No code in the file is run."""
    try:
        loaded = load_torch_file(path)
        image, heatmap, label = (
            torch.as_tensor(loaded[name]) for name in ("image", "heatmap", "label")
        )
    except (*TORCH_FILE_ERRORS, IndexError) as error:
        raise DataError(
            f"{path}: no ClickMe sample with image, heatmap and label ({error_reason(error)})"
        ) from None
    right_shapes = (
        image.ndim == heatmap.ndim == 3
        and image.shape == (3, *heatmap.shape[1:])
        and len(heatmap) == 1
    )
    if (image.dtype, heatmap.dtype) != (torch.uint8, torch.uint8) or not right_shapes:
        raise DataError(
            f"{path}: image {image.dtype} {tuple(image.shape)} and heatmap {heatmap.dtype} {tuple(heatmap.shape)}, "
            "not uint8 (3, H, W) and (1, H, W)"
        )
    if not 0 <= int(label) < CLASSES:
        raise DataError(f"{path}: label {int(label)} is outside 0..{CLASSES - 1}")
    return ClickMeSample(image.permute(1, 2, 0).numpy(), heatmap[0].float().numpy(), int(label))


def is_clickme(images: ImageSet) -> bool:
    return bool(images.offsets)


def clickme_sample(images: ImageSet, i: int) -> ClickMeSample:
    """Image i of a ClickMe set, read from its place in the file."""
    path = images.paths[i]
    if path.suffix == ".pth":
        return read_pth(path)
    where = f"{path}: {images.ids[i]}"
    with open(path, "rb") as file:
        example = parse_example(
            read_payload(file, images.offsets[i], path.stat().st_size, where), where
        )
    return ClickMeSample(
        decode_feature(example["image"], 3, f"{where}: its image"),
        decode_feature(example["heatmap"], 1, f"{where}: its heat map")[..., 0].astype(np.float32),
        example["label"],
    )


def clickme_image(images: ImageSet, i: int) -> Image.Image:
    return Image.fromarray(clickme_sample(images, i).image)
