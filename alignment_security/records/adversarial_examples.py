"""The photographs and perturbations that a run keeps (--examples): where they lie beside its record, and reading them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from alignment_security.common.files import UserError, safe_file_name

EXAMPLE_KEYS = ("label", "pred", "eps", "l2", "linf", "image", "delta")


def examples_folder(csv: Path) -> Path:
    """results/examples/<image set>/<threat>/<model>/ of the record results/records/<image set>/<threat>/<model>.csv."""
    return csv.parents[3].joinpath("examples", *csv.parts[-3:-1], csv.stem)


def example_path(csv: Path, image_id: str) -> Path:
    return examples_folder(csv) / f"{safe_file_name(image_id)}.npz"


def load_example(path: Path) -> dict:
    """An example's arrays and values: image (H, W, 3) uint8, delta (H, W, 3) float16, classes, eps and norms; human_map and
    human_alignment where the image set has maps. Raises UserError."""
    try:
        with np.load(path) as file:
            example = {
                name: file[name] if file[name].ndim else file[name].item() for name in file.files
            }
        return example | {name: example[name] for name in EXAMPLE_KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged example ({error}); delete it") from None
