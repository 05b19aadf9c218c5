"""Images a second that arrive decoded and cropped, and what memory a long list takes. No GPU.

    python benchmarks/loading.py                prints, and writes benchmarks/loading.json

The list: 50,000 entries, the 20 photographs of the sample again and again under ids of their own: as they are
(512 x 512), and at 500 x 375, which is what most of ImageNet's are.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from alignment import machine

from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import load_image_set, read_image, stream_images
from alignment_security.models.loading import load_model

ENTRIES, TIMED, WATCHED = 50_000, 600, 3000
PREPROCESSING = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def long_list(paths: tuple[Path, ...]) -> ImageSet:
    sample = load_image_set("sample")
    rows = range(ENTRIES)
    return replace(
        sample,
        name="long",
        ids=tuple(f"{i:05d}.jpg" for i in rows),
        paths=tuple(paths[i % 20] for i in rows),
        labels=tuple(sample.labels[i % 20] for i in rows),
    )


def shrunk(folder: Path) -> tuple[Path, ...]:
    for path in load_image_set("sample").paths:
        read_image(path).resize((500, 375)).save(folder / path.name, quality=95)
    return tuple(sorted(folder.iterdir()))


def rate(images: ImageSet, workers: int) -> float:
    """Images a second, the start of the workers not counted."""
    source = stream_images(images, PREPROCESSING, workers)
    for _ in islice(source, 50):
        pass
    begin = time.perf_counter()
    for _ in islice(source, TIMED):
        pass
    return TIMED / (time.perf_counter() - begin)


def model_rate(name: str = "tf_efficientnet_lite0", batch: int = 16, batches: int = 6) -> float:
    """Images a second through the forward pass of the smallest model, in float32, on the device that is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(name, device=device)
    x = torch.rand(batch, *model.preprocessing["input_size"], device=device)
    with torch.no_grad():
        float(model.module(x).sum())
        begin = time.perf_counter()
        for _ in range(batches):
            float(model.module(x).sum())
    return batch * batches / (time.perf_counter() - begin)


def pss(pid: int | str) -> int:
    """Proportional set size of a process, KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def memory(images: ImageSet, workers: int) -> dict:
    """Resident MiB of this process and its workers (shared pages counted once: PSS) along a stream."""
    seen = {}
    for i, _ in enumerate(islice(stream_images(images, PREPROCESSING, workers), WATCHED + 1)):
        if i % (WATCHED // 6) == 0:
            seen[str(i)] = round(
                sum(
                    pss(pid)
                    for pid in ["self", *(p.pid for p in multiprocessing.active_children())]
                )
                / 1024
            )
    return seen


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lists = {
            "512 x 512": long_list(load_image_set("sample").paths),
            "500 x 375": long_list(shrunk(Path(folder))),
        }
        found = {
            "entries": ENTRIES,
            "machine": machine(),
            "images_per_second": {
                name: {f"{w} workers": round(rate(images, w)) for w in (0, 1, 2)}
                for name, images in lists.items()
            },
            "mib_after_images": {f"{w} workers": memory(lists["512 x 512"], w) for w in (0, 2)},
            "lite0_forwards_per_second": round(model_rate()),
        }
    (HERE / "loading.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
