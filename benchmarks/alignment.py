"""How long the agreement of 960 perturbations of 224 x 224 with their human maps takes. No GPU, no data.

    python benchmarks/alignment.py              prints, and writes benchmarks/alignment.json

Maps are smooth (the sample's drawings are), perturbations are continuous: the slow case, for ties sort faster.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import scipy

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from alignment_security.records.metrics import rank_agreement

IMAGES, SIDE, BATCH = 960, 224, 96


def machine() -> dict:
    """Processor, cores that this process may use, and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def seconds(threads: int) -> float:
    """Of rank_agreement over all images, batch by batch; making the maps is not counted."""
    rng, spent = np.random.default_rng(0), 0.0
    for _ in range(IMAGES // BATCH):
        human = rng.random((BATCH, SIDE, SIDE), dtype=np.float32)
        delta = rng.standard_normal((BATCH, 3, SIDE, SIDE), dtype=np.float32)
        begin = time.perf_counter()
        rank_agreement(human, delta, threads=threads)
        spent += time.perf_counter() - begin
    return spent


def main() -> None:
    found = {
        "images": IMAGES,
        "side": SIDE,
        "machine": machine(),
        "seconds": {f"{threads} threads": round(seconds(threads), 2) for threads in (1, 2)},
    }
    (HERE / "alignment.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
