"""The photographs and perturbations that a run keeps (--examples): where they lie beside its record, and reading them."""
from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from alignment_security.records import run as records

NEEDED = ("label", "pred", "eps", "l2", "linf", "image", "delta")


def folder_of(csv: Path) -> Path:
    """results/examples/<image set>/<threat>/<model>/ of the record results/records/<image set>/<threat>/<model>.csv."""
    return csv.parents[3].joinpath("examples", *csv.parts[-3:-1], csv.stem)


def path_of(csv: Path, image_id: str) -> Path:
    return folder_of(csv) / f"{records.file_name(image_id)}.npz"


def load(path: Path) -> dict:
    """An example's arrays and values: image (H, W, 3) uint8, delta (H, W, 3) float16, classes, eps and norms; human_map and
    human_alignment where the image set has maps. Raises RecordError."""
    try:
        with np.load(path) as file:
            example = {name: file[name] if file[name].ndim else file[name].item() for name in file.files}
        return example | {name: example[name] for name in NEEDED}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise records.RecordError(f"{path}: damaged example ({error}); delete it") from None
