"""Time to compute the agreement of 960 perturbations with their human maps. No GPU, no data.

    python benchmarks/alignment.py              prints, and writes benchmarks/alignment.json

Images are 224 x 224. Maps and perturbations are continuous random values: the slow case, since ties
sort faster.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment_security.records.metrics import rank_agreement
from benchmarks.machine import machine
from benchmarks.output import get_args_parser, output_file, write_results

THREADS = (1, 2)


@dataclass(frozen=True)
class Size:
    images: int = 960
    side: int = 224
    batch: int = 96


QUICK = Size(images=4, side=16, batch=2)


def seconds(size: Size, threads: int) -> float:
    """Time in rank_agreement over all images, batch by batch, without the making of the maps."""
    rng, spent = np.random.default_rng(0), 0.0
    for _ in range(size.images // size.batch):
        human = rng.random((size.batch, size.side, size.side), dtype=np.float32)
        delta = rng.standard_normal((size.batch, 3, size.side, size.side), dtype=np.float32)
        begin = time.perf_counter()
        rank_agreement(human, delta, threads=threads)
        spent += time.perf_counter() - begin
    return spent


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser(__doc__).parse_args(argv)
    size = QUICK if args.quick else Size()
    results = {
        "images": size.images,
        "side": size.side,
        "machine": machine(),
        "seconds": {f"{threads} threads": round(seconds(size, threads), 2) for threads in THREADS},
    }
    write_results(results, output_file(args, __file__))


if __name__ == "__main__":
    main()
