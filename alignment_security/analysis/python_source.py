"""Values that Python source gives its names, as far as they can be read without running it."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

MAX_ITEMS = 10_000  # of one range, list or text
MAX_STEPS = 100_000  # of one plugin: expressions, statements, rounds; brainscore-vision 2.4.2: 138
MAX_BYTES = 5_000_000  # of one file
UNKNOWN: Any = object()  # value of an expression that only running the source would give
VIEWS = ("items", "keys", "values")  # methods of a dict that leave it as it is


class SourceTooLarge(Exception):
    """Source that would take too long to read, whether by accident or on purpose."""


_steps_left: ContextVar[list[int] | None] = ContextVar("steps_left", default=None)


@contextmanager
def limited_steps() -> Iterator[None]:
    """Let the code inside read at most MAX_STEPS expressions; then `spend` raises."""
    token = _steps_left.set([MAX_STEPS])
    try:
        yield
    finally:
        _steps_left.reset(token)


def spend(steps: int) -> None:
    """Count steps of reading. Raises SourceTooLarge when there were too many."""
    left = _steps_left.get()
    if left is None:
        return
    left[0] -= steps
    if left[0] < 0:
        raise SourceTooLarge(f"more than {MAX_STEPS:,} steps to read it")


def evaluate_node(node: ast.AST | None, names: dict[str, ast.AST]) -> Any:
    """Value of an expression as far as it can be read without running it; else UNKNOWN.

    Reads literals, names, f-strings, `+`, indexing, range() and dict views, up to MAX_ITEMS.

    node    the expression
    names   {name: expression} of `definitions`
    """
    spend(1)
    value = _evaluate(node, names)
    is_long = isinstance(value, str | bytes | list | dict) and len(value) > MAX_ITEMS
    return UNKNOWN if is_long else value


def _evaluate(node: ast.AST | None, names: dict[str, ast.AST]) -> Any:
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


def parse_file(path: Path) -> ast.Module:
    """Syntax tree of a Python file. Raises ValueError with the file and the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"has more than {MAX_BYTES:,} bytes")
            return ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise ValueError(f"{'/'.join(path.parts[-3:])}: {type(error).__name__}: {error}") from error
