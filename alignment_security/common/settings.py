"""Settings and provenance: values of .env, eps as text, the git commit, versions of packages."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from fractions import Fraction
from importlib import metadata
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]  # of the repository
IMAGENET_CLASSES = 1000
SEVERITIES = (1, 2, 3, 4, 5)  # of ImageNet-C's corruptions
# packages that can change a number
PACKAGES = [
    "torch",
    "torchvision",
    "timm",
    "pyautoattack",
    "foolbox",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "brainscore-vision",
]


def setting(name: str, default: str | None = None) -> str | None:
    """A value of the environment, else of the repository's .env; an empty one counts as unset."""
    return os.environ.get(name) or dotenv_values(ROOT / ".env").get(name) or default


# ---- eps -----------------------------------------------------------------------------------------


def parse_eps(text: str) -> float:
    """`8/255` or `0.031` as a float in pixel units of [0, 1].

    Raises ValueError for a value above 1: 8 could mean 8/255, but no unit is guessed.
    """
    value = parse_radius(text)
    if value > 1:
        raise ValueError(
            f"eps {text} is above 1; pixels are in [0, 1], so write {text}/255 if you mean {text} "
            "of 255 levels"
        )
    return value


def parse_radius(text: str) -> float:
    """A radius in any norm, as a fraction or a float, in pixel units of [0, 1].

    In L1 and L2 it may exceed 1. Raises ValueError for a negative radius or no number.
    """
    try:
        value = _parse_fraction(text) if "/" in text else float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(
            f"eps {text!r} is not a number; write a fraction (8/255) or a float (0.031)"
        )
    if value < 0:
        raise ValueError(f"eps {text} is negative; it is a distance in pixel units of [0, 1]")
    return value


def _parse_fraction(text: str) -> float:
    numerator, denominator = text.split("/")
    return float(Fraction(numerator) / Fraction(denominator))


def format_eps(eps: float) -> str:
    """eps as papers write it: `8/255`, `0.25/255`.

    A value that is no multiple of 1/255000 stays a plain float.
    """
    levels = round(255 * eps, 3)
    if eps and abs(255 * eps - levels) < 1e-9:
        return f"{levels:.10g}/255"
    return f"{eps:g}"


# ---- provenance ----------------------------------------------------------------------------------


def git_state() -> str:
    """The commit of the code, with `-dirty` appended when tracked files differ.

    Without a git repository: GIT_COMMIT of the environment, else `unknown`.
    """
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain", "-uno").strip()
    except (OSError, subprocess.CalledProcessError):
        return setting("GIT_COMMIT") or "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def pinned_versions() -> dict[str, str]:
    """Package -> version, from the `name==version` lines of requirements.txt."""
    pinned = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = line.split("#")[0].strip()
        if "==" in requirement:
            name, version = requirement.split("==")
            pinned[name] = version
    return pinned


def version_drift() -> list[str]:
    """A sentence for each package whose installed version is not the pinned one."""
    pinned, installed = pinned_versions(), installed_versions()
    sentences = []
    for name in PACKAGES:
        if name not in installed or name not in pinned:
            continue
        without_build = installed[name].split("+")[0]  # 2.11.0 of 2.11.0+cpu
        if without_build != pinned[name]:
            sentences.append(
                f"{name} {installed[name]} is installed, requirements.txt pins {pinned[name]}"
            )
    return sentences
