"""Inside a job on HTCondor (--chtc): unpack staged weights and images, and report progress.

`python utilities.py prestage` makes the files:

    STAGING_DIR/staged.tsv     a line per tar: its sha256, and the model that it holds
    STAGING_DIR/<model>.tar    model.safetensors and weights.json; of a net that the code of its
                               source loads weights.json and home/, the caches that it filled
    STAGING_DIR/<images>.tar   a folder of images

Nothing here starts a shell or writes outside the scratch folder.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import pandas as pd

from alignment_security.common.files import TryAgain, UserError, sha256_file
from alignment_security.common.schema import parse_table
from alignment_security.common.temporary import temporary_beside
from alignment_security.common.text import decode_text, read_text, some_of
from alignment_security.models.lists import CODE_SOURCES
from alignment_security.records.schemas import STAGED
from alignment_security.records.summary import same_networks

STAGED_TABLE = "staged.tsv"
STAGED_COLUMNS = list(STAGED)
STAGED_STATE, STAGED_FACTS = "model.safetensors", "weights.json"
STAGED_HOME = "home"  # of a net that the code of its source loads
# attributes that report_progress sets: images done, total, per hour
PROGRESS = ("ChirpImagesDone", "ChirpImagesTotal", "ChirpImagesPerHour")
STAGED_CONFIG = "config.json"  # of a net that timm reads from a folder or a hub repository

# tarfile's own filter, which Python 3.11.0 to 3.11.3 lacks (Debian 12 has 3.11.2)
EXTRACTION: dict = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


class StagingError(UserError):
    """A staged file that is missing or wrong."""


class DamagedTar(StagingError, TryAgain):
    """A tar with another sha256 than staged.tsv says: its transfer failed, so a retry may help."""


@dataclass(frozen=True)
class StagedWeights:
    """Weights of an unpacked tar."""

    checkpoint: Path
    facts: dict  # content of weights.json: name, net, weights, weights_sha256

    @property
    def is_plugin(self) -> bool:
        """Whether the code of a source is staged, such as a plugin, with its caches in `home`."""
        return self.facts["weights"].partition(":")[0] in CODE_SOURCES

    @property
    def home(self) -> Path:
        return self.checkpoint.parent / STAGED_HOME

    @property
    def architecture(self) -> str:
        """timm name of the net: the unpacked folder, where its configuration was staged too."""
        folder = self.checkpoint.parent
        has_config = (folder / STAGED_CONFIG).is_file()
        return f"local-dir:{folder.resolve()}" if has_config else self.facts["net"]


def read_staged_table(path: Path) -> pd.DataFrame:
    """staged.tsv as a table of text, a row per tar. Raises UserError for one that is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StagingError(
            f"{path}: missing; `python utilities.py prestage --models LIST --out {path.parent}` "
            "makes it"
        ) from None
    # checked as what it is, and kept as the text that goes into submit files
    numbers = parse_table(path, data, STAGED, "run prestage again", delimiter="\t")
    if list(numbers) != STAGED_COLUMNS:
        raise StagingError(
            f"{path}: its columns are {', '.join(numbers)}, not {', '.join(STAGED_COLUMNS)}; "
            "run prestage again"
        )
    without_memory = numbers["name"].notna() & numbers["gpu_memory_mb"].isna()
    if without_memory.any():
        name = numbers.loc[without_memory, "name"].iloc[0]
        raise StagingError(f"{path}: no gpu_memory_mb for {name}; run prestage again")
    return pd.read_csv(
        io.StringIO(decode_text(data, path)), sep="\t", dtype=str, keep_default_na=False
    )


def staged_row(table: pd.DataFrame, path: Path, column: str, value: str) -> dict:
    """The row of staged.tsv whose `column` (name or tar) is `value`.

    path   of the table, for the message
    Raises StagingError unless there is exactly one.
    """
    rows = table[table[column] == value]
    if len(rows) != 1:
        raise StagingError(
            f"{path}: has {len(rows)} lines for {value}; {what_else(table, column, value)}"
        )
    return rows.iloc[0].to_dict()


def same_networks_staged(table: pd.DataFrame) -> list[str]:
    """A sentence for each net that staged.tsv has under several names."""
    return same_networks(table[table["name"] != ""].to_dict("records"))


def what_else(table: pd.DataFrame, column: str, value: str) -> str:
    """What to do about a name or tar that is not in staged.tsv, or is there twice."""
    if table[column].eq(value).any():
        return "`python utilities.py prestage` writes one per file"
    if column == "name":
        names = [name for name in table["name"] if name]
        there = get_close_matches(value, names, n=4) or names
    else:
        there = list(table.loc[table["name"] == "", "tar"])
    if not there:
        return f"it has no {'model' if column == 'name' else 'images'}; prestage them first"
    return f"it has {some_of(there)}; write one of them, or prestage it first"


# ---- unpacking -----------------------------------------------------------------------------------


def unpack(tar: Path, folder: Path, sha256: str) -> Path:
    """Unpack `tar` as `folder`, completely or not at all; an existing folder is left unchanged.

    The tar must be uncompressed and hold plain files and folders only, so that it cannot unpack to
    more than its own size. Raises DamagedTar when the sha256 differs, and StagingError for a
    missing file, another kind of tar, links, sparse files, and paths that leave the folder.
    """
    if folder.is_dir():
        return folder
    if not tar.is_file():
        raise StagingError(
            f"{tar}: not staged; run `python utilities.py prestage` and copy what it makes to "
            "STAGING_DIR"
        )
    found = sha256_file(tar)
    if found != sha256:
        raise DamagedTar(
            f"{tar}: its sha256 is {found[:12]}..., {STAGED_TABLE} says {sha256[:12]}...; stage it "
            "again, under a new name (caches keep the old file)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(tar, "r:") as archive, temporary_beside(folder) as temporary:
            members = archive.getmembers()
            _check_members(tar, members)
            archive.extractall(temporary, members, **EXTRACTION)
            _rename_unless_there(temporary, folder)
    except tarfile.TarError as error:
        raise StagingError(f"{tar}: not an uncompressed tar ({error}); not unpacked") from None
    return folder


def _rename_unless_there(unpacked: Path, folder: Path) -> None:
    """Rename `unpacked` to `folder`, unless another job of this scratch folder was faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _check_members(tar: Path, members: list[tarfile.TarInfo]) -> None:
    """Refuse links, devices and paths that leave the folder; make paths and modes harmless."""
    for member in members:
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise StagingError(
                f"{tar}: {member.name} is neither a plain file nor a folder; not unpacked"
            )
        member.name = member.name.lstrip("/")
        member.mode = 0o755 if member.isdir() else 0o644
        if ".." in PurePosixPath(member.name).parts:
            raise StagingError(f"{tar}: {member.name} leaves the folder; not unpacked")


def staging_dir(value: str | None) -> Path:
    """STAGING_DIR as a path. Raises StagingError when it is not set."""
    if not value:
        raise StagingError(
            "--chtc: STAGING_DIR is not set; write the folder of staged.tsv into .env.local or the "
            "environment"
        )
    return Path(value)


def scratch_dir() -> Path:
    """Where a job may write: HTCondor's scratch folder, else the current one."""
    return Path(os.environ.get("_CONDOR_SCRATCH_DIR") or ".")


def staged_folder(staging: Path, column: str, value: str) -> Path:
    """The unpacked folder of the tar that staged.tsv lists with `column` (name or tar) = `value`.

    It is unpacked to <scratch>/staged/, once per job.
    """
    table = staging / STAGED_TABLE
    row = staged_row(read_staged_table(table), table, column, value)
    tar = Path(row["tar"])
    folder = scratch_dir() / "staged" / f"{tar.stem}-{row['sha256'][:8]}"
    return unpack(staging / tar, folder, row["sha256"])


def staged_weights(staging: Path, name: str) -> StagedWeights:
    """The weights staged for the model `name`. Raises StagingError."""
    folder = staged_folder(staging, "name", name)
    try:
        facts = json.loads(read_text(folder / STAGED_FACTS))
        if facts["name"] != name or not {"net", "weights", "weights_sha256"} <= facts.keys():
            raise ValueError(f"it is of {facts['name']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StagingError(
            f"{folder / STAGED_FACTS}: does not describe the weights of {name} ({error}); run "
            "prestage again"
        ) from None
    return StagedWeights(folder / STAGED_STATE, facts)


def staged_images(staging: Path, data_dir: str) -> str:
    """The unpacked folder of `--data_dir X.tar`; any other `data_dir` is returned unchanged."""
    return str(staged_folder(staging, "tar", data_dir)) if data_dir.endswith(".tar") else data_dir


# ---- progress ------------------------------------------------------------------------------------


def report_progress(done: int, total: int, per_hour: float) -> None:
    """Report images done, total, and per hour (when known) as attributes of the HTCondor job.

    Uses HTCondor's Chirp; the attributes reach the event log and `sweep_status`. Does nothing
    outside a job or without htchirp (requirements-htcondor.txt). On SLURM it is a line of
    PROGRESS_FILE, `progress TIME DONE/TOTAL/PER_HOUR`. A failed report never stops the job.
    """
    if noted := os.environ.get("PROGRESS_FILE"):
        with suppress(OSError), open(noted, "a", encoding="utf-8") as file:
            file.write(f"progress {time.time():.0f} {done}/{total}/{per_hour:.2f}\n")
    if not os.environ.get("_CONDOR_CHIRP_CONFIG"):
        return
    attributes = {"ChirpImagesDone": str(done)}
    if total:
        attributes["ChirpImagesTotal"] = str(total)
    if round(per_hour, 2):
        attributes["ChirpImagesPerHour"] = str(round(per_hour, 2))
    with suppress(Exception):  # no htchirp, no proxy, no answer: the evaluation continues
        from htchirp import HTChirp

        with HTChirp() as chirp:
            for name, value in attributes.items():
                chirp.set_job_attr_delayed(name, value)
