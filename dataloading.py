"""Image sets: where they lie, their order, their labels; one image at a time as float32 in [0, 1].

    sample          the 20 ImageNet photographs inside the foolbox wheel; needs nothing
    imagenet-val    1000 synset folders, or the flat official folder with its ground-truth file
    any other name  an ImageFolder given by --data_dir: synset folders, or as many classes as the model has outputs
"""
from __future__ import annotations

import csv
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

LISTS = Path(__file__).resolve().parent / "lists" / "images"
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
SLICE_SEED = 42     # the permutation behind -s, as in the first paper's scripts
MAX_PIXELS = 100_000_000
GROUND_TRUTH_FILES = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")


class DataError(ValueError):
    """An image set or image that cannot be used; the message names the file or folder and what mends it."""


@dataclass(frozen=True)
class ImageSet:
    """An ordered list of images. `labels` are class indices, 0-based; `synsets` says whether they are ImageNet's."""
    name: str
    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    n_classes: int = 1000

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def list_sha256(self) -> str:
        """sha256 of the list's lines `image_id label`, in order."""
        lines = "".join(f"{name} {label}\n" for name, label in zip(self.ids, self.labels))
        return hashlib.sha256(lines.encode()).hexdigest()

    def take(self, rows) -> ImageSet:
        """The images at these positions, in that order."""
        return replace(self, ids=tuple(self.ids[i] for i in rows), paths=tuple(self.paths[i] for i in rows),
                       labels=tuple(self.labels[i] for i in rows))


# ---- the sets --------------------------------------------------------------------------------------------------

def load_image_set(name: str, data_dir: str | None = None, n_outputs: int = 1000) -> ImageSet:
    """The image set called `name`. Raises DataError for data that is missing, incomplete or out of order.

    data_dir    folder of the images; not needed for `sample`
    n_outputs   of the model: a folder that is not of ImageNet synsets has to have as many classes
    """
    if name == "sample":
        return sample_set()
    if not data_dir:
        raise DataError(f"{name}: needs --data_dir DIR (or IMAGENET_DIR in .env for imagenet-val); "
                        "the only set that comes along is `sample`")
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --data_dir has to be the folder that holds the images of {name!r}")
    if name == "imagenet-val":
        return imagenet_folders(root) if any(p.is_dir() for p in root.iterdir()) else imagenet_flat(root)
    return folder_set(name, root, n_outputs)


def read_list(path: Path) -> list[tuple[str, int]]:
    """Lines `image_id label` of a committed list; `#` starts a comment."""
    lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
    return [(line[0], int(line[1])) for line in lines if line]


def sample_set() -> ImageSet:
    """The 20 photographs of the foolbox wheel, in the order of the committed list (labels as in their file names)."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        raise DataError("sample: its photographs are inside the foolbox package; pip install foolbox")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    rows = read_list(LISTS / "sample.txt")
    return checked_set("sample", [name for name, _ in rows], [folder / name for name, _ in rows], [y for _, y in rows])


def checked_set(name: str, ids, paths, labels, n_classes: int = 1000) -> ImageSet:
    """An ImageSet whose ids are distinct, whose files are there and whose labels are in range."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing ({len(missing)} of {len(paths)} images of {name!r}); restore the folder")
    twice = {i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else set()
    if twice:
        raise DataError(f"{name}: {len(twice)} image(s) listed twice, e.g. {min(twice)}")
    wrong = [(i, y) for i, y in zip(ids, labels) if not 0 <= y < n_classes]
    if wrong:
        raise DataError(f"{name}: label {wrong[0][1]} of {wrong[0][0]} is outside 0..{n_classes - 1}")
    if not ids:
        raise DataError(f"{name}: no images in the folder")
    return ImageSet(name, tuple(ids), tuple(paths), tuple(int(y) for y in labels), n_classes)


def synsets() -> list[str]:
    """The 1000 ImageNet synsets in the order of the logits, as timm ships them."""
    return ImageNetInfo("imagenet-1k").label_names()


def image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)


def imagenet_folders(root: Path) -> ImageSet:
    """ImageNet validation in 1000 synset folders; the folders have to be exactly timm's synsets."""
    want, have = synsets(), {p.name for p in root.iterdir() if p.is_dir()}
    missing, extra = [s for s in want if s not in have], sorted(have - set(want))
    if missing or extra:
        raise DataError(f"{root}: not the 1000 ImageNet folders: {len(missing)} missing ({', '.join(missing[:3]) or '-'}), "
                        f"{len(extra)} unknown ({', '.join(extra[:3]) or '-'}); a subset goes under another --dataset name")
    files = [(path, label) for label, synset in enumerate(want) for path in image_files(root / synset)]
    empty = [s for label, s in enumerate(want) if label not in {y for _, y in files}]
    if empty:
        raise DataError(f"{root / empty[0]}: no images ({len(empty)} empty synset folders); copy the set again")
    files.sort(key=lambda row: row[0].name)
    return checked_set("imagenet-val", [p.name for p, _ in files], [p for p, _ in files], [y for _, y in files])


def imagenet_flat(root: Path) -> ImageSet:
    """The official flat folder; labels from the ground-truth file beside the images or one folder up."""
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in IMAGE_ENDINGS]
    found = [d / f for d in (root, root.parent) for f in GROUND_TRUTH_FILES if (d / f).is_file()]
    if not found:
        raise DataError(f"{root}: a flat folder needs its labels: put one of {', '.join(GROUND_TRUTH_FILES)} into it or "
                        "beside it, or sort the images into the 1000 synset folders")
    label_of = read_ground_truth(found[0], [p.name for p in files])
    unknown = [p for p in files if p.name not in label_of]
    if unknown:
        raise DataError(f"{found[0]}: has no label for {unknown[0].name} ({len(unknown)} such images)")
    return checked_set("imagenet-val", [p.name for p in files], files, [label_of[p.name] for p in files])


def read_ground_truth(path: Path, names: list[str]) -> dict[str, int]:
    """File name -> class index from Kaggle's solution file, Caffe's val.txt, or the devkit's file with its meta.mat."""
    index = {synset: i for i, synset in enumerate(synsets())}
    try:
        if path.suffix == ".csv":
            with open(path, newline="") as file:
                return {row["ImageId"] + ".JPEG": index[row["PredictionString"].split()[0]] for row in csv.DictReader(file)}
        lines = path.read_text().split()
        if path.name == "val.txt":
            return dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
        if len(lines) != len(names):
            raise DataError(f"{path}: {len(lines)} labels for {len(names)} images")
        order = devkit_synsets(path.parent / "meta.mat")
        return {name: index[order[int(line)]] for name, line in zip(sorted(names), lines)}
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a ground-truth file of ImageNet ({error!r})") from None


def devkit_synsets(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> synset. The devkit's ids are not class indices: its meta.mat translates them."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path}: missing; the ids of ILSVRC2012_validation_ground_truth.txt are not class indices, and "
                        "the devkit's meta.mat beside it translates them")
    rows = loadmat(path, squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}


def folder_set(name: str, root: Path, n_outputs: int) -> ImageSet:
    """Any ImageFolder: class folders that are ImageNet synsets, or as many as the model has outputs, in sorted order."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    index = {synset: i for i, synset in enumerate(synsets())}
    if classes and n_outputs == 1000 and all(c in index for c in classes):
        label_of, n_classes = {c: index[c] for c in classes}, 1000
    elif len(classes) == n_outputs:
        label_of, n_classes = {c: i for i, c in enumerate(classes)}, n_outputs
    else:
        raise DataError(f"{root}: {len(classes)} class folders that are not ImageNet synsets, for a model with {n_outputs} "
                        "outputs: their labels would be a guess; name the folders by synset (n01440764 ...)")
    files = [(p, label_of[c]) for c in classes for p in image_files(root / c)]
    return checked_set(name, [p.relative_to(root).as_posix() for p, _ in files], [p for p, _ in files],
                       [y for _, y in files], n_classes)


def take_slice(images: ImageSet, start: int, stop: int | None) -> ImageSet:
    """images[perm[start:stop]] with numpy's permutation of a fixed seed (42), kept in list order: a fair sample."""
    if not 0 <= start < (len(images) if stop is None else stop):
        raise DataError(f"-s {start} {stop}: takes no image; {images.name} has {len(images)}")
    rows = np.random.default_rng(SLICE_SEED).permutation(len(images))[start:stop]
    if not len(rows):
        raise DataError(f"-s {start} {stop}: takes no image; {images.name} has {len(images)}")
    return images.take(sorted(rows.tolist()))


# ---- pixels ----------------------------------------------------------------------------------------------------

def read_image(path: Path) -> Image.Image:
    """A file as an RGB image. Raises DataError naming the file when it cannot be decoded whole."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; shrink it first")
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be decoded ({error}); fetch it again or take it off the list") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits and three channels; PIL would clip 16-bit greys at 255 instead of scaling them."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        return Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


class Pixels(Dataset):
    """(position, image (3, H, W) float32 in [0, 1]) as the model wants to see it; a DataError in place of a bad image.

    The error is returned, not raised: raised in a worker it would arrive as a traceback instead of a line.
    """

    def __init__(self, images: ImageSet, preprocessing: dict):
        self.images = images
        self.transform = create_transform(**preprocessing, is_training=False, normalize=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor | DataError]:
        try:
            x = self.transform(read_image(self.images.paths[i]))
        except DataError as error:
            return i, error
        return i, (x.float() / 255 if x.dtype == torch.uint8 else x)


def stream(images: ImageSet, preprocessing: dict, workers: int = 0) -> Iterator[tuple[str, Tensor, int]]:
    """(image_id, image, label) in list order, decoded ahead by `workers` processes; a few images are in memory."""
    loader = DataLoader(Pixels(images, preprocessing), batch_size=None, num_workers=workers,
                        prefetch_factor=8 if workers else None)
    for i, x in loader:
        if isinstance(x, DataError):
            raise x
        yield images.ids[i], x, images.labels[i]
