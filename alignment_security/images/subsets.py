"""Lists of ImageNet images: Big-12 and its variants, RobustBench's and AttackBench's.

The superclasses are those of the robustness package. `dataloading.py big12` checks and exports.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from alignment_security.common.files import sha256_file, write_atomic
from alignment_security.common.text import read_text
from alignment_security.images.class_folders import list_images
from alignment_security.images.image_sets import (
    IMAGE_LISTS,
    DataError,
    ImageSet,
    checked_set,
    read_image_list,
    read_list_fields,
    synsets,
)
from alignment_security.images.imagenet import imagenet_set

BIG12_SEED = 0  # of the hash that draws the images of a class
BIG12_PER_CLASS = 4
# attackbench/AttackBench, whose repository has no licence to pass its list on
ATTACKBENCH_LIST = "imagenet-5000-val.txt"
ATTACKBENCH_SHA256 = "497c9e11c4464da8419a27c353d6cb467975aa549dca913a844fee60fb2d6a6c"
ATTACKBENCH_URL = (
    "https://raw.githubusercontent.com/attackbench/AttackBench/"
    f"cb475a24d48c5a3b37e29b7cba899d200bae672f/attack_evaluation/datasets/subsets/{ATTACKBENCH_LIST}"
)


@cache
def groupings() -> dict[str, dict[str, list[int]]]:
    """{grouping: {superclass: ImageNet classes}}, as the robustness package derives from WordNet.

    Its superclasses are balanced: each has the same number of classes, those of lowest index.
    """
    return json.loads(read_text(IMAGE_LISTS / "groupings.json"))["groupings"]


def big12_set(root: Path) -> ImageSet:
    """The 960 images of lists/images/big12.txt from an ImageNet validation folder.

    Labels are ImageNet's 1000. Raises DataError.
    """
    fields = read_list_fields(IMAGE_LISTS / "big12.txt")
    return _subset("big12", root, [(name, int(label), group) for name, label, group in fields])


def robustbench_set(root: Path) -> ImageSet:
    """The 5000 images of RobustBench's ImageNet evaluation (lists/images/robustbench.txt).

    Croce et al. 2021. Raises DataError.
    """
    labelled = read_image_list(IMAGE_LISTS / "robustbench.txt")
    return _subset("robustbench", root, [(name, label, "") for name, label in labelled])


def attackbench_set(root: Path) -> ImageSet:
    """The 5000 images of AttackBench (Cinà et al. 2025) from an ImageNet validation folder.

    Its list has to be in the folder or in the parent folder. Raises DataError.
    """
    names = {name for (name,) in read_list_fields(_attackbench_list(root))}
    images = imagenet_set(root).take_named(names)
    if len(images) < len(names):
        raise DataError(
            f"{root}: {len(names) - len(images)} of the {len(names)} images of {ATTACKBENCH_LIST} "
            "are missing; it has to be the ImageNet validation folder"
        )
    return replace(images, name="attackbench")


def _attackbench_list(root: Path) -> Path:
    """AttackBench's list beside the images. Raises DataError where it is not there or another."""
    fetch = f"fetch it with `curl -o {root / ATTACKBENCH_LIST} {ATTACKBENCH_URL}`"
    for path in (root / ATTACKBENCH_LIST, root.parent / ATTACKBENCH_LIST):
        if path.is_file():
            if sha256_file(path) != ATTACKBENCH_SHA256:
                raise DataError(f"{path}: not AttackBench's list (sha256 differs); {fetch}")
            return path
    raise DataError(f"{root / ATTACKBENCH_LIST}: AttackBench's list is missing; {fetch}")


def load_subset(root: Path, grouping: str, per_class: int) -> ImageSet:
    """A variant of Big-12: `per_class` images of each class of a grouping. Raises DataError.

    Up to Big-12's four images per class come from its list. Any other subset is drawn from all
    images of the folder, whose labels are needed for that.
    """
    if grouping == "big_12" and per_class <= BIG12_PER_CLASS:
        labelled = read_image_list(IMAGE_LISTS / "big12.txt")
    else:
        images = imagenet_set(root)
        labelled = list(zip(images.ids, images.labels))
    rows = draw_subset(labelled, grouping, per_class)
    is_big12 = grouping == "big_12" and per_class == BIG12_PER_CLASS
    return _subset("big12" if is_big12 else f"{grouping}-{per_class}", root, rows)


def _subset(name: str, root: Path, rows: list[tuple[str, int, str]]) -> ImageSet:
    """The set of rows (file name, label, superclass or ""). Raises DataError."""
    paths = locate_images(root, rows)
    images = [(file_name, path, label) for (file_name, label, _), path in zip(rows, paths)]
    return checked_set(name, images, groups=tuple(group for _, _, group in rows if group))


def draw_subset(
    labelled: Iterable[tuple[str, int]], grouping: str = "big_12", per_class: int = BIG12_PER_CLASS
) -> list[tuple[str, int, str]]:
    """(file name, label, superclass) of `per_class` images of each class of a grouping.

    labelled   (file name, 0-based ImageNet class) of the images to draw from

    The file names with the smallest sha256 of `seed:file name` are drawn. The draw therefore
    depends on neither the order of the names nor a library, and a smaller draw is part of a larger
    one. Rows are ordered by superclass, class and file name. Raises DataError for an unknown
    grouping, and for a class with too few images.
    """
    if grouping not in groupings():
        raise DataError(f"grouping {grouping!r}: there are {', '.join(groupings())}")
    names_of: dict[int, list[str]] = {}
    for name, label in labelled:
        names_of.setdefault(label, []).append(name)
    rows, lacking = [], []
    for group, classes in groupings()[grouping].items():
        for label in classes:
            names = sorted(names_of.get(label, []), key=_draw_order)
            if len(names) < per_class or per_class < 1:
                lacking.append(f"class {label} ({group}) has {len(names)}")
            rows += [(name, label, group) for name in sorted(names[:per_class])]
    if lacking:
        count = f" ({len(lacking)} such classes)" if len(lacking) > 1 else ""
        raise DataError(f"{per_class} images per class: {', '.join(lacking)}{count}")
    return rows


def _draw_order(name: str) -> str:
    return hashlib.sha256(f"{BIG12_SEED}:{name}".encode()).hexdigest()


# ---- ImageNet's files ----------------------------------------------------------------------------


def locate_images(root: Path, rows: list[tuple[str, int, str]]) -> list[Path]:
    """Paths of the images of rows (file name, label, superclass), in synset folders or flat.

    Raises DataError that lists missing images.
    """
    names = synsets()
    found, missing = [], []
    for name, label, _ in rows:
        synset = names[label]
        paths = [path for path in (root / synset / name, root / name) if path.is_file()]
        found += paths[:1]
        if not paths:
            missing.append(f"{synset}/{name}")
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of the {len(rows)} listed images are missing, e.g. "
            f"{', '.join(missing[:3])}; it has to be the ImageNet validation folder (synset "
            "folders or flat)"
        )
    return found


def check_out(
    out: Path, source: Path, targets: Iterable[Path], present: Iterable[Path], what: str
) -> None:
    """Raise DataError for an `out` inside `source`, or with other files than a set's.

    targets   the files that the set has in `out`
    present   those in `out` that --data_dir would read
    what      the set is of: images, pairs
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out}: is inside {source}, which is never altered; choose another --out")
    wanted = set(targets)
    others = [path for path in present if path not in wanted]
    if others:
        raise DataError(
            f"{out}: holds {len(others)} {what} that are not of this set, e.g. {others[0].name}; "
            "choose another --out"
        )


def export_subset(images: ImageSet, out: Path, source: Path, copy: bool = False) -> None:
    """Write out/<synset>/<file> as symbolic links, or as copies, and the list out/<set>.txt.

    What is there already and is right stays: a link to the image, or with `copy` a file of the same
    content. Raises DataError for an `out` inside `source`, and for one that holds other images,
    which --data_dir would read too.
    """
    names = synsets()
    targets = [out / names[label] / name for name, label in zip(images.ids, images.labels)]
    check_out(out, source, targets, list_images(out).files if out.exists() else [], "images")
    for path, target in zip(images.paths, targets):
        if not _is_exported(path, target, copy):
            _export(path, target, copy)
    write_list(images, out)


def write_list(images: ImageSet, out: Path) -> None:
    """Write out/<set>.txt, a line `image_id label superclass` each."""
    lines = "".join(f"{n} {y} {g}\n" for n, y, g in zip(images.ids, images.labels, images.groups))
    write_atomic(out / f"{images.name}.txt", lines)


def _is_exported(path: Path, target: Path, copy: bool) -> bool:
    if not copy:
        return target.is_symlink() and target.resolve() == path.resolve()
    return target.is_file() and not target.is_symlink() and filecmp.cmp(path, target, shallow=False)


def _export(path: Path, target: Path, copy: bool) -> None:
    """Make the link or copy under another name, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    if copy:
        shutil.copyfile(path, part)
    else:
        part.symlink_to(path.resolve())
    part.replace(target)
