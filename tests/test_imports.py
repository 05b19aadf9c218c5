"""The import table of the design, and what else can be read off the files without running them."""
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

BASE = {"records", "metrics"}
ATTACKS = {"attacks", "libraries", "engine", "ensemble", "minimum_norm", "passes"}    # one file of the design, split by meaning
MAY_IMPORT = {
    "records": set(),
    "metrics": set(),
    "inference": set(),                                         # split off metrics: statistics over models
    "brainscore_registry": {"records"},                         # split off utilities, as is brainscore
    "brainscore": {"records", "brainscore_registry"},
    "zoo": {"model_lists"},
    "brainscore_join": {"records", "brainscore"},
    "chtc": {"records", "models"},
    "prestage": {"records", "chtc", "engine", "model_lists", "models", "zoo"},
    "sweep": {"records", "chtc", "prestage", "sweep_status"},
    "sweep_status": {"records"},
    "trace_figure": {"records"},
    "examples": {"records"},                                    # written by the script, read by figures and audit
    "reattack": {"examples", "libraries", "models", "records"},
    "audit": {"records", "reattack", "trace_figure"},           # split off utilities, with the two above
    "utilities": {"audit", "records", "brainscore", "brainscore_join", "model_lists", "sweep", "zoo"},
    "image_sets": {"records"},                                  # split off dataloading, as is human_maps
    "checkpoints": set(),                                       # what three files read with torch.load
    "human_maps": {"checkpoints", "records", "image_sets"},
    "dataloading": {"records", "image_sets", "human_maps"},
    "brainscore_nets": {"zoo"},
    "models": {"brainscore_nets", "checkpoints", "zoo"},
    "engine": set(),
    "ensemble": {"engine"},
    "minimum_norm": {"engine", "ensemble"},
    "passes": set(),
    "attacks": ATTACKS - {"attacks", "libraries"},
    "libraries": {"attacks", "engine"},
    "command_line": ATTACKS | {"metrics", "models", "utilities"},           # split off evaluate_robustness
    "evaluate_robustness": BASE | ATTACKS | {"chtc", "command_line", "examples", "sessions", "utilities", "dataloading",
                                             "human_maps", "models", "published", "rehearsal", "zoo"},
    "rehearsal": {"attacks", "dataloading", "engine", "models", "published", "records", "zoo"},     # split off it too
    "model_lists": {"records"},
    "published": BASE,
    "sessions": {"engine", "utilities"},                        # what the scripts that work on a device share
    "objectives": set(),
    "training_images": {"dataloading", "human_maps", "image_sets"},
    "training_run": {"checkpoints", "records"},
    "learner": {"engine", "objectives", "records", "training_images", "training_run"},
    "training_options": {"command_line", "objectives", "passes", "utilities"},
    "training": {"attacks", "chtc", "dataloading", "engine", "human_maps", "learner", "models", "objectives", "passes", "records",
                 "sessions", "training_images", "training_options", "training_run", "utilities", "zoo"},
    "families": set(),                                          # split off plotting, as is what follows
    "drawing": {"families", "records", "utilities"},
    "figures_examples": BASE | {"drawing", "examples", "utilities"},
    "alignment_study": {"brainscore", "drawing", "families", "inference", "records", "utilities"},
    "figures_hoak2025": {"alignment_study", "brainscore", "drawing", "families", "inference", "utilities"},
    "figures_survivors": {"alignment_study", "brainscore", "drawing", "families", "figures_hoak2025", "inference"},
    "figures_records": BASE | {"drawing", "families", "utilities"},
    "figures_training": {"drawing", "records"},
    "measurements": {"drawing", "families", "records", "utilities"},
    "figures_feng2025": {"drawing", "inference", "measurements", "metrics"},
    "figures_norms": {"drawing", "families", "figures_feng2025", "measurements", "metrics"},
    "figures_both": BASE | {"brainscore", "drawing", "figures_feng2025", "inference", "measurements", "utilities"},
    "statistics_feng2025": {"drawing", "figures_feng2025", "inference", "measurements"},
    "report": {"drawing", "measurements", "records", "utilities"},
    "plotting": {"drawing", "records", "report", "statistics_feng2025", "utilities"} | {
        path.stem for path in ROOT.glob("figures_*.py")},
}
SCRIPTS = {"evaluate_robustness", "plotting", "training"}
ATTACK_LIBRARIES = {"pyautoattack", "autoattack", "foolbox", "torchattacks", "adv_lib", "art", "secmlt"}
FILES = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
LONGEST = 400
NOT_OURS = {".git", ".venv", ".venv-brainscore", "venv", "tests", "figures"}
HERE = re.compile(r"(?<![\w./-])/(work|root|tmp/(venv|scratch))/")    # paths of the machine that this was written on


@cache
def imported(name: str, at_import: bool = False) -> frozenset[str]:
    """Top-level names of every import of a file: those inside functions too, or only those that run when it is imported."""
    found, left = set(), list(ast.iter_child_nodes(ast.parse(FILES[name].read_text())))
    while left:
        node = left.pop()
        if not (at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} is flat, but imports relatively"
            found.add(node.module.split(".")[0])
    return frozenset(found)


def reached(name: str) -> set[str]:
    """Everything that importing a file imports, through other files of the project too."""
    found = imported(name, at_import=True)
    return set(found).union(*(reached(other) for other in found & set(FILES)))


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_what_the_table_allows(name):
    assert name in MAY_IMPORT, f"{name}.py has no line in the import table"
    assert imported(name) & set(FILES) <= MAY_IMPORT[name]


def test_the_table_names_files_that_exist():
    assert set(MAY_IMPORT) <= set(FILES)


def test_imports_have_no_cycle():
    order = list(graphlib.TopologicalSorter({name: imported(name) & set(FILES) for name in FILES}).static_order())
    assert set(order) == set(FILES)


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_no_file_imports_a_script(script):
    assert [name for name in FILES if script in imported(name)] == []


def test_only_libraries_imports_an_attack_library():
    assert {name for name in FILES if imported(name) & ATTACK_LIBRARIES} == {"libraries"}


LIGHT = BASE | {"audit", "trace_figure", "utilities", "brainscore", "brainscore_join", "brainscore_registry", "model_lists",
                "plotting", "sweep", "sweep_status"}


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_what_reads_results_never_reaches_torch(name):
    assert reached(name) & {"torch", "torchvision", "timm"} == set()


@pytest.mark.parametrize("name", ["plotting", "utilities"])
def test_what_reads_results_runs_without_torch(name):
    code = f"import {name}, sys; sys.exit(bool({{'torch', 'timm'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_import_inside_a_function_is_not_reached_but_is_in_the_table():
    """utilities loads torch for one of its commands only."""
    assert "zoo" in imported("utilities") and "torch" in reached("zoo")
    assert "zoo" not in imported("utilities", at_import=True)


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_named_like_a_package(name):
    assert name not in sys.stdlib_module_names
    assert name not in packages_distributions()


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_too_long(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST


def test_no_file_holds_a_path_of_one_machine():
    """Nothing that a clone gets says where the project was written."""
    found = []
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file() and p.stat().st_size < 5_000_000):
        parts = path.relative_to(ROOT).parts
        if NOT_OURS & set(parts) or any(part.endswith(("_cache", "__pycache__", ".hypothesis")) for part in parts):
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{'/'.join(parts)}:{k}: {line.strip()[:80]}" for k, line in enumerate(lines, 1) if HERE.search(line)]
    assert found == []


def test_the_path_pattern_finds_one():
    assert HERE.search('open("/work/main/x")')
    assert not HERE.search("the workers, a/work/b and https://x.org/work/")
