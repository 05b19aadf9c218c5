"""Image sets in folders, one a class: which folder has which label.

A label is never a guess. Folders named by ImageNet synset, or 0 to 999 as in ImageNetV2, say their
label. Other folders are the classes of a network with as many outputs, in the order in which its
training sorted them; where loaders sort them differently, `class_order` has to say it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.utils.misc import natural_key

from alignment_security.common.folders import (
    Listing,
    left_by_tools_note,
    list_files,
    not_wanted_note,
    visible,
)
from alignment_security.common.settings import IMAGENET_CLASSES
from alignment_security.common.text import printable_name, text_lines
from alignment_security.images.image_sets import (
    IMAGE_ENDINGS,
    DataError,
    ImageSet,
    checked_set,
    synset_labels,
    synsets,
)

SORT_KEYS = {"text": None, "natural": natural_key}  # torchvision's and Keras' order, and timm's
MAX_NAMED = 3


@dataclass(frozen=True)
class ClassLabels:
    """The labels of class folders.

    label_of   folder -> label
    names      of the classes in the order of the outputs; () for ImageNet's 1000
    order      "text", "natural" or a file, where that was asked for; else ""
    """

    label_of: dict[str, int]
    names: tuple[str, ...] = ()
    order: str = ""


def folder_set(
    name: str, root: Path, n_outputs: int, class_order: str | Path | None = None
) -> ImageSet:
    """An ImageFolder, in the order of its sorted class folders.

    class_order   "text", "natural", or a file with the name of a class in each line, in the order
                  of the outputs; None where the folders' names leave no doubt

    Raises DataError for folders whose labels would be a guess.
    """
    folders = class_folders(root)
    classes = label_folders(root, folders, n_outputs, class_order)
    by_class, notes = images_by_class(root)
    # sorted by class first: a folder's name may sort otherwise with what is in it
    rows = [
        (printable_name(path.relative_to(root)), path, classes.label_of[folder])
        for folder in sorted(by_class)
        for path in by_class[folder]
    ]
    empty = [folder for folder in folders if folder not in by_class]
    return checked_set(
        name,
        rows,
        n_outputs,
        class_names=classes.names,
        class_order=classes.order,
        notes=(*notes, *empty_note(root, empty)),
    )


def class_of(root: Path, path: Path) -> str:
    """The name of the class folder of an image below `root`."""
    return path.relative_to(root).parts[0]


# ---- listing -------------------------------------------------------------------------------------


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that tools leave."""
    return [path.name for path in visible(root) if path.is_dir()]


def list_images(root: Path) -> Listing:
    """Image files below a folder, sorted by path, and what is left out."""
    return list_files(root, lambda path: path.suffix.lower() in IMAGE_ENDINGS)


def images_by_class(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """(class folder -> its images, sorted by path; sentences that count what is left out)."""
    listing = list_images(root)
    by_class: dict[str, list[Path]] = {}
    for path in listing.files:
        if path.parent != root:
            by_class.setdefault(class_of(root, path), []).append(path)
    notes = listing_notes(root, listing)
    if in_root := [path for path in listing.files if path.parent == root]:
        example = printable_name(in_root[0].name)
        found = f"{len(in_root)} images are in no class folder and are left out ({example})"
        notes.append(f"{root}: {found}")
    return by_class, notes


def listing_notes(root: Path, listing: Listing) -> list[str]:
    """Sentences that count what a listing left out."""
    return [
        *left_by_tools_note(root, listing.by_tools),
        *not_wanted_note(root, listing.others, "image"),
    ]


def empty_note(root: Path, names: list[str]) -> list[str]:
    """A sentence about class folders without an image; [] for none."""
    if not names:
        return []
    return [f"{root}: {len(names)} class folders hold no image ({', '.join(names[:MAX_NAMED])})"]


# ---- labels --------------------------------------------------------------------------------------


def label_folders(
    root: Path, folders: list[str], n_outputs: int, class_order: str | Path | None = None
) -> ClassLabels:
    """The labels of class folders for a model of n_outputs; see folder_set. Raises DataError."""
    if not folders:
        name = "its ImageNet synset (n01440764 ...)" if n_outputs == IMAGENET_CLASSES else "it"
        raise DataError(
            f"{root}: has no class folders; put the images of each class into a folder named after "
            f"{name} (docs/images.md#your-own-images says more)"
        )
    if class_order is None and n_outputs == IMAGENET_CLASSES:
        return _imagenet_labels(root, folders)
    if class_order is not None and class_order not in SORT_KEYS:
        return _listed_labels(root, folders, n_outputs, Path(class_order))
    if len(folders) != n_outputs:
        raise DataError(_other_count(root, folders, n_outputs))
    if class_order is None:
        _check_one_order(root, folders)
    names = sorted(folders, key=SORT_KEYS[str(class_order or "text")])
    labels = {name: label for label, name in enumerate(names)}
    return ClassLabels(labels, tuple(map(printable_name, names)), str(class_order or ""))


def implied_classes(root: Path, class_order: str | Path | None = None) -> int:
    """How many outputs a network of these class folders has, where no network is there to ask.

    class_order   as of folder_set
    """
    folders = class_folders(root)
    if class_order is None:
        return IMAGENET_CLASSES if set(folders) <= synset_labels().keys() else len(folders)
    if class_order not in SORT_KEYS and Path(class_order).is_file():
        return sum(bool(line.strip()) for line in text_lines(Path(class_order)))
    return len(folders)


def _other_count(root: Path, folders: list[str], n_outputs: int) -> str:
    """Why folders are not the classes of a model with n_outputs, and what helps."""
    by_class, _ = images_by_class(root)
    empty = [name for name in folders if name not in by_class]
    emptied = f"; {len(empty)} hold no image ({', '.join(empty[:MAX_NAMED])})" if empty else ""
    return (
        f"{root}: {len(folders)} class folders, and the model has {n_outputs} outputs: their "
        f"labels would be a guess{emptied}; give a folder with a class "
        "folder for each output, or --class_order FILE with the name of each output's class in a "
        "line, which may name more classes than have a folder"
    )


def _imagenet_labels(root: Path, folders: list[str]) -> ClassLabels:
    """Labels of folders named by synset, or by class from 0 to 999. Raises DataError."""
    by_synset = synset_labels()
    by_number = {str(label): label for label in range(IMAGENET_CLASSES)}
    if folders and all(name in by_synset for name in folders):
        return ClassLabels({name: by_synset[name] for name in folders})
    if set(folders) == by_number.keys():  # some of them may be the classes of another set
        return ClassLabels(by_number)
    unknown = [name for name in folders if name not in by_synset]
    raise DataError(
        f"{root}: {len(unknown)} of {len(folders)} class folders are not ImageNet synsets "
        f"({', '.join(unknown[:MAX_NAMED])}), for a model with "
        f"{IMAGENET_CLASSES} outputs: their labels would be a guess; name the folders by synset "
        "(n01440764 ...) or 0 to 999, or give --class_order FILE with the name of a class in each "
        "line"
    )


def _listed_labels(root: Path, folders: list[str], n_outputs: int, file: Path) -> ClassLabels:
    """Labels in the order of the lines of a file. Raises DataError."""
    if not file.is_file():
        raise DataError(f"--class_order {file}: no such file, and neither `text` nor `natural`")
    names = [line.strip() for line in text_lines(file) if line.strip()]
    label_of = {same_form(name): label for label, name in enumerate(names)}
    if len(label_of) != n_outputs or len(names) != n_outputs:
        raise DataError(
            f"{file}: {len(names)} lines with {len(label_of)} names, for a model with {n_outputs} "
            "outputs; write the name of one class in each line"
        )
    unknown = [name for name in folders if same_form(name) not in label_of]
    if unknown:
        raise DataError(
            f"{root}: {len(unknown)} class folders are not in {file} ({', '.join(unknown[:3])}), "
            f"whose first line is {names[0]!r}"
        )
    labels = {name: label_of[same_form(name)] for name in folders}
    return ClassLabels(labels, tuple(names), file.name)


def same_form(name: str) -> str:
    """A name with its accents in one form: macOS takes them apart in the names of files."""
    return unicodedata.normalize("NFC", name)


def check_label_names(images: ImageSet, names: Sequence[str]) -> None:
    """Raise DataError where a network names the classes of the images in another order.

    names   of the network's outputs, as its configuration has them; () for none
    """
    ours = [same_form(name) for name in images.class_names or synsets()]
    theirs = [printable_name(same_form(name)) for name in names]
    if ours == theirs or sorted(ours) != sorted(theirs):
        return
    k = next(k for k, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
    advice = "take a network whose outputs are in ImageNet's order"
    if images.class_names:
        advice = "give its order, --class_order FILE with the name of a class in each line"
    raise DataError(
        f"{images.name}: its class {k} is {ours[k]}, and the network's configuration calls its "
        f"output {k} {theirs[k]} (label_names): {advice}"
    )


def _check_one_order(root: Path, folders: list[str]) -> None:
    """Raise DataError where loaders sort the folders differently."""
    text, natural = sorted(folders), sorted(folders, key=natural_key)
    differing = [k for k, pair in enumerate(zip(text, natural)) if pair[0] != pair[1]]
    if differing:
        k = differing[0]
        raise DataError(
            f"{root}: the order of its class folders is a guess: class {k} is {text[k]} as text "
            f"(torchvision) and {natural[k]} in natural order (timm), and {len(differing)} classes "
            "differ; pass --class_order text, natural, or a FILE with a class in each line"
        )
