"""What people said of an image: where they look (ClickMe, the sample's drawings) and all the labels that fit (ReaL, ...).

A map goes through the resize and crop of its photograph, so that it lies over the image that the model sees.
"""
from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import RealLabelsImagenet, create_transform

from alignment_security.common import torch_files as checkpoints
from alignment_security.images.image_sets import DataError, ImageSet, checked_set, synsets
from alignment_security.records import run as records

SAMPLE_MAPS = Path(__file__).resolve().parents[2] / "lists" / "maps" / "sample_hand_drawn.json"
SHARD = re.compile(r"\.tfrecords?$")
JPEG_START = b"\xff\xd8"
RAW_SIDES = (224, 256)      # of the older float32 encodings
CLASSES = 1000
BLUR_SIDE, BLUR_KERNEL, BLUR_SIGMA = 64, 10, 10.0     # serre-lab/Harmonization, harmonization/common/blur.py


@dataclass(frozen=True)
class Sample:
    """One ClickMe image: uint8 (H, W, 3), where people clicked float32 (H, W), and its ImageNet class."""
    image: np.ndarray
    heatmap: np.ndarray
    label: int


# ---- TFRecord --------------------------------------------------------------------------------------------------

def records_of(path: Path) -> Iterator[tuple[int, bytes]]:
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
    if len(header) < 12 or (damaged := header[8:] != masked_crc(header[:8])) or offset + length + 16 > size:
        what = "is damaged (checksum of its length)" if len(header) == 12 and damaged else "is cut off"
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
        raise DataError(f"ClickMe's .tfrecords are read with the tfrecord package ({error}); pip install tfrecord") from None
    return tfrecord


def parse_example(payload: bytes, where: str) -> dict:
    """Features `image`, `heatmap` (bytes) and `label` (int) of a tf.Example. Raises DataError."""
    from google.protobuf.message import DecodeError

    try:
        feature = tfrecord_library().example_pb2.Example.FromString(payload).features.feature
        values = {"image": feature["image"].bytes_list.value, "heatmap": feature["heatmap"].bytes_list.value,
                  "label": feature["label"].int64_list.value}
    except DecodeError as error:
        raise DataError(f"{where} is no tf.Example ({error})") from None
    missing = [name for name, value in values.items() if len(value) != 1]
    if missing:
        raise DataError(f"{where} has no feature {', '.join(missing)}; ClickMe's records hold image, heatmap and label")
    return {name: value[0] for name, value in values.items()}


def decode(data: bytes, channels: int, where: str) -> np.ndarray:
    """A feature's bytes as uint8 (H, W, channels): JPEG, or raw float32 of 224 or 256 pixels, in [0, 255] or [0, 1]."""
    if data.startswith(JPEG_START):
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{where} cannot be decoded ({error})") from None
        return np.asarray(image).reshape(image.height, image.width, channels)
    side = next((s for s in RAW_SIDES if len(data) == 4 * s * s * channels), None)
    if side is None:
        raise DataError(f"{where} is neither JPEG nor float32 of 224 or 256 pixels a side ({len(data)} bytes)")
    values = np.frombuffer(data, "<f4").reshape(side, side, channels)
    if not np.isfinite(values).all() or values.min() < 0 or (channels == 3 and values.max() > 255):
        raise DataError(f"{where} holds values outside [0, 255] ({values.min():.3g} to {values.max():.3g})")
    if channels == 1:
        return values
    return (values * (255 if values.max() <= 1 else 1)).round().astype(np.uint8)


# ---- ClickMe ---------------------------------------------------------------------------------------------------

def natural(path: Path) -> list:
    """Sort key that puts val-2 before val-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def clickme_set(root: Path) -> ImageSet:
    """ClickMe (Linsley et al. 2019; Fel et al. 2022) from TFRecord shards, or from one .pth file an image.

    Every record is read once: a damaged one, or a label outside 0..999, is an error before anything is evaluated.
    image_id is the shard's name and the record's number in it (`val-3-00017`), or the .pth file's name.
    """
    shards = sorted((p for p in root.rglob("*") if p.is_file() and SHARD.search(p.name)), key=natural)
    files = sorted(root.rglob("*.pth"), key=natural)
    folders = sorted({p.parent for p in shards or files})
    if len(folders) != 1:
        what = "no .tfrecords and no .pth files" if not folders else f"files in {len(folders)} folders ({folders[0]}, ...)"
        raise DataError(f"{root}: {what}; give one folder of ClickMe, e.g. --data_dir DIR/val")
    rows = [row for p in shards for row in shard_rows(p)] if shards else [(p.stem, p, 0, read_pth(p).label) for p in files]
    ids, paths, offsets, labels = zip(*rows) if rows else ((), (), (), ())
    return checked_set("clickme", ids, paths, labels, CLASSES, offsets=offsets)


def shard_rows(path: Path) -> Iterator[tuple[str, Path, int, int]]:
    """(image_id, path, offset, label) of each record."""
    name = SHARD.sub("", path.name)
    for number, (offset, payload) in enumerate(records_of(path)):
        label = parse_example(payload, f"{path}: record {number}")["label"]
        if not 0 <= label < CLASSES:
            raise DataError(f"{path}: record {number} has label {label}, outside 0..{CLASSES - 1}")
        yield f"{name}-{number:05d}", path, offset, label


def read_pth(path: Path) -> Sample:
    """A dict of uint8 `image` (3, H, W), uint8 `heatmap` (1, H, W) and `label`. No code in the file is run."""
    try:
        loaded = checkpoints.load(path)
        image, heatmap, label = (torch.as_tensor(loaded[name]) for name in ("image", "heatmap", "label"))
    except (*checkpoints.UNREADABLE, IndexError) as error:
        raise DataError(f"{path}: no ClickMe sample with image, heatmap and label ({checkpoints.reason(error)})") from None
    right_shapes = image.ndim == heatmap.ndim == 3 and image.shape == (3, *heatmap.shape[1:]) and len(heatmap) == 1
    if (image.dtype, heatmap.dtype) != (torch.uint8, torch.uint8) or not right_shapes:
        raise DataError(f"{path}: image {image.dtype} {tuple(image.shape)} and heatmap {heatmap.dtype} {tuple(heatmap.shape)}, "
                        "not uint8 (3, H, W) and (1, H, W)")
    if not 0 <= int(label) < CLASSES:
        raise DataError(f"{path}: label {int(label)} is outside 0..{CLASSES - 1}")
    return Sample(image.permute(1, 2, 0).numpy(), heatmap[0].float().numpy(), int(label))


def is_clickme(images: ImageSet) -> bool:
    return bool(images.offsets)


def clickme_sample(images: ImageSet, i: int) -> Sample:
    """Image i of a ClickMe set, read from its place in the file."""
    path = images.paths[i]
    if path.suffix == ".pth":
        return read_pth(path)
    where = f"{path}: {images.ids[i]}"
    with open(path, "rb") as file:
        example = parse_example(read_payload(file, images.offsets[i], path.stat().st_size, where), where)
    return Sample(decode(example["image"], 3, f"{where}: its image"),
                  decode(example["heatmap"], 1, f"{where}: its heat map")[..., 0].astype(np.float32), example["label"])


def clickme_image(images: ImageSet, i: int) -> Image.Image:
    return Image.fromarray(clickme_sample(images, i).image)


# ---- maps ------------------------------------------------------------------------------------------------------

@cache
def drawings() -> dict[str, list[list[float]]]:
    """Ellipses of each photograph of `sample`. Hand-drawn for this project; not ClickMe and not from participants."""
    return json.loads(SAMPLE_MAPS.read_text())["maps"]


def draw_ellipses(ellipses: list[list[float]], height: int, width: int) -> np.ndarray:
    """Maximum over ellipses of weight * exp(-2 ((u/rx)^2 + (v/ry)^2)), float32 (height, width).

    ellipses   [cx, cy, rx, ry, angle in degrees, weight], in fractions of the width (x) and height (y)
    """
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    x, y, drawn = x[None, :], y[:, None], np.zeros((height, width))
    for cx, cy, rx, ry, angle, weight in ellipses:
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        u, v = c * (x - cx) + s * (y - cy), -s * (x - cx) + c * (y - cy)
        drawn = np.maximum(drawn, weight * np.exp(-2 * ((u / rx) ** 2 + (v / ry) ** 2)))
    return drawn.astype(np.float32)


def map_source(images: ImageSet) -> str | None:
    """What the maps of a set are, for the run file; None for a set without."""
    if is_clickme(images):
        return "ClickMe"
    return f"hand-drawn, sha256 {records.sha256_file(SAMPLE_MAPS)[:12]}" if images.name == "sample" else None


def map_as_drawn(images: ImageSet, i: int) -> np.ndarray | None:
    """Where people look in image i, float32 (H, W) at the photograph's own size; None where there is no map."""
    if is_clickme(images):
        return clickme_sample(images, i).heatmap
    ellipses = drawings().get(images.ids[i]) if images.name == "sample" else None
    if ellipses is None:
        return None
    with Image.open(images.paths[i]) as image:
        return draw_ellipses(ellipses, image.height, image.width)


def human_map(images: ImageSet, i: int, preprocessing: dict, blur: bool = False) -> np.ndarray | None:
    """The map of image i over the pixels that the model sees, float32 (H, W), or None: no map, or one of zeros.

    preprocessing   of the model: the same size, crop and crop mode as the photograph goes through, always bilinear
    blur            Harmonization's reading before that (serre-lab/Harmonization, common/clickme_dataset.py): to 64 x 64,
                    a Gaussian of 10 x 10 pixels (sigma 10)
    """
    drawn = map_as_drawn(images, i)
    if drawn is None or not drawn.any():
        return None
    size = preprocessing["input_size"]
    geometry = preprocessing | {"interpolation": "bilinear"} | ({"crop_pct": 1.0} if images.cropped else {})
    transform = create_transform(**geometry, is_training=False, normalize=False, mean=(0.0,))    # 0 where `border` pads
    seen = transform(Image.fromarray(harmonized(drawn) if blur else drawn))[0].numpy()
    assert seen.shape == tuple(size[1:])
    return seen if seen.any() else None


def harmonized(drawn: np.ndarray) -> np.ndarray:
    """A map (H, W) at 64 x 64 after Harmonization's blur: an even kernel, offsets -5..4, padded with zeros as in
    TensorFlow (4 before, 5 after). tf.image.resize does not antialias, nor does this.
    """
    side = torch.from_numpy(drawn)[None, None]
    small = torch.nn.functional.interpolate(side, size=(BLUR_SIDE, BLUR_SIDE), mode="bilinear", align_corners=False)
    at = torch.arange(BLUR_KERNEL, dtype=torch.float32) - BLUR_KERNEL // 2
    line = torch.exp(-at ** 2 / (2 * BLUR_SIGMA ** 2))
    kernel = torch.outer(line.flip(0), line)    # rows count down from 4 in the source, columns up from -5
    padded = torch.nn.functional.pad(small, ((BLUR_KERNEL - 1) // 2, BLUR_KERNEL // 2) * 2)
    return torch.nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])[0, 0].numpy()


def count_without_map(images: ImageSet) -> int:
    """How many images of a set with maps have none, or one of zeros."""
    return sum(drawn is None or not drawn.any() for drawn in (map_as_drawn(images, i) for i in range(len(images))))


# ---- labels that fit besides the one of ImageNet ---------------------------------------------------------------

@cache
def real_labels() -> dict[str, list[int]]:
    """ReaL (Beyer et al. 2020), as timm ships it: validation file name -> every class that fits; some have none."""
    return RealLabelsImagenet([""] * 50_000).real_labels


def real_correct(file_name: str, pred: int) -> int | None:
    """Whether a class is among the ReaL labels of an ImageNet validation image; None where there are none."""
    labels = real_labels().get(PurePath(file_name).name)
    return int(pred in labels) if labels else None


@cache
def read_multilabels(path: Path) -> dict[str, frozenset[int]]:
    """Validation file name -> every class that people accept, from human_accuracy_v3.0.0.json (Shankar et al. 2020, with
    the corrections of Vasudevan et al. 2022).

    Format: tensorflow/datasets, imagenet2012_multilabel; and its rule: labels marked correct or unclear are accepted,
    problematic images and images of other sets do not count. Accuracy is then the mean over classes.
    Raises DataError; a pickle (the first release) is refused, for reading it would run the code inside it.
    """
    try:
        loaded = json.loads(Path(path).read_text())
        index = {synset: k for k, synset in enumerate(synsets())}
        return {name: frozenset(index[s] for mark in ("correct", "unclear") for s in marks.get(mark, []))
                for name, marks in loaded["initial_annots"].items()
                if name.startswith("ILSVRC2012_val_") and name not in loaded["problematic_images"]}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not human_accuracy_v3.0.0.json ({type(error).__name__}: {str(error)[:80]}); the pickle of "
                        "the first release is not read") from None


def multilabel_correct(labels: dict[str, frozenset[int]], file_name: str, pred: int) -> int | None:
    """Whether people accept that class for that image; None where they were not asked."""
    accepted = labels.get(PurePath(file_name).name)
    return None if accepted is None else int(pred in accepted)
