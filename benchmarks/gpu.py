"""Everything that a GPU decides, in one command: equal verdicts, speed, precision, memory.

    python benchmarks/gpu.py                                  8 minutes -> benchmarks/gpu.json
    python benchmarks/gpu.py engine survivors --minutes 3     some; the others in the file stay
    python benchmarks/gpu.py --device cpu --quick             see that everything runs

Stages run in order of worth until the time is over, each within its own share. The file is written
after every number, so that nothing is lost when the machine goes away. `--image_dir` takes
photographs in class folders (ImageNet's synsets); without it the 20 of `sample` are used.
benchmarks/gpu_packages.sh makes a folder of packages for a machine without a network.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from alignment_security.models.forward import pick_device, tune_process
from benchmarks.gpu_attacks import engine, parity, precision, survivors
from benchmarks.gpu_machine import loading, memory, start, training
from benchmarks.gpu_passes import first_passes, floor, floor_compiled, floor_tuned
from benchmarks.gpu_stage import FULL, QUICK, Rows, Stage
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_table

# in order of worth, each with its share of the time
STAGES = {
    "parity": (parity, 0.12),
    "first_passes": (first_passes, 0.08),
    "engine": (engine, 0.25),
    "survivors": (survivors, 0.15),
    "precision": (precision, 0.15),
    "floor": (floor, 0.2),
    "memory": (memory, 0.08),
    "start": (start, 0.1),
    "loading": (loading, 0.1),
    "training": (training, 0.1),
    "floor_tuned": (floor_tuned, 0.2),
    "floor_compiled": (floor_compiled, 0.3),
}


class OutOfTime(Exception):
    """The stage has used up its share of the time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the body after `seconds`."""

    def stop(signum, frame):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_stage(rows: Rows, seconds: float, save) -> dict:
    """The rows of a stage as they become known; `save` is called with them after each."""
    table: dict = {}
    begin = time.perf_counter()
    try:
        with time_limit(seconds):
            for key, value in rows:
                table[key] = value
                save(table)
        table["ended"] = "complete"
    except OutOfTime:
        table["ended"] = f"out of time after {seconds:.0f} s"
    except Exception as error:  # the other stages are worth having
        table["ended"] = f"{type(error).__name__}: {error}"[:500]
    table["seconds"] = time.perf_counter() - begin
    save(table)
    return table


def print_table(name: str, table: dict) -> None:
    """A line for each row of a stage."""
    print(f"== {name}: {table['ended']}, {table['seconds']:.0f} s", flush=True)
    for key, value in table.items():
        if key not in ("ended", "seconds"):
            print(f"   {key}: {short(value)}", flush=True)


def short(value) -> str:
    """A value with three significant digits, dictionaries on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def driver() -> str | None:
    """Version of the NVIDIA driver, e.g. `580.159.03`, as the kernel's module says it."""
    if not DRIVER_FILE.is_file():
        return None
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER_FILE.read_text())
    return found and found[0]


def facts(device: torch.device) -> dict:
    """The machine, and what CUDA says of the card."""
    found = machine(str(device))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu_memory_mib": properties.total_memory / 2**20,
            "multiprocessors": properties.multi_processor_count,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser(__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="which (default: all)")
    parser.add_argument(
        "--device", default="auto", help="cuda, cpu (default: a GPU if there is one)"
    )
    parser.add_argument("--minutes", type=float, default=8, help="for all stages (default: 8)")
    parser.add_argument("--image_dir", type=Path, help="photographs in folders of synsets")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    tune_process(device, "float32")
    path = output_file(args, __file__)
    stage = Stage(device, QUICK if args.quick else FULL, args.image_dir)
    write_table("machine", facts(device), path)
    end, tables = time.perf_counter() + 60 * args.minutes, {}
    for name in args.stages or STAGES:
        rows, share = STAGES[name]
        left = end - time.perf_counter()
        if left <= 0:
            break
        seconds = left if args.stages else min(left, 60 * args.minutes * share)
        tables[name] = run_stage(
            rows(stage), seconds, lambda table, name=name: write_table(name, table, path)
        )
        print_table(name, tables[name])


if __name__ == "__main__":
    main()
