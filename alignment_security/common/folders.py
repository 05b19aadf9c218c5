"""List folders: one rule for what tools leave in them, and a count of everything left out.

File managers, photo programs, NAS systems, notebooks and archives put files and folders of their
own among images and records. They are never data.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment_security.common.text import printable_name, some_of

# .thumbnails, ._photo.jpg, @eaDir, #recycle, $RECYCLE.BIN, ~snapshot
TOOL_BEGINNINGS = (".", "@", "#", "$", "~")
TOOL_ENDINGS = ("~", ".part", ".filepart", ".crdownload", ".icloud", ".tmp", ".swp")
TOOL_NAMES = {
    "_gsdata_",
    "__macosx",
    "__pycache__",
    "cvs",
    "desktop db",
    "desktop df",
    "desktop.ini",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "icon\r",
    "lost+found",
    "network trash folder",
    "recycled",
    "recycler",
    "system volume information",
    "temporary items",
    "thevolumesettingsfolder",
    "thumbs.db",
    "thumbs.db:encryptable",
}
# of Syncthing and Dropbox, chkdsk, and Windows' marks of downloads
TOOL_PATTERN = re.compile(
    r"\.sync-conflict-\d{8}|conflicted copy|^found\.\d{3}$|:zone\.identifier$", re.IGNORECASE
)
LEFT_BY_TOOLS = "files or folders that tools leave are left out"
MAX_NAMED = 3  # examples in a message


def is_left_by_tools(name: str) -> bool:
    """Whether a tool, not a person, makes files or folders of this name."""
    lowered = name.casefold()
    return (
        lowered.startswith(TOOL_BEGINNINGS)
        or lowered.endswith(TOOL_ENDINGS)
        or lowered in TOOL_NAMES
        or bool(TOOL_PATTERN.search(lowered))
    )


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that no tool left, sorted. Raises OSError if it cannot be read."""
    return sorted(path for path in Path(folder).iterdir() if not is_left_by_tools(path.name))


def glob_visible(root: Path, pattern: str) -> list[Path]:
    """`root.glob(pattern)`, sorted, without what tools left anywhere below `root`."""
    return sorted(
        path
        for path in Path(root).glob(pattern)
        if not any(map(is_left_by_tools, path.relative_to(root).parts))
    )


def every_file(root: Path) -> list[Path]:
    """All files below a folder, sorted, hidden ones too: of caches, which are hidden folders."""
    return sorted(path for path in root.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Listing:
    """The files below a folder, sorted by path, and what was left out.

    by_tools   files and folders that tools left; what is in such a folder is not counted
    others     files that were not wanted
    """

    files: list[Path]
    by_tools: list[Path]
    others: list[Path]


def list_files(root: Path, is_wanted: Callable[[Path], bool] = lambda path: True) -> Listing:
    """Every file below a folder for which `is_wanted(path)`, without what tools left.

    Linked folders are followed. Raises OSError for a folder that cannot be read.
    """
    files: list[Path] = []
    by_tools: list[Path] = []
    others: list[Path] = []
    for path in _walk(Path(root), by_tools):
        (files if is_wanted(path) else others).append(path)
    return Listing(sorted(files), sorted(by_tools), sorted(others))


def _walk(root: Path, by_tools: list[Path]) -> Iterator[Path]:
    """Files below `root`; what tools left goes to `by_tools`."""
    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        if _links_to_a_parent(folder):
            folders.clear()
            continue
        by_tools += [Path(folder, name) for name in [*folders, *files] if is_left_by_tools(name)]
        folders[:] = [name for name in folders if not is_left_by_tools(name)]
        yield from (Path(folder, name) for name in files if not is_left_by_tools(name))


def _links_to_a_parent(folder: str) -> bool:
    """Whether a folder is a link to one that holds it; walking it would never end."""
    if not os.path.islink(folder):
        return False
    parent = os.path.realpath(os.path.dirname(folder))
    return Path(parent).is_relative_to(os.path.realpath(folder))


def _raise(error: OSError) -> None:
    raise error


# ---- what is said about it -----------------------------------------------------------------------


def left_by_tools_note(root: Path, paths: Iterable[Path]) -> list[str]:
    """A sentence with the number of files and folders that tools left below `root`; [] for none."""
    names = [printable_name(path.relative_to(root)) for path in paths]
    if not names:
        return []
    return [f"{root}: {len(names)} {LEFT_BY_TOOLS} ({some_of(names, MAX_NAMED)})"]


def not_wanted_note(root: Path, paths: Iterable[Path], what: str) -> list[str]:
    """A sentence that counts files left out, by the ending of their names; [] for none.

    what   what the files are not, e.g. "image"
    """
    counts = Counter(path.suffix.lower() or "no ending" for path in paths)
    if not counts:
        return []
    endings = [f"{ending}: {count}" for ending, count in counts.most_common()]
    return [
        f"{root}: {counts.total()} files are left out, since no {what} has such an ending "
        f"({some_of(endings, MAX_NAMED)})"
    ]
