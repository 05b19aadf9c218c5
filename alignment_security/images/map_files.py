"""Human maps in files of their own (--map_dir): a file an image, found by the image's file name."""

from __future__ import annotations

import filecmp
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image

from alignment_security.common.files import TryAgain, reading
from alignment_security.common.folders import list_files
from alignment_security.common.text import printable_name, some_of
from alignment_security.common.torch_files import TORCH_FILE_ERRORS, error_reason, load_torch_file
from alignment_security.images.decoding import MAX_PIXELS, check_size
from alignment_security.images.image_sets import DataError, ImageSet, MapFiles
from alignment_security.images.orientation import MEND, is_turned

MAP_NAMES = ("heatmap", "human_map", "map")  # of the map among the arrays of a .npz or .pth
DAMAGE = (*TORCH_FILE_ERRORS, zipfile.BadZipFile, MemoryError, Image.DecompressionBombError)


# ---- which file is whose -------------------------------------------------------------------------


def with_map_files(images: ImageSet, folder: Path, blur: bool = False) -> ImageSet:
    """A set whose maps are the files in a folder.

    The map of `n01440764/x.JPEG` is `n01440764/x.png`, `x.png`, or either as `x.JPEG.png`; .npy,
    .npz and .pth likewise (`read_map_file`). Raises DataError for a folder that does not exist or
    has no map of any image, for two maps of an image, for a map that two images could have, and for
    one of another format (`check_endings`).
    """
    if not folder.is_dir():
        raise DataError(f"--map_dir {folder}: no such folder")
    listing = list_files(folder, lambda path: path.suffix.lower() in READERS)
    files = listing.files
    named = [(path.relative_to(folder).with_suffix(""), path) for path in files]
    names = names_of_maps(named)
    for name, path in named:
        other = names.by_path[name.as_posix()]
        if other != path:
            raise DataError(f"{path}: {other.name} is a map of the same image; keep one of them")
    owners: dict[Path, str] = {}
    for image_id in images.ids:
        found = map_of(PurePath(image_id), names)
        if found is not None and owners.setdefault(found, image_id) != image_id:
            raise DataError(
                f"{found}: by its name it is of {owners[found]} and of {image_id}; put maps "
                "into folders as the images are"
            )
    paths = {image_id: path for path, image_id in owners.items()}
    check_endings(images, folder, listing.others, paths)
    unused = tuple(path for path in files if path not in owners)
    mapped = replace(images, maps=MapFiles(folder, paths, unused, blur))
    check_some_map(mapped)
    return mapped


def check_some_map(images: ImageSet) -> None:
    """Raise DataError where no image of a set with maps in files, or of its slice, has one."""
    maps = images.maps
    if maps is None or any(name in maps.paths for name in images.ids):
        return
    sliced = f"the {len(images)} images that -s takes of " if images.slice else "an image of "
    raise DataError(
        f"--map_dir {maps.folder}: none of its {len(maps.paths) + len(maps.unused)} maps is of "
        f"{sliced}{images.name}; the map of {images.ids[0]} is {PurePath(images.ids[0]).stem}.png, "
        ".npy, .npz or .pth"
    )


def check_endings(
    images: ImageSet, folder: Path, others: list[Path], paths: dict[str, Path]
) -> None:
    """Raise DataError for a file that is named like a map of an image without one, e.g. x.jpg.

    others   files of the folder whose ending no reader has; copies of photographs are no maps
    paths    image_id -> map
    """
    named = [(path.relative_to(folder).with_suffix(""), path) for path in others]
    shorter = [(name.with_suffix(""), path) for name, path in named if name.suffix]
    names = names_of_maps([*named, *shorter])  # x.npy.gz is meant for x
    for image_id, photograph in zip(images.ids, images.paths):
        if image_id in paths:
            continue
        found = map_of(PurePath(image_id), names)
        if found is not None and not filecmp.cmp(found, photograph, shallow=False):
            raise DataError(
                f"{found}: by its name the map of {image_id}, but a map is a file "
                f"{', '.join(READERS)}; save it as one of these, or take it out of the folder"
            )


class MapNames(NamedTuple):
    """Files by their path in the folder (the first one), and by its last part, without ending."""

    by_path: dict[str, Path]
    by_name: dict[str, list[Path]]


def names_of_maps(named: Iterable[tuple[PurePath, Path]]) -> MapNames:
    """Files by name, from pairs of their path in the folder, without ending, and the file."""
    names = MapNames({}, {})
    for name, path in named:
        names.by_path.setdefault(name.as_posix(), path)
        names.by_name.setdefault(name.name, []).append(path)
    return names


def map_of(image: PurePath, names: MapNames) -> Path | None:
    """The map of an image: that of its path, else the only one of its name; None without one.

    image   an image_id
    """
    for whole in (image.with_suffix(""), image):
        if whole.as_posix() in names.by_path:
            return names.by_path[whole.as_posix()]
    for name in (image.stem, image.name):
        if len(names.by_name.get(name, [])) == 1:
            return names.by_name[name][0]
    return None


def map_remarks(images: ImageSet) -> Iterator[str]:
    """Sentences that count and name the images without a map, and the maps without an image."""
    maps = images.maps
    if maps is None:
        return
    without = [name for name in images.ids if name not in maps.paths]
    if without:
        yield (
            f"{len(images) - len(without)} of {len(images)} images of {images.name} have a map in "
            f"{maps.folder}; human alignment is over these. Without: {some_of(without)}"
        )
    if maps.unused:
        names = [printable_name(path.relative_to(maps.folder)) for path in maps.unused]
        yield (
            f"{maps.folder}: maps without an image of {images.name} ({len(names)}): "
            f"{some_of(names)}"
        )


# ---- reading -------------------------------------------------------------------------------------


def read_map_file(path: Path, size: tuple[int, int], photograph: Path | None = None) -> np.ndarray:
    """A map at the size of its photograph, float32 (H, W), values as in the file.

    path         .png of one grey channel, of 8 or 16 bits; .npy; .npz or .pth of one array, or of
                 one with a name of MAP_NAMES. Arrays are (H, W), (1, H, W) or (H, W, 1)
    size         of the photograph, (width, height). A map of another size but the same proportions
                 is resized
    photograph   its file; an error says where its EXIF tag is the reason

    Raises DataError for anything else: other proportions say nothing about where in the photograph
    a value is. Values have to be finite and at least 0.
    """
    try:
        with reading(path):
            values = READERS[path.suffix.lower()](path)
    except (DataError, TryAgain):
        raise
    except DAMAGE as error:
        raise DataError(f"{path}: no human map ({error_reason(error)})") from None
    found = check_map(path, values)
    (height, width), (photo_width, photo_height) = found.shape, size
    same_shape = abs(width * photo_height - height * photo_width) <= max(photo_width, photo_height)
    if not same_shape:
        reason = "a map needs the size of its photograph, or its proportions"
        if photograph is not None and is_turned(photograph):
            reason = f"the EXIF tag of {photograph.name} asks for a turn, which is not made; {MEND}"
        raise DataError(
            f"{path}: {width} x {height} pixels, its photograph has {photo_width} x {photo_height} "
            f"as stored; {reason}"
        )
    if (width, height) == size:
        return found
    return np.array(Image.fromarray(found).resize(size, Image.Resampling.BILINEAR))


def check_map(path: Path, values: np.ndarray) -> np.ndarray:
    """An array as float32 (H, W). Raises DataError for one that is no map."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise DataError(f"{path}: {values.dtype} {values.shape}; a map is an array (H, W)")
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError(f"{path}: has values below 0 or that are not finite; a map has none")
    return values.astype(np.float32)


def read_png(path: Path) -> np.ndarray:
    """The grey levels of a PNG. Raises DataError for one with colours."""
    with Image.open(path, formats=("PNG",)) as image:
        check_size(image, str(path))
        if image.mode.startswith(("I", "F", "L", "1")):
            return np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        levels = np.asarray(image.convert("RGB"))
    if (levels != levels[..., :1]).any():
        raise DataError(f"{path}: has colours; a map has one channel, the more the brighter")
    return levels[..., 0]


def read_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    check_count(path, array.size)
    return np.array(array)


def read_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:  # before it is unpacked
        check_count(path, sum(part.file_size for part in archive.infolist()) // 8)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[map_name(path, arrays.files)]


def read_pth(path: Path) -> np.ndarray:
    """The map of a torch file; no code in it runs."""
    loaded = load_torch_file(path)
    if isinstance(loaded, dict):
        loaded = loaded[map_name(path, list(loaded))]
    return np.asarray(loaded)


READERS = {".png": read_png, ".npy": read_npy, ".npz": read_npz, ".pth": read_pth}


def map_name(path: Path, names: list[str]) -> str:
    """Which of several arrays is the map. Raises DataError if that is a guess."""
    known = [name for name in names if name in MAP_NAMES]
    if len(known) == 1 or len(names) == 1:
        return (known or names)[0]
    raise DataError(
        f"{path}: holds {', '.join(map(str, names)) or 'nothing'}; the map is called "
        f"{' or '.join(MAP_NAMES)}"
    )


def check_count(path: Path, values: int) -> None:
    """Raise DataError for more values than a photograph has pixels."""
    if values > MAX_PIXELS:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} values")
