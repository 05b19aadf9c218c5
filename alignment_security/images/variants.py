"""Test sets of ImageNet's classes besides its validation images, as they are distributed.

    imagenet-v2      folders 0 to 999 (Recht et al. 2019): matched-frequency, threshold-0.7 or top
    imagenet-sketch  1000 synset folders (Wang et al. 2019)
    imagenet-a       200 synset folders (Hendrycks et al. 2021a)
    imagenet-r       200 synset folders (Hendrycks et al. 2021b)

The last two are judged as published: an answer is the best of their 200 classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.common.text import printable_name
from alignment_security.images.class_folders import class_folders, folder_set, label_folders
from alignment_security.images.image_sets import DataError, ImageSet, synsets


@dataclass(frozen=True)
class Variant:
    """A published set.

    images       in it
    class_file   of timm (timm/data/_info) with the synsets of its classes; "" for all 1000
    """

    images: int
    class_file: str = ""

    @property
    def classes(self) -> tuple[int, ...]:
        """Its classes among the 1000, sorted."""
        if not self.class_file:
            return tuple(range(IMAGENET_CLASSES))
        names = (
            resources.files("timm.data")
            .joinpath("_info", self.class_file)
            .read_text(encoding="utf-8")
        )
        return tuple(sorted(map(synsets().index, names.split())))


VARIANTS = {
    "imagenet-v2": Variant(10_000),
    "imagenet-sketch": Variant(50_889),
    "imagenet-a": Variant(7_500, "imagenet_a_synsets.txt"),
    "imagenet-r": Variant(30_000, "imagenet_r_synsets.txt"),
}


def variant_set(name: str, root: Path) -> ImageSet:
    """A set of VARIANTS. Raises DataError unless its class folders are exactly those of the set."""
    variant = VARIANTS[name]
    classes = variant.classes
    _check_classes(root, name, classes)
    images = folder_set(name, root, IMAGENET_CLASSES)
    notes = list(images.notes)
    if len(images) != variant.images:
        notes.append(f"{root}: {len(images)} images; {name} was published with {variant.images}")
    restricted = classes if variant.class_file else ()
    return replace(images, restrict_to=restricted, notes=tuple(notes))


def _check_classes(root: Path, name: str, wanted: tuple[int, ...]) -> None:
    """Raise DataError unless there is a folder for each of these classes, and no other."""
    names = synsets()
    folders = class_folders(root)
    foreign = [folder for folder in folders if folder not in names and not folder.isdecimal()]
    if foreign or not folders:
        shown = f" ({', '.join(map(printable_name, foreign[:3]))})" if foreign else ""
        raise DataError(
            f"{root}: {len(foreign)} of its {len(folders)} folders are no classes of "
            f"{name}{shown}; --data_dir is the folder with its {len(wanted)} class folders, named "
            "as they are distributed"
        )
    found = set(label_folders(root, folders, IMAGENET_CLASSES).label_of.values())
    missing = [names[label] for label in sorted(set(wanted) - found)]
    others = [names[label] for label in sorted(found - set(wanted))]
    if missing or others:
        raise DataError(
            f"{root}: not the {len(wanted)} class folders of {name}: {len(missing)} missing "
            f"({', '.join(missing[:3]) or '-'}), {len(others)} of other sets "
            f"({', '.join(others[:3]) or '-'}); a part of it goes under another --dataset name"
        )
