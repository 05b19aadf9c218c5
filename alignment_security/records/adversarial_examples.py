"""Saved adversarial examples (--examples): their paths, and reading them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from alignment_security.common.files import UserError, safe_file_name

EXAMPLE_KEYS = ("label", "pred", "eps", "l2", "linf", "image", "delta")


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

    Returns a dict with at least EXAMPLE_KEYS: image (H, W, 3) uint8; delta (H, W, 3) float32 in
    pixel units of [0, 1]; classes label and pred; eps and norms. human_map and human_alignment too
    when the image set has maps. Raises UserError for a damaged file.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        example = {
            name: array if array.ndim else array.item()  # scalars are 0-dimensional arrays
            for name, array in arrays.items()
        }
        return example | {name: example[name] for name in EXAMPLE_KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged example ({error}); delete it") from None
