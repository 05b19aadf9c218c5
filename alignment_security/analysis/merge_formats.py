"""The summary as a table of another project: `python utilities.py merge --format NAME`.

A format is one function: (the summary of `merge_records`, the results folder) -> the file or
folder that it wrote. It raises UserError, before it writes anything, for a summary that the format
cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from alignment_security.analysis.hoak2025_export import write_hoak2025
from alignment_security.analysis.robustbench_export import write_robustbench

FORMATS: dict[str, Callable[[pd.DataFrame, Path], Path]] = {
    "hoak2025": write_hoak2025,
    "robustbench": write_robustbench,
}
