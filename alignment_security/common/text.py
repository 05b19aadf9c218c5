"""Read text files that other systems wrote (byte-order marks, UTF-16, CRLF); printable names.

All text that the project reads goes through `read_text`; all that it writes is UTF-8.
"""

from __future__ import annotations

import codecs
import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from alignment_security.common.files import UserError, read_bytes

# byte-order mark -> encoding; UTF-32's little-endian mark begins with that of UTF-16
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ZERO_WIDTH = "\u200b\u2060\ufeff"  # spaces of no width, which come with text copied from a page
UNPRINTABLE = ("Cc", "Zl", "Zp", "Cs")  # control characters, line and paragraph separators


def read_text(path: str | Path) -> str:
    r"""The text of a file; every line ends with `\n`.

    The encoding is UTF-8, or what the file's byte-order mark says. Raises OSError for a file that
    cannot be read, and UserError with the line for one that is no such text.
    """
    return decode_text(read_bytes(path), path)


def decode_text(data: bytes, path: str | Path) -> str:
    """As `read_text`, for the bytes of a file; `path` names it in the error."""
    encoding = next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not {encoding.upper()} text (byte 0x{data[error.start]:02x}); "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: holds NUL characters, so it is no text; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path: str | Path) -> list[str]:
    r"""The lines of a text file without their ends; only `\n`, `\r` and `\r\n` end a line.

    Spaces of no width are left out: a name with one looks like the name without.
    """
    lines = without_zero_width(read_text(path)).split("\n")
    return lines if lines[-1] else lines[:-1]


def without_zero_width(text: str) -> str:
    return text.translate(dict.fromkeys(map(ord, ZERO_WIDTH)))


def words_of_line(path: str | Path, number: int, line: str) -> list[str]:
    """The words of a line of a file as a shell splits them, without a comment. Raises UserError."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {str(error).lower()}") from None


def lines_that_say_something(path: str | Path) -> list[str]:
    """The lines of a log that are not blank, whatever its encoding; none where there is no log."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return [line for line in lines if line.strip()]


def last_line(path: str | Path) -> str:
    """The last line of a log that says something; "" for none, or no log."""
    return next(reversed(lines_that_say_something(path)), "")


def printable_name(path: str | PurePath) -> str:
    r"""A path as text that every file of results can hold, with `/` between folders.

    Bytes that are no UTF-8 and characters that would end a line are written as `\xNN`.
    """
    plain = PurePath(path).as_posix()
    if plain.isprintable():
        return plain
    text = os.fsencode(plain).decode("utf-8", errors="backslashreplace")
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in UNPRINTABLE
        else char
        for char in text
    )


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there more than once, in the order of their first places."""
    return [name for name, count in Counter(names).items() if count > 1]


def some_of(names: Sequence[str], most: int = 12) -> str:
    """The first names, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def as_a_spreadsheet_saves(header: str, delimiter: str = ",") -> str:
    """Why the first line of a table has no cells, where a spreadsheet separated them otherwise."""
    if header.lower().startswith("sep="):
        return "its first line is a spreadsheet's `sep=`: delete that line"
    other = next((mark for mark in ";\t," if mark in header), "")
    if delimiter in header or not other:
        return ""
    return (
        f"its cells are separated by {other!r} and not by {delimiter!r}: save it with the latter, "
        "and numbers with a decimal point"
    )
