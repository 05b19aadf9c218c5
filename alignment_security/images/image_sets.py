"""ImageSet: an ordered list of images with labels, and the checks that every set goes through.

Nothing here decodes a pixel. `loading.load_image_set` knows these names:

    sample           the 20 ImageNet photographs inside the foolbox wheel; needs no data
    imagenet-val     1000 synset folders, or the flat official folder with its ground-truth file
    big12            960 of these images: 12 superclasses x 20 classes x 4 (lists/images/big12.txt)
    robustbench      5000 of these images: RobustBench's (lists/images/robustbench.txt)
    attackbench      5000 of these images: AttackBench's, whose list has to be beside them
    clickme          ClickMe's TFRecord shards or .pth files
    imagenet-c       DIR/<type>/<severity>/<synset>/
    tiny-imagenet-c  the same with 200 synsets; answers are restricted to these classes
    imagenet-v2, imagenet-sketch, imagenet-a, imagenet-r    class folders (variants.py)
    objectnet        the 113 classes that ImageNet has (objectnet.py)
    any other name   an ImageFolder (class_folders.py): synset folders, folders 0 to 999, or as
                     many classes as the model has outputs
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from timm.data import ImageNetInfo

from alignment_security.common.files import UserError, sha256_file
from alignment_security.common.settings import IMAGENET_CLASSES, ROOT, setting
from alignment_security.common.text import repeated, text_lines

IMAGE_LISTS = ROOT / "lists" / "images"
# of the formats that decoding.FORMATS lists
IMAGE_ENDINGS = set(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .avifs .jp2 .j2k .j2c .jpc .jpf .jpx "
    ".tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .pfm".split()
)
# --dataset -> the variable of .env with its folder; DATA_DIR for all others
DATA_DIRS = {
    "imagenet-val": "IMAGENET_DIR",
    "big12": "IMAGENET_DIR",
    "robustbench": "IMAGENET_DIR",
    "attackbench": "IMAGENET_DIR",
    "clickme": "CLICKME_DIR",
    "imagenet-v2": "IMAGENET_V2_DIR",
    "imagenet-sketch": "IMAGENET_SKETCH_DIR",
    "imagenet-a": "IMAGENET_A_DIR",
    "imagenet-r": "IMAGENET_R_DIR",
    "objectnet": "OBJECTNET_DIR",
    "imagenet-c": "IMAGENET_C_DIR",
    "tiny-imagenet-c": "TINY_IMAGENET_C_DIR",
}


class DataError(UserError):
    """An image or image set that cannot be used; the message names the file or folder."""


@dataclass(frozen=True)
class Corruption:
    """A corruption that every image of a set has.

    source   "folder" for published images, else the package that makes it while loading
    seed     of the package's noise
    """

    type: str
    severity: int
    source: str = "folder"
    seed: int = 0


@dataclass(frozen=True)
class MapFiles:
    """Human maps in files of their own (images/map_files.py).

    folder   of --map_dir
    paths    image_id -> file, for the images that have one
    unused   files that are of no image
    blur     read the maps as Harmonization reads ClickMe's (human_maps.harmonization_blur)
    """

    folder: Path
    paths: dict[str, Path]
    unused: tuple[Path, ...] = ()
    blur: bool = False

    @cached_property
    def source(self) -> str:
        """For the run file: the folder's name, and a sha256 over image ids and files."""
        digest = hashlib.sha256()
        for image_id in sorted(self.paths):
            digest.update(f"{image_id} {sha256_file(self.paths[image_id])}\n".encode())
        return f"folder {self.folder.resolve().name}, sha256 {digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class ImageSet:
    """An ordered list of images.

    labels       class indices, 0-based, below n_classes
    groups       superclass of each image; empty if the set has none
    offsets      byte offset of each image's record in its file (TFRecord shards), else empty
    restrict_to  the classes that an answer may have; empty for all
    merged       groups of classes, of which an answer counts as the first
    border       pixels that are cut off each side of every image
    cropped      the images are crops already: preprocessing must not crop them again
    class_names  names of the classes in the order of the outputs; empty for ImageNet's 1000
    class_order  how the folders were ordered, where that was asked for
    notes        what was left out, for the run file and the screen
    subset       the order from which the slice was taken, if not ours
    slice        (start, stop) of take_slice, for the run file
    maps         human maps in files of their own; None for a set that has its own maps, or none
    """

    name: str
    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    n_classes: int = IMAGENET_CLASSES
    groups: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    restrict_to: tuple[int, ...] = ()
    merged: tuple[tuple[int, ...], ...] = ()
    border: int = 0
    corruption: Corruption | None = None
    cropped: bool = False
    class_names: tuple[str, ...] = ()
    class_order: str = ""
    subset: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)
    slice: tuple[int, int | None] | None = field(default=None, compare=False)
    maps: MapFiles | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def list_sha256(self) -> str:
        """Hex sha256 of the lines `image_id label`, in list order."""
        lines = "".join(f"{name} {label}\n" for name, label in zip(self.ids, self.labels))
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def position(self, image_id: str) -> int:
        """Where an image is in the list."""
        return self._positions[image_id]

    def contents_sha256(self) -> str:
        """Hex sha256 over the sha256 of every file, in list order."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.paths):
            digest.update(sha256_file(path).encode())
        return digest.hexdigest()

    @property
    def facts(self) -> dict:
        """For the run file: what changes a verdict besides the list. Empty for plain sets."""
        facts = {
            "corruption": vars(self.corruption).copy() if self.corruption else None,
            "restricted_to": len(self.restrict_to),
            "merged_classes": [list(classes) for classes in self.merged],
            "border": self.border,
            "crop_pct": 1.0 if self.cropped else None,
            "class_order": self.class_order,
            "subset": self.subset,
        }
        return {name: value for name, value in facts.items() if value}

    def take(self, rows: Iterable[int]) -> ImageSet:
        """The images at these positions, in this order."""
        rows = list(rows)
        taken: dict = {}
        for name in ("ids", "paths", "labels", "groups", "offsets"):
            values = getattr(self, name)
            if values:
                taken[name] = tuple(values[i] for i in rows)
        return replace(self, **taken)

    def take_named(self, image_ids: Container[str]) -> ImageSet:
        """The images with these ids, in the order of the list."""
        return self.take(i for i, name in enumerate(self.ids) if name in image_ids)


# ---- building a set ------------------------------------------------------------------------------


def why_missing(path: Path) -> tuple[str, str]:
    """(what is wrong with a path that is no file, what to do about it)."""
    if path.is_dir():
        return "a folder, and no image", "take it out, or give the image its name"
    if path.exists():
        return "a pipe, socket or device, and no file", "take it out of the folder"
    if path.is_symlink():
        return "a link to a file that is missing", "mount or copy what it points to"
    return "missing", "restore the folder"


def checked_set(
    name: str, rows: Iterable[tuple[str, Path, int]], n_classes: int = IMAGENET_CLASSES, **more
) -> ImageSet:
    """An ImageSet with distinct ids, existing files and labels in range.

    rows   (image_id, file, label)
    more   other fields of ImageSet
    Raises DataError.
    """
    ids, paths, labels = tuple(zip(*rows)) or ((), (), ())
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        what, advice = why_missing(missing[0])
        raise DataError(
            f"{missing[0]}: {what} ({len(missing)} of {len(paths)} images of {name!r}); {advice}"
        )
    if twice := repeated(ids):
        raise DataError(f"{name}: {len(twice)} image(s) listed twice, e.g. {min(twice)}")
    for image_id, label in zip(ids, labels):
        if not 0 <= label < n_classes:
            raise DataError(f"{name}: label {label} of {image_id} is outside 0..{n_classes - 1}")
    if not ids:
        raise DataError(f"{name}: no images in the folder")
    return ImageSet(name, ids, paths, tuple(map(int, labels)), n_classes, **more)


def read_image_list(path: Path) -> list[tuple[str, int]]:
    """(image_id, label) of the lines `image_id label ...` of a list; `#` starts a comment."""
    return [(fields[0], int(fields[1])) for fields in read_list_fields(path)]


def read_list_fields(path: Path) -> list[list[str]]:
    """The words of each line of a list that is not empty; `#` starts a comment."""
    lines = [line.split("#")[0].split() for line in text_lines(path)]
    return [fields for fields in lines if fields]


def synsets() -> list[str]:
    """The 1000 ImageNet synsets in the order of the logits, as timm ships them."""
    return ImageNetInfo("imagenet-1k").label_names()


def synset_labels() -> dict[str, int]:
    """{synset: label} of ImageNet's 1000 classes."""
    return {synset: label for label, synset in enumerate(synsets())}


# ---- folders -------------------------------------------------------------------------------------


def default_dir(image_set: str) -> str | None:
    """The folder of an image set according to .env; None if it is not set."""
    return None if image_set == "sample" else setting(DATA_DIRS.get(image_set, "DATA_DIR"))


def check_folder_is_read(name: str, data_dir: str | Path | None, prefix: str = "") -> None:
    """Raise DataError for a folder that is given to the set `sample`, which needs none.

    prefix   of the options that name the set and its folder: "" or "val_"
    """
    if name == "sample" and data_dir:
        option = "--val_dir" if prefix else "--data_dir"
        raise DataError(
            f"{option} {data_dir}: name the images in it with --{prefix}dataset NAME "
            "(imagenet-val, ..., or a name of your own); the set `sample` reads no folder"
        )


def existing_folder(name: str, data_dir: str | Path | None) -> Path:
    """`data_dir` as a path. Raises DataError if it is not given or does not exist."""
    if not data_dir:
        near = get_close_matches(name, [*DATA_DIRS, "sample"], n=1)
        hint = f"; is {near[0]} meant?" if near and near[0] != name else ""
        raise DataError(
            f"{name}: needs --data_dir DIR, or {DATA_DIRS.get(name, 'DATA_DIR')} in .env.local; "
            f"only the set `sample` needs no folder{hint}"
        )
    if Path(data_dir).exists() and not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: a file, and no folder; unpack an archive first")
    if not Path(data_dir).is_dir():
        raise DataError(
            f"{data_dir}: no such folder; --data_dir has to be the folder that holds the images "
            f"of {name!r}"
        )
    return Path(data_dir)


def sample_set() -> ImageSet:
    """The 20 photographs inside the foolbox wheel, in the order of lists/images/sample.txt.

    Their labels are the ones in their file names. Raises DataError if foolbox is not installed or
    a file has another sha256.
    """
    spec = importlib.util.find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "sample: its photographs are inside the foolbox package; pip install foolbox"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    rows = read_list_fields(IMAGE_LISTS / "sample.txt")
    images = checked_set("sample", ((name, folder / name, int(label)) for name, label, _ in rows))
    for path, (_, _, sha256) in zip(images.paths, rows):
        if sha256_file(path) != sha256:
            raise DataError(
                f"{path}: not the photograph of the list (sha256 differs); reinstall foolbox"
            )
    return images
