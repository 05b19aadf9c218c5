"""alignment_security.common.settings."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from fractions import Fraction
from importlib import metadata
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]
IMAGENET_CLASSES = 1000
SEVERITIES = (1, 2, 3, 4, 5)  # of ImageNet-C's corruptions
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
    """A value of the environment, else of the .env beside this file; an empty one counts as not set."""
    return os.environ.get(name) or dotenv_values(ROOT / ".env").get(name) or default


# ---- eps -------------------------------------------------------------------------------------------------------


def parse_eps(text: str) -> float:
    """`8/255` or `0.031` as a float in pixel units of [0, 1]. Never guesses a unit: a value above 1 is refused."""
    value = parse_radius(text)
    if value > 1:
        raise ValueError(
            f"eps {text} is above 1; pixels are in [0, 1], so write {text}/255 if you mean {text} of 255 levels"
        )
    return value


def parse_radius(text: str) -> float:
    """A radius in any norm: a fraction or a float, not negative, in pixel units of [0, 1]; in L1 and L2 it may exceed 1."""
    parts = text.split("/")
    try:
        value = (
            float(Fraction(parts[0]) / Fraction(parts[1] if len(parts) == 2 else 1))
            if len(parts) <= 2
            else math.nan
        )
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(
            f"eps {text!r} is not a number; write a fraction (8/255) or a float (0.031)"
        )
    if value < 0:
        raise ValueError(f"eps {text} is negative; it is a distance in pixel units of [0, 1]")
    return value


def format_eps(eps: float) -> str:
    """eps as people write it: `8/255`, `0.25/255`; what is no multiple of 1/255000 stays a plain float."""
    levels = round(255 * eps, 3)
    return f"{levels:.10g}/255" if abs(255 * eps - levels) < 1e-9 and eps else f"{eps:g}"


# ---- provenance ------------------------------------------------------------------------------------------------


def git_state() -> str:
    """Commit of the code, `-dirty` when tracked files differ; `GIT_COMMIT` of the environment where there is no git."""
    git = ["git", "-C", str(ROOT)]
    try:
        sha = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return setting("GIT_COMMIT") or "unknown"
    return sha + ("-dirty" if dirty.strip() else "")


def installed_versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def pinned_versions() -> dict[str, str]:
    """`name==version` lines of requirements.txt."""
    lines = (
        line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
    )
    return dict(line.split("==") for line in lines if "==" in line)


def version_drift() -> list[str]:
    """Packages whose installed version is not the pinned one, as sentences for the run file."""
    pinned, found = pinned_versions(), installed_versions()
    return [
        f"{name} {found[name]} is installed, requirements.txt pins {pinned[name]}"
        for name in PACKAGES
        if name in found and name in pinned and found[name].split("+")[0] != pinned[name]
    ]
