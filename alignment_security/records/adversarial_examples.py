"""Saved adversarial examples (--examples): their paths, and reading them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alignment_security.common.files import UserError, safe_file_name

DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile)
MAX_BYTES = 2**30  # unpacked; an example of 1000 x 1000 pixels has 30 MB


def examples_folder(csv: Path) -> Path:
    """Folder of the examples of a record.

    csv   results/records/<image set>/<threat>/<model>.csv
    Returns results/examples/<image set>/<threat>/<model>.
    """
    results = csv.parents[3]
    image_set, threat = csv.parts[-3:-1]
    return results / "examples" / image_set / threat / csv.stem


def example_path(csv: Path, image_id: str) -> Path:
    return examples_folder(csv) / f"{safe_file_name(image_id)}.npz"


def load_example(path: Path) -> dict:
    """The arrays and scalars of an example file.

    Returns a dict of at least image (H, W, 3) uint8; delta (H, W, 3) float32 in pixel units of
    [0, 1]; the classes label and pred; eps, l2 and linf (of delta). label_index and pred_index, as
    the record has them, in files of later versions. human_map and human_alignment too when the
    image set has maps. Raises UserError for a damaged file.
    """
    with naming_damage(path):
        check_size(path)
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        example = {
            name: array if array.ndim else array.item()  # scalars are 0-dimensional arrays
            for name, array in arrays.items()
        }
        check_arrays(example)
        return example


def example_norms(path: Path) -> tuple[float, float]:
    """l2 and linf of an example as it was saved. Raises UserError for a damaged file."""
    with naming_damage(path), np.load(path) as file:
        return float(file["l2"]), float(file["linf"])


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Raise UserError, which names the file, for whatever reading a damaged one raises."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: damaged example ({error}); delete it") from None


def check_size(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than any example."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes")


def check_arrays(example: dict) -> None:
    """Raise ValueError or KeyError unless an example has its keys, shapes and kinds of numbers."""
    image, delta = example["image"], example["delta"]
    if np.ndim(image) != 3 or image.dtype != np.uint8 or image.shape[2] != 3:
        raise ValueError("its image is no photograph")
    if np.shape(delta) != image.shape or not np.isfinite(delta).all():
        raise ValueError("its perturbation does not fit its image")
    if "human_map" in example and np.shape(example["human_map"]) != image.shape[:2]:
        raise ValueError("its human map does not fit its image")
    for name in ("label", "pred"):
        if not isinstance(example[name], str | int):
            raise ValueError(f"its {name} is no class")
    for name in ("eps", "l2", "linf"):
        float(example[name])
