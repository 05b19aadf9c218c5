"""Which record a request is of: the one that it goes on with, or a new one beside the others.

Records of one model, threat and image set whose settings differ share no row. The first is called
after the model, each other one also after the settings in which it differs from the first:

    <model>.csv   <model>+steps-100.csv   <model>+attacks-apgd-ce-apgd-t+seed-1.csv

Its run file keeps these settings as `beside`. Other weights are another model, with a name of its
own. What a record holds of its images (list, slice, eps) gives no other record: it grows
(`evaluation.growth`), or the request is refused.
"""

from __future__ import annotations

import glob
from pathlib import Path

from alignment_security.common.files import safe_file_name
from alignment_security.common.folders import glob_visible
from alignment_security.common.locked_run import json_round_trip
from alignment_security.records.abandoned import is_abandoned
from alignment_security.records.names import name_with_weights, record_stem, run_files_of_name
from alignment_security.records.record import readable_run_files, without_later_settings

# settings of a threat that are of the images, or of what people say of them
OF_IMAGES = {"eps", "multilabel_sha256", "pixels", "geometry"}
# settings that follow from others, by which a record is named only where nothing else differs
DERIVED = {"attack", "walks", "head_gradient"}


def settings_beside(folder: Path, model: str, settings: dict, apart: set[str]) -> dict:
    """`beside` of the record of a request, which exists or is new; {} for the model's first.

    folder     of the records of an image set and threat
    settings   {"model": {...}, "run": {...}} of the request
    apart      names of the settings of the run in which records stand apart: those of the threat,
               the head and the precision, not those of images and human maps
    A run file that cannot be read is of the request that its name fits. A run that ended before its
    first row keeps no other request from its name.
    """
    settings = json_round_trip(settings)
    found = list(readable_run_files(run_files_of_name(folder, model)))
    for _, run in found:
        if not differing(run["settings"], settings, apart):
            return run.get("beside", {})
    runs = {path.stem: run for path, run in found if not is_abandoned(path, run)}
    first = runs.get(record_stem(model))
    if first is None:
        return {}
    beside = differing(first["settings"], settings, apart)
    named = {name: value for name, value in beside.items() if name not in DERIVED} or beside
    named = {
        name: "-".join(map(str, value)) if isinstance(value, list) else value
        for name, value in named.items()
    }
    number = 2
    while record_stem(model, named) in runs:
        named, number = named | {"record": number}, number + 1
    return named


def differing(old: dict, new: dict, apart: set[str]) -> dict:
    """The settings in which a request differs from a run so that they share no record."""
    before, after = old["run"], without_later_settings(old, new)["run"]
    if "map_reduce" not in before or "map_reduce" not in after:
        apart = apart - {"map_reduce"}  # one of them has no human maps
    return {
        name: after.get(name)
        for name in dict.fromkeys([*after, *before])
        if name in apart - OF_IMAGES and before.get(name) != after.get(name)
    }


def name_of_weights(results_dir: str | Path, model: str, sha256: str | None) -> str:
    """The name of a model's records: its own, or, if that is of other weights, one with their hash.

    sha256   of the model's weights
    """
    if sha256 is None:
        return model
    stem = glob.escape(safe_file_name(model))
    paths = glob_visible(Path(results_dir) / "records", f"*/*/{stem}.json")
    others = False
    for path, run in readable_run_files(paths):
        found = run["settings"]["model"].get("weights_sha256")
        if found == sha256:
            return model
        others = others or (found is not None and not is_abandoned(path, run))
    return name_with_weights(model, sha256) if others else model
