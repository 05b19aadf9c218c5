"""A package that cannot be imported ends a script with one line instead of a traceback."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

from alignment_security.common.exit_status import FAILED, INTERRUPTED, WRONG_REQUEST

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "pip install -r requirements.txt"
VENV, FIGURES_VENV = ".venv", ".venv-figures"  # that make builds; the second draws, without torch
# how the dynamic linker and the C library say that memory is short
MEMORY_TEXTS = ("failed to map segment", "cannot allocate memory", "can't start new thread")


def report_failed_imports() -> None:
    """Report failed imports in one line, if a script of this project is running."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and Path(script).resolve().parent == ROOT:
        sys.excepthook = report_failed_import


def report_failed_import(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As sys.excepthook; the errors of imports, and Ctrl-C during one, end with one line."""
    first = error
    while first.__cause__:
        first = first.__cause__
    package = failed_package(first, first.__traceback__)
    if isinstance(error, KeyboardInterrupt):
        status, text = INTERRUPTED, "interrupted"
    elif package:
        status, text = describe_failed_import(package, first)
    else:
        sys.__excepthook__(kind, error, trace)
        return
    print(text, file=sys.stderr)
    sys.exit(status)


def failed_package(error: BaseException, trace: TracebackType | None) -> str | None:
    """The package that an import failed for; None for an error of this project's own code."""
    modules = [
        frame.f_globals["__name__"].partition(".")[0]
        for frame, _ in traceback.walk_tb(trace)
        if frame.f_code.co_name == "<module>"
    ]
    name = error.name.partition(".")[0] if isinstance(error, ImportError) and error.name else None
    if isinstance(error, ModuleNotFoundError) or not modules or is_ours(modules[-1]):
        return name if name and not is_ours(name) else None
    return modules[-1]


def is_ours(package: str) -> bool:
    return package == "__main__" or any(map(Path.exists, (ROOT / package, ROOT / f"{package}.py")))


def describe_failed_import(package: str, error: BaseException) -> tuple[int, str]:
    """(exit status, line) about a package that is missing or cannot be imported."""
    reason = next(filter(None, map(str.strip, str(error).split("\n"))), type(error).__name__)
    version = ".".join(map(str, sys.version_info[:2]))
    if isinstance(error, MemoryError) or any(text in reason.lower() for text in MEMORY_TEXTS):
        advice = "a limit of this machine (see ulimit -a) is reached, or its memory is full"
        return FAILED, f"error: {package} cannot be imported ({reason}); {advice}"
    if package in sys.stdlib_module_names:
        advice = f"this is Python {version}, and 3.11 or 3.12 is needed"
    elif isinstance(error, ModuleNotFoundError):
        advice = where_packages_are(Path(getattr(sys.modules["__main__"], "__file__", "")).stem)
    elif "cannot open shared object file" in reason:
        advice = f"install this library, or anew what it belongs to: {INSTALL}"
    elif isinstance(error, ValueError):
        advice = "is a variable of the environment wrong, such as OMP_NUM_THREADS?"
    else:
        advice = f"packages of other versions than in requirements.txt? {INSTALL}"
    return WRONG_REQUEST, f"error: {package} cannot be imported ({reason}); {advice}"


def where_packages_are(script: str) -> str:
    """What to do where a package is missing: activate an environment that is there, or install.

    script   that is running: plotting needs less than the others
    """
    draws = script == "plotting"
    venvs = [ROOT / name for name in (VENV, FIGURES_VENV)[: 1 + draws]]
    install = "pip install -r requirements-figures.txt" if draws else INSTALL
    if Path(sys.prefix) in venvs:
        return install
    if built := [venv.name for venv in venvs if venv.is_dir()]:
        return f"activate the environment that has it (. {built[0]}/bin/activate), or {install}"
    target = "figures" if draws else "demo"
    return f"`make {target}` builds the environment that has it, or {install}"
