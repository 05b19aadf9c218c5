"""Our attacks against their peers: same images, same model, one process, passes counted.

    python benchmarks/attacks.py                         every table -> benchmarks/attacks.json
    python benchmarks/attacks.py early_exit growth       some tables; the others in the file stay
    python benchmarks/attacks.py norms_cifar --robust_net FOLDER      of a net that is not ours
    python benchmarks/attacks.py --device cuda --output benchmarks/attacks_gpu.json

All tables take about an hour and a half on two CPU cores. Peers that are not in requirements.txt
(torchattacks 3.5.1, adv-lib 0.2.8) are measured where they are installed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from alignment_security.models.forward import tune_process
from benchmarks.attack_tables import (
    SIDES,
    agreement,
    early_exit,
    growth,
    many_eps,
    memory,
    memory_of,
    overhead,
    survivor,
)
from benchmarks.machine import machine
from benchmarks.measure import FULL, QUICK
from benchmarks.minimal_norms import (
    PHOTOGRAPH_TABLES,
    norms_cifar,
    norms_cifar_linf,
    norms_digits,
    norms_digits_linf,
)
from benchmarks.output import get_args_parser, output_file, update_table
from benchmarks.random_net import random_net
from benchmarks.screened import screened_cifar, screened_digits

TABLES = {
    "early_exit": early_exit,
    "agreement": agreement,
    "many_eps": many_eps,
    "random_net": random_net,
    "screened_digits": screened_digits,
    "screened_cifar": screened_cifar,
    "overhead": overhead,
    "norms_digits": norms_digits,
    "norms_digits_linf": norms_digits_linf,
    "norms_cifar": norms_cifar,
    "norms_cifar_linf": norms_cifar_linf,
    "memory": memory,
    "growth": growth,
    "survivor": survivor,
    **PHOTOGRAPH_TABLES,
}
# tiny networks are faster on one thread; `overhead` counts the time of one
ONE_THREAD = (
    "agreement",
    "many_eps",
    "growth",
    "random_net",
    "screened",
    "norms_digits",
    "norms_cifar",
    "overhead",
)
OF_ROBUST_NET = ("_cifar", "_cifar_linf")  # tables of the net of --robust_net


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser(__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="threads of torch; the tables of digits and `overhead` use one",
    )
    parser.add_argument(
        "--robust_net",
        type=Path,
        help="folder of cifar_small_36px.pth and cifar10_test_400.npz, for the cifar tables",
    )
    # a process of `memory`, which prints MiB
    parser.add_argument("--memory_of", choices=SIDES, help="(used by the table `memory`)")
    args = parser.parse_args(argv)
    size = replace(QUICK if args.quick else FULL, robust_net=args.robust_net)
    tune_process(torch.device(args.device), "float32")
    if args.memory_of:
        print(memory_of(args.memory_of, args.device, size))
        return
    for name in args.tables or TABLES:
        if name.endswith(OF_ROBUST_NET) and not args.robust_net:
            continue
        torch.set_num_threads(1 if name.startswith(ONE_THREAD) else args.threads)
        table = TABLES[name](args.device, size) | {"machine": machine(args.device)}
        update_table(name, table, output_file(args, __file__))


if __name__ == "__main__":
    main()
