"""What interruptions cost, and how long the merge of a whole sweep takes. No GPU, no pool; about ten minutes on two cores.

    python benchmarks/sweep.py                prints, and writes benchmarks/sweep.json

An eviction is played as HTCondor does it: the folder as it was at the last exit 85 comes back, what came after is lost.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from alignment import machine

from alignment_security.cluster.sweep import DEFAULTS
from alignment_security.common.files import utc_now
from alignment_security.common.settings import git_state
from alignment_security.records import run as records
from alignment_security.records.record import read_record, read_run_file
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records

MODEL, BUDGET = "tf_efficientnet_lite0", ["L2", "--protocol", "crossing", "--steps", "40"]
CHUNK, LOST = 5.0, 15.0  # seconds: to a checkpoint; from then to the eviction
PRODUCTION_CHUNK = int(DEFAULTS["chunk_seconds"])
RECORDS, ROWS = 350, 960


def command(results: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        str(HERE.parent / "evaluate_robustness.py"),
        "--model_name",
        MODEL,
        "--results_dir",
        str(results),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--batch_size",
        "4",
        *more,
        *BUDGET,
    ]


def run(results: Path, *more: str) -> tuple[int, float]:
    """Exit status and processor seconds of one process on one thread: a busy neighbour cannot stretch them."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run(command(results, *more), capture_output=True).returncode
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def record(results: Path) -> Path:
    (path,) = results.glob("records/*/*/*.csv")
    return path


def same_verdicts(a: Path, b: Path) -> bool:
    columns = ["image_id", "clean_correct", "success", "adv_pred"]
    return read_record(record(a))[columns].equals(read_record(record(b))[columns])


def checkpoints(folder: Path) -> dict:
    """The same evaluation in one process and in as many as --stop_after makes of it; processor seconds."""
    status, whole = run(folder / "whole")
    assert status == 0
    seconds, status = [], 85
    while status == 85:
        status, spent = run(folder / "chunks", "--stop_after", str(CHUNK))
        seconds.append(spent)
    assert status == 0 and same_verdicts(folder / "whole", folder / "chunks")
    start = run(folder / "whole")[1]  # a finished run: it loads everything and leaves
    images = len(read_record(record(folder / "whole")))
    cost = (sum(seconds) - whole) / (len(seconds) - 1)
    return {
        "images": images,
        "seconds_per_image": round((whole - start) / images, 2),
        "one_process_s": round(whole, 1),
        "in_chunks_s": round(sum(seconds), 1),
        "checkpoints": len(seconds) - 1,
        "start_of_a_process_s": round(start, 1),
        "seconds_per_checkpoint": round(cost, 1),
        f"share_of_run_time_at_{PRODUCTION_CHUNK}_s": round(cost / PRODUCTION_CHUNK, 4),
    }


def eviction(folder: Path) -> dict:
    """One checkpoint, an eviction LOST seconds into what follows, and on from the checkpoint; seconds by the wall."""
    results, kept = folder / "evicted", folder / "spooled"
    assert run(results, "--stop_after", str(CHUNK))[0] == 85
    shutil.copytree(results, kept)
    before = len(read_record(record(results)))
    begin = time.perf_counter()
    process = subprocess.Popen(command(results), stderr=subprocess.DEVNULL)
    while read_run_file(record(results).with_suffix(".json"))["status"] != "running":
        time.sleep(0.05)
    started = time.perf_counter() - begin
    time.sleep(LOST)
    process.kill()
    process.wait()
    lost = time.perf_counter() - begin
    again = len(records.whole_rows(record(results))) - before
    shutil.rmtree(results)
    shutil.move(kept, results)
    assert run(results)[0] == 0 and same_verdicts(folder / "whole", results)
    return {
        "seconds_lost": round(lost, 1),
        "of_it_start_of_a_process_s": round(started, 1),
        "finished_images_redone": again,
        "images_under_way_at_most": 4,
        f"mean_loss_at_{PRODUCTION_CHUNK}_s_checkpoints_s": round(PRODUCTION_CHUNK / 2 + started),
    }


def row_cost(folder: Path, images: int = 300) -> float:
    """Seconds to append the row of an image so that it outlives a kill (written and synced)."""
    row = {
        "label": 1,
        "clean_pred": 1,
        "clean_correct": 1,
        "success": 1,
        "adv_pred": 2,
        "l2": 0.123456789,
        "linf": 0.01,
    }
    with Run(folder, "sample", "L2-fmn", "net", "minimum_norm", {"model": {}, "run": {}}) as opened:
        begin = time.perf_counter()
        for i in range(images):
            opened.append([{"image_id": f"{i}.jpg", **row}])
    return (time.perf_counter() - begin) / images


def merge(folder: Path) -> dict:
    """A summary of RECORDS finished records of ROWS images, as `utilities.py merge` makes it."""
    rng, ids = np.random.default_rng(0), [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(ROWS)]
    for number in range(RECORDS):
        rows = [
            {
                "image_id": name,
                "label": 7,
                "clean_pred": 7,
                "clean_correct": 1,
                "success": 1,
                "adv_pred": 9,
                "l2": l2,
                "linf": l2 / 9,
                "human_alignment_raw": l2 / 3,
                "human_alignment": l2 / 2,
                "forwards": 1001,
                "backwards": 1000,
            }
            for name, l2 in zip(ids, rng.random(ROWS))
        ]
        with Run(
            folder,
            "big12",
            "L2-fmn",
            f"net{number}",
            "minimum_norm",
            {"model": {}, "run": {"seed": 0}},
        ) as opened:
            opened.append(rows)
            opened.finish(ids, seconds=1.0)
    begin = time.perf_counter()
    summary = merge_records(folder)
    assert len(summary) == RECORDS and (summary["n"] == ROWS).all()
    return {"records": RECORDS, "rows_each": ROWS, "seconds": round(time.perf_counter() - begin, 2)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict = {
            "date": utc_now(),
            "git": git_state(),
            "machine": machine(),
            "model": MODEL,
            "budget": BUDGET,
            "merge": merge(folder / "merged"),
            "checkpoints": checkpoints(folder),
            "eviction": eviction(folder),
        }
        seconds = row_cost(folder / "rows")
    found["row"] = {
        "seconds_to_append": round(seconds, 5),
        "share_of_run_time": round(seconds / found["checkpoints"]["seconds_per_image"], 5),
    }
    (HERE / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
