"""Text of other systems, files that tools leave, and files of another kind than their name says."""

from __future__ import annotations

import ast
import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from alignment_security.common.file_kinds import (
    SAFETENSORS,
    TORCH,
    foreign_kind,
    weights_format,
)
from alignment_security.common.files import UserError
from alignment_security.common.folders import (
    glob_visible,
    is_left_by_tools,
    left_by_tools_note,
    list_files,
    not_wanted_note,
    visible,
)
from alignment_security.common.text import printable_name, read_text, text_lines

TEXT = "model\tCafé\n± 2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_every_system_is_the_same(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(path) == TEXT and text_lines(path) == ["model\tCafé", "± 2"]


@pytest.mark.parametrize(
    "data, message",
    [
        ("good\nCafé\n".encode("latin-1"), r"list.txt, line 2: not UTF-8 text \(byte 0xe9\)"),
        ("a\nb\n".encode("utf-16-le"), "holds NUL characters"),
        (b"\xff\xfea", "line 1: not UTF-16 text"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, data, message):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "list.txt")


def test_a_name_is_printable_and_stays_as_it_is_otherwise():
    assert printable_name(Path("a b/ü,$x%.JPEG")) == "a b/ü,$x%.JPEG"
    assert printable_name(Path(os.fsdecode(b"caf\xe9.jpg"))) == r"caf\xe9.jpg"
    assert printable_name(Path("a\rb\nc\x1bd\u2028e\x85")) == r"a\rb\nc\x1bd\u2028e\x85"


# ---- what tools leave ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints", ".Trash-1000", "._photo.jpg", ".DS_Store", ".snapshot", "@eaDir",
        "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "~snapshot", "__MACOSX", "lost+found",
        "Thumbs.db", "THUMBS.DB", "desktop.ini", "System Volume Information", "a.txt~",
        "x.jpg.part", "FOUND.001", "x.jpg:Zone.Identifier", ".x.jpg.icloud", "x.jpg.icloud",
        "Desktop DF", "ehthumbs_vista.db", ".net.csv.x.tmp",
        "a.sync-conflict-20240101-120000-ABC.jpg",
        "a (Ann's conflicted copy 2024-01-01).jpg",
    ],
)  # fmt: skip
def test_what_tools_leave_is_known(name):
    assert is_left_by_tools(name)


@pytest.mark.parametrize(
    "name",
    [
        "n01440764",
        "cat",
        "0",
        "snapshot",
        "thumbnails",
        "photo.thumb.jpg",
        "a~b.jpg",
        "_x",
        "found",
    ],
)
def test_other_names_are_data(name):
    assert not is_left_by_tools(name)


def test_list_files_counts_all_that_it_leaves_out(tmp_path):
    for name in ("a/x.jpg", "a/y.txt", "a/._x.jpg", "a/.thumbnails/x.jpg", "b/z.jpg", "b/raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "folder.jpg").mkdir()
    listing = list_files(tmp_path, lambda path: path.suffix == ".jpg")
    assert [path.name for path in listing.files] == ["x.jpg", "z.jpg"]
    assert left_by_tools_note(tmp_path, listing.by_tools) == [
        f"{tmp_path}: 2 files or folders that tools leave are left out (a/._x.jpg, a/.thumbnails)"
    ]
    (note,) = not_wanted_note(tmp_path, listing.others, "image")
    assert note.startswith(f"{tmp_path}: 2 files are left out") and "no ending: 1" in note
    assert left_by_tools_note(tmp_path, []) == not_wanted_note(tmp_path, [], "image") == []


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    assert [path.name for path in list_files(tmp_path / "set").files] == ["x.jpg"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """os.walk and rglob skip it in silence."""
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="shut"):
        list_files(tmp_path)


def test_glob_visible_and_visible(tmp_path):
    for name in ("s/t/net.json", "s/t/._net.json", ".s/t/net.json", "s/@eaDir/net.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert glob_visible(tmp_path, "*/*/*.json") == [tmp_path / "s/t/net.json"]
    assert visible(tmp_path) == [tmp_path / "s"]


# ---- kinds of files ------------------------------------------------------------------------------


def zipped(name: str) -> bytes:
    """A ZIP archive of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n <!DOCTYPE HTML><html>", "web page"),
        (gzip.compress(b"x"), "gzip"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\0\0\0\x18ftypheic", "HEIF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x18ftypavif", None),
        (b"\x08\x08\x12\x07pytorch\x1a\x05onnx\0", "ONNX"),
        (b"\x80\x05\x95\0\0\0\0\0\0\0\0}.", "torch.save did not write"),
        (b"/annex/objects/SHA256E-s1--0.jpg\n", "git annex get"),
        (b'{"message": "Not Found"}', "a text that begins '{"),
        (b'{"metadata": {}, "weight_map": {}}', "weights in several files"),
        (bytes(4096), "a file of zeros"),
        (zipped("archive/data/0.npy"), "numpy archive"),
        (zipped("net/models/model.json"), "torch.export"),
        (b"\xff\xd8\xff\xe0", None),
    ],
)
def test_foreign_kind(tmp_path, data, kind):
    (tmp_path / "file").write_bytes(data)
    found = foreign_kind(tmp_path / "file")
    assert found is None if kind is None else kind in found


@pytest.mark.parametrize("length", [0x80, 0x8B1F, 0x0AFF])  # as a pickle, gzip and JPEG XL begin
def test_weights_of_safetensors_are_no_foreign_kind(tmp_path, length):
    path = tmp_path / "file"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * length)
    assert foreign_kind(path) is None and weights_format(path) == SAFETENSORS


def test_files_that_torch_saves_are_no_foreign_kind(tmp_path):
    for is_zip in (True, False):
        torch.save(
            {"x": torch.ones(2)}, path := tmp_path / "file", _use_new_zipfile_serialization=is_zip
        )
        assert foreign_kind(path) is None and weights_format(path) == TORCH


# ---- one place for each --------------------------------------------------------------------------

SOURCES = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "alignment_security").rglob("*.py"))]
LISTING_CALLS = {"iterdir", "rglob", "glob", "listdir", "scandir", "walk"}
# folders of the repository, of an installed package, and of common.folders itself
MAY_LIST = {
    "common/folders.py": 4,
    "common/temporary.py": 1,
    "cluster/sweep.py": 2,
    "analysis/brainscore_registry.py": 1,
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(name of the function or method, call) of every call in a file."""
    found = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func).split(".")[-1], node) for node in found]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_text_is_read_or_written_in_the_encoding_of_the_locale(path):
    for name, call in calls(path):
        named = any(keyword.arg == "encoding" for keyword in call.keywords)
        if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
            assert named, f"line {call.lineno}: {name} without encoding"
        if ast.unparse(call.func) == "open":
            mode = ast.unparse(call.args[1]) if len(call.args) > 1 else "'r'"
            assert named or "b" in mode, f"line {call.lineno}: open without encoding"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_folders_are_listed_in_one_place(path):
    lists = [call.lineno for name, call in calls(path) if name in LISTING_CALLS]
    allowed = next((n for end, n in MAY_LIST.items() if path.as_posix().endswith(end)), 0)
    lines = {line for line in lists if "ast.walk" not in path.read_text().splitlines()[line - 1]}
    assert len(lines) <= allowed, f"lines {sorted(lines)}: use common.folders"
