"""The cost of starts and interruptions, and the time to merge a sweep. No GPU, no pool.

    python benchmarks/sweep.py                prints, and writes benchmarks/sweep.json

Takes about ten minutes on two cores. An eviction is simulated as HTCondor does it: the folder as it
was at the last exit with status 85 comes back, and everything after that is lost.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment_security.cluster.sweep_settings import DEFAULTS
from alignment_security.common.exit_status import CHECKPOINTED
from alignment_security.common.files import utc_now
from alignment_security.common.settings import git_state
from alignment_security.records.record import read_record, read_run_file
from alignment_security.records.run import Run
from alignment_security.records.summary import merge_records
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_results

MODEL = "tf_efficientnet_lite0"
MODELS = [f"tf_efficientnet_lite{k}" for k in (0, 1, 2)]
THREATS = ("clean", "Linf --eps 1/255 --attacks apgd-ce --steps 2", "L2 --steps 2")
BATCH = 4  # images that the evaluation works on at once
CHUNK_SECONDS = int(DEFAULTS["chunk_seconds"])  # of a sweep in production
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Size:
    """What is evaluated, interrupted and merged.

    steps     of the boundary-crossing attack
    images    of the sample; None: all of it
    chunk     seconds to a checkpoint; lost: seconds from then to the eviction
    models    of MODELS, each started for each of THREATS
    records   of `rows` images each, to merge; appended: rows to time one by one
    """

    steps: int = 40
    images: int | None = None
    chunk: float = 5.0
    lost: float = 15.0
    models: int = 3
    records: int = 350
    rows: int = 960
    appended: int = 300

    @property
    def budget(self) -> list[str]:
        return ["L2", "--protocol", "crossing", "--steps", str(self.steps)]


QUICK = Size(steps=2, images=2, chunk=0.001, lost=0.1, models=1, records=2, rows=3, appended=3)


# ---- one evaluation ------------------------------------------------------------------------------


def command(results: Path, size: Size, *options: str) -> list[str]:
    """The command line of an evaluation on the CPU."""
    words = [sys.executable, str(ROOT / "evaluate_robustness.py"), "--model_name", MODEL]
    words += ["--results_dir", str(results), "--workers", "0", "--device", "cpu"]
    words += ["--batch_size", str(BATCH), *options]
    if size.images:
        words += ["-s", str(size.images)]
    return [*words, *size.budget]


def run(results: Path, size: Size, *options: str) -> tuple[int, float]:
    """Exit status and processor seconds of an evaluation."""
    return run_command(command(results, size, *options))


def run_command(words: list[str]) -> tuple[int, float]:
    """Exit status and processor seconds of a command; other processes do not add to these."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run(words, capture_output=True).returncode
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def record_path(results: Path) -> Path:
    """The only record of a results folder."""
    (path,) = results.glob("records/*/*/*.csv")
    return path


def same_verdicts(a: Path, b: Path) -> bool:
    """Whether the records of two results folders agree on every image."""
    columns = ["image_id", "clean_correct", "success", "adv_pred"]
    ours, theirs = (read_record(record_path(results))[columns] for results in (a, b))
    return ours.equals(theirs)


# ---- a study -------------------------------------------------------------------------------------


def start_up(folder: Path, size: Size) -> dict:
    """What it takes to start a model x threat, by single commands and in a study.

    Everything is evaluated already: a command loads the model, reads its record and exits.
    """
    names = MODELS[: size.models]
    folder.mkdir()
    (folder / "nets.txt").write_text("".join(f"{name}\n" for name in names))
    study = folder / "study.txt"
    study.write_text("\n".join(["models nets.txt", "images -s 4", *THREATS]) + "\n")
    words = [sys.executable, str(ROOT / "evaluate_robustness.py"), "--device", "cpu"]
    words += ["--workers", "0", "--results_dir", str(folder / "results")]
    assert run_command([*words, "--study", str(study)])[0] == 0
    single = 0.0
    for name in names:
        for threat in THREATS:
            options = ["--model_name", name, "-s", "4", *threat.split()]
            status, seconds = run_command([*words, *options])
            assert status == 0
            single += seconds
    shutil.rmtree(folder / "results/studies")  # else the study loads nothing
    status, together = run_command([*words, "--study", str(study)])
    assert status == 0
    pairs = len(names) * len(THREATS)
    return {
        "models": len(names),
        "threats": len(THREATS),
        "single_commands_s_per_model_and_threat": round(single / pairs, 2),
        "study_s_per_model_and_threat": round(together / pairs, 2),
        "ratio": round(together / single, 3),
    }


# ---- interruptions -------------------------------------------------------------------------------


def checkpoints(folder: Path, size: Size) -> dict:
    """The same evaluation in one process, and in several with --stop_after. Processor seconds."""
    status, whole = run(folder / "whole", size)
    assert status == 0
    seconds, status = [], CHECKPOINTED
    while status == CHECKPOINTED:
        status, spent = run(folder / "chunks", size, "--stop_after", str(size.chunk))
        seconds.append(spent)
    assert status == 0 and same_verdicts(folder / "whole", folder / "chunks")
    # A finished run loads everything and exits: what it takes is the start of a process.
    _, start = run(folder / "whole", size)
    images = len(read_record(record_path(folder / "whole")))
    cost = (sum(seconds) - whole) / (len(seconds) - 1)
    return {
        "images": images,
        "seconds_per_image": round((whole - start) / images, 2),
        "one_process_s": round(whole, 1),
        "in_chunks_s": round(sum(seconds), 1),
        "checkpoints": len(seconds) - 1,
        "start_of_a_process_s": round(start, 1),
        "seconds_per_checkpoint": round(cost, 1),
        f"share_of_run_time_at_{CHUNK_SECONDS}_s": round(cost / CHUNK_SECONDS, 4),
    }


def eviction(folder: Path, size: Size) -> dict:
    """A checkpoint, an eviction some seconds later, then the rest. Wall-clock seconds.

    `checkpoints` has evaluated the same images in folder / "whole" without an interruption.
    """
    results, spooled = folder / "evicted", folder / "spooled"

    # The first chunk; HTCondor keeps its folder at exit 85.
    assert run(results, size, "--stop_after", str(size.chunk))[0] == CHECKPOINTED
    shutil.copytree(results, spooled)
    record = record_path(results)
    before = len(read_record(record))

    # The next process works for a while and is killed; its folder is lost.
    begin = time.perf_counter()
    process = subprocess.Popen(command(results, size), stderr=subprocess.DEVNULL)
    run_file = record.with_suffix(".json")
    while process.poll() is None and read_run_file(run_file)["status"] == "checkpointed":
        time.sleep(POLL_SECONDS)
    started = time.perf_counter() - begin
    time.sleep(size.lost)
    process.kill()
    process.wait()
    lost = time.perf_counter() - begin
    redone = len(read_record(record, torn=True)) - before  # the last line may be cut
    shutil.rmtree(results)
    shutil.move(spooled, results)

    # A third process starts from the checkpoint and finishes.
    assert run(results, size)[0] == 0 and same_verdicts(folder / "whole", results)
    return {
        "seconds_lost": round(lost, 1),
        "of_it_start_of_a_process_s": round(started, 1),
        "finished_images_redone": redone,
        "images_under_way_at_most": BATCH,
        f"mean_loss_at_{CHUNK_SECONDS}_s_checkpoints_s": round(CHUNK_SECONDS / 2 + started),
    }


# ---- records -------------------------------------------------------------------------------------


def row_cost(folder: Path, size: Size) -> float:
    """Seconds to append the row of an image so that it survives a kill (written and synced)."""
    row = {
        "label": 1,
        "clean_pred": 1,
        "clean_correct": 1,
        "success": 1,
        "adv_pred": 2,
        "l2": 0.123456789,
        "linf": 0.01,
    }
    settings: dict = {"model": {}, "run": {}}
    with Run(folder, "sample", "L2-fmn", "net", "minimum_norm", settings) as opened:
        begin = time.perf_counter()
        for i in range(size.appended):
            opened.append([{"image_id": f"{i}.jpg", **row}])
    return (time.perf_counter() - begin) / size.appended


def write_record(folder: Path, name: str, image_ids: list[str], norms: np.ndarray) -> None:
    """A finished record of one model, of made-up rows."""
    same = {
        "label": 7,
        "clean_pred": 7,
        "clean_correct": 1,
        "success": 1,
        "adv_pred": 9,
        "forwards": 1001,
        "backwards": 1000,
    }
    rows = []
    for image_id, l2 in zip(image_ids, norms):
        row = {"l2": l2, "linf": l2 / 9}
        row |= {"human_alignment_raw": l2 / 3, "human_alignment": l2 / 2}
        rows.append({"image_id": image_id, **same, **row})
    settings: dict = {"model": {}, "run": {"seed": 0}}
    with Run(folder, "big12", "L2-fmn", name, "minimum_norm", settings) as opened:
        opened.append(rows)
        opened.finish(image_ids, seconds=1.0)


def merge(folder: Path, size: Size) -> dict:
    """Seconds for the summary of many finished records, as `utilities.py merge` makes it."""
    rng = np.random.default_rng(0)
    image_ids = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(size.rows)]
    for number in range(size.records):
        write_record(folder, f"net{number}", image_ids, rng.random(size.rows))
    begin = time.perf_counter()
    summary = merge_records(folder)
    seconds = time.perf_counter() - begin
    assert len(summary) == size.records and (summary["n"] == size.rows).all()
    return {"records": size.records, "rows_each": size.rows, "seconds": round(seconds, 2)}


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser(__doc__).parse_args(argv)
    size = QUICK if args.quick else Size()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict = {
            "date": utc_now(),
            "git": git_state(),
            "machine": machine(),
            "model": MODEL,
            "budget": size.budget,
            "merge": merge(folder / "merged", size),
            "checkpoints": checkpoints(folder, size),
            "eviction": eviction(folder, size),
            "start_up": start_up(folder / "study", size),
        }
        seconds = row_cost(folder / "rows", size)
    # A duration of 0.00 s per image, as with --quick, has no share.
    per_image = results["checkpoints"]["seconds_per_image"]
    results["row"] = {
        "seconds_to_append": round(seconds, 5),
        "share_of_run_time": round(seconds / per_image, 5) if per_image > 0 else None,
    }
    write_results(results, output_file(args, __file__))


if __name__ == "__main__":
    main()
