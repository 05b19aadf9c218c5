"""What the command lines share: parser, types of arguments, exit status, signals, printing."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO, TypeVar

Value = TypeVar("Value")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


# ---- types of arguments --------------------------------------------------------------------------


def argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A `type=` for argparse that shows the text of the ValueError that `parse` raises."""

    def checked(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def positive_int(text: str) -> int:
    """A whole number of at least 1. Raises ValueError."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} has to be a whole number of at least 1")
    return int(text)


def whole_number(text: str) -> int:
    """A whole number of at least 0. Raises ValueError."""
    if not text.isdigit():
        raise ValueError(f"{text!r} has to be a whole number (workers: 0 decodes in this process)")
    return int(text)


def non_negative(text: str) -> float:
    """A finite number of at least 0. Raises ValueError."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} has to be a number of at least 0")
    return value


def set_name(text: str) -> str:
    """The name of an image set, which also names a folder of results. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise ValueError(
            f"{text!r} names a folder of results: letters, digits, '.', '_' and '-' only"
        )
    return text


# ---- process -------------------------------------------------------------------------------------


def on_stop(handler: Callable) -> None:
    """Install `handler` for SIGTERM, and for SIGHUP unless it is ignored, as it is under nohup."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handler)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a line; ignore a closed pipe or terminal, so that it ends no run."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
