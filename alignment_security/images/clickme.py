"""Read ClickMe: images, heat maps and labels from TFRecord shards or from .pth files.

ClickMe: Linsley et al. 2019; the data set as published by Fel et al. 2022.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from alignment_security.common.file_kinds import foreign_kind
from alignment_security.common.files import reading
from alignment_security.common.folders import left_by_tools_note, list_files, not_wanted_note
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.images.decoding import decode_image
from alignment_security.images.image_sets import DataError, ImageSet, checked_set

PAIR_LIST = "big12.txt"  # that dataloading.py clickme_big12 writes beside pairs
SHARD = re.compile(r"\.tfrecords?$")
# a record of a TFRecord file: length, its checksum, payload, its checksum
LENGTH_BYTES, CHECKSUM_BYTES = 8, 4
HEADER_BYTES = LENGTH_BYTES + CHECKSUM_BYTES
FRAME_BYTES = HEADER_BYTES + CHECKSUM_BYTES  # of a record besides its payload
JPEG_START = b"\xff\xd8"
RAW_SIDES = (224, 256)  # pixels; ClickMe's older float32 encodings
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ClickMeSample:
    """One ClickMe image.

    image     uint8 (H, W, 3)
    heatmap   float32 (H, W), where people clicked
    label     ImageNet class, 0-based
    """

    image: np.ndarray
    heatmap: np.ndarray
    label: int


# ---- TFRecord ------------------------------------------------------------------------------------


def read_tfrecords(path: Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, payload) of each record of a TFRecord file; one payload is in memory at a time.

    A record is its length (uint64, little endian), the masked crc32c of the length, the payload,
    and the masked crc32c of the payload. Raises DataError, naming file and record, for a record
    that is truncated or damaged.
    """
    size = path.stat().st_size
    offset, number = 0, 0
    with reading(path), open(path, "rb") as file:
        while offset < size:
            payload = read_payload(file, offset, size, f"{path}: record {number}")
            yield offset, payload
            offset += FRAME_BYTES + len(payload)
            number += 1


def read_payload(file: BinaryIO, offset: int, size: int, where: str) -> bytes:
    """The payload of the record at `offset` of a file of `size` bytes, with checksums verified.

    Raises DataError, starting with `where`, for a record that is truncated or damaged.
    """
    file.seek(offset)
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise _record_error(where, "is cut off")
    encoded_length, checksum = header[:LENGTH_BYTES], header[LENGTH_BYTES:]
    if checksum != masked_crc(encoded_length):
        raise _record_error(where, "is damaged (checksum of its length)")
    length = int.from_bytes(encoded_length, "little")
    if offset + FRAME_BYTES + length > size:
        raise _record_error(where, "is cut off")
    payload, checksum = file.read(length), file.read(CHECKSUM_BYTES)
    if checksum != masked_crc(payload):
        raise _record_error(where, "is damaged (checksum)")
    return payload


def _record_error(where: str, problem: str) -> DataError:
    return DataError(f"{where} {problem}; download the file again")


def masked_crc(data: bytes) -> bytes:
    """TFRecord's masked crc32c of `data`, 4 bytes, little endian."""
    return tfrecord_library().TFRecordWriter.masked_crc(data)


def tfrecord_library():
    """The tfrecord package. Raises DataError with the command that installs it.

    The package's own reader verifies no checksums; read_tfrecords does.
    """
    try:
        import tfrecord
    except ImportError as error:
        raise DataError(
            f"the tfrecord package reads ClickMe's .tfrecords ({error}); pip install tfrecord"
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
            f"{where} has no feature {', '.join(missing)}; ClickMe's records hold image, heatmap "
            "and label"
        )
    return {name: value[0] for name, value in values.items()}


def decode_feature(data: bytes, channels: int, where: str) -> np.ndarray:
    """A feature as (H, W, channels), from JPEG or from raw float32 of 224 or 256 pixels a side.

    Images (3 channels) are uint8; raw values may be in [0, 255] or in [0, 1]. Heat maps (1 channel)
    keep the type and range of the file. Raises DataError.
    """
    if data.startswith(JPEG_START):
        return _decode_jpeg(data, channels, where)
    values = _decode_float32(data, channels, where)
    if channels == 1:
        return values
    levels = values * 255 if values.max() <= 1 else values
    return levels.round().astype(np.uint8)


def _decode_jpeg(data: bytes, channels: int, where: str) -> np.ndarray:
    """uint8 (H, W, channels)."""
    image = decode_image(io.BytesIO(data), where).convert("RGB" if channels == 3 else "L")
    return np.asarray(image).reshape(image.height, image.width, channels)


def _decode_float32(data: bytes, channels: int, where: str) -> np.ndarray:
    """float32 (side, side, channels), values as in the file."""
    side_of = {FLOAT32_BYTES * side * side * channels: side for side in RAW_SIDES}
    side = side_of.get(len(data))
    if side is None:
        raise DataError(
            f"{where} is neither JPEG nor float32 of 224 or 256 pixels a side ({len(data)} bytes)"
        )
    values = np.frombuffer(data, "<f4").reshape(side, side, channels)
    if not np.isfinite(values).all() or values.min() < 0 or (channels == 3 and values.max() > 255):
        raise DataError(
            f"{where} holds values outside [0, 255] ({values.min():.3g} to {values.max():.3g})"
        )
    return values


# ---- .pth ----------------------------------------------------------------------------------------


def read_pth(path: Path) -> ClickMeSample:
    """A dict of uint8 `image` (3, H, W), uint8 `heatmap` (1, H, W) and `label`.

    No code in the file runs. Raises DataError for another content.
    """
    check_kind(path)
    try:
        loaded = load_torch_file(path)
        image, heatmap, label = (
            torch.as_tensor(loaded[name]) for name in ("image", "heatmap", "label")
        )
    except (*TORCH_FILE_ERRORS, IndexError) as error:
        raise DataError(
            f"{path}: no ClickMe sample with image, heatmap and label ({error_reason(error)})"
        ) from None
    right_types = image.dtype == heatmap.dtype == torch.uint8
    right_shapes = (
        image.ndim == heatmap.ndim == 3
        and image.shape == (3, *heatmap.shape[1:])
        and len(heatmap) == 1
    )
    if not right_types or not right_shapes:
        raise DataError(
            f"{path}: image {image.dtype} {tuple(image.shape)} and heatmap {heatmap.dtype} "
            f"{tuple(heatmap.shape)}, not uint8 (3, H, W) and (1, H, W)"
        )
    if not 0 <= int(label) < IMAGENET_CLASSES:
        raise DataError(f"{path}: label {int(label)} is outside 0..{IMAGENET_CLASSES - 1}")
    return ClickMeSample(image.permute(1, 2, 0).numpy(), heatmap[0].float().numpy(), int(label))


# ---- ClickMe as an image set ---------------------------------------------------------------------


def is_clickme_file(path: Path) -> bool:
    """Whether a file has an ending of ClickMe's, .tfrecord, .tfrecords or .pth."""
    return bool(SHARD.search(path.name)) or path.suffix == ".pth"


def natural_order(path: Path) -> list:
    """Sort key that puts val-2 before val-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def clickme_set(root: Path) -> ImageSet:
    """ClickMe from TFRecord shards, or from .pth files with one image each.

    Every record is read once, so a damaged one, or a label outside 0..999, is an error before
    anything is evaluated. image_id is the shard's name and the record's number in it
    (`val-3-00017`), or the .pth file's name. Raises DataError.
    """
    listing = list_files(root, lambda path: bool(SHARD.search(path.name)))
    shards = sorted(listing.files, key=natural_order)
    files = sorted((path for path in listing.others if path.suffix == ".pth"), key=natural_order)
    taken = {*(shards or files), root / PAIR_LIST}
    others = [path for path in [*listing.files, *listing.others] if path not in taken]
    _check_one_folder(root, shards or files)
    if shards:
        rows = [row for shard in shards for row in shard_rows(shard)]
    else:
        rows = [(path.stem, path, 0, read_pth(path).label) for path in files]
    return checked_set(
        "clickme",
        [(image_id, path, label) for image_id, path, _, label in rows],
        offsets=tuple(offset for _, _, offset, _ in rows),
        notes=(
            *left_by_tools_note(root, listing.by_tools),
            *not_wanted_note(root, others, "shard of ClickMe"),
        ),
    )


def _check_one_folder(root: Path, files: list[Path]) -> None:
    """Raise DataError unless the files are in one folder: train and val must not be mixed."""
    folders = sorted({path.parent for path in files})
    if len(folders) == 1:
        return
    if folders:
        found = f"files in {len(folders)} folders ({folders[0]}, ...)"
    else:
        found = "no .tfrecords and no .pth files"
    raise DataError(f"{root}: {found}; give one folder of ClickMe, e.g. --data_dir DIR/val")


def shard_rows(path: Path) -> Iterator[tuple[str, Path, int, int]]:
    """(image_id, path, byte offset, label) of each record of a shard. Raises DataError."""
    name = SHARD.sub("", path.name)
    check_kind(path)
    for number, (offset, payload) in enumerate(read_tfrecords(path)):
        label = parse_example(payload, f"{path}: record {number}")["label"]
        if not 0 <= label < IMAGENET_CLASSES:
            raise DataError(
                f"{path}: record {number} has label {label}, outside 0..{IMAGENET_CLASSES - 1}"
            )
        yield f"{name}-{number:05d}", path, offset, label


def check_kind(path: Path) -> None:
    """Raise DataError for a whole file of another kind, such as a Git LFS pointer."""
    kind = foreign_kind(path) if path.stat().st_size else None
    if kind is not None:
        raise DataError(f"{path}: no file of ClickMe but {kind}")


def is_clickme(images: ImageSet) -> bool:
    """Whether the images, and with them heat maps, come from ClickMe's files."""
    return bool(images.offsets)


def clickme_sample(images: ImageSet, i: int) -> ClickMeSample:
    """Image i of a ClickMe set, read from its file. Raises DataError."""
    path = images.paths[i]
    if path.suffix == ".pth":
        return read_pth(path)
    where = f"{path}: {images.ids[i]}"
    with reading(path), open(path, "rb") as file:
        payload = read_payload(file, images.offsets[i], path.stat().st_size, where)
    example = parse_example(payload, where)
    heatmap = decode_feature(example["heatmap"], 1, f"{where}: its heat map")
    return ClickMeSample(
        image=decode_feature(example["image"], 3, f"{where}: its image"),
        heatmap=heatmap[..., 0].astype(np.float32),
        label=example["label"],
    )
