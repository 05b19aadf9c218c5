"""alignment_security.common.command_line."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def argument(parse):
    """A parser of one value whose ValueError text reaches the user."""

    def checked(text: str):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} has to be a whole number of at least 1")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{text!r} has to be a whole number (workers: 0 decodes in this process)")
    return int(text)


def set_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise ValueError(
            f"{text!r} names a folder of results: letters, digits, '.', '_' and '-' only"
        )
    return text


CHECKPOINTED = 85  # exit status: the state is on disk, run the same command again


def on_stop(handler: Callable) -> None:
    """Call it on SIGTERM, and on SIGHUP unless that is ignored, as under nohup."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handler)


def non_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} has to be a number of at least 0")
    return value


def print_line(text: str, stream=None) -> None:
    """Print a line; that nobody listens any more (a closed pipe, a terminal that hung up) ends no run."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
