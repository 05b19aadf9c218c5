"""Nets of other sources for workers without network: pack what one fetches, load it from that.

The code of a source (a Brain-Score plugin, torchvision, a Python file) fetches its weights itself,
into folders that HOME and other variables name. A Python file and its checkpoint are copied to
HOME. Two processes load the net while it is staged. The first has caches of its own and may use the
network. The second has what the tar holds and no network, as a job.

    python -m alignment_security.cluster.plugins NAME FACTS.json SOURCE CHECKPOINT ("" for none)
        [offline]                                                               one such process
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from huggingface_hub import constants

from alignment_security.cluster.gpu_memory import requested_mb
from alignment_security.cluster.job import (
    STAGED_FACTS,
    STAGED_HOME,
    StagingError,
    unpack,
)
from alignment_security.cluster.tars import table_row, write_tar
from alignment_security.common.files import write_atomic
from alignment_security.common.folders import every_file
from alignment_security.common.settings import ROOT
from alignment_security.common.temporary import temporary_beside
from alignment_security.common.text import read_text
from alignment_security.models.brainscore import INSTALL_HINT
from alignment_security.models.heads import Model, ModelError
from alignment_security.models.lists import WantedModel
from alignment_security.models.loading import load_model

CACHES_FOLDER = "caches"  # of prestage: a folder per plugin that is being staged
# variable -> folder under HOME, where its default is
CACHES = {
    "HOME": "",
    "XDG_CACHE_HOME": ".cache",
    "TORCH_HOME": ".cache/torch",
    "HF_HOME": ".cache/huggingface",
    "HF_HUB_CACHE": ".cache/huggingface/hub",
    "BRAINSCORE_HOME": ".brain-score",
    "BRAINIO_HOME": ".brainio",
    "RESULTCACHING_HOME": ".result_caching",
    "MT_HOME": ".model-tools",
}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
FACTS_OF_MODEL = ("weights", "weights_sha256", "mean", "std", "preprocessing")


def cache_variables(home: Path) -> dict[str, str]:
    """The environment variables of a plugin whose caches are in `home`."""
    return {name: str(home.absolute() / folder) for name, folder in CACHES.items()}


# ---- staging -------------------------------------------------------------------------------------


def pack_plugin(wanted: WantedModel, checkpoints: Path, path: Path) -> dict:
    """Load a net, write the tar of what it fetched, and return its row of staged.tsv.

    Its caches are in caches/<model>/ beside the tar. They stay where staging fails: a second try
    fetches only what is missing. Raises StagingError, e.g. for a plugin that cannot be loaded from
    its tar without network, and ModelError.
    """
    name, kind = wanted.name, wanted.source.partition(":")[0]
    if kind == "brainscore" and importlib.util.find_spec("brainscore_vision") is None:
        raise ModelError(f"{name}: Brain-Score's models need brainscore-vision; {INSTALL_HINT}")
    home = path.parent / CACHES_FOLDER / path.stem
    home.mkdir(parents=True, exist_ok=True)
    place = copy_to_home(wanted, checkpoints, home)
    facts = loaded_facts(name, home, place)
    description = {"name": name, "net": name, "group": None} | place | facts
    files: list[tuple[str, Path | bytes]] = [
        (STAGED_FACTS, (json.dumps(description, indent=1) + "\n").encode()),
        *((f"{STAGED_HOME}/{file.relative_to(home).as_posix()}", file) for file in fetched(home)),
    ]
    with temporary_beside(path) as work:
        tar = work / path.name
        write_tar(tar, files)
        row = table_row(tar)
        unpacked = unpack(tar, work / "unpacked", row["sha256"])
        (unpacked / STAGED_HOME).mkdir(exist_ok=True)
        if loaded_facts(name, unpacked / STAGED_HOME, place, offline=True) != facts:
            raise StagingError(
                f"{name}: has other weights each time that it is loaded (random ones?); it cannot "
                "be staged"
            )
        tar.replace(path)
    shutil.rmtree(home)
    return row | {
        "name": name,
        **{column: facts[column] for column in ("weights", "weights_sha256", "gpu_memory_mb")},
    }


def copy_to_home(wanted: WantedModel, checkpoints: Path, home: Path) -> dict[str, str]:
    """Copy the Python file of a net and its checkpoint to `home`.

    checkpoints   folder of the checkpoints that lists name
    Returns its `source` and `checkpoint` as they are named there. Raises StagingError.
    """
    source, checkpoint = wanted.source, wanted.checkpoint
    files = [checkpoints / checkpoint] if checkpoint else []
    if source.startswith("python:"):
        code, _, function = source.removeprefix("python:").rpartition(":")
        files.append(Path(code))
        source = f"python:{Path(code).name}:{function}"
    for file in files:
        if not file.is_file():
            raise StagingError(f"{wanted.name}: {file}: no such file")
        shutil.copy(file, home)
    return {"source": source, "checkpoint": Path(checkpoint).name if checkpoint else ""}


def load_from_home(name: str, home: Path, place: dict[str, str], **options) -> Model:
    """`load_model` of a net whose files are in `home`; `place` as copy_to_home returns it."""
    source, checkpoint = place.get("source", "brainscore"), place.get("checkpoint")
    if source.startswith("python:"):
        source = f"python:{home.absolute() / source.removeprefix('python:')}"
    return load_model(name, home / checkpoint if checkpoint else None, source=source, **options)


def fetched(home: Path) -> list[Path]:
    """The files in some caches, sorted. A file that a link there names comes under the link alone:
    the hub's cache has each file as a blob, and as a link to it."""
    paths = every_file(home)
    blobs = {path.resolve() for path in paths if path.is_symlink()}
    return [path for path in paths if path.is_symlink() or path.resolve() not in blobs]


def loaded_facts(name: str, home: Path, place: dict[str, str], offline: bool = False) -> dict:
    """What a process that loads a net, with its caches in `home`, says about it.

    Raises StagingError.
    """
    environment = os.environ | {
        "BS_INSTALL_DEPENDENCIES": "no",
        "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,  # of the user: gated weights, never staged
        "HF_XET_CACHE": str(home.absolute().with_name(f"{home.name}-xet")),  # a second copy
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUSERBASE": site.getuserbase(),
        **cache_variables(home),
        **(OFFLINE if offline else {}),
    }
    with TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        (Path(folder) / "empty").mkdir()
        command = [sys.executable, "-m", "alignment_security.cluster.plugins", name, str(facts)]
        command += [place["source"], place["checkpoint"]]
        command += ["offline"] if offline else []
        done = subprocess.run(
            command, cwd=Path(folder) / "empty", env=environment, capture_output=True, text=True
        )
        shutil.rmtree(environment["HF_XET_CACHE"], ignore_errors=True)
        written = [path.name for path in every_file(Path(folder) / "empty")]
        found = json.loads(read_text(facts)) if facts.exists() else {}
    if "error" in found or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StagingError(found.get("error") or f"{name}: its process ends ({last[:300]})")
    if written:
        raise StagingError(
            f"{name}: writes {written[0]} into the working folder, which no job has; it cannot be "
            "staged"
        )
    return found


def write_facts(name: str, path: Path, source: str, checkpoint: str, offline: bool) -> None:
    """Load a net from HOME and write what loaded_facts returns, or the error."""
    place = {"source": source, "checkpoint": checkpoint}
    try:
        with no_network() if offline else nullcontext():
            model = load_from_home(name, Path(os.environ["HOME"]), place)
    except ModelError as error:
        facts: dict = {"error": str(error)}
    else:
        facts = {fact: model.settings[fact] for fact in FACTS_OF_MODEL}
        facts |= {"gpu_memory_mb": requested_mb(model), "brainscore_vision": package_version()}
    write_atomic(path, json.dumps(facts))


def package_version() -> str:
    try:
        return version("brainscore-vision")
    except PackageNotFoundError:
        return "unknown"


# ---- in a job ------------------------------------------------------------------------------------


def load_staged_plugin(name: str, home: Path, facts: dict, **options) -> Model:
    """`load_model` of a net of another source from an unpacked tar, without network.

    facts   that were staged with it
    Raises ModelError.
    """
    with staged_caches(home), no_network():
        return load_from_home(name, home, facts, **options)


@contextmanager
def no_network() -> Iterator[None]:
    """No name of a host is found, so that a plugin that wants the network says so at once."""

    def refuse(*_, **__) -> NoReturn:
        raise OSError("it wants the network, which a job has not; run prestage for it again")

    getaddrinfo = socket.getaddrinfo
    socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = getaddrinfo


@contextmanager
def staged_caches(home: Path) -> Iterator[None]:
    """The environment in which a plugin finds what was staged.

    The hub's library has read its variables when it was imported, so its constants are set too.
    """
    variables = cache_variables(home) | OFFLINE
    before = {name: os.environ.get(name) for name in variables}
    cache, offline = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    os.environ.update(variables)
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = variables["HF_HUB_CACHE"], True
    try:
        yield
    finally:
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, offline
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


if __name__ == "__main__":
    _, net_name, facts_file, net_source, checkpoint_name, *rest = sys.argv
    write_facts(net_name, Path(facts_file), net_source, checkpoint_name, rest == ["offline"])
