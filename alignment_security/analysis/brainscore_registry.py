"""Brain-Score's model registry, read from the files of the package with `ast`: nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from alignment_security.common.files import UserError

NAME_COLUMNS = ["og_model_name", "model_registry_name", "timm_name"]
MAX_ITEMS = 10_000  # of one loop in a plugin
UNKNOWN: Any = object()  # value of an expression that only running the plugin would tell
VIEWS = ("items", "keys", "values")
USES_TIMM = re.compile(r"^(import|from) .*\btimm\b", re.MULTILINE)
ALTERED = re.compile(
    r"load_state_dict|GaussianBlur|\.half\("
)  # then the net, or its input, is not timm's
PACKAGE = "brainscore_vision"
INSTALL = "pip download --no-deps brainscore-vision==2.4.2, unzip the wheel and pass package_path=ITS_FOLDER"


def evaluate_node(node: ast.AST | None, names: dict[str, ast.AST]) -> Any:
    """Value of literals, known names, f-strings, `+`, indexing, range(), dict views; UNKNOWN for all else."""
    try:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return evaluate_node(names[name], names)
            case ast.JoinedStr(values=parts):
                return "".join([evaluate_node(part, names) for part in parts])
            case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
                part = evaluate_node(inner, names)
                return str(part) if isinstance(part, (str, int)) else UNKNOWN
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [evaluate_node(item, names) for item in items]
            case ast.Dict(keys=keys, values=values):
                return {
                    evaluate_node(key, names): evaluate_node(value, names)
                    for key, value in zip(keys, values)
                }
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return evaluate_node(left, names) + evaluate_node(right, names)
            case ast.Subscript(value=container, slice=index):
                return evaluate_node(container, names)[evaluate_node(index, names)]
            case ast.Call(func=ast.Name(id="range"), args=limits, keywords=[]):
                span = range(*[evaluate_node(limit, names) for limit in limits])
                return span if len(span) <= MAX_ITEMS else UNKNOWN
            case ast.Call(func=ast.Attribute(value=owner, attr=view), args=[]) if view in VIEWS:
                return list(getattr(evaluate_node(owner, names), view)())
    except (TypeError, LookupError, AttributeError, ValueError, OverflowError, RecursionError):
        pass
    return UNKNOWN


def definitions(tree: ast.Module, folder: Path | None = None) -> dict[str, ast.AST]:
    """{name: expression} for what a file binds once and never changes in place, whatever the order.

    With a folder, also for what the file imports from files beside it (`from .model import NAME`).
    """
    nodes = list(ast.walk(tree))
    stored = (
        node for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )
    bound = Counter(node.id for node in stored)
    bound.update(node.arg for node in nodes if isinstance(node, ast.arg))
    bound.update(
        node.value.id
        for node in nodes
        if isinstance(node, (ast.Attribute, ast.Subscript))
        and isinstance(node.value, ast.Name)
        and not (isinstance(node.ctx, ast.Load) and getattr(node, "attr", VIEWS[0]) in VIEWS)
    )
    names: dict[str, ast.AST] = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and bound[target.id] == 1
    }
    for node in nodes:
        if folder and isinstance(node, ast.ImportFrom) and node.level == 1:
            with suppress(
                ValueError
            ):  # no such file: its names stay unknown, keys made of them are listed
                there = definitions(parse_file(folder / f"{node.module}.py"))
                names |= {
                    alias.asname or alias.name: ast.Constant(
                        evaluate_node(ast.Name(alias.name), there)
                    )
                    for alias in node.names
                }
    return names


def loop_rounds(loop: ast.For, names: dict[str, ast.AST]) -> list[dict[str, ast.AST]]:
    """The names known in each round of a `for`; one round, its own names unknown, where rounds cannot be told."""
    items = evaluate_node(loop.iter, names)
    conditional = any(
        isinstance(node, (ast.If, ast.Break, ast.Continue)) for node in ast.walk(loop)
    )
    if not isinstance(items, (list, dict, range)) or conditional:
        items = [UNKNOWN]
    match loop.target:
        case ast.Name(id=name):
            return [names | {name: ast.Constant(item)} for item in items]
        case ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)]):
            pairs = [
                item if isinstance(item, (list, tuple)) and len(item) == 2 else (UNKNOWN, UNKNOWN)
                for item in items
            ]
            return [names | {first: ast.Constant(a), second: ast.Constant(b)} for a, b in pairs]
    return [names]


def is_registry(node: ast.AST | None) -> bool:
    return "model_registry" in (getattr(node, "id", None), getattr(node, "attr", None))


def registered(node: ast.AST, names: dict[str, ast.AST]) -> Iterator[tuple[Any, int, str]]:
    """Yield (key or UNKNOWN, line, source) for each use of model_registry below a node; loops are unrolled."""
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
                yield value if isinstance(value, str) else UNKNOWN, key.lineno, ast.unparse(key)
        elif is_registry(child):
            yield UNKNOWN, getattr(child, "lineno", 0), ast.unparse(node)
        else:
            yield from registered(child, names)


def parse_file(path: Path) -> ast.Module:
    """Syntax tree of a Python file; ValueError naming the file and what is wrong if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            return ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise ValueError(f"{'/'.join(path.parts[-3:])}: {type(error).__name__}: {error}") from error


def timm_names(folder: Path, keys: list[str]) -> dict[str, str]:
    """{key: the timm model, with timm's own weights, that a plugin builds for it}, where that is beyond doubt.

    It is the key's `timm_model_name` in model_configs.json; or, in a plugin of one key, the one NAME of all its
    `create_model(NAME, pretrained=True)`. None where model.py loads other weights or alters the net or its input.
    """
    path, configs = folder / "model.py", folder / "model_configs.json"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not USES_TIMM.search(text) or ALTERED.search(text):
        return {}
    if "timm_model_name" in text and configs.is_file():
        entries = json.loads(configs.read_text(encoding="utf-8"))
        return {key: entries[key].get("timm_model_name") or "" for key in keys if key in entries}
    tree = parse_file(path)
    names, made = definitions(tree), set()
    for node in (
        node for part in tree.body if not isinstance(part, ast.ClassDef) for node in ast.walk(part)
    ):
        match node:
            case ast.Call(
                func=ast.Name(id="create_model") | ast.Attribute(attr="create_model"),
                args=arguments,
            ):
                options = {
                    option.arg: evaluate_node(option.value, names) for option in node.keywords
                }
                plain = len(arguments) == 1 and options == {"pretrained": True}
                made.add(evaluate_node(arguments[0], names) if plain else UNKNOWN)
    return {
        key: name
        for key in keys
        for name in made
        if len(keys) == len(made) == 1 and name is not UNKNOWN
    }


def find_package(package_path: str | Path | None) -> Path:
    """Folder brainscore_vision: installed (found, not imported), or in site-packages, a wheel's folder, a clone."""
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
    """Version in the METADATA beside the package; None for a checkout, or where two versions lie."""
    files = list(package.parent.glob(f"{PACKAGE}-*.dist-info/METADATA"))
    text = files[0].read_text(encoding="utf-8") if len(files) == 1 else ""
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def read_registry(package: Path) -> tuple[pd.DataFrame, dict]:
    """Every registered model (columns NAMES, in order of folder), and a report of what could not be read."""
    rows: list[tuple[str, str, str]] = []
    report: dict[str, list] = {
        "files_not_parsed": [],
        "unresolved_keys": [],
        "plugins_without_keys": [],
    }
    for path in sorted((package / "models").glob("*/__init__.py")):
        folder, found, timm = path.parent, [], {}
        try:
            tree = parse_file(path)
            found = list(registered(tree, definitions(tree, folder)))
            report["plugins_without_keys"] += [] if found else [folder.name]
            timm = timm_names(folder, [key for key, _, _ in found])
        except (
            ValueError,
            RecursionError,
            TypeError,
            AttributeError,
        ) as error:  # the last two: a strange JSON
            report["files_not_parsed"].append(f"{folder.name}: {error}")
        rows += [(folder.name, key, timm.get(key, "")) for key, _, _ in found if key is not UNKNOWN]
        report["unresolved_keys"] += [
            {"plugin": folder.name, "line": line, "key": source}
            for key, line, source in found
            if key is UNKNOWN
        ]
    if not rows:
        raise UserError(f"{package / 'models'}: no plugin there registers a model: {INSTALL}")
    registry = pd.DataFrame(rows, columns=NAME_COLUMNS)
    repeated = registry["model_registry_name"].duplicated(keep=False)
    return registry, report | {
        "repeated_keys": registry.loc[repeated, NAME_COLUMNS[:2]].to_dict("records")
    }
