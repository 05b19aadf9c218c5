"""One tar a model (and one of images) for workers that never touch a hub: `python utilities.py prestage`.

A tar of the same weights has the same bytes wherever it is made. Tars that staged.tsv lists already are left alone, so that
an interrupted prestage goes on.
"""

from __future__ import annotations

import io
import json
import math
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import safetensors.torch
import timm
import torch
from torch import nn
from tqdm import tqdm

from alignment_security.cluster.job import (
    STAGED_COLUMNS,
    STAGED_FACTS,
    STAGED_STATE,
    STAGED_TABLE,
    StagingError,
    read_staged_table,
)
from alignment_security.common.files import safe_file_name, sha256_file, write_atomic
from alignment_security.models.forward import FIRST_CUDA_BATCH
from alignment_security.models.heads import ModelError
from alignment_security.models.lists import model_list_path, read_model_list
from alignment_security.models.loading import load_model
from alignment_security.models.names import listed_checkpoint

# What is asked of a GPU: two copies of the weights, what autograd keeps for a batch of engine.FIRST_CUDA_BATCH, a margin
# (APGD on Lite0 at batch 16 peaked at 1.32 times what autograd keeps, on a CPU), and the CUDA context (a choice)
WEIGHT_COPIES, MARGIN, CONTEXT_MB = 2, 1.4, 1500
LARGEST_ASK_MB = (
    40_000  # larger GPUs are few: a net that needs more gets smaller batches, if one image fits
)


class WantedModel(NamedTuple):
    """A line of a model list: the name of the record, timm's name of the net (None: timm does not build it), and a
    checkpoint file where there is one."""

    name: str
    net: str | None
    checkpoint: str | None = None


# ---- lists ---------------------------------------------------------------------------------------


def read_wanted(path: str | Path) -> list[WantedModel]:
    """Models of a list: one of lists/models/ by its name, a file like them, or a file with a name a line.

    source or weights `timm:NET` names timm's net, weights `file:NAME` a checkpoint. Raises UserError.
    """
    file = model_list_path(path)
    lines = [
        line.strip()
        for line in file.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    if any("\t" in line for line in lines) or not lines:
        return [_wanted_model(*row[:3]) for row in read_model_list(path).itertuples(index=False)]
    twice = {name for name in lines if lines.count(name) > 1}
    if twice:
        raise StagingError(f"{file}: {min(twice)} stands there twice")
    return [WantedModel(name, name) for name in lines]


def _wanted_model(name: str, source: str, weights: str) -> WantedModel:
    """In a table timm has to be named: a plugin's net may share the name of timm's and not its weights."""
    net = next(
        (cell.removeprefix("timm:") for cell in (source, weights) if cell.startswith("timm:")), None
    )
    return WantedModel(
        name, net, weights.removeprefix("file:") if weights.startswith("file:") else None
    )


# ---- GPU memory ----------------------------------------------------------------------------------


def kept_for_backward(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Bytes that autograd keeps for the input gradient of one image, measured: each storage once, without the weights.

    shape   (C, H, W) of the image
    """
    own = {t.untyped_storage().data_ptr() for t in chain(module.parameters(), module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = module(
            torch.rand(1, *shape).requires_grad_()
        )  # held, so that no address is used twice
    del logits
    return sum(kept.values())


def gpu_memory_mb(weight_bytes: int, image_bytes: int) -> int:
    """What a job asks for as gpus_minimum_memory, in MB of 10**6 bytes: a batch of FIRST_CUDA_BATCH, or LARGEST_ASK_MB."""

    def ask(batch: int) -> int:
        return math.ceil(
            CONTEXT_MB + (WEIGHT_COPIES * weight_bytes + MARGIN * batch * image_bytes) / 1e6
        )

    return min(ask(FIRST_CUDA_BATCH), max(LARGEST_ASK_MB, ask(1)))


# ---- tars ----------------------------------------------------------------------------------------


def reproducible_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member without what differs from machine to machine."""
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def write_tar(path: Path, files: list[tuple[str, Path | bytes]]) -> None:
    """An uncompressed tar of plain files, in that order, written beside `path` and renamed; links are followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tar-") as temporary:
        with tarfile.open(
            Path(temporary) / path.name, "w", format=tarfile.PAX_FORMAT, dereference=True
        ) as archive:
            for name, content in files:
                if isinstance(content, bytes):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(reproducible_member(member), io.BytesIO(content))
                else:
                    archive.add(content, name, recursive=False, filter=reproducible_member)
        (Path(temporary) / path.name).replace(path)


def pack_model(wanted: WantedModel, path: Path, checkpoints: Path) -> dict:
    """Load a model as an evaluation would, write its tar, and return its line of staged.tsv."""
    if wanted.net is None:
        raise StagingError(
            "its list names no timm net (timm:NAME) to build it from; it cannot be staged"
        )
    checkpoint = (
        checkpoints / wanted.checkpoint
        if wanted.checkpoint
        else listed_checkpoint(wanted.name, checkpoints)
    )
    model = load_model(
        wanted.name, checkpoint, architecture=wanted.net if wanted.net != wanted.name else None
    )
    net = model.module.net
    state = {
        name: tensor.detach().clone().contiguous() for name, tensor in net.state_dict().items()
    }
    # a net that was trained behind a normaliser of its own keeps it, under the names that models.own_normalisation reads
    if any(model.settings[kind] != net.pretrained_cfg.get(kind) for kind in ("mean", "std")):
        state |= {
            f"normalizer.{kind}": torch.tensor(model.settings[kind]) for kind in ("mean", "std")
        }
    facts = {
        "name": wanted.name,
        "net": model.settings.get("architecture", wanted.name),
        "weights": model.settings["weights"],
        "weights_sha256": model.settings["weights_sha256"],
    }
    about = json.dumps(facts | {"timm": timm.__version__}, indent=1) + "\n"
    write_tar(path, [(STAGED_STATE, safetensors.torch.save(state)), (STAGED_FACTS, about.encode())])
    weight_bytes = sum(tensor.nbytes for tensor in state.values())
    memory = gpu_memory_mb(
        weight_bytes, kept_for_backward(model.module, model.preprocessing["input_size"])
    )
    return (
        line_of(path, wanted.name)
        | {k: facts[k] for k in ("weights", "weights_sha256")}
        | {"gpu_memory_mb": memory}
    )


def pack_images(folder: Path, path: Path) -> dict:
    """Write the tar of an image folder (links followed) and return its line of staged.tsv."""
    files: list[tuple[str, Path | bytes]] = [
        (file.relative_to(folder).as_posix(), file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    if not files:
        raise StagingError(
            f"{folder}: no files in it; --images has to be the folder that --data_dir would be"
        )
    write_tar(path, files)
    return line_of(path, "")


def line_of(path: Path, name: str) -> dict:
    return {
        "sha256": sha256_file(path),
        "tar": path.name,
        "name": name,
        "bytes": path.stat().st_size,
        "weights": "",
        "weights_sha256": "",
        "gpu_memory_mb": "",
    }


# ---- the command ---------------------------------------------------------------------------------


def staged_so_far(out: Path) -> pd.DataFrame:
    """The table of `out` without tars that are gone."""
    if not (out / STAGED_TABLE).is_file():
        return pd.DataFrame(columns=STAGED_COLUMNS)
    table = read_staged_table(out / STAGED_TABLE)
    return table[table["tar"].map(lambda tar: (out / tar).is_file())]


def prestage(
    wanted: list[WantedModel], out: Path, images: Sequence[Path] = (), checkpoints: Path = Path()
) -> dict[str, str]:
    """Make every tar that is not there yet, one after the other; returns what failed, as name -> reason. Raises StagingError.

    out          gets <model>.tar, images-<folder>.tar and staged.tsv
    checkpoints  folder of the files that a model list names
    """
    table, failed = staged_so_far(out), {}
    tasks = [
        (
            w.name,
            out / f"{safe_file_name(w.name)}.tar",
            lambda path, w=w: pack_model(w, path, checkpoints),
        )
        for w in wanted
    ]
    tasks += [
        (
            str(f),
            out / f"images-{safe_file_name(f.absolute().name)}.tar",
            lambda path, f=f: pack_images(f, path),
        )
        for f in images
    ]  # a link keeps its own name
    tars = [path.name for _, path, _ in tasks]
    if twice := {tar for tar in tars if tars.count(tar) > 1}:
        raise StagingError(
            f"{min(twice)}: two folders would be this tar; give one of them as a link of another name"
        )
    for name, path, pack in tqdm(tasks, unit="tar", disable=not sys.stderr.isatty()):
        if path.name in set(table["tar"]):
            continue
        try:
            table = pd.concat([table, pd.DataFrame([pack(path)])], ignore_index=True)
        except (ModelError, StagingError) as error:
            failed[name] = str(error)
            continue
        write_atomic(out / STAGED_TABLE, table.to_csv(sep="\t", index=False, lineterminator="\n"))
    return failed
