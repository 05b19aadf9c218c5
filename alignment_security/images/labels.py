"""alignment_security.images.labels."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path, PurePath

from timm.data import RealLabelsImagenet

from alignment_security.images.image_sets import DataError, synsets

# ---- labels that fit besides the one of ImageNet ---------------------------------------------------------------


@cache
def real_labels() -> dict[str, list[int]]:
    """ReaL (Beyer et al. 2020), as timm ships it: validation file name -> every class that fits; some have none."""
    return RealLabelsImagenet([""] * 50_000).real_labels


def real_correct(file_name: str, pred: int) -> int | None:
    """Whether a class is among the ReaL labels of an ImageNet validation image; None where there are none."""
    labels = real_labels().get(PurePath(file_name).name)
    return int(pred in labels) if labels else None


@cache
def read_multilabels(path: Path) -> dict[str, frozenset[int]]:
    """Validation file name -> every class that people accept, from human_accuracy_v3.0.0.json (Shankar et al. 2020, with
    the corrections of Vasudevan et al. 2022).

    Format: tensorflow/datasets, imagenet2012_multilabel; and its rule: labels marked correct or unclear are accepted,
    problematic images and images of other sets do not count. Accuracy is then the mean over classes.
    Raises DataError; a pickle (the first release) is refused, for reading it would run the code inside it.
    """
    try:
        loaded = json.loads(Path(path).read_text())
        index = {synset: k for k, synset in enumerate(synsets())}
        return {
            name: frozenset(
                index[s] for mark in ("correct", "unclear") for s in marks.get(mark, [])
            )
            for name, marks in loaded["initial_annots"].items()
            if name.startswith("ILSVRC2012_val_") and name not in loaded["problematic_images"]
        }
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not human_accuracy_v3.0.0.json ({type(error).__name__}: {str(error)[:80]}); the pickle of "
            "the first release is not read"
        ) from None


def multilabel_correct(labels: dict[str, frozenset[int]], file_name: str, pred: int) -> int | None:
    """Whether people accept that class for that image; None where they were not asked."""
    accepted = labels.get(PurePath(file_name).name)
    return None if accepted is None else int(pred in accepted)
