"""Records of 50,000 images at four eps: to write, to take up again, to finish, audit and merge.

    python benchmarks/records.py              prints, and writes benchmarks/records.json

Takes about two minutes on one core. The rows are made up; the rates of networks are measured on
the sample's photographs, repeated.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment_security.common.files import utc_now
from alignment_security.common.settings import git_state
from alignment_security.evaluation import Clean, evaluate
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.loading import load_image_set
from alignment_security.models.heads import Model
from alignment_security.models.loading import load_model
from alignment_security.records import record_file
from alignment_security.records.audit import audit
from alignment_security.records.record import check_rows_belong
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_results

EPS = [0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Size:
    """What is measured.

    images   of the long record; left: of them without rows when it is taken up again
    synced   images whose rows are synced one by one
    tiny     images of a clean run of a tiny network; real: of one in use
    """

    images: int = 50_000
    left: int = 16
    synced: int = 500
    tiny: int = 500
    real: int = 60


QUICK = Size(images=20, left=2, synced=2, tiny=2, real=2)


class Seconds(NamedTuple):
    """Seconds by the clock, and of this process on a processor: others share the machine."""

    clock: float
    processor: float


def timed(work: Callable[[], Result]) -> tuple[Result, Seconds]:
    """What `work` returns, and the time that it took."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return result, Seconds(round(clock, 3), round(processor, 3))


def made_up_rows(image_id: str) -> list[dict]:
    """Rows of an image that breaks at the last two eps."""
    row: dict = {
        "image_id": image_id,
        "label": 7,
        "clean_pred": 7,
        "clean_correct": 1,
        "backwards": 40,
    }
    rows = []
    for eps in EPS:
        robust = int(eps < EPS[2])
        found: dict = {"eps": eps, "robust": robust, "from_eps": eps, "forwards": 41}
        if robust:
            found["adv_pred"] = 7
        else:
            found |= {"adv_pred": 9, "broken_by": "apgd-ce", "linf": eps, "l2": 100 * eps}
        rows.append(row | found)
    return rows


def open_run(folder: Path, images: int) -> Run:
    settings = {"model": {}, "run": {"eps": EPS, "images": images, "seed": 0}}
    return Run(folder, "imagenet-val", "Linf", "net", "ball", settings)


def append_all(run: Run, image_ids: list[str]) -> None:
    for image_id in image_ids:
        run.append(made_up_rows(image_id))


def rows_per_second(images: int, seconds: float) -> int | None:
    return round(images * len(EPS) / seconds) if seconds else None


def long_record(folder: Path, size: Size) -> dict:
    """Seconds of each thing that is done with a long record."""
    ids = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(size.images)]
    written, left = ids[: -size.left], ids[-size.left :]
    with open_run(folder, size.images) as run:
        _, append_seconds = timed(lambda: append_all(run, written))
        bytes_per_row = run.csv.stat().st_size / (len(written) * len(EPS))

    def take_up() -> Run:
        run = open_run(folder, size.images)
        check_rows_belong(run.rows, ids, EPS, run.csv)
        counts = run.counts()
        missing = [name for name in ids if counts[name] < len(EPS)]
        assert run.known(missing) == {}
        return run

    run, take_up_seconds = timed(take_up)
    append_all(run, left)
    _, finish_seconds = timed(lambda: run.finish(ids, EPS, seconds=1.0))
    run.close()
    _, merge_seconds = timed(lambda: merge_records(folder))
    _, audit_seconds = timed(lambda: audit(folder))
    rate = rows_per_second(len(written), append_seconds.clock)
    return {
        "rows": size.images * len(EPS),
        "bytes_per_row": round(bytes_per_row, 1),
        "append_rows_per_second": rate,
        "take_up_seconds": take_up_seconds._asdict(),
        "finish_seconds": finish_seconds._asdict(),
        "merge_seconds": merge_seconds._asdict(),
        "audit_seconds": audit_seconds._asdict(),
    }


def synced_rows_per_second(folder: Path, size: Size) -> int | None:
    """Rows a second when each image is synced to disk, as before SYNC_SECONDS."""
    kept, record_file.SYNC_SECONDS = record_file.SYNC_SECONDS, 0.0
    try:
        with open_run(folder, size.synced) as run:
            ids = [f"{i}.jpg" for i in range(size.synced)]
            return rows_per_second(size.synced, timed(lambda: append_all(run, ids))[1].clock)
    finally:
        record_file.SYNC_SECONDS = kept


def repeated_sample(images: int) -> ImageSet:
    """The sample's photographs again and again, under names of their own."""
    sample = load_image_set("sample")
    again = [i % len(sample) for i in range(images)]
    return ImageSet(
        "repeated",
        tuple(f"{i}.jpg" for i in range(images)),
        tuple(sample.paths[i] for i in again),
        tuple(sample.labels[i] for i in again),
    )


def clean_images_per_second(folder: Path, model: Model, images: int) -> float:
    """Images a second of a clean run that writes a record."""
    run = partial(evaluate, model, repeated_sample(images), Clean(), folder, batch_size=8)
    return round(images / timed(run)[1].clock, 1)


def tiny_model(folder: Path) -> Model:
    """A network of 0.2 million random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "net.pth")
    return load_model("test_resnet", folder / "net.pth")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser(__doc__).parse_args(argv)
    size = QUICK if args.quick else Size()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict = {
            "date": utc_now(),
            "git": git_state(),
            "machine": machine(),
            "long_record": long_record(folder / "long", size),
            "synced_rows_per_second": synced_rows_per_second(folder / "synced", size),
            "clean_images_per_second": {
                "test_resnet": clean_images_per_second(
                    folder / "clean", tiny_model(folder / "tiny"), size.tiny
                ),
                "tf_efficientnet_lite0": clean_images_per_second(
                    folder / "clean", load_model("tf_efficientnet_lite0"), size.real
                ),
            },
        }
    row = results["long_record"]["bytes_per_row"]
    fastest = max(results["clean_images_per_second"].values())
    results["lost_at_most"] = {
        "killed process": "0 rows",
        "machine without power": f"{round(fastest * record_file.SYNC_SECONDS * row)} bytes",
    }
    write_results(results, output_file(args, __file__))


if __name__ == "__main__":
    main()
