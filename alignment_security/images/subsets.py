"""alignment_security.images.subsets."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from alignment_security.common.files import write_atomic
from alignment_security.images.image_sets import (
    IMAGE_LISTS,
    DataError,
    ImageSet,
    checked_set,
    imagenet_set,
    read_image_list,
    read_list_fields,
    synsets,
)

BIG12_SEED = 0  # of the hash that draws the images of a class
BIG12_PER_CLASS = 4


# ---- Big-12 and its variants -----------------------------------------------------------------------------------


@cache
def groupings() -> dict[str, dict[str, list[int]]]:
    """Grouping -> superclass -> ImageNet classes, as the robustness package cuts WordNet (balanced, lowest indices)."""
    return json.loads((IMAGE_LISTS / "groupings.json").read_text())["groupings"]


def draw_subset(
    labelled: Iterable[tuple[str, int]], grouping: str = "big_12", per_class: int = BIG12_PER_CLASS
) -> list[tuple[str, int, str]]:
    """(file name, label, superclass) of per_class images of each class, in the order superclass, class, file name.

    Of a class come the file names with the smallest sha256 of `seed:file name`: the draw depends on neither the order
    of the names nor a library, and a smaller one is part of a larger one.
    labelled   (file name, 0-based ImageNet class) of the images to draw from
    """
    if grouping not in groupings():
        raise DataError(f"grouping {grouping!r}: there are {', '.join(groupings())}")
    of_class: dict[int, list[str]] = {}
    for name, label in labelled:
        of_class.setdefault(label, []).append(name)
    rows = []
    for group, classes in groupings()[grouping].items():
        for label in classes:
            names = sorted(
                of_class.get(label, []),
                key=lambda n: hashlib.sha256(f"{BIG12_SEED}:{n}".encode()).hexdigest(),
            )
            if len(names) < per_class or per_class < 1:
                raise DataError(
                    f"{per_class} images per class: class {label} ({group}) has {len(names)}"
                )
            rows += [(name, label, group) for name in sorted(names[:per_class])]
    return rows


def locate_images(root: Path, rows: list[tuple[str, int, str]]) -> list[Path]:
    """Where the listed files lie, in synset folders or flat. Raises DataError with what is missing."""
    names = synsets()
    found = [
        next((p for p in (root / names[label] / name, root / name) if p.is_file()), None)
        for name, label, _ in rows
    ]
    missing = [
        f"{names[label]}/{name}" for (name, label, _), path in zip(rows, found) if path is None
    ]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of the {len(rows)} listed images are missing, e.g. "
            f"{', '.join(missing[:3])}; it has to be the ImageNet validation folder (synset folders or flat)"
        )
    return [path for path in found if path is not None]


def big12_set(root: Path) -> ImageSet:
    """The 960 images of the committed list, out of an ImageNet validation folder; labels are ImageNet's 1000."""
    rows = [
        (name, int(label), group)
        for name, label, group in read_list_fields(IMAGE_LISTS / "big12.txt")
    ]
    return checked_set(
        "big12",
        [r[0] for r in rows],
        locate_images(root, rows),
        [r[1] for r in rows],
        groups=tuple(r[2] for r in rows),
    )


# ---- command line ----------------------------------------------------------------------------------------------


def load_subset(root: Path, grouping: str, per_class: int) -> ImageSet:
    """A variant of Big-12: the committed list where it suffices, else a draw from the labels of the folder itself."""
    if grouping == "big_12" and per_class <= BIG12_PER_CLASS:
        labelled = read_image_list(IMAGE_LISTS / "big12.txt")
    else:
        images = imagenet_set(root)
        labelled = list(zip(images.ids, images.labels))
    rows = draw_subset(labelled, grouping, per_class)
    name = (
        "big12"
        if (grouping, per_class) == ("big_12", BIG12_PER_CLASS)
        else f"{grouping}-{per_class}"
    )
    return checked_set(
        name,
        [r[0] for r in rows],
        locate_images(root, rows),
        [r[1] for r in rows],
        groups=tuple(r[2] for r in rows),
    )


def export_subset(images: ImageSet, out: Path, source: Path, copy: bool = False) -> None:
    """out/<synset>/<file> as symbolic links (or copies), and out/<set>.txt; what is there already is left as it is."""
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{out}: lies inside {source}, which is never altered; choose another --out"
        )
    names = synsets()
    for name, path, label in zip(images.ids, images.paths, images.labels):
        target = out / names[label] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and (not copy or target.stat().st_size == path.stat().st_size):
            continue
        part = target.with_name(f".{name}.part")
        part.unlink(missing_ok=True)
        shutil.copyfile(path, part) if copy else part.symlink_to(path.resolve())
        part.replace(target)
    lines = "".join(f"{n} {y} {g}\n" for n, y, g in zip(images.ids, images.labels, images.groups))
    write_atomic(out / f"{images.name}.txt", lines)
