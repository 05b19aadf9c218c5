"""Pack weights and images into tars for workers without network (`utilities.py prestage`).

One tar per model, one per image folder. The same weights give the same bytes on every machine. Tars
that staged.tsv lists already are kept, so an interrupted prestage resumes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import timm
import torch
from timm.models._hub import download_from_hf
from tqdm import tqdm

from alignment_security.cluster.gpu_memory import requested_mb
from alignment_security.cluster.job import (
    STAGED_COLUMNS,
    STAGED_CONFIG,
    STAGED_FACTS,
    STAGED_STATE,
    STAGED_TABLE,
    StagingError,
    read_staged_table,
    same_networks_staged,
)
from alignment_security.cluster.plugins import pack_plugin
from alignment_security.cluster.tars import table_row, write_tar
from alignment_security.common.files import UserError, safe_file_name, write_atomic
from alignment_security.common.folders import left_by_tools_note, list_files
from alignment_security.common.locked_run import lock_file
from alignment_security.common.process import print_line
from alignment_security.common.text import repeated, some_of
from alignment_security.models.checkpoints import own_tensors
from alignment_security.models.heads import Model
from alignment_security.models.lists import WantedModel
from alignment_security.models.loading import load_model
from alignment_security.models.names import (
    HUB_SOURCE,
    find_entry,
    listed_checkpoint,
    split_source,
)

# ---- tars ----------------------------------------------------------------------------------------


def pack_model(wanted: WantedModel, checkpoints: Path, path: Path) -> dict:
    """Load a model as an evaluation would, write its tar, and return its row of staged.tsv.

    checkpoints   folder of the files that the list names
    Raises StagingError or ModelError.
    """
    if wanted.net is None:
        return pack_plugin(wanted, checkpoints, path)
    model = _load_wanted(wanted, wanted.net, checkpoints)
    state = _state_with_normaliser(model)
    facts = {
        "name": wanted.name,
        "net": model.settings.get("architecture", wanted.name),
        "weights": model.settings["weights"],
        "weights_sha256": model.settings["weights_sha256"],
        "group": model.settings.get("group"),
        "training": model.settings.get("training"),
    }
    description = json.dumps(facts | {"timm": timm.__version__}, indent=1) + "\n"
    files: list[tuple[str, Path | bytes]] = [
        (STAGED_STATE, safetensors.torch.save(state)),
        (STAGED_FACTS, description.encode()),
    ]
    config = own_config(wanted.net)
    if config is not None:
        files.append((STAGED_CONFIG, config))
    write_tar(path, files)
    return table_row(path) | {
        "name": wanted.name,
        "weights": facts["weights"],
        "weights_sha256": facts["weights_sha256"],
        "gpu_memory_mb": requested_mb(model),
    }


def _load_wanted(wanted: WantedModel, net: str, checkpoints: Path) -> Model:
    checkpoint: Path | None
    if wanted.checkpoint:
        checkpoint = checkpoints / wanted.checkpoint
    else:
        checkpoint = listed_checkpoint(wanted.name, checkpoints)
    architecture = net if net != wanted.name else None
    return load_model(wanted.name, checkpoint, architecture=architecture)


def own_config(net: str) -> bytes | None:
    """config.json of a net that timm reads from a folder or a hub repository; None for others.

    A job has neither, so it travels with the weights.
    """
    source, place = split_source(find_entry(net).net)
    if not source:
        return None
    if source == HUB_SOURCE:
        return Path(download_from_hf(place, STAGED_CONFIG)).read_bytes()
    return (Path(place) / STAGED_CONFIG).read_bytes()


def _state_with_normaliser(model: Model) -> dict[str, torch.Tensor]:
    """State dict of the net, and its normaliser when it was trained with one.

    The normaliser gets the names that checkpoint_entries.checkpoint_normalisation reads.
    """
    net: Any = model.module.net
    state = own_tensors(net.state_dict())
    if any(model.settings[kind] != net.pretrained_cfg.get(kind) for kind in ("mean", "std")):
        for kind in ("mean", "std"):
            state[f"normalizer.{kind}"] = torch.tensor(model.settings[kind])
    return state


def pack_images(folder: Path, path: Path) -> dict:
    """Write the tar of an image folder (links followed) and return its row of staged.tsv."""
    listing = list_files(folder)
    for note in left_by_tools_note(folder, listing.by_tools):
        print(f"note: {note}", file=sys.stderr)
    files: list[tuple[str, Path | bytes]] = [
        (file.relative_to(folder).as_posix(), file) for file in listing.files
    ]
    if not files:
        raise StagingError(
            f"{folder}: no files in it; --images has to be the folder that --data_dir would be"
        )
    write_tar(path, files)
    return table_row(path)


# ---- the command ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackingTask:
    """One tar to make."""

    label: str  # for messages: a model's name or an image folder
    tar: Path
    pack: Callable[[Path], dict]  # writes the tar and returns its row of staged.tsv


def staged_so_far(out: Path) -> pd.DataFrame:
    """staged.tsv of `out`, without the tars that no longer exist."""
    if not (out / STAGED_TABLE).is_file():
        return pd.DataFrame(columns=STAGED_COLUMNS)
    table = read_staged_table(out / STAGED_TABLE)
    exists = [(out / tar).is_file() for tar in table["tar"]]
    return table.loc[exists]


def packing_tasks(
    wanted: list[WantedModel], out: Path, images: Sequence[Path], checkpoints: Path
) -> list[PackingTask]:
    """The tars of these models and image folders. Raises StagingError when two have one name."""
    tasks = []
    for model in wanted:
        tar = out / f"{safe_file_name(model.name)}.tar"
        tasks.append(PackingTask(model.name, tar, partial(pack_model, model, checkpoints)))
    for folder in images:
        name = folder.absolute().name  # a link is not resolved: it keeps its own name
        tar = out / f"images-{safe_file_name(name)}.tar"
        tasks.append(PackingTask(str(folder), tar, partial(pack_images, folder)))
    if twice := repeated(task.tar.name for task in tasks):
        raise StagingError(
            f"{some_of(twice)}: two folders would be one tar; give one of them as a link of "
            "another name"
        )
    return tasks


def prestage(
    wanted: list[WantedModel], out: Path, images: Sequence[Path] = (), checkpoints: Path = Path()
) -> dict[str, str]:
    """Make the tars that do not exist yet, one after the other.

    out           folder of <model>.tar, images-<folder>.tar and staged.tsv
    checkpoints   folder of the files that a model list names
    Returns what failed, as model or folder -> reason; notes nets that have several names. Raises
    StagingError.
    """
    staged, failed = set(staged_so_far(out)["tar"]), {}
    tasks = packing_tasks(wanted, out, images, checkpoints)
    for task in tqdm(tasks, unit="tar", disable=not sys.stderr.isatty()):
        if task.tar.name in staged:
            continue
        try:
            row = task.pack(task.tar)
        except UserError as error:
            failed[task.label] = str(error).removeprefix(f"{task.label}: ")
            continue
        add_to_staged(out, row)
        tqdm.write(f"staged: {task.label}, {row['bytes'] / 1e6:.0f} MB", file=sys.stderr)
    for note in same_networks_staged(staged_so_far(out)):
        print_line(f"note: {note}", sys.stderr)
    return failed


def add_to_staged(out: Path, row: dict) -> None:
    """Add a row to staged.tsv as it is now: another prestage may have added its own."""
    lock = lock_file(out / f".{STAGED_TABLE}.lock")
    try:
        table = staged_so_far(out)
        table = table[table["tar"] != row["tar"]]
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        write_atomic(out / STAGED_TABLE, table.to_csv(sep="\t", index=False, lineterminator="\n"))
    finally:
        lock.release()
