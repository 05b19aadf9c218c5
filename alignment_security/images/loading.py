"""Images as float32 in [0, 1], one at a time; and the command that builds or verifies a subset of ImageNet.

    python dataloading.py big12 --imagenet DIR                      are all 960 images there?
    python dataloading.py big12 --imagenet DIR --out DIR2 [--copy]  the same as a folder of links (or copies)
    python dataloading.py big12 --imagenet DIR --out DIR2 --grouping mid_12 --per_class 2

The source is never altered. What --out made is an image set of its own: --dataset NAME --data_dir DIR2.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from alignment_security.images import human_maps, image_sets
from alignment_security.images.image_sets import (  # noqa: F401
    Corruption,
    DataError,
    ImageSet,
    checked_set,
    read_ground_truth,
    synsets,
    take_slice,
)
from alignment_security.records import run as records

MAX_PIXELS = 100_000_000
CHUNK = 16      # images that a worker sends at once
CORRUPTIONS = "imagecorruptions-imaug"      # on PyPI; imports as imagecorruptions
IMAGENET_C_SIZE, IMAGENET_C_CROP, IMAGENET_C_QUALITY = 256, 224, 85    # hendrycks/robustness, ImageNet-C/create_c


def load_image_set(name: str, data_dir: str | None = None, n_outputs: int = 1000,
                   corruption: tuple[str, int] | None = None, seed: int = 0) -> ImageSet:
    """The image set called `name`. Raises DataError for data that is missing, incomplete or out of order.

    data_dir    folder of the images; not needed for `sample`
    n_outputs   of the model: the set has to have as many classes, or its labels would mean other things
    corruption  (type, severity): which folder of imagenet-c and tiny-imagenet-c; made while loading for other sets
    seed        of corruptions made while loading, drawn per image from (seed, image id)
    """
    if name in ("imagenet-c", "tiny-imagenet-c"):
        images = image_sets.corruption_set(name, image_sets.existing_folder(name, data_dir), corruption)
    elif name == "sample":
        images = image_sets.sample_set()
    else:
        root = image_sets.existing_folder(name, data_dir)
        known = {"imagenet-val": image_sets.imagenet_set, "big12": image_sets.big12_set, "clickme": human_maps.clickme_set}
        images = known[name](root) if name in known else image_sets.folder_set(name, root, n_outputs)
    if images.n_classes != n_outputs:
        raise DataError(f"{name}: has {images.n_classes} classes, the model {n_outputs} outputs, so that its classes are others; "
                        "take a model of these classes, or put images of its own into --data_dir under another --dataset name")
    return images if corruption is None or images.corruption else corrupted(images, *corruption, seed)


# ---- pixels ----------------------------------------------------------------------------------------------------

def read_image(path: Path) -> Image.Image:
    """A file as an RGB image. Raises DataError naming the file when it cannot be decoded whole."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; shrink it first")
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be decoded ({error}); fetch it again or take it off the list") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits and three channels; PIL would clip 16-bit greys at 255 instead of scaling them."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        return Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def photograph(images: ImageSet, i: int) -> Image.Image:
    """Image i at its own size, RGB, with the set's corruption where that is made while loading."""
    image = human_maps.clickme_image(images, i) if human_maps.is_clickme(images) else read_image(images.paths[i])
    if images.corruption and images.corruption.source != "folder":
        return corrupt(image, images.corruption, images.ids[i])
    return image


def shown(images: ImageSet, preprocessing: dict) -> dict:
    """The model's preprocessing, without its crop for sets that are cropped already."""
    return preprocessing | {"crop_pct": 1.0} if images.cropped else preprocessing


class Pixels(Dataset):
    """(position, image (3, H, W) float32 in [0, 1]) as the model wants to see it; a DataError in place of a bad image.

    The error is returned, not raised: raised in a worker it would arrive as a traceback instead of a line.
    as_bytes   leave the image uint8, a quarter of the size on its way out of a worker
    """

    def __init__(self, images: ImageSet, preprocessing: dict, as_bytes: bool = False):
        self.images, self.as_bytes = images, as_bytes
        self.transform = create_transform(**shown(images, preprocessing), is_training=False, normalize=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor | DataError]:
        try:
            x = self.transform(photograph(self.images, i))
        except DataError as error:
            return i, error
        return i, (x if self.as_bytes else in_unit_range(x))


def in_unit_range(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def chunk(rows: list[tuple[int, Tensor | DataError]]) -> tuple[list[int], Tensor, DataError | None]:
    """(positions, images (n, 3, H, W), None), up to the first bad image, whose error then comes last."""
    good: list[Tensor] = []
    error = None
    for _, x in rows:
        if isinstance(x, DataError):
            error = x
            break
        good.append(x)
    return [i for i, _ in rows[:len(good)]], torch.stack(good) if good else torch.empty(0), error


def stream(images: ImageSet, preprocessing: dict, workers: int = 0) -> Iterator[tuple[str, Tensor, int]]:
    """(image_id, image, label) in list order, decoded ahead by `workers` processes; a few dozen images are in memory.

    Workers send chunks: sixteen images in one message cost this process a third of sixteen messages.
    """
    pixels = Pixels(images, preprocessing, as_bytes=True)
    chunks = (DataLoader(pixels, CHUNK, collate_fn=chunk, num_workers=workers, worker_init_fn=leave_the_group) if workers
              else (chunk([pixels[i]]) for i in range(len(images))))
    for rows, x, error in chunks:
        for i, image in zip(rows, x):
            yield images.ids[i], in_unit_range(image), images.labels[i]
        if error is not None:
            raise error


def leave_the_group(_: int) -> None:
    """SIGTERM to the process group is for the script, which ends its workers by itself."""
    os.setpgrp()


# ---- corruptions made while loading ----------------------------------------------------------------------------

def corruption_library():
    """The imagecorruptions package, or a DataError that says how to get it."""
    try:
        import imagecorruptions
    except ImportError as error:
        raise DataError(f"corruptions are made by {CORRUPTIONS}, which cannot be imported ({error}); `pip install "
                        f"{CORRUPTIONS}` (its OpenCV needs the system's libGL), or give the folder of ImageNet-C") from None
    return imagecorruptions


def corrupted(images: ImageSet, kind: str, severity: int, seed: int = 0) -> ImageSet:
    """`images` with a corruption of ImageNet-C done to each while it is loaded. Raises DataError for an unknown one."""
    known = corruption_library().get_corruption_names("all")
    if kind not in known:
        raise DataError(f"no corruption {kind!r}; there are {', '.join(known)}")
    if severity not in image_sets.SEVERITIES:
        raise DataError(f"{kind}: no severity {severity}; there are 1 to 5")
    source = f"{CORRUPTIONS} {metadata.version(CORRUPTIONS)}"
    return replace(images, corruption=Corruption(kind, severity, source, seed), cropped=True)


def corrupt(image: Image.Image, how: Corruption, image_id: str) -> Image.Image:
    """One image as ImageNet-C was made (hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py): shorter side to
    256, centre crop 224, corruption, JPEG of quality 85. Randomness comes from (seed, image id) alone.
    """
    seed = int.from_bytes(hashlib.sha256(f"{how.seed}:{image_id}".encode()).digest()[:4], "big")
    crop = functional.center_crop(functional.resize(image, IMAGENET_C_SIZE), IMAGENET_C_CROP)
    own_seed = {"seed": seed} if how.type in ("impulse_noise", "glass_blur") else {}
    state = np.random.get_state()
    try:
        np.random.seed(seed)    # the package draws from numpy's global generator
        pixels = corruption_library().corrupt(np.asarray(crop), corruption_name=how.type, severity=how.severity, **own_seed)
    finally:
        np.random.set_state(state)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=IMAGENET_C_QUALITY, optimize=True)
    return Image.open(file).convert("RGB")


# ---- command line ----------------------------------------------------------------------------------------------

def subset_of(root: Path, grouping: str, per_class: int) -> ImageSet:
    """A variant of Big-12: the committed list where it suffices, else a draw from the labels of the folder itself."""
    if grouping == "big_12" and per_class <= image_sets.BIG12_PER_CLASS:
        labelled = image_sets.read_list(image_sets.LISTS / "big12.txt")
    else:
        images = image_sets.imagenet_set(root)
        labelled = list(zip(images.ids, images.labels))
    rows = image_sets.draw(labelled, grouping, per_class)
    name = "big12" if (grouping, per_class) == ("big_12", image_sets.BIG12_PER_CLASS) else f"{grouping}-{per_class}"
    return checked_set(name, [r[0] for r in rows], image_sets.locate(root, rows), [r[1] for r in rows],
                       groups=tuple(r[2] for r in rows))


def export(images: ImageSet, out: Path, source: Path, copy: bool = False) -> None:
    """out/<synset>/<file> as symbolic links (or copies), and out/<set>.txt; what is there already is left as it is."""
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out}: lies inside {source}, which is never altered; choose another --out")
    names = synsets()
    for name, path, label in zip(images.ids, images.paths, images.labels):
        target = out / names[label] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and (not copy or target.stat().st_size == path.stat().st_size):
            continue
        part = target.with_name(f".{name}.part")
        part.unlink(missing_ok=True)
        shutil.copyfile(path, part) if copy else part.symlink_to(path.resolve())
        part.replace(target)
    lines = "".join(f"{n} {y} {g}\n" for n, y, g in zip(images.ids, images.labels, images.groups))
    records.write_atomic(out / f"{images.name}.txt", lines)


def big12(args) -> None:
    images = subset_of(image_sets.existing_folder("big12", args.imagenet), args.grouping, args.per_class)
    if args.out:
        export(images, args.out, args.imagenet, args.copy)
    groups = len(set(images.groups))
    print(f"{images.name}: all {len(images)} images are there, {groups} superclasses x {len(set(images.labels)) // groups} "
          f"classes x {args.per_class}\n  sha256 of the list   {images.list_sha256}\n"
          f"  sha256 of the images {images.contents_sha256()}" + (f"\n  {args.out}" if args.out else ""))


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("big12", help="verify the 960 images in an ImageNet validation folder, or build them")
    build.add_argument("--imagenet", type=Path, required=True, help="ImageNet validation: 1000 synset folders, or flat")
    build.add_argument("--out", type=Path, help="make this folder of synset folders, of symbolic links")
    build.add_argument("--copy", action="store_true", help="copies instead of links")
    build.add_argument("--per_class", type=int, default=image_sets.BIG12_PER_CLASS, help="images of each class")
    build.add_argument("--grouping", choices=list(image_sets.groupings()), default="big_12", help="superclasses")
    build.set_defaults(run=big12)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_args_parser().parse_args(argv)
    try:
        args.run(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
