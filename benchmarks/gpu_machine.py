"""Stages of benchmarks/gpu.py about the machine: memory, training, decoding, the process itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from nets import attack_rows

from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.clean import run_clean
from alignment_security.common.command_line import default_workers
from alignment_security.images.loading import load_image_set
from alignment_security.models.loading import load_model
from benchmarks.gpu_attacks import CLASSES, TINY_EPS, bounded, difference
from benchmarks.gpu_passes import logits
from benchmarks.gpu_stage import LITE0, Rows, Stage, rate, unless_out_of_memory
from benchmarks.loading import decoded_anew, long_list
from benchmarks.training import FULL, QUICK, speed_of

ROOT = Path(__file__).resolve().parents[1]
LOADED = 2000  # images of `loading`


def memory(stage: Stage) -> Rows:
    """Peak memory of APGD by batch size, and a device that runs out in the middle."""
    if not stage.on_gpu:
        return
    net, largest = stage.fast(LITE0), max(stage.size.memory_batches)
    images = stage.random_images(LITE0, largest)
    run = bounded([TINY_EPS], Budget(("apgd-ce", "fab-t"), steps=4, targets=1))
    for batch in stage.size.memory_batches:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run(net, images[:batch], batch_size=batch)
        yield f"batch {batch}", {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    enough = run(net, images, batch_size=largest)
    said: list[str] = []
    with memory_limit(stage.size.memory_limit_mib, stage.device):
        short = run(net, images, batch_size=largest, log=said.append)
    yield "out of memory in the middle", difference(short, enough) | {"log": said}


@contextmanager
def memory_limit(mib: int, device: torch.device) -> Iterator[None]:
    """A context in which this process may use so many MiB of the GPU, at most half of it."""
    torch.cuda.empty_cache()
    share = mib * 2**20 / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 0.5))  # of the current GPU
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def training(stage: Stage) -> Rows:
    """Harmonizer and adversarial steps, in plain steps."""
    size = FULL if stage.on_gpu else QUICK
    for name, batch in stage.size.training:
        for precision in ("float32", "bf16") if stage.on_gpu else ("float32",):
            found = unless_out_of_memory(speed_of, name, batch, stage.device, precision, size)
            if isinstance(found, dict):
                found = {key: found[key] for key in ("times_plain", "images_per_second")}
            yield f"{name}, {precision}", found


def loading(stage: Stage) -> Rows:
    """Images per second decoded; through the clean pass; and through a network alone."""
    model = load_model(LITE0)
    net, count = stage.fast(LITE0), LOADED if stage.on_gpu else 4
    images = long_list(load_image_set("sample").paths, count)
    x = torch.rand(min(count, 256), *model.preprocessing["input_size"], device=stage.device)
    yield "network alone", rate(stage, partial(logits, net, x), len(x))
    usual = default_workers() if stage.on_gpu else 0
    for workers in sorted({0, usual, 2 * usual}):
        begin = time.perf_counter()
        decoded = sum(1 for _ in decoded_anew(images, model.preprocessing, workers))
        yield f"{workers} workers, decode alone", decoded / (time.perf_counter() - begin)
        source = decoded_anew(images, model.preprocessing, workers)
        clean = partial(attack_rows, run_clean, net, source, n_outputs=CLASSES, batch_size=len(x))
        yield f"{workers} workers, clean pass", count / stage.seconds(clean)


def start(stage: Stage) -> Rows:
    """Seconds of whole processes on the sample: clean, and a short bounded attack."""
    threats = {
        "clean": ["clean"],
        "Linf": ["Linf", "--eps", "1/255", "--attacks", "apgd-ce", "--steps", "2"],
    }
    for name, threat in threats.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "evaluate_robustness.py"]
            command += ["--model_name", LITE0, "--results_dir", folder]
            command += ["--device", str(stage.device), *threat]
            begin = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
            yield name, time.perf_counter() - begin
