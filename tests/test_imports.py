"""Which package may import which, and what else can be read off the files without running them."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

PACKAGE = "alignment_security"
EVERYTHING_BELOW = {"common", "records", "models", "images", "attacks", "cluster"}
# package -> packages, or modules of them, that it may import besides itself
MAY_IMPORT = {
    "common": set(),
    "records": {"common"},
    "models": {"common"},
    "images": {"common"},
    "attacks": {"common", "models"},
    "cluster": {"common", "records", "models"},
    "analysis": {"common", "records", "models.lists", "models.families"},
    "evaluation": EVERYTHING_BELOW,
    "trainer": EVERYTHING_BELOW,
    "plots": {"common", "records", "models.lists", "models.families", "analysis"},
}
SCRIPTS = {"evaluate_robustness", "dataloading", "utilities", "plotting", "training"}
WITHOUT_TORCH = ("records", "analysis", "plots")
WITHOUT_MATPLOTLIB = ("records", "analysis")
TORCH = {"torch", "torchvision", "timm"}
ATTACK_LIBRARIES = {
    "pyautoattack",
    "autoattack",
    "foolbox",
    "torchattacks",
    "adv_lib",
    "art",
    "secmlt",
}
LONGEST_FILE = 350
# paths of the machine that this was written on
MACHINE_PATH = re.compile(r"(?<![\w./-])/(work|root|tmp/(venv|scratch))/")
NOT_OURS = {".git", "tests", "figures"}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*sorted(ROOT.glob("*.py")), *sorted((ROOT / PACKAGE).rglob("*.py"))]
    if path.name != "__init__.py"
}


@cache
def imports(name: str, at_import: bool = False) -> frozenset[str]:
    """Full names of what a file imports: in functions too, or only when it is imported itself."""
    found, left = set(), list(ast.iter_child_nodes(ast.parse(FILES[name].read_text())))
    while left:
        node = left.pop()
        if not (at_import and isinstance(node, ast.FunctionDef | ast.Lambda)):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} imports relatively"
            # `from package import module` imports a file, `from module import name` does not
            files = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= files or {node.module}
    return frozenset(found)


def package_of(module: str) -> str:
    return module.split(".")[1]


def reached(name: str) -> set[str]:
    """Everything that importing a file imports, through other files of the project too."""
    found = imports(name, at_import=True)
    return set(found).union(*(reached(other) for other in found & set(FILES)))


def test_the_root_holds_the_five_scripts():
    assert {name for name in FILES if "." not in name} == SCRIPTS


def test_every_package_has_a_row():
    assert {package_of(name) for name in FILES if "." in name} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_the_table_allows(package):
    allowed = tuple(f"{PACKAGE}.{name}" for name in {package, *MAY_IMPORT[package]})
    for name in FILES:
        if not name.startswith(f"{PACKAGE}.{package}."):
            continue
        ours = imports(name) & set(FILES)
        wrong = {
            other for other in ours if not f"{other}.".startswith(tuple(f"{a}." for a in allowed))
        }
        assert wrong == set(), f"{name} imports {wrong}"


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_nothing_imports_a_script(script):
    assert [name for name in FILES if script in imports(name)] == []


def test_imports_have_no_cycle():
    graph = {name: imports(name) & set(FILES) for name in FILES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(FILES)


def test_only_libraries_imports_an_attack_library():
    users = {name for name in FILES if {i.split(".")[0] for i in imports(name)} & ATTACK_LIBRARIES}
    assert users == {f"{PACKAGE}.attacks.libraries"}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_what_reads_results_never_reaches_torch(package):
    for name in FILES:
        if name.startswith(f"{PACKAGE}.{package}."):
            assert {module.split(".")[0] for module in reached(name)} & TORCH == set(), name


@pytest.mark.parametrize("package", WITHOUT_MATPLOTLIB)
def test_numbers_are_computed_without_matplotlib(package):
    for name in FILES:
        if name.startswith(f"{PACKAGE}.{package}."):
            assert "matplotlib" not in {module.split(".")[0] for module in reached(name)}, name


@pytest.mark.parametrize("script", ["plotting", "utilities"])
def test_scripts_that_read_results_run_without_torch(script):
    code = f"import {script}, sys; sys.exit(bool({TORCH} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_import_inside_a_function_is_allowed_but_not_reached():
    """utilities loads torch for some of its commands only."""
    names = f"{PACKAGE}.models.names"
    assert names in imports("utilities") and "torch" in reached(names)
    assert names not in imports("utilities", at_import=True)


@pytest.mark.parametrize("name", [name for name in FILES if "." not in name])
def test_no_script_is_named_like_a_package(name):
    assert name not in sys.stdlib_module_names
    assert name not in packages_distributions()


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_too_long(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST_FILE


def test_no_file_holds_a_path_of_one_machine():
    """Nothing in a clone says where the project was written."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in (".png", ".npz") or NOT_OURS & set(path.relative_to(ROOT).parts):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_path_pattern_finds_one():
    assert MACHINE_PATH.search('open("/work/main/x")')
    assert not MACHINE_PATH.search("the workers, a/work/b and https://x.org/work/")
