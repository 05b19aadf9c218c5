"""Brain-Score's model registry, read from the source of its package: nothing is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from alignment_security.analysis.brainscore_plugins import plugin_input, timm_names
from alignment_security.analysis.python_source import (
    UNKNOWN,
    SourceTooLarge,
    definitions,
    evaluate_node,
    limited_steps,
    parse_file,
    spend,
)
from alignment_security.common.files import UserError
from alignment_security.common.folders import glob_visible

REGISTRY_NAME, TIMM_NAME = "model_registry_name", "timm_name"
NAME_COLUMNS = ["og_model_name", REGISTRY_NAME, TIMM_NAME]
INPUT_COLUMN = "plugin_input"  # of the registry
# what reading a plugin raises; the last two: model_configs.json of another structure
UNREADABLE_PLUGIN = (ValueError, RecursionError, TypeError, AttributeError, SourceTooLarge)
PACKAGE = "brainscore_vision"
INSTALL = (
    "pip download --no-deps brainscore-vision==2.4.2, unzip the wheel and give "
    "--package_path ITS_FOLDER"
)


def loop_rounds(loop: ast.For, names: dict[str, ast.AST]) -> list[dict[str, ast.AST]]:
    """The names known in each round of a `for`.

    One round, its own names unknown, if the rounds are unknown.
    """
    items = evaluate_node(loop.iter, names)
    conditional = any(
        isinstance(node, (ast.If, ast.Break, ast.Continue)) for node in ast.walk(loop)
    )
    if not isinstance(items, (list, dict, range)) or conditional:
        items = [UNKNOWN]
    spend(len(items) * (1 + len(names) // 20))  # a round has a copy of the names
    match loop.target:
        case ast.Name(id=name):
            return [names | {name: ast.Constant(item)} for item in items]
        case ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)]):
            rounds = []
            for item in items:
                is_pair = isinstance(item, (list, tuple)) and len(item) == 2
                a, b = item if is_pair else (UNKNOWN, UNKNOWN)
                rounds.append(names | {first: ast.Constant(a), second: ast.Constant(b)})
            return rounds
    return [names]


def is_registry(node: ast.AST | None) -> bool:
    """Whether a node is `model_registry` or `something.model_registry`."""
    return "model_registry" in (getattr(node, "id", None), getattr(node, "attr", None))


def registered(node: ast.AST, names: dict[str, ast.AST]) -> Iterator[tuple[Any, int, str]]:
    """Yield (key or UNKNOWN, line, source) for each use of model_registry below a node.

    Loops are unrolled.
    """
    for child in ast.iter_child_nodes(node):
        keys: list[ast.expr] = [
            target.slice
            for target in getattr(child, "targets", [])
            if isinstance(target, ast.Subscript) and is_registry(target.value)
        ]
        if isinstance(child, ast.For):
            for known in loop_rounds(child, names):
                yield from registered(child, known)
        elif keys:
            for key in keys:
                value = evaluate_node(key, names)
                source = ast.unparse(key)
                spend(len(source) // 100)
                yield value if isinstance(value, str) else UNKNOWN, key.lineno, source
        elif is_registry(child):
            yield UNKNOWN, getattr(child, "lineno", 0), ast.unparse(node)
        else:
            spend(1)
            yield from registered(child, names)


def find_package(package_path: str | Path | None) -> Path:
    """The folder brainscore_vision of a package, which is not imported.

    package_path   site-packages, an unpacked wheel, a checkout, or the folder; None: installed
    Raises UserError if there is none.
    """
    if package_path is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{PACKAGE} is not installed: {INSTALL}")
        package_path = next(iter(spec.submodule_search_locations))
    for folder in (Path(package_path) / PACKAGE, Path(package_path)):
        if (folder / "models").is_dir():
            return folder
    raise UserError(f"{package_path}: no folder {PACKAGE}/models in it: {INSTALL}")


def package_version(package: Path) -> str | None:
    """Version in the METADATA next to the package; None for a checkout, or for two versions."""
    files = list(package.parent.glob(f"{PACKAGE}-*.dist-info/METADATA"))
    text = files[0].read_text(encoding="utf-8") if len(files) == 1 else ""
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def read_registry(package: Path) -> tuple[pd.DataFrame, dict]:
    """Every registered model, in order of plugins, and a report of what is missing.

    Columns NAME_COLUMNS, and INPUT_COLUMN of those that are a timm net.

    The report lists files that could not be parsed, keys that could not be read, plugins without
    keys and repeated keys. Raises UserError if no plugin registers a model.
    """
    rows: list[tuple[str, str, str, str]] = []
    report: dict[str, list] = {
        "files_not_parsed": [],
        "unresolved_keys": [],
        "plugins_without_keys": [],
    }
    for path in glob_visible(package / "models", "*/__init__.py"):
        plugin = path.parent
        found, timm = read_plugin(path, report)
        for key, line, source in found:
            if key is UNKNOWN:
                unresolved = {"plugin": plugin.name, "line": line, "key": source}
                report["unresolved_keys"].append(unresolved)
            else:
                seen = plugin_input(plugin) if timm.get(key) else ""
                rows.append((plugin.name, key, timm.get(key, ""), seen))
    if not rows:
        raise UserError(f"{package / 'models'}: no plugin there registers a model: {INSTALL}")
    registry = pd.DataFrame(rows, columns=[*NAME_COLUMNS, INPUT_COLUMN])
    repeated = registry[REGISTRY_NAME].duplicated(keep=False)
    repeated_keys = registry.loc[repeated, NAME_COLUMNS[:2]].to_dict("records")
    return registry, report | {"repeated_keys": repeated_keys}


def read_plugin(
    path: Path, report: dict[str, list]
) -> tuple[list[tuple[Any, int, str]], dict[str, str]]:
    """What `registered` and `timm_names` find in a plugin; `report` gets what cannot be read."""
    plugin = path.parent
    found: list[tuple[Any, int, str]] = []  # of an unreadable plugin, the keys before the error
    timm: dict[str, str] = {}
    try:
        with limited_steps():
            tree = parse_file(path)
            for row in registered(tree, definitions(tree, plugin)):
                found.append(row)
            if not found:
                report["plugins_without_keys"].append(plugin.name)
            timm = timm_names(plugin, [key for key, _, _ in found])
    except UNREADABLE_PLUGIN as error:
        report["files_not_parsed"].append(f"{plugin.name}: {error}")
    return found, timm
