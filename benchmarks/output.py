"""Options and output that the benchmark scripts share: --quick, --output, JSON files of tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment_security.common.files import write_atomic


def get_args_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --quick and --output."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the smallest inputs, to see that everything runs; the numbers mean nothing",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file to write (default: <script>.json next to the script; none with --quick)",
    )
    return parser


def output_file(args: argparse.Namespace, script: str) -> Path | None:
    """The file that results go to; None: they are printed only."""
    if args.output or args.quick:
        return args.output
    return Path(script).resolve().with_suffix(".json")


def share(marks: Sequence[float] | np.ndarray) -> float:
    """The mean, to four decimals."""
    return round(float(np.mean(marks)), 4)


def write_results(results: dict, path: Path | None) -> None:
    """Print results, and write them to `path`."""
    text = json.dumps(results, indent=1)
    if path:
        write_atomic(path, text + "\n")
    print(text)


def write_table(name: str, table: dict, path: Path | None) -> None:
    """Put a table in the file at `path`, if there is one, with the other tables there."""
    if path:
        known = json.loads(path.read_text()) if path.exists() else {}
        write_atomic(path, json.dumps(known | {name: table}, indent=1) + "\n")


def update_table(name: str, table: dict, path: Path | None) -> None:
    """Print a table, and put it in the file at `path` with the other tables there."""
    write_table(name, table, path)
    print(name, json.dumps(table, indent=1), flush=True)
