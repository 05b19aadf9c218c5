"""What the environment gives: CPUs, and what libraries expect and a container may lack."""

from __future__ import annotations

import getpass
import importlib.util
import os
import tempfile


def name_the_user() -> None:
    """Give a uid without a name (`docker run --user`, HTCondor) a user name and a home folder.

    torch asks for the name when timm is imported. Variables that are set stay as they are.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()


def forget_missing_backend() -> None:
    """Unset MPLBACKEND where it names the backend of a notebook that this Python does not have.

    `!python plotting.py` in Colab inherits it; importing matplotlib would fail.
    """
    name = os.environ.get("MPLBACKEND", "")
    package = name.removeprefix("module://").partition(".")[0]
    if name.startswith("module://") and importlib.util.find_spec(package) is None:
        del os.environ["MPLBACKEND"]


def usable_cpus() -> int:
    """CPUs that this process may use; of the machine where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
