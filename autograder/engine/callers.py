"""Charge a failure to the helper that caused it.

An answer may call an earlier answer of the same notebook. Where that one is wrong, the caller fails
too, for no mistake of its own; the sentence then names the helper. Points stay as they are.
"""

from __future__ import annotations

import dis
import inspect
import symtable
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any

from autograder.engine.judge import ExerciseResult

MEND_FIRST = "Your `{helper}` is not right yet, and this calls it: mend that first."


def charge(
    result: ExerciseResult, reads: Collection[str], earlier: Iterable[ExerciseResult]
) -> ExerciseResult:
    """The result, its message led by the first helper that failed.

    `reads` are the names that the code behind the result leads to, `earlier` the results of the
    exercises before it, in order: what everything else rests on stands first. A named mistake
    needs no other reason, and what seems unwritten has only an unwritten helper for one.
    """
    reasons = {"wrong": ("wrong", "missing"), "missing": ("missing",)}.get(result.status, ())
    failed = (one.name for one in earlier if one.status in reasons)
    helper = next((name for name in failed if name in reads), None)
    if helper is None or result.misconception:
        return result
    lead = MEND_FIRST.format(helper=helper)
    own = "" if result.status == "missing" else f" {result.message}"
    return replace(result, message=lead + own)


def names_in(source: str) -> set[str]:
    """The names that `source` reads and that none of its functions binds for itself."""
    names = set[str]()
    try:
        tables = [symtable.symtable(source, "<source>", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return names
    while tables:
        table = tables.pop()
        at_top = table.get_type() == "module"
        symbols = table.get_symbols()
        names |= {s.get_name() for s in symbols if s.is_referenced() and (at_top or s.is_global())}
        tables += table.get_children()
    return names


def names_behind(student: Any) -> set[str]:
    """The same for an object of this process, and for the code beside it that it leads to."""
    names, waiting = set[str](), [student]
    while waiting:
        for function in functions_of(waiting.pop()):
            fresh = _globals_of(function.__code__) - names
            names |= fresh
            found = [function.__globals__.get(name) for name in fresh]
            waiting += [f for f in found if getattr(f, "__module__", "") == function.__module__]
    return names


def functions_of(student: Any) -> list[FunctionType]:
    """A function itself, or the methods of a class."""
    members = vars(student).values() if inspect.isclass(student) else [student]
    return [member for member in members if inspect.isfunction(member)]


def _globals_of(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(_read_here(code)).union(*map(_globals_of, inner))


def _read_here(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
