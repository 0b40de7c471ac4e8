"""What a notebook's check cell shows, and what it remembers.

The value of a check cell is the number of points, which stock nbgrader reads as partial credit;
in a browser the same value shows as a card.
"""

from __future__ import annotations

import html
import itertools
import re
from pathlib import Path
from typing import Any

from autograder.engine.callers import charge, names_behind
from autograder.engine.exercise import Exercise, files_beside
from autograder.engine.handle import Local
from autograder.engine.judge import ExerciseResult, judge
from autograder.engine.shortcuts import shortcuts_of

_latest: dict[tuple[str, str], ExerciseResult] = {}  # (assignment, exercise) -> last verdict

_COLORS = {"right": "#009E73", "wrong": "#D55E00", "missing": "#6c757d", "forbidden": "#D55E00"}
_MARKS = {"right": "✓", "wrong": "✗", "missing": "○", "forbidden": "✗"}


class Verdict(float):
    """The points of one check: a number for nbgrader, a card for a reader."""

    result: ExerciseResult

    def __new__(cls, result: ExerciseResult) -> Verdict:
        made = super().__new__(cls, result.points)
        made.result = result
        return made

    def __repr__(self) -> str:
        return f"{float(self):g}"

    def __str__(self) -> str:
        return as_text(self.result)

    def _repr_html_(self) -> str:
        return as_html(self.result)


def check(exercise: Exercise, student: Any, helpers: dict[str, Any]) -> Verdict:
    """Judge an object of this process on the visible cases and remember the verdict."""
    if exercise.on_files is not None:
        result = exercise.on_files(exercise, files_beside(Path.cwd(), exercise.assignment))
        _latest[exercise.assignment.name, exercise.name] = result
        return Verdict(result)
    namespace = {exercise.name: student, **helpers}
    shortcuts = shortcuts_of(student, exercise.forbidden)
    result = judge(exercise, lambda: Local(namespace), shortcuts=shortcuts)
    result = charge(result, names_behind(student), _earlier(exercise))
    _latest[exercise.assignment.name, exercise.name] = result
    return Verdict(result)


def _earlier(exercise: Exercise) -> list[ExerciseResult]:
    """The last verdicts on the exercises before this one."""
    before = itertools.takewhile(lambda e: e is not exercise, exercise.assignment.exercises)
    found = (_latest.get((e.assignment.name, e.name)) for e in before)
    return [result for result in found if result]


def ready(*exercises: Exercise) -> bool:
    """Whether the latest check of each exercise was right; says what is still to do if not."""
    waiting = [e.name for e in exercises if not _is_right(e)]
    if waiting:
        names = ", ".join(f"`{name}`" for name in waiting)
        print(f"This cell needs {names}. Come back when the check above it is green.")
    return not waiting


def points_so_far(*exercises: Exercise) -> str:
    """One line with the visible points of this session's checks."""
    results = [_latest.get((e.assignment.name, e.name)) for e in exercises]
    earned = sum(result.points for result in results if result)
    total = sum(e.points for e in exercises)
    return (
        f"Points so far: {earned:g} of {total:g} on the visible cases."
        " Grading adds hidden cases and the written answer."
    )


def _is_right(exercise: Exercise) -> bool:
    result = _latest.get((exercise.assignment.name, exercise.name))
    return result is not None and result.status == "right"


def as_text(result: ExerciseResult) -> str:
    """A verdict for a terminal."""
    head = f"{_MARKS[result.status]} {result.name}: {result.points:g} of {result.max_points:g}"
    return f"{head} points. {result.message}".rstrip()


def with_code(text: str) -> str:
    """Escaped HTML of a message, with `backticks` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def as_html(result: ExerciseResult) -> str:
    """A verdict as a card: the one sentence first, the cases folded beneath."""
    color = _COLORS[result.status]
    rows = "".join(
        f"<li>{'✓' if case.passed else '✗'} {with_code(case.name)}"
        + (f" — {with_code(case.message)}" if case.message else "")
        + "</li>"
        for case in result.cases
        if case.visible
    )
    passed = sum(case.passed for case in result.cases)
    sentence = with_code(result.message)
    message = f"<p style='margin:.3em 0'>{sentence}</p>" if sentence else ""
    return (
        f"<div role='status' style='border-left:4px solid {color};padding:.3em .8em'>"
        f"<strong>{_MARKS[result.status]} {html.escape(result.name)}</strong>: "
        f"{result.points:g} of {result.max_points:g} points{message}"
        f"<details><summary>{passed} of {len(result.cases)} cases pass</summary>"
        f"<ul style='list-style:none;padding-left:.5em'>{rows}</ul></details></div>"
    )
