"""What a file is, from its first bytes: most files called damaged are whole and of another kind."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

from alignment_security.common.files import reading

FIRST_BYTES = 512
LONGEST_HEADER = 100_000_000  # bytes, of safetensors
# beginning -> (what the file is, what to do)
SIGNATURES: list[tuple[bytes, str, str]] = [
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"version https://hawser", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first (gunzip, tar -xzf)"),
    (b"BZh", "a bzip2 archive", "unpack it first (bunzip2, tar -xjf)"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it first (unxz, tar -xJf)"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first (zstd -d)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "save a state dict of torch"),
    (b"GGUF", "a GGUF file", "save a state dict of torch"),
    (b"\x93NUMPY", "a numpy array", "save a state dict of torch"),
    (b"%PDF", "a PDF", "convert it to JPEG or PNG"),
    (b"%!PS", "a PostScript program, which is never run", "convert it to JPEG or PNG"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript program, which is never run", "convert it to JPEG or PNG"),
    (b"\0\5\x16\7", "a Mac's AppleDouble file, no data", "delete it"),
    (b"\0\5\x16\0", "a Mac's AppleSingle file, no data", "delete it"),
    (b"8BPS", "a Photoshop file", "convert it to JPEG or PNG"),
]
HTML_TAGS = (b"<!doctype html", b"<html", b"<head", b"<body")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
SAFETENSORS, TORCH, TORCHSCRIPT = "safetensors", "torch", "TorchScript"


def first_bytes(path: Path) -> bytes:
    """The first FIRST_BYTES of a file. Raises OSError."""
    with reading(path), open(path, "rb") as file:
        return file.read(FIRST_BYTES)


def foreign_kind(path: Path) -> str | None:
    """What a file is that no reader of images or weights takes, and what to do about it.

    None for a file that may be an image or hold weights. Raises OSError.
    """
    start = first_bytes(path)
    if not start:
        return "an empty file; fetch it again"
    for beginning, kind, advice in SIGNATURES:
        if start.startswith(beginning):
            return f"{kind}; {advice}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith(HTML_TAGS):
        return "a web page, such as a login or an error page; fetch the file itself"
    if text.lower().startswith((b"<svg", b"<?xml")):
        return "an XML file, such as SVG; convert it to JPEG or PNG"
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return "a HEIF photograph; convert it to JPEG or PNG"
    return None


def weights_format(path: Path) -> str | None:
    """SAFETENSORS, TORCH or TORCHSCRIPT from the content of a file; None if it is none of them.

    The ending of the name does not matter. Raises OSError.
    """
    start = first_bytes(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LONGEST_HEADER:
        return SAFETENSORS
    if zipfile.is_zipfile(path):
        return _format_of_zip(path)
    is_tar = start[257:262] == b"ustar"  # torch before 0.1.10
    is_cut_zip = start.startswith(b"PK\3\4")  # whose list of contents, at its end, is missing
    return TORCH if start.startswith(b"\x80") or is_tar or is_cut_zip else None


def _format_of_zip(path: Path) -> str | None:
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return TORCHSCRIPT
        return TORCH if "data.pkl" in names else None
    return TORCH  # a damaged archive; torch's reader says what is wrong
