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
    (b"\xff\x0a", "a JPEG XL photograph", "convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL photograph", "convert it to JPEG or PNG"),
    (b"\x1aE\xdf\xa3", "a video", "save its frames as JPEG or PNG"),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` in its repository"),
]
HTML_TAGS = (b"<!doctype html", b"<html", b"<head", b"<body")
HEIF_BRANDS = (b"he", b"mi", b"ms")  # heic, heix, hevc, mif1, ...
AVIF_BRAND = b"avi"  # avif, avis: images that may be read
# of the list of contents of a ZIP -> what it is, where it is no file of torch.save
ZIP_KINDS = [
    (".npy", "a numpy archive"),
    ("model.weights.h5", "a Keras model"),
    ("models/model.json", "a program of torch.export, which is code"),
]
TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the first value that torch.save pickled before 1.6
SHOWN_TEXT = 40  # characters of a text that a message quotes
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
    if _is_safetensors(start):  # its first bytes are a number, which may be any
        return None
    for beginning, kind, advice in SIGNATURES:
        if start.startswith(beginning):
            return f"{kind}; {advice}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith(HTML_TAGS):
        return "a web page, such as a login or an error page; fetch the file itself"
    if text.lower().startswith((b"<svg", b"<?xml")):
        return "an XML file, such as SVG; convert it to JPEG or PNG"
    return _video_or_photograph(start) or _weights_of_others(path, start) or _text_or_zeros(start)


def _video_or_photograph(start: bytes) -> str | None:
    if start[4:8] == b"ftyp" and start[8:10] in HEIF_BRANDS:
        return "a HEIF photograph; convert it to JPEG or PNG"
    is_mp4 = start[4:8] == b"ftyp" and start[8:11] != AVIF_BRAND
    if is_mp4 or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return "a video; save its frames as JPEG or PNG"
    return None


def _weights_of_others(path: Path, start: bytes) -> str | None:
    if start[:1] == b"\x08" and start[2:3] == b"\x12" and b"onnx" in start + path.name.encode():
        return "an ONNX model; save a state dict of torch"
    if start[:1] == b"\x80" and TORCH_MAGIC not in start:
        return (
            "a pickle that torch.save did not write; where you trust it, load it and save its "
            "tensors with torch.save"
        )
    names = _names_in_zip(path)
    for ending, kind in ZIP_KINDS:
        if any(name.endswith(ending) for name in names):
            return f"{kind}; save a state dict of torch"
    return None


def _text_or_zeros(start: bytes) -> str | None:
    if not start.strip(b"\0"):
        return "a file of zeros, as a broken download or a full disk leaves; fetch it again"
    beginning = start.partition(b"\n")[0][:SHOWN_TEXT].decode(errors="replace").strip()
    if b'"weight_map"' in start:
        return "an index of weights in several files; save all their tensors in one file"
    if not start.isascii() or b"\0" in start or not beginning.isprintable():
        return None
    return f"a text that begins {beginning!r}; fetch the file that it stands for"


def weights_format(path: Path) -> str | None:
    """SAFETENSORS, TORCH or TORCHSCRIPT from the content of a file; None if it is none of them.

    The ending of the name does not matter. Raises OSError.
    """
    start = first_bytes(path)
    if _is_safetensors(start):
        return SAFETENSORS
    if zipfile.is_zipfile(path):
        return _format_of_zip(path)
    is_tar = start[257:262] == b"ustar"  # torch before 0.1.10
    is_cut_zip = start.startswith(b"PK\3\4")  # whose list of contents, at its end, is missing
    return TORCH if start.startswith(b"\x80") or is_tar or is_cut_zip else None


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LONGEST_HEADER


def _format_of_zip(path: Path) -> str | None:
    names = [name.partition("/")[2] for name in _names_in_zip(path)]
    if not names:
        return TORCH  # a damaged archive; torch's reader says what is wrong
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return TORCHSCRIPT
    return TORCH if "data.pkl" in names else None


def _names_in_zip(path: Path) -> list[str]:
    """Names in a ZIP archive; [] for another file, or a damaged one."""
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        return archive.namelist()
    return []
