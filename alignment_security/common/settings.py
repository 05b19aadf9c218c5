"""Settings and provenance: values of .env and .env.local, the git commit, package versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from dotenv import dotenv_values

from alignment_security.common.text import text_lines

ROOT = Path(__file__).resolve().parents[2]  # of the repository
VERSION = "0.1.0"  # of this project: also in CITATION.cff and at the top of CHANGELOG.md
# what can change a row of a record: paths as git takes them
CODE = [":(glob)*.py", "alignment_security", "lists", "requirements*.txt", "Dockerfile"]
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


def setting(name: str) -> str | None:
    """A value of the environment, else of .env.local, else of the committed .env.

    An empty value counts as unset; `~` at its beginning is the home folder, `$NAME` a variable.
    """
    in_files = (dotenv_values(ROOT / file).get(name) for file in (".env.local", ".env"))
    value = os.environ.get(name) or next(filter(None, in_files), None)
    return os.path.expandvars(os.path.expanduser(value)) if value else None


# ---- provenance ----------------------------------------------------------------------------------


def git_state() -> str:
    """The commit of the code, with `-dirty` appended when tracked files of the code differ.

    Results, figures, documents and tests are no code: they change no row of a record. Without a git
    repository that holds this code: GIT_COMMIT of the environment, else `unknown`. A copy inside
    the checkout of another project is not of that project's commit.
    """
    try:
        if not _git("ls-files", "--", "*.py"):
            return setting("GIT_COMMIT") or "unknown"
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain", "-uno", "--", *CODE).strip()
    except (OSError, subprocess.CalledProcessError):
        return setting("GIT_COMMIT") or "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    # without the lock of the index, which a killed process would leave in the user's repository
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    # inside a git hook these name the repository of the hook
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


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
    for line in text_lines(ROOT / "requirements.txt"):
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
