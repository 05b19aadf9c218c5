"""Names of records: of which model a file is, and which of the model's records.

    net.csv                           the model's first record
    net+steps-100.csv                 one beside it, whose settings differ (records.beside)
    net.weights_0123abcd.csv          the first one of other weights under the same name
    net.weights_0123abcd+seed-1.csv   one beside that

`net` is the model's name as `safe_file_name` gives it, which has no `+`.
"""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path

from alignment_security.common.files import safe_file_name
from alignment_security.common.folders import glob_visible

LONGEST_SUFFIX = 80  # characters that the settings add to a record's name
OTHER_WEIGHTS = re.compile(r"\.weights_[0-9a-f]{8}")


def record_stem(model: str, beside: dict | None = None) -> str:
    """The name of a record's files, without its ending: `net`, or `net+steps-100+seed-1`.

    beside   the settings that name a record which is not the model's first (records.beside)
    """
    parts = [f"{name}-{value}" for name, value in (beside or {}).items()]
    suffix = "+".join(map(safe_file_name, parts))
    if len(suffix) > LONGEST_SUFFIX:
        suffix = hashlib.sha256(suffix.encode()).hexdigest()[:8]
    return "+".join(filter(None, [safe_file_name(model), suffix]))


def record_name(run: dict) -> str:
    """The model of a run file, and what names a record beside its first: `lab/net+steps-100`."""
    suffix = record_stem(run["model"], run.get("beside")).removeprefix(record_stem(run["model"]))
    return run["model"] + suffix


def name_with_weights(model: str, sha256: str) -> str:
    """The name of a model whose own name is that of other weights: `net.weights_0123abcd`."""
    return f"{model}.weights_{sha256[:8]}"


def without_weights(model: str) -> str:
    """The name under which a model was asked for: `net` of `net.weights_0123abcd`."""
    return re.sub(f"{OTHER_WEIGHTS.pattern}$", "", model)


def run_files_of_name(folder: Path, model: str) -> list[Path]:
    """Run files of a name in a folder of records: of its first record, which need not be there, and
    of those beside it."""
    stem = safe_file_name(model)
    return [folder / f"{stem}.json", *glob_visible(folder, f"{glob.escape(stem)}+*.json")]


def run_files_of_model(folder: Path, model: str) -> list[Path]:
    """Run files of a model in a folder of records, of other weights under its name too."""
    return [path for path in glob_visible(folder, "*.json") if is_of_model(path.stem, model)]


def is_of_model(stem: str, model: str) -> bool:
    """Whether a record is of a model, by its name; of other weights under the model's name too."""
    first = stem.partition("+")[0]
    names = [model, *(model + suffix for suffix in OTHER_WEIGHTS.findall(first))]
    return first in map(safe_file_name, names)
