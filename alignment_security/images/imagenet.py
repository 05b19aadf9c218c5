"""The ImageNet validation set: synset folders or flat, labels in the order of the logits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from alignment_security.common.folders import Listing
from alignment_security.common.tables import read_table
from alignment_security.common.text import printable_name, read_text, text_lines
from alignment_security.images.class_folders import (
    class_folders,
    images_by_class,
    list_images,
    listing_notes,
)
from alignment_security.images.image_sets import (
    IMAGE_LISTS,
    DataError,
    ImageSet,
    checked_set,
    read_image_list,
    synset_labels,
    synsets,
)
from alignment_security.images.labels import real_correct

TRAINING_IMAGE = re.compile(r"n\d{8}_\d+\.")  # n01440764_10026.JPEG
KAGGLE_COLUMNS = ["ImageId", "PredictionString"]
CAFFE_LINE = re.compile(r"(.*\S)\s+(-?[0-9]+)")
FEWEST_JUDGED = 10  # images with ReaL labels that judge an order of classes
# Kaggle's, Caffe's and the devkit's
GROUND_TRUTH_FILES = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")


def imagenet_set(root: Path) -> ImageSet:
    """ImageNet validation from synset folders, if `root` has folders, or else from a flat folder.

    Raises DataError.
    """
    return imagenet_folders(root) if class_folders(root) else imagenet_flat(root)


def imagenet_folders(root: Path, name: str = "imagenet-val") -> ImageSet:
    """ImageNet validation in 1000 synset folders, in the order of the file names.

    Raises DataError unless the folders are exactly timm's synsets, none is empty, and no image is
    of the training set.
    """
    want = synsets()
    have = set(class_folders(root))
    missing = [synset for synset in want if synset not in have]
    unknown = sorted(have - set(want))
    if missing or unknown:
        raise DataError(
            f"{root}: not the 1000 ImageNet folders: "
            f"{len(missing)} missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3]) or '-'}); "
            "a subset goes under another --dataset name"
        )
    by_class, notes = images_by_class(root)
    empty = [synset for synset in want if synset not in by_class]
    if empty:
        raise DataError(
            f"{root / empty[0]}: no images ({len(empty)} empty synset folders); copy the set again"
        )
    files = [(path, label) for label, synset in enumerate(want) for path in by_class[synset]]
    files.sort(key=lambda row: row[0].name)
    _refuse_training_images(root, name, [path.name for path, _ in files])
    return checked_set(
        name,
        [(printable_name(path.name), path, label) for path, label in files],
        notes=tuple(notes),
    )


def _refuse_training_images(root: Path, name: str, files: list[str]) -> None:
    """Raise DataError for the folder of the training images, which has the same synset folders."""
    training = [file for file in files if TRAINING_IMAGE.match(file)]
    if training:
        raise DataError(
            f"{root}: {len(training)} images of ImageNet's training set ({training[0]}), not of "
            f"{name}; give the folder of the validation images, or another --dataset name"
        )


def imagenet_flat(root: Path) -> ImageSet:
    """The official flat folder; a ground-truth file in it or in its parent folder gives the labels.

    Raises DataError if there is no such file, or if it does not label every image in the order of
    the logits.
    """
    listing = list_images(root)
    files = listing.files
    ground_truth = _find_ground_truth(root)
    label_of = read_ground_truth(ground_truth, [path.name for path in files])
    unlabelled = [path.name for path in files if path.name not in label_of]
    if unlabelled:
        raise DataError(
            f"{ground_truth}: has no label for {unlabelled[0]} ({len(unlabelled)} such images)"
        )
    labels = {path.name: label_of[path.name] for path in files}
    _check_class_order(ground_truth, labels)
    return checked_set(
        "imagenet-val",
        [(printable_name(path.name), path, labels[path.name]) for path in files],
        notes=tuple(listing_notes(root, _without_ground_truth(listing))),
    )


def _without_ground_truth(listing: Listing) -> Listing:
    """The listing without the files of labels, which are not left out."""
    known = {*GROUND_TRUTH_FILES, "meta.mat"}
    return replace(listing, others=[path for path in listing.others if path.name not in known])


def _find_ground_truth(root: Path) -> Path:
    """The first of GROUND_TRUTH_FILES in the folder, or else in its parent. Raises DataError."""
    for folder in (root, root.parent):
        for name in GROUND_TRUTH_FILES:
            if (folder / name).is_file():
                return folder / name
    raise DataError(
        f"{root}: a flat folder needs its labels: put one of {', '.join(GROUND_TRUTH_FILES)} into "
        "it or into its parent folder, or sort the images into the 1000 synset folders"
    )


def _check_class_order(ground_truth: Path, labels: dict[str, int]) -> None:
    """Raise DataError if labels {file name: class} contradict Big-12's list or ReaL's labels."""
    known = dict(read_image_list(IMAGE_LISTS / "big12.txt"))
    wrong = [name for name, label in labels.items() if label != known.get(name, label)]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{ground_truth}: its classes are in another order than the logits: it gives {name} "
            f"class {labels[name]}, ImageNet's is {known[name]} ({len(wrong)} such images of "
            "big12.txt)"
        )
    judged = [real_correct(name, label) for name, label in labels.items()]
    accepted = [one for one in judged if one is not None]
    if len(accepted) >= FEWEST_JUDGED and sum(accepted) < len(accepted) / 2:
        raise DataError(
            f"{ground_truth}: people see its class in {sum(accepted)} of {len(accepted)} images "
            "(ReaL, Beyer et al. 2020; of ImageNet's labels in nine of ten): its classes are in "
            "another order than the logits, or count from 1"
        )


# ---- ground truth --------------------------------------------------------------------------------


def read_ground_truth(path: Path, names: list[str]) -> dict[str, int]:
    """{file name: class index} from one of GROUND_TRUTH_FILES.

    names   of the images; the devkit's file has a line for each, in the order of the names
    Raises UserError, with the line.
    """
    if path.suffix == ".csv":
        return _labels_of_lines(path, _kaggle_lines(path))
    if path.name == "val.txt":
        return _labels_of_lines(path, _caffe_lines(path))
    return _read_devkit(path, names)


def _labels_of_lines(path: Path, lines: Iterable[tuple[int, str, int]]) -> dict[str, int]:
    """{file name: class index} of (line, file name, class index). Raises DataError."""
    label_of: dict[str, int] = {}
    for number, name, label in lines:
        if label_of.setdefault(name, label) != label:
            raise DataError(
                f"{path}, line {number}: class {label} for {name}, which an earlier line gives "
                f"class {label_of[name]}; keep the line that is right"
            )
    return label_of


def _kaggle_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """The solution file: ImageId, and boxes `synset x y x y` in PredictionString."""
    index = synset_labels()
    table = read_table(path, KAGGLE_COLUMNS, "download Kaggle's LOC_val_solution.csv again")
    for number, (name, boxes) in enumerate(table[KAGGLE_COLUMNS].to_numpy(), start=2):
        synset = boxes.partition(" ")[0]
        if synset not in index:
            raise DataError(f"{path}, line {number}: {boxes[:40]!r} begins with no ImageNet synset")
        yield number, f"{name.removesuffix('.JPEG')}.JPEG", index[synset]


def _caffe_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Lines `file name, class index`; folders before a file name are left out."""
    for number, line in enumerate(text_lines(path), start=1):
        match = CAFFE_LINE.fullmatch(line.strip())
        if match:
            yield number, PurePosixPath(match[1]).name, int(match[2])
        elif line.strip():
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is no line of val.txt; write file name and "
                "class (0 to 999, in the order of the synsets) with a space between, and no header"
            )


def _read_devkit(path: Path, names: list[str]) -> dict[str, int]:
    """One ILSVRC2012_ID per image, in the order of the file names."""
    ids = read_text(path).split()
    if len(ids) != len(names):
        raise DataError(f"{path}: {len(ids)} labels for {len(names)} images")
    index = synset_labels()
    synset_of = devkit_synsets(path.parent / "meta.mat")
    label_of = {
        str(number): index[synset] for number, synset in synset_of.items() if synset in index
    }
    wrong = [line for line in ids if line not in label_of]
    if wrong:
        raise DataError(f"{path}, line {ids.index(wrong[0]) + 1}: {wrong[0]!r} is no ILSVRC2012_ID")
    return {name: label_of[line] for name, line in zip(sorted(names), ids)}


def devkit_synsets(path: Path) -> dict[int, str]:
    """{ILSVRC2012_ID: synset} of the devkit's meta.mat. The devkit's ids are not class indices.

    Raises DataError.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(
            f"{path}: missing; the ids of ILSVRC2012_validation_ground_truth.txt are not class "
            "indices, and the devkit's meta.mat in the same folder translates them"
        )
    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: not the devkit's meta.mat ({error}); extract it again") from None
