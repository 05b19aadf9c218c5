"""The ImageNet validation set: synset folders or flat, labels in the order of the logits."""

from __future__ import annotations

import csv
from pathlib import Path

from alignment_security.images.image_sets import (
    IMAGE_ENDINGS,
    IMAGE_LISTS,
    DataError,
    ImageSet,
    checked_set,
    image_files,
    read_image_list,
    synsets,
)

# Kaggle's, Caffe's and the devkit's
GROUND_TRUTH_FILES = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")


def imagenet_set(root: Path) -> ImageSet:
    """ImageNet validation from synset folders, if `root` has folders, or else from a flat folder.

    Raises DataError.
    """
    has_folders = any(path.is_dir() for path in root.iterdir())
    return imagenet_folders(root) if has_folders else imagenet_flat(root)


def imagenet_folders(root: Path, name: str = "imagenet-val") -> ImageSet:
    """ImageNet validation in 1000 synset folders, in the order of the file names.

    Raises DataError unless the folders are exactly timm's synsets and none is empty.
    """
    want = synsets()
    have = {path.name for path in root.iterdir() if path.is_dir()}
    missing = [synset for synset in want if synset not in have]
    unknown = sorted(have - set(want))
    if missing or unknown:
        raise DataError(
            f"{root}: not the 1000 ImageNet folders: "
            f"{len(missing)} missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3]) or '-'}); "
            "a subset goes under another --dataset name"
        )
    files_of = {synset: image_files(root / synset) for synset in want}
    empty = [synset for synset in want if not files_of[synset]]
    if empty:
        raise DataError(
            f"{root / empty[0]}: no images ({len(empty)} empty synset folders); copy the set again"
        )
    files = [(path, label) for label, synset in enumerate(want) for path in files_of[synset]]
    files.sort(key=lambda row: row[0].name)
    paths = [path for path, _ in files]
    labels = [label for _, label in files]
    return checked_set(name, [path.name for path in paths], paths, labels)


def imagenet_flat(root: Path) -> ImageSet:
    """The official flat folder; a ground-truth file in it or in its parent folder gives the labels.

    Raises DataError if there is no such file, or if it does not label every image in the order of
    the logits.
    """
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS]
    ground_truth = _find_ground_truth(root)
    label_of = read_ground_truth(ground_truth, [path.name for path in files])
    unlabelled = [path.name for path in files if path.name not in label_of]
    if unlabelled:
        raise DataError(
            f"{ground_truth}: has no label for {unlabelled[0]} ({len(unlabelled)} such images)"
        )
    labels = {path.name: label_of[path.name] for path in files}
    _check_class_order(ground_truth, labels)
    return checked_set("imagenet-val", list(labels), files, list(labels.values()))


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
    """Raise DataError if labels {file name: class} contradict those of Big-12's list."""
    known = dict(read_image_list(IMAGE_LISTS / "big12.txt"))
    wrong = [name for name, label in labels.items() if label != known.get(name, label)]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{ground_truth}: its classes are in another order than the logits: it gives {name} "
            f"class {labels[name]}, ImageNet's is {known[name]} ({len(wrong)} such images of "
            "big12.txt)"
        )


# ---- ground truth --------------------------------------------------------------------------------


def read_ground_truth(path: Path, names: list[str]) -> dict[str, int]:
    """{file name: class index} from one of GROUND_TRUTH_FILES.

    names   of the images; the devkit's file has a line for each, in the order of the names

    Raises DataError.
    """
    try:
        if path.suffix == ".csv":
            return _read_kaggle(path)
        if path.name == "val.txt":
            return _read_caffe(path)
        return _read_devkit(path, names)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not a ground-truth file of ImageNet ({error!r})") from None


def _class_index() -> dict[str, int]:
    return {synset: i for i, synset in enumerate(synsets())}


def _read_kaggle(path: Path) -> dict[str, int]:
    """The solution file: ImageId, and boxes `synset x y x y` in PredictionString."""
    index = _class_index()
    label_of = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            label_of[row["ImageId"] + ".JPEG"] = index[row["PredictionString"].split()[0]]
    return label_of


def _read_caffe(path: Path) -> dict[str, int]:
    """Lines `file name, class index`."""
    words = path.read_text().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _read_devkit(path: Path, names: list[str]) -> dict[str, int]:
    """One ILSVRC2012_ID per image, in the order of the file names."""
    ids = path.read_text().split()
    if len(ids) != len(names):
        raise DataError(f"{path}: {len(ids)} labels for {len(names)} images")
    index = _class_index()
    synset_of = devkit_synsets(path.parent / "meta.mat")
    return {name: index[synset_of[int(line)]] for name, line in zip(sorted(names), ids)}


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
