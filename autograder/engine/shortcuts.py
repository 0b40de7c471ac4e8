"""Find forbidden shortcuts in source code: the operator that the exercise asks one to write."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

from autograder.engine.callers import functions_of


def shortcuts_in(source: str, forbidden: Iterable[str]) -> tuple[str, ...]:
    """The forbidden names that `source` takes from a module, imports, or spells in `getattr`.

    A name that the source merely defines (the exercise's own, say) is no shortcut.
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    names, found = set(forbidden), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            found.update(str(a.value) for a in node.args if isinstance(a, ast.Constant))
    return tuple(sorted(found & names))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def shortcuts_of(student: Any, forbidden: Iterable[str]) -> tuple[str, ...]:
    """The same for an object of this process, as far as its source can be read."""
    found: set[str] = set()
    for function in functions_of(student):
        try:
            found.update(shortcuts_in(inspect.getsource(function), forbidden))
        except (OSError, TypeError):
            continue
    return tuple(sorted(found))
