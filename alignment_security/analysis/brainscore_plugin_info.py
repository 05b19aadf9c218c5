"""plugin-info.csv, beside the leaderboard in a ZIP: which benchmarks are leaves, what a model is.

brain-score.org's export writes it (brain-score/brain-score.web@e69aad0,
static/benchmarks/js/leaderboard/export/csv-export.js): a row for each model, and one for each leaf
of the benchmark tree, under its identifier with lab and version (`tong.Coggan2024_fMRI.V1-rdm_v1`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PLUGIN_INFO = "plugin-info.csv"
HEADER = ["plugin_name", "plugin_type", "model_id", "metadata"]
LAB = re.compile(r"^[^.A-Z]+\.")  # before a benchmark's name, without capital letters
BARE = re.compile(r"[^-_.]+")
VERSION = re.compile(r"_v\d+$")


@dataclass(frozen=True)
class PluginInfo:
    """What the file says; empty where there is none.

    leaves   names of the measured benchmarks, without lab and version
    by_id    model_id -> metadata of the model
    by_name  model name -> the same; several models may have one name
    """

    leaves: frozenset[str] = frozenset()
    by_id: dict[str, dict] = field(default_factory=dict)
    by_name: dict[str, dict] = field(default_factory=dict)

    def parents(self, benchmarks: Iterable[str]) -> list[str]:
        """The benchmarks that are no leaves.

        Where the file does not tell, a bare name (`New2026`) is an average: what brainscore-vision
        registers as a benchmark names its metric too (all 291 of version 2.4.2).
        """
        known = [name for name in benchmarks if without_lab(name) in self.leaves]
        if not known:
            return [name for name in benchmarks if BARE.fullmatch(name)]
        return [name for name in benchmarks if name not in known]

    def metadata(self, model_id: str, name: str) -> dict:
        """Of a model, by its id rather than by its name."""
        return self.by_id.get(model_id) or self.by_name.get(name) or {}


def without_lab(benchmark: str) -> str:
    """The name of a benchmark without its lab prefix: `Coggan2024...` of `tong.Coggan2024...`."""
    return LAB.sub("", benchmark)


def read_plugin_info(text: str) -> PluginInfo:
    """The content of the file; nothing for a table of other columns."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    rows = list(csv.reader(io.StringIO(lines)))
    if not rows or rows[0] != HEADER:
        return PluginInfo()
    leaves, by_id, by_name = set(), {}, {}
    for row in rows[1:]:
        # the export does not quote names: what is before the last three cells is the name
        name, (kind, model_id, metadata) = ",".join(row[:-3]), row[-3:]
        if kind == "benchmark":
            leaves.add(without_lab(VERSION.sub("", name)))
        elif kind == "model":
            by_name[name] = _as_dict(metadata)
            by_id[model_id] = by_name[name]
    by_id.pop("", None)
    return PluginInfo(frozenset(leaves), by_id, by_name)


def _as_dict(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
