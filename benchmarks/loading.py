"""Images per second that arrive decoded and cropped, and the memory of a long list. No GPU.

    python benchmarks/loading.py                prints, and writes benchmarks/loading.json

The list has 50,000 entries: the 20 photographs of the sample, repeated under different ids, as they
are (512 x 512) and at 500 x 375, the size of most ImageNet images. Every entry is decoded. Of the
decoded images that an evaluation keeps, at most 1 GiB, there are only 20 here.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment_security.images.decoded import DECODED
from alignment_security.images.decoding import read_image
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import load_image_set, stream_bytes
from alignment_security.models.loading import load_model
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_results

IMAGENET_SIZE = (500, 375)
PREPROCESSING = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


@dataclass(frozen=True)
class Size:
    """warm_up and timed: images of a rate; watched: images of a memory curve; batches of 16."""

    entries: int = 50_000
    warm_up: int = 50
    timed: int = 600
    watched: int = 3000
    rate_workers: tuple[int, ...] = (0, 1, 2)
    memory_workers: tuple[int, ...] = (0, 2)
    batch: int = 16
    batches: int = 6


QUICK = Size(
    entries=60,
    warm_up=2,
    timed=4,
    watched=6,
    rate_workers=(0, 1),
    memory_workers=(0, 1),
    batch=1,
    batches=1,
)


def long_list(paths: tuple[Path, ...], entries: int) -> ImageSet:
    """The sample, its photographs at `paths`, repeated until there are enough entries."""
    sample = load_image_set("sample")
    return replace(
        sample,
        name="long",
        ids=tuple(f"{i:05d}.jpg" for i in range(entries)),
        paths=tuple(paths[i % len(paths)] for i in range(entries)),
        labels=tuple(sample.labels[i % len(paths)] for i in range(entries)),
    )


def shrunk(folder: Path) -> tuple[Path, ...]:
    """The sample's photographs at ImageNet's usual size, as files in `folder`."""
    for path in load_image_set("sample").paths:
        read_image(path).resize(IMAGENET_SIZE).save(folder / path.name, quality=95)
    return tuple(sorted(folder.iterdir()))


def decoded_anew(
    images: ImageSet, preprocessing: dict, workers: int
) -> Iterator[tuple[str, Tensor, int]]:
    """The images as an evaluation streams them, uint8, none of them kept from before."""
    DECODED.clear()
    return stream_bytes(images, preprocessing, workers)


def rate(images: ImageSet, workers: int, size: Size) -> float:
    """Images per second, without the start of the workers."""
    source = decoded_anew(images, PREPROCESSING, workers)
    for _ in islice(source, size.warm_up):
        pass
    begin = time.perf_counter()
    for _ in islice(source, size.timed):
        pass
    return size.timed / (time.perf_counter() - begin)


def model_rate(size: Size, name: str = "tf_efficientnet_lite0") -> float:
    """Images per second through the forward pass of the smallest model, float32, on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(name, device=device)
    x = torch.rand(size.batch, *model.preprocessing["input_size"], device=device)
    with torch.no_grad():
        float(model.module(x).sum())
        begin = time.perf_counter()
        for _ in range(size.batches):
            float(model.module(x).sum())  # waits for a GPU
    return size.batch * size.batches / (time.perf_counter() - begin)


def proportional_set_size(pid: int | str) -> int:
    """Memory of a process in KiB; a page that n processes share counts 1/n."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no Pss")


def memory(images: ImageSet, workers: int, size: Size) -> dict:
    """Resident MiB of this process and its workers after each sixth of the watched images."""
    seen = {}
    source = decoded_anew(images, PREPROCESSING, workers)
    for i, _ in enumerate(islice(source, size.watched + 1)):
        if i % (size.watched // 6) == 0:
            pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
            seen[str(i)] = round(sum(map(proportional_set_size, pids)) / 1024)
    return seen


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser(__doc__).parse_args(argv)
    size = QUICK if args.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        originals = long_list(load_image_set("sample").paths, size.entries)
        lists = {
            "512 x 512": originals,
            "500 x 375": long_list(shrunk(Path(folder)), size.entries),
        }
        rates = {
            name: {f"{w} workers": round(rate(images, w, size)) for w in size.rate_workers}
            for name, images in lists.items()
        }
        results = {
            "entries": size.entries,
            "machine": machine(),
            "images_per_second": rates,
            "mib_after_images": {
                f"{w} workers": memory(originals, w, size) for w in size.memory_workers
            },
            "lite0_forwards_per_second": round(model_rate(size)),
        }
    write_results(results, output_file(args, __file__))


if __name__ == "__main__":
    main()
