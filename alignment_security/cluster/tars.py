"""Write tars for jobs, the same bytes for the same files, and their rows of staged.tsv."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from alignment_security.cluster.job import STAGED_COLUMNS
from alignment_security.common.files import sha256_file
from alignment_security.common.temporary import temporary_beside


def reproducible_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A tar member without the properties that differ between machines."""
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def write_tar(path: Path, files: list[tuple[str, Path | bytes]]) -> None:
    """Write an uncompressed tar of plain files, in the given order, and rename it to `path`.

    files   (name in the tar, path or content); links are followed
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as unfinished:
        with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
            for name, content in files:
                if isinstance(content, bytes):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(reproducible_member(member), io.BytesIO(content))
                else:
                    archive.add(content, name, recursive=False, filter=reproducible_member)
        unfinished.replace(path)


def table_row(path: Path) -> dict:
    """The row of staged.tsv of a tar, with empty columns for what only models have."""
    row: dict = dict.fromkeys(STAGED_COLUMNS, "")
    return row | {"sha256": sha256_file(path), "tar": path.name, "bytes": path.stat().st_size}
