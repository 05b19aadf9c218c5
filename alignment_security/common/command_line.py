"""What the command lines share: the parser, and types of arguments that refuse a bad value."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Container, Iterable
from difflib import get_close_matches
from inspect import isfunction
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from alignment_security.common.environment import usable_cpus

RESULTS_HELP = "folder of records and tables"
LONGEST_NAME = 100  # letters of a folder's name
ARCHIVE_ENDINGS = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
MOST_DIGITS = 15  # of a whole number
VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))(?=/|$)")  # that begins a path
URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
PLACES = ("_dir", "out", "checkpoint", "save_to_paper")  # ends of options that name a path
MOST_WORKERS = max(64, 2 * (os.cpu_count() or 1))  # more processes than this only wait


class Store(argparse.Action):
    """Store the value of an option; an option of several values adds them when it comes again.

    argparse would keep the values of the last one and drop the others in silence. `~` at the
    beginning of a value is the home folder: shells leave it alone in `--results_dir=~/x`. So is
    `$NAME` the variable, which quotes keep from a shell.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        values = [*map(self._expand, values)] if self.nargs in ("+", "*") else self._expand(values)
        before = getattr(namespace, self.dest, None)
        if self.nargs in ("+", "*") and before is not None and before is not self.default:
            values = [*before, *values]
        setattr(namespace, self.dest, values)

    def _expand(self, value: Any) -> Any:
        if self.dest.endswith(PLACES) and URL.match(str(value)):
            raise argparse.ArgumentError(
                self, f"{str(value)!r} is a URL; name a path of this machine"
            )
        try:
            return expand_variable(expand_home(value))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def expand_home(value: Any) -> Any:
    """A text or path with `~` at its beginning as the home folder; other values unchanged."""
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def expand_variable(value: Any) -> Any:
    """A text or path with the value of `$NAME` or `${NAME}` at its beginning; others unchanged.

    Raises ValueError for a folder below a variable that is not set.
    """
    match = VARIABLE.match(str(value)) if isinstance(value, str | Path) else None
    if match is None:
        return value
    name, rest = match[1] or match[2], str(value)[match.end() :]
    if name in os.environ:
        return type(value)(os.environ[name] + rest)
    if rest:
        raise ValueError(f"{str(value)!r}: the variable {name} is not set")
    return value


class Last(argparse.Action):
    """Store the values of an option; where it comes again, the last ones count."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that ends with the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        if default is None or default is False or "default" in text:
            return text
        if default in ([], "", argparse.SUPPRESS):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options are written in full.

    The help shows defaults (`HelpFormatter`); an option of several values may come twice (`Store`).
    A function that is the `type` of an option says in its ValueError what is wrong with a value.
    """

    def __init__(self, *args, **options):
        super().__init__(
            *args, **{"allow_abbrev": False, "formatter_class": HelpFormatter} | options
        )
        self._words: list[str] = []
        self.register("action", None, Store)
        self.register("action", "store", Store)

    def parse_args(self, args=None, namespace=None):
        """As of ArgumentParser; the error of an unknown option names the nearest ones.

        Only those of the sub-command, and the other sub-commands that have the option itself.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            commands = self._commands()
            chosen = commands.get(getattr(parsed, "command", None) or "", self)
            others = [key for key, command in commands.items() if name in command._known_names()]
            hint = f"; an option of {', '.join(others)}" if others else ""
            near = chosen.nearest(name)
            said = f"unrecognized arguments: {' '.join(unknown)}{hint}"
            chosen.error(f"{said}; {near}" if near else said)
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        """As of ArgumentParser; the words are kept for the error of a missing option."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def unknown_options(self, argv: Iterable[str]) -> list[str]:
        """Words before any `--` that are written as an option, `--name` or `-n`, and are none."""
        names = (word.split("=")[0] for word in takewhile(lambda word: word != "--", argv))
        known = self._known_names()
        written = [name for name in names if re.fullmatch("--[A-Za-z].*|-[A-Za-z]", name)]
        return list(dict.fromkeys(name for name in written if name not in known))

    def nearest(self, name: str) -> str:
        """`nearest: --x` of an unknown option, or "": their dashes make no two names alike."""
        known = {each.lstrip("-"): each for each in self._known_names() - {name}}
        near = [known[each] for each in get_close_matches(name.lstrip("-"), known)]
        return f"nearest: {', '.join(near)}" if near else ""

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """As of ArgumentParser; the error is the text of the ValueError that a function raises."""
        if not isfunction(action.type):
            return super()._get_value(action, text)
        try:
            return action.type(text)
        except ValueError as error:
            raise argparse.ArgumentError(action, str(error)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As of ArgumentParser; the error names the nearest choices, or all."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = get_close_matches(str(value), names)
        hint = f"nearest: {', '.join(near)}" if near else f"choose from {', '.join(names)}"
        raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r}; {hint}")

    def _known_names(self) -> set[str]:
        """Names of the options of this parser and of its sub-commands."""
        names = {name for action in self._actions for name in action.option_strings}
        return names.union(*(command._known_names() for command in self._commands().values()))

    def _commands(self) -> dict[str, Parser]:
        """The parsers of the sub-commands, by name."""
        choices = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return {name: command for each in choices for name, command in each.items()}

    def named(self, argv: list[str]) -> set[str]:
        """`dest` of the options that a command line names, their defaults not counted."""
        words = {word.split("=")[0] for word in argv}
        return {action.dest for action in self._actions if words & set(action.option_strings)}

    def options_of_one_value(self) -> set[str]:
        """Names of the options that take exactly one value."""
        actions = [action for action in self._actions if action.nargs is None]
        return {name for action in actions for name in action.option_strings}

    def hide(self, dests: Container[str]) -> None:
        """Leave options out of the help; they are parsed all the same."""
        for action in self._actions:
            if action.dest in dests:
                action.help = argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required: --"):
            unknown = self.unknown_options(self._words)
            if unknown and (near := self.nearest(unknown[0])):
                message = f"unrecognized arguments: {unknown[0]}; {near}"
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


# ---- types of arguments --------------------------------------------------------------------------


def new_folder(text: str) -> Path:
    """A folder to be written. Raises ValueError for the name of an archive, which none is."""
    path = Path(text)
    if path.suffix.lower() in ARCHIVE_ENDINGS and not path.is_dir():
        raise ValueError(f"{text!r} names an archive; name a folder, and pack it afterwards")
    return path


def whole_number(text: str, least: int = 0, most: float = float("inf")) -> int:
    """A whole number from `least` to `most`. Raises ValueError."""
    if re.fullmatch(rf"[0-9]{{1,{MOST_DIGITS}}}", text) and least <= int(text) <= most:
        return int(text)
    limits = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
    raise ValueError(f"{text!r} has to be a whole number {limits}")


def positive_int(text: str) -> int:
    """A whole number of at least 1. Raises ValueError."""
    return whole_number(text, least=1)


def worker_count(text: str) -> int:
    """Processes that decode images; 0 decodes in this one. Raises ValueError."""
    return whole_number(text, most=MOST_WORKERS)


def default_workers(processes: int = 1) -> int:
    """Processes that decode images for each of so many evaluations or trainings: half the CPUs."""
    return min(8, usable_cpus() // 2 // processes)


def non_negative(text: str) -> float:
    """A finite number of at least 0. Raises ValueError."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} has to be a number of at least 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1. Raises ValueError."""
    value = non_negative(text)
    if value > 1:
        raise ValueError(f"{text} has to be a number from 0 to 1")
    return value


def name_of_model(text: str) -> str:
    """A model's name without spaces around it. Raises ValueError."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} names no model: it is empty or cannot be printed")
    return text.strip()


def set_name(text: str) -> str:
    """The name of an image set, which also names a folder of results. Raises ValueError."""
    if "/" in text:
        raise ValueError(
            f"{text!r} is a path; give the set a name and its folder apart, --dataset NAME "
            f"--data_dir {text} (of --val_dataset: --val_dir)"
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text) or len(text) > LONGEST_NAME:
        raise ValueError(
            f"{text[:LONGEST_NAME]!r} names a folder of results: letters, digits, '.', '_' and '-' "
            f"only, at most {LONGEST_NAME} of them"
        )
    return text
