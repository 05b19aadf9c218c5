"""The requirement files agree with each other, and with what the figures import."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "foolbox", "tqdm", "filelock"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import plotting, utilities
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
