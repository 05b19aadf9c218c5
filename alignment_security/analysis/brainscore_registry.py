"""Brain-Score's model registry, read from the source of its package: nothing is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from alignment_security.common.files import UserError

NAME_COLUMNS = ["og_model_name", "model_registry_name", "timm_name"]
MAX_ITEMS = 10_000  # of one loop in a plugin
UNKNOWN: Any = object()  # value of an expression that only running the plugin would give
VIEWS = ("items", "keys", "values")  # methods of a dict that leave it as it is
USES_TIMM = re.compile(r"^(import|from) .*\btimm\b", re.MULTILINE)
# source code after which the net, or its input, is not timm's
ALTERED = re.compile(r"load_state_dict|GaussianBlur|\.half\(")
# what reading a plugin raises; the last two: model_configs.json of another structure
UNREADABLE_PLUGIN = (ValueError, RecursionError, TypeError, AttributeError)
PACKAGE = "brainscore_vision"
INSTALL = (
    "pip download --no-deps brainscore-vision==2.4.2, unzip the wheel and pass "
    "package_path=ITS_FOLDER"
)


def evaluate_node(node: ast.AST | None, names: dict[str, ast.AST]) -> Any:
    """Value of an expression as far as it can be read without running it; else UNKNOWN.

    Reads literals, names, f-strings, `+`, indexing, range() and dict views.

    node    the expression
    names   {name: expression} of `definitions`
    """
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
    """{name: expression} of the names that a file binds once and never changes in place.

    The order in the file does not matter. With a folder, also the names that the file imports from
    files of that folder (`from .model import NAME`).
    """
    nodes = list(ast.walk(tree))
    bound = Counter(bound_name(node) for node in nodes)
    names: dict[str, ast.AST] = {}
    for node in nodes:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and bound[target.id] == 1:
                names[target.id] = node.value
    if folder:
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names |= imported_names(node, folder)
    return names


def bound_name(node: ast.AST) -> str | None:
    """The name that a node binds, or that it may change in place; None for other nodes."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.value, ast.Name):
        is_read = isinstance(node.ctx, ast.Load)
        is_harmless = isinstance(node, ast.Subscript) or node.attr in VIEWS
        return None if is_read and is_harmless else node.value.id
    return None


def imported_names(node: ast.ImportFrom, folder: Path) -> dict[str, ast.AST]:
    """{name: its value} that `from .module import name` gives; empty if the file cannot be read."""
    try:
        there = definitions(parse_file(folder / f"{node.module}.py"))
    except ValueError:
        return {}  # keys made of these names are reported as unresolved
    return {
        alias.asname or alias.name: ast.Constant(evaluate_node(ast.Name(alias.name), there))
        for alias in node.names
    }


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
                yield value if isinstance(value, str) else UNKNOWN, key.lineno, ast.unparse(key)
        elif is_registry(child):
            yield UNKNOWN, getattr(child, "lineno", 0), ast.unparse(node)
        else:
            yield from registered(child, names)


def parse_file(path: Path) -> ast.Module:
    """Syntax tree of a Python file. Raises ValueError with the file and the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            return ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise ValueError(f"{'/'.join(path.parts[-3:])}: {type(error).__name__}: {error}") from error


def timm_names(folder: Path, keys: list[str]) -> dict[str, str]:
    """{key: timm model} of a plugin's keys that certainly are a timm model with timm's own weights.

    That is the key's `timm_model_name` in model_configs.json; or, in a plugin of one key, the only
    NAME of all its `create_model(NAME, pretrained=True)`. Empty if model.py loads other weights or
    alters the net or its input.
    """
    path, configs = folder / "model.py", folder / "model_configs.json"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not USES_TIMM.search(text) or ALTERED.search(text):
        return {}
    if "timm_model_name" in text and configs.is_file():
        entries = json.loads(configs.read_text(encoding="utf-8"))
        return {key: entries[key].get("timm_model_name") or "" for key in keys if key in entries}
    created = created_models(parse_file(path))
    if len(keys) == len(created) == 1 and UNKNOWN not in created:
        return {keys[0]: created.pop()}
    return {}


def created_models(tree: ast.Module) -> set[Any]:
    """NAME of each `create_model(NAME, pretrained=True)` outside classes; UNKNOWN for others."""
    names, created = definitions(tree), set()
    outside_classes = [part for part in tree.body if not isinstance(part, ast.ClassDef)]
    for node in (node for part in outside_classes for node in ast.walk(part)):
        match node:
            case ast.Call(
                func=ast.Name(id="create_model") | ast.Attribute(attr="create_model"),
                args=arguments,
                keywords=keywords,
            ):
                options = {option.arg: evaluate_node(option.value, names) for option in keywords}
                is_plain = len(arguments) == 1 and options == {"pretrained": True}
                created.add(evaluate_node(arguments[0], names) if is_plain else UNKNOWN)
    return created


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
    """Every registered model (NAME_COLUMNS, in order of plugins), and a report of what is missing.

    The report lists files that could not be parsed, keys that could not be read, plugins without
    keys and repeated keys. Raises UserError if no plugin registers a model.
    """
    rows: list[tuple[str, str, str]] = []
    report: dict[str, list] = {
        "files_not_parsed": [],
        "unresolved_keys": [],
        "plugins_without_keys": [],
    }
    for path in sorted((package / "models").glob("*/__init__.py")):
        plugin = path.parent
        found: list[tuple[Any, int, str]] = []
        timm: dict[str, str] = {}
        try:
            tree = parse_file(path)
            found = list(registered(tree, definitions(tree, plugin)))
            if not found:
                report["plugins_without_keys"].append(plugin.name)
            timm = timm_names(plugin, [key for key, _, _ in found])
        except UNREADABLE_PLUGIN as error:
            report["files_not_parsed"].append(f"{plugin.name}: {error}")
        for key, line, source in found:
            if key is UNKNOWN:
                unresolved = {"plugin": plugin.name, "line": line, "key": source}
                report["unresolved_keys"].append(unresolved)
            else:
                rows.append((plugin.name, key, timm.get(key, "")))
    if not rows:
        raise UserError(f"{package / 'models'}: no plugin there registers a model: {INSTALL}")
    registry = pd.DataFrame(rows, columns=NAME_COLUMNS)
    repeated = registry["model_registry_name"].duplicated(keep=False)
    repeated_keys = registry.loc[repeated, NAME_COLUMNS[:2]].to_dict("records")
    return registry, report | {"repeated_keys": repeated_keys}
