"""What a job on HTCondor does beside evaluating or training (--chtc): unpack what was staged for it, and say how far it is.

    STAGING_DIR/staged.tsv     a line a tar: its sha256 and what it holds (made by `python utilities.py prestage`)
    STAGING_DIR/<model>.tar    model.safetensors and weights.json
    STAGING_DIR/<images>.tar   a folder of images

Nothing here starts a shell or writes outside the folder that it was given.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from alignment_security.common.files import UserError, sha256_file

STAGED_TABLE = "staged.tsv"
STAGED_COLUMNS = ["sha256", "tar", "name", "bytes", "weights", "weights_sha256", "gpu_memory_mb"]
STAGED_STATE, STAGED_FACTS = "model.safetensors", "weights.json"


class StagingError(UserError):
    """Something staged that is missing or is not what it should be; the message names the file and what mends it."""


class DamagedTar(StagingError):
    """A tar whose bytes are not those of the table: a transfer may have failed, another try may do."""


@dataclass(frozen=True)
class StagedWeights:
    """Weights out of a tar: the checkpoint, and what weights.json says (name, net, weights, weights_sha256)."""

    checkpoint: Path
    facts: dict


def read_staged_table(path: Path) -> pd.DataFrame:
    """staged.tsv as text, a row a tar. Raises StagingError."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise StagingError(
            f"{path}: missing; `python utilities.py prestage --models LIST --out {path.parent}` makes it"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StagingError(
            f"{path}: not a table of staged files ({str(error).strip()}); run prestage again"
        ) from None
    if list(table.columns) != STAGED_COLUMNS:
        raise StagingError(
            f"{path}: its columns are {', '.join(table.columns)}, not {', '.join(STAGED_COLUMNS)}; run prestage again"
        )
    return table


def staged_row(table: pd.DataFrame, path: Path, **wanted) -> dict:
    ((column, value),) = wanted.items()
    rows = table[table[column] == value]
    if len(rows) != 1:
        raise StagingError(
            f"{path}: has {len(rows)} lines for {value}; `python utilities.py prestage` writes one a file"
        )
    return rows.iloc[0].to_dict()


# ---- unpacking -----------------------------------------------------------------------------------


def unpack(tar: Path, folder: Path, sha256: str) -> Path:
    """Unpack `tar` as `folder`, whole or not at all; a folder that is there already is left as it is.

    Only an uncompressed tar of plain files and folders is taken, so that it cannot unpack to more than its own size.
    Raises DamagedTar where the sha256 differs, StagingError for a missing file, links, sparse files and paths that leave.
    """
    if folder.is_dir():
        return folder
    if not tar.is_file():
        raise StagingError(
            f"{tar}: not staged; run `python utilities.py prestage` and copy what it makes to STAGING_DIR"
        )
    if (found := sha256_file(tar)) != sha256:
        raise DamagedTar(
            f"{tar}: its sha256 is {found[:12]}..., {STAGED_TABLE} says {sha256[:12]}...; stage it again, under a new "
            "name (caches keep the old file)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tarfile.open(tar, "r:") as archive,
            tempfile.TemporaryDirectory(dir=folder.parent) as temporary,
        ):
            members = archive.getmembers()
            for member in members:
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise StagingError(
                        f"{tar}: {member.name} is neither a plain file nor a folder; not unpacked"
                    )
            archive.extractall(Path(temporary) / "whole", members, filter="data")
            (Path(temporary) / "whole").rename(folder)
    except tarfile.FilterError as error:
        raise StagingError(f"{tar}: {error}; not unpacked") from None
    except tarfile.TarError as error:
        raise StagingError(f"{tar}: not an uncompressed tar ({error}); not unpacked") from None
    return folder


def staging_dir(value: str | None) -> Path:
    if not value:
        raise StagingError(
            "--chtc: STAGING_DIR is not set; write the folder that holds staged.tsv into .env or the environment"
        )
    return Path(value)


def scratch_dir() -> Path:
    """Where a job may write: HTCondor's scratch folder, else the current one."""
    return Path(os.environ.get("_CONDOR_SCRATCH_DIR") or ".")


def staged_folder(staging: Path, **wanted) -> Path:
    """What staged.tsv lists under name=... or tar=..., unpacked under scratch()/staged/."""
    row = staged_row(read_staged_table(staging / STAGED_TABLE), staging / STAGED_TABLE, **wanted)
    if Path(row["tar"]).name != row["tar"]:
        raise StagingError(
            f"{staging / STAGED_TABLE}: {row['tar']} leaves the folder; run prestage again"
        )
    folder = scratch_dir() / "staged" / f"{Path(row['tar']).stem}-{row['sha256'][:8]}"
    return unpack(staging / row["tar"], folder, row["sha256"])


def staged_weights(staging: Path, name: str) -> StagedWeights:
    """The weights staged for the model called `name`."""
    folder = staged_folder(staging, name=name)
    try:
        facts = json.loads((folder / STAGED_FACTS).read_text())
        if facts["name"] != name or not {"net", "weights", "weights_sha256"} <= facts.keys():
            raise ValueError(f"it is of {facts['name']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StagingError(
            f"{folder / STAGED_FACTS}: does not describe the weights of {name} ({error}); run prestage again"
        ) from None
    return StagedWeights(folder / STAGED_STATE, facts)


def staged_images(staging: Path, data_dir: str) -> str:
    """`--data_dir X.tar` as the folder that the tar of that name holds; any other folder as it is."""
    return str(staged_folder(staging, tar=data_dir)) if data_dir.endswith(".tar") else data_dir


# ---- progress ------------------------------------------------------------------------------------


def report_progress(done: int, total: int, per_hour: float) -> None:
    """Put images done, images in all and (where it is known) images an hour into the job's ad with HTCondor's Chirp.

    From there they reach its event log and `sweep_status`. Does nothing outside a job; a job never fails for it.
    """
    if not os.environ.get("_CONDOR_CHIRP_CONFIG"):
        return
    from htchirp import HTChirp

    with (
        suppress(Exception),
        HTChirp() as chirp,
    ):  # whatever becomes of a message, the evaluation goes on
        for name, value in (("Done", done), ("Total", total), ("PerHour", round(per_hour, 2))):
            if value or name == "Done":
                chirp.set_job_attr_delayed(f"ChirpImages{name}", str(value))
