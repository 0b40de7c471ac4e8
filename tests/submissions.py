"""Notebooks as students hand them in, for the tests of the grader."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

from autograder.checks import load
from autograder.engine.exercise import Assignment
from autograder.grader.run import Work, run
from autograder.grader.sandbox import best_level
from course.release import exercise_of
from course.sample_class import answers_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "language_models"  # the chapter on which the grader is tried
SECRET = b"of the tests"


def assignment(notebook: str = NOTEBOOK) -> Assignment:
    return load(notebook, hidden=True)


@functools.cache
def release(notebook: str = NOTEBOOK) -> bytes:
    return exercise_of(ROOT, assignment(notebook)).read_bytes()


@functools.cache
def answers(notebook: str = NOTEBOOK) -> dict[str, str]:
    return answers_of(ROOT, assignment(notebook))


def unsolved(notebook: str = NOTEBOOK) -> dict[str, Any]:
    return json.loads(release(notebook))


def solved(notebook: str = NOTEBOOK, **replaced: str) -> dict[str, Any]:
    """The solved notebook, some answers replaced."""
    made = unsolved(notebook)
    for cell in made["cells"]:
        name = grade_id(cell)
        if name in answers(notebook):
            cell["source"] = replaced.get(name, answers(notebook)[name])
    return made


def grade_id(cell: dict[str, Any]) -> str | None:
    return cell["metadata"].get("nbgrader", {}).get("grade_id")


def cell_of(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(cell for cell in made["cells"] if grade_id(cell) == name)


def with_cell(made: dict[str, Any], source: str, at: int = 1) -> dict[str, Any]:
    """The notebook with a code cell of the student's added."""
    made = copy.deepcopy(made)
    new = {"cell_type": "code", "metadata": {}, "source": source, "outputs": []}
    made["cells"].insert(at if at >= 0 else len(made["cells"]), new | {"execution_count": None})
    return made


def as_bytes(made: dict[str, Any]) -> bytes:
    return json.dumps(made, ensure_ascii=False, indent=1).encode()


def result_of(made: dict[str, Any] | bytes, notebook: str = NOTEBOOK, **more: Any) -> dict:
    """What the grader makes of a submission, at the best level of this machine."""
    data = made if isinstance(made, bytes) else as_bytes(made)
    fields = {"suffix": ".ipynb", "level": best_level(), "secret": SECRET} | more
    return run(Work(notebook, data, release=release(notebook), **fields))


def points(result: dict[str, Any]) -> dict[str, float]:
    return {exercise["name"]: exercise["points"] for exercise in result["exercises"]}
