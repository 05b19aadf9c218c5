"""Further labels of ImageNet validation images: ReaL, and the multi-labels of Shankar et al.

Both list every class that people accept for an image, besides the one label of ImageNet.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path, PurePath

from timm.data import RealLabelsImagenet

from alignment_security.common.files import UserError
from alignment_security.common.text import read_text
from alignment_security.images.image_sets import DataError, synset_labels

VALIDATION_IMAGES = 50_000
ACCEPTED_MARKS = ("correct", "unclear")


# ---- ReaL ----------------------------------------------------------------------------------------


@cache
def real_labels() -> dict[str, list[int]]:
    """ReaL (Beyer et al. 2020) as timm ships it: {file name: classes}; some images have none."""
    return RealLabelsImagenet([""] * VALIDATION_IMAGES).real_labels


def real_correct(file_name: str, pred: int) -> int | None:
    """1 if the class is among the image's ReaL labels, 0 if not, None if it has none."""
    labels = real_labels().get(PurePath(file_name).name)
    return int(pred in labels) if labels else None


# ---- multi-labels --------------------------------------------------------------------------------


@cache
def read_multilabels(path: Path) -> dict[str, frozenset[int]]:
    """{file name: classes that people accept} from human_accuracy_v3.0.0.json.

    Shankar et al. 2020, with the corrections of Vasudevan et al. 2022. Format and rule are those of
    tensorflow/datasets, imagenet2012_multilabel: labels marked correct or unclear are accepted;
    problematic images and images of other sets are left out. Accuracy is then the mean over
    classes.

    Raises DataError, also for the pickle of the first release: reading it would run code.
    """
    try:
        return _parse_annotations(json.loads(read_text(path)))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not human_accuracy_v3.0.0.json ({type(error).__name__}: {str(error)[:80]}); "
            "the pickle of the first release is not read"
        ) from None


def _parse_annotations(loaded: dict) -> dict[str, frozenset[int]]:
    """{file name: accepted classes} from the content of the annotation file."""
    index = synset_labels()
    accepted = {}
    for name, marks in loaded["initial_annots"].items():
        if not name.startswith("ILSVRC2012_val_") or name in loaded["problematic_images"]:
            continue
        names = [synset for mark in ACCEPTED_MARKS for synset in marks.get(mark, [])]
        accepted[name] = frozenset(index[synset] for synset in names)
    return accepted


def multilabel_correct(labels: dict[str, frozenset[int]], file_name: str, pred: int) -> int | None:
    """1 if people accept the class for the image, 0 if not, None if they were not asked."""
    accepted = labels.get(PurePath(file_name).name)
    return None if accepted is None else int(pred in accepted)
