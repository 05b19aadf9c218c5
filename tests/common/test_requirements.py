"""The requirement files agree with each other, and with what the figures import."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "foolbox", "tqdm", "filelock"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import plotting, utilities
"""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "htcondor/README.md"]
# in place of pip: its arguments, a line each, and what the files of -r hold
PIP = """#!/bin/bash
shift
while [ $# -gt 0 ]; do
    case $1 in -r) shift; cat "$1" ;; *) echo "$1" ;; esac
    shift
done >> "$ASKED"
"""


def pins(name: str) -> dict[str, str]:
    """Package -> version of the `name==version` lines of a file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\n]+)", text, re.M))


def test_figures_are_drawn_with_the_versions_of_everything_else():
    figures, all_of_them = pins("requirements-figures.txt"), pins("requirements.txt")
    assert figures and figures.items() <= all_of_them.items()
    locked = pins("locks/requirements-figures.txt")
    assert {name.lower(): version for name, version in figures.items()}.items() <= locked.items()
    assert "torch" not in locked


def test_the_image_of_plugins_is_locked_to_their_requirements():
    """But for torch and torchvision, which the base image has."""
    wanted = pins("requirements-brainscore.txt") | pins("requirements-htcondor.txt")
    wanted = {name.lower().replace("_", "-"): version for name, version in wanted.items()}
    locked = pins("locks/requirements-brainscore.txt")
    assert {"torch", "torchvision"} <= wanted.keys() and not {"torch", "torchvision"} & set(locked)
    assert {n: v for n, v in wanted.items() if n not in ("torch", "torchvision")}.items() <= (
        locked.items()
    )
    stages = re.findall(r"^FROM (\S+) AS (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert stages[-1] == ("base", "pipeline") and ("base", "brainscore") in stages


def test_what_linux_alone_has_is_marked_so():
    """The universal locks install on macOS, which has no wheel of HTCondor, CUDA or Triton."""
    for lock in (ROOT / "locks").glob("requirements*.txt"):
        lines = re.findall(
            r"^((?:htcondor|nvidia-|cuda-|triton)\S*==.*?) *\\$", lock.read_text(), re.M
        )
        assert all(line.endswith("; sys_platform == 'linux'") for line in lines), lock


def test_figures_import_nothing_that_is_not_required():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_container_has_what_the_pages_run_in_it():
    """Its entry point is Python, so that a script follows the image's name."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    workdir = re.findall(r"^WORKDIR (/home\S*)", dockerfile, re.M)[-1]
    assert 'ENTRYPOINT ["python3"]' in dockerfile
    commands = [c for page in PAGES for c in commands_with(page, "docker run")]
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        script = words[words.index("alignment-security") + 1]
        assert (ROOT / script).suffix == ".py" and (ROOT / script).is_file(), command
        mounts = [words[k + 1].split(":") for k, word in enumerate(words) if word == "-v"]
        inside = [mount[1] for mount in mounts if mount[0].startswith("$PWD/")]
        assert inside and all((ROOT / Path(m).relative_to(workdir)).is_dir() for m in inside), (
            command
        )
    assert len(commands) >= 2


def commands_with(page: Path, words: str) -> list[str]:
    """The commands of a page's blocks that hold these words, continued lines included."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    commands = re.split(r"(?<!\\)\n", "\n".join(blocks))
    return [command for command in commands if words in command]


def requirements_of(command: str, folder: Path) -> dict[str, str]:
    """Package -> version that a command asks pip for, which a stand-in notes."""
    (folder / "pip").write_text(PIP)
    (folder / "pip").chmod(0o755)
    command = re.sub(r"\S*\bpip install", f"{folder}/pip install", command)
    environment = {"PATH": "/usr/bin:/bin", "ASKED": str(folder / "asked")}
    subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=True)
    lines = [line.split("#")[0].strip() for line in (folder / "asked").read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return {each.name: str(each.specifier) for each in wanted}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pip_takes_what_the_pages_ask_it_for(page, tmp_path):
    """A shell splits `htcondor==1 ; sys_platform == 'linux'` into words that pip refuses."""
    assert all(requirements_of(command, tmp_path) for command in commands_with(page, "pip install"))


def test_an_access_point_gets_the_packages_of_a_sweep_alone(tmp_path):
    (command,) = commands_with(ROOT / "htcondor/README.md", "pip install")
    wanted = ["filelock", "htcondor", "numpy", "pandas", "python-dotenv"]
    assert sorted(requirements_of(command, tmp_path)) == wanted
