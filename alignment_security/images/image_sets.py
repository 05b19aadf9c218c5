"""Image sets: which images, where they lie, in which order, with which labels. Nothing here decodes a pixel.

sample           the 20 ImageNet photographs inside the foolbox wheel; needs nothing
imagenet-val     1000 synset folders, or the flat official folder with its ground-truth file
big12            960 of its images: 12 superclasses x 20 classes x 4, listed in lists/images/big12.txt
imagenet-c       DIR/<type>/<severity>/<synset>/
tiny-imagenet-c  the same with 200 synsets: answers are restricted to those classes
any other name   an ImageFolder: synset folders, or as many classes as the model has outputs
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.settings import ROOT, setting

IMAGE_LISTS = ROOT / "lists" / "images"
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
SLICE_SEED = 42  # the permutation behind -s, as in the first paper's scripts
GROUND_TRUTH_FILES = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")


class DataError(UserError):
    """An image set or image that cannot be used; the message names the file or folder and what mends it."""


@dataclass(frozen=True)
class Corruption:
    """What was done to every image. `source` is `folder` (as published), or the package that does it while loading."""

    type: str
    severity: int
    source: str = "folder"
    seed: int = 0


@dataclass(frozen=True)
class ImageSet:
    """An ordered list of images. `labels` are class indices, 0-based, below `n_classes`."""

    name: str
    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    n_classes: int = 1000
    groups: tuple[str, ...] = ()  # superclass of each image; empty where the set has none
    offsets: tuple[
        int, ...
    ] = ()  # byte offset of each image's record in its file (TFRecord shards)
    restrict_to: tuple[int, ...] = ()  # the classes an answer may have; empty: all
    corruption: Corruption | None = None
    cropped: bool = (
        False  # the images are the crop that is judged already: nothing is cut off again
    )
    slice: tuple[int, int | None] | None = None  # of a larger list, as take_slice made it

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def list_sha256(self) -> str:
        """sha256 of the list's lines `image_id label`, in order."""
        lines = "".join(f"{name} {label}\n" for name, label in zip(self.ids, self.labels))
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def position(self, image_id: str) -> int:
        """Where an image is in the list."""
        return self._positions[image_id]

    def contents_sha256(self) -> str:
        """sha256 over the sha256 of every file, in list order: equal exactly where the bytes are."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.paths):
            digest.update(sha256_file(path).encode())
        return digest.hexdigest()

    @property
    def facts(self) -> dict:
        """What of this set changes a verdict beyond its list: for the run file, empty for plain sets."""
        found: dict = {}
        if self.corruption:
            found["corruption"] = vars(self.corruption).copy()
        if self.restrict_to:
            found["restricted_to"] = len(self.restrict_to)
        if self.cropped:
            found["crop_pct"] = 1.0
        return found

    def take(self, rows) -> ImageSet:
        """The images at these positions, in that order."""
        rows = list(rows)
        per_image: dict = {
            field: tuple(values[i] for i in rows)
            for field in ("ids", "paths", "labels", "groups", "offsets")
            if (values := getattr(self, field))
        }
        return replace(self, **per_image)


def take_slice(images: ImageSet, start: int, stop: int | None) -> ImageSet:
    """images[perm[start:stop]] with numpy's permutation of a fixed seed (42), kept in list order: a fair sample."""
    if not 0 <= start < (len(images) if stop is None else stop):
        raise DataError(f"-s {start} {stop}: takes no image; {images.name} has {len(images)}")
    rows = np.random.default_rng(SLICE_SEED).permutation(len(images))[start:stop]
    if not len(rows):
        raise DataError(f"-s {start} {stop}: takes no image; {images.name} has {len(images)}")
    return replace(images.take(sorted(rows.tolist())), slice=(start, stop))


# ---- lists -----------------------------------------------------------------------------------------------------


def read_image_list(path: Path) -> list[tuple[str, int]]:
    """Lines `image_id label ...` of a committed list; `#` starts a comment."""
    return [(fields[0], int(fields[1])) for fields in read_list_fields(path)]


def read_list_fields(path: Path) -> list[list[str]]:
    return [
        fields for line in path.read_text().splitlines() if (fields := line.split("#")[0].split())
    ]


def checked_set(name: str, ids, paths, labels, n_classes: int = 1000, **more) -> ImageSet:
    """An ImageSet whose ids are distinct, whose files are there and whose labels are in range."""
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: missing ({len(missing)} of {len(paths)} images of {name!r}); restore the folder"
        )
    twice = sorted(i for i, count in Counter(ids).items() if count > 1)
    if twice:
        raise DataError(f"{name}: {len(twice)} image(s) listed twice, e.g. {twice[0]}")
    wrong = [(i, y) for i, y in zip(ids, labels) if not 0 <= y < n_classes]
    if wrong:
        raise DataError(
            f"{name}: label {wrong[0][1]} of {wrong[0][0]} is outside 0..{n_classes - 1}"
        )
    if not ids:
        raise DataError(f"{name}: no images in the folder")
    return ImageSet(
        name, tuple(ids), tuple(paths), tuple(int(y) for y in labels), n_classes, **more
    )


def existing_folder(name: str, data_dir: str | Path | None) -> Path:
    if not data_dir:
        raise DataError(
            f"{name}: needs --data_dir DIR, or its folder in .env (IMAGENET_DIR, CLICKME_DIR, IMAGENET_C_DIR, "
            "TINY_IMAGENET_C_DIR); the only set that comes along is `sample`"
        )
    if not Path(data_dir).is_dir():
        raise DataError(
            f"{data_dir}: no such folder; --data_dir has to be the folder that holds the images of {name!r}"
        )
    return Path(data_dir)


def synsets() -> list[str]:
    """The 1000 ImageNet synsets in the order of the logits, as timm ships them."""
    return ImageNetInfo("imagenet-1k").label_names()


def image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)


def sample_set() -> ImageSet:
    """The 20 photographs of the foolbox wheel, in the order of the committed list (labels as in their file names)."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "sample: its photographs are inside the foolbox package; pip install foolbox"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    rows = read_list_fields(IMAGE_LISTS / "sample.txt")
    images = checked_set(
        "sample", [r[0] for r in rows], [folder / r[0] for r in rows], [int(r[1]) for r in rows]
    )
    for path, (_, _, sha256) in zip(images.paths, rows):
        if sha256_file(path) != sha256:
            raise DataError(
                f"{path}: not the photograph of the list (sha256 differs); reinstall foolbox"
            )
    return images


# ---- ImageNet --------------------------------------------------------------------------------------------------


def imagenet_set(root: Path) -> ImageSet:
    return (
        imagenet_folders(root) if any(p.is_dir() for p in root.iterdir()) else imagenet_flat(root)
    )


def imagenet_folders(root: Path, name: str = "imagenet-val") -> ImageSet:
    """ImageNet validation in 1000 synset folders; the folders have to be exactly timm's synsets."""
    want, have = synsets(), {p.name for p in root.iterdir() if p.is_dir()}
    missing, extra = [s for s in want if s not in have], sorted(have - set(want))
    if missing or extra:
        raise DataError(
            f"{root}: not the 1000 ImageNet folders: {len(missing)} missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(extra)} unknown ({', '.join(extra[:3]) or '-'}); a subset goes under another --dataset name"
        )
    files = [
        (path, label) for label, synset in enumerate(want) for path in image_files(root / synset)
    ]
    filled = {label for _, label in files}
    empty = [s for label, s in enumerate(want) if label not in filled]
    if empty:
        raise DataError(
            f"{root / empty[0]}: no images ({len(empty)} empty synset folders); copy the set again"
        )
    files.sort(key=lambda row: row[0].name)
    return checked_set(
        name, [p.name for p, _ in files], [p for p, _ in files], [y for _, y in files]
    )


def imagenet_flat(root: Path) -> ImageSet:
    """The official flat folder; labels from the ground-truth file beside the images or one folder up."""
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in IMAGE_ENDINGS]
    found = [d / f for d in (root, root.parent) for f in GROUND_TRUTH_FILES if (d / f).is_file()]
    if not found:
        raise DataError(
            f"{root}: a flat folder needs its labels: put one of {', '.join(GROUND_TRUTH_FILES)} into it or "
            "beside it, or sort the images into the 1000 synset folders"
        )
    label_of = read_ground_truth(found[0], [p.name for p in files])
    unknown = [p for p in files if p.name not in label_of]
    if unknown:
        raise DataError(
            f"{found[0]}: has no label for {unknown[0].name} ({len(unknown)} such images)"
        )
    known = dict(read_image_list(IMAGE_LISTS / "big12.txt"))
    wrong = [p.name for p in files if label_of[p.name] != known.get(p.name, label_of[p.name])]
    if wrong:
        raise DataError(
            f"{found[0]}: its classes are in another order than the logits: it gives {wrong[0]} class "
            f"{label_of[wrong[0]]}, ImageNet's is {known[wrong[0]]} ({len(wrong)} such images of big12.txt)"
        )
    return checked_set(
        "imagenet-val", [p.name for p in files], files, [label_of[p.name] for p in files]
    )


def read_ground_truth(path: Path, names: list[str]) -> dict[str, int]:
    """File name -> class index from Kaggle's solution file, Caffe's val.txt, or the devkit's file with its meta.mat."""
    index = {synset: i for i, synset in enumerate(synsets())}
    try:
        if path.suffix == ".csv":
            with open(path, newline="") as file:
                return {
                    row["ImageId"] + ".JPEG": index[row["PredictionString"].split()[0]]
                    for row in csv.DictReader(file)
                }
        lines = path.read_text().split()
        if path.name == "val.txt":
            return dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
        if len(lines) != len(names):
            raise DataError(f"{path}: {len(lines)} labels for {len(names)} images")
        order = devkit_synsets(path.parent / "meta.mat")
        return {name: index[order[int(line)]] for name, line in zip(sorted(names), lines)}
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not a ground-truth file of ImageNet ({error!r})") from None


def devkit_synsets(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> synset. The devkit's ids are not class indices: its meta.mat translates them."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(
            f"{path}: missing; the ids of ILSVRC2012_validation_ground_truth.txt are not class indices, and "
            "the devkit's meta.mat beside it translates them"
        )
    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: not the devkit's meta.mat ({error}); extract it again") from None


def folder_set(name: str, root: Path, n_outputs: int) -> ImageSet:
    """Any ImageFolder: class folders that are ImageNet synsets, or as many as the model has outputs, in sorted order."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    index = {synset: i for i, synset in enumerate(synsets())}
    if classes and n_outputs == 1000 and all(c in index for c in classes):
        label_of, n_classes = {c: index[c] for c in classes}, 1000
    elif len(classes) == n_outputs:
        label_of, n_classes = {c: i for i, c in enumerate(classes)}, n_outputs
    else:
        raise DataError(
            f"{root}: {len(classes)} class folders that are not ImageNet synsets, for a model with {n_outputs} "
            "outputs: their labels would be a guess; name the folders by synset (n01440764 ...)"
        )
    files = [(p, label_of[c]) for c in classes for p in image_files(root / c)]
    return checked_set(
        name,
        [p.relative_to(root).as_posix() for p, _ in files],
        [p for p, _ in files],
        [y for _, y in files],
        n_classes,
    )


DATA_DIRS = {
    "imagenet-val": "IMAGENET_DIR",
    "big12": "IMAGENET_DIR",
    "clickme": "CLICKME_DIR",
    "imagenet-c": "IMAGENET_C_DIR",
    "tiny-imagenet-c": "TINY_IMAGENET_C_DIR",
}


def default_dir(image_set: str) -> str | None:
    """The folder of an image set as .env gives it."""
    return setting(DATA_DIRS.get(image_set, "DATA_DIR"))
