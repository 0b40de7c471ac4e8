"""A small class of our own making, graded by `rnn2gpt grade --sample`.

Eleven submissions in nbgrader's tree, always the same: solved, unsolved, half right, with named
mistakes, worn by bad software, one broken, one hostile. They are made from the released notebooks,
the solutions and the checks' own catalogue of mistakes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograder.checks import load
from autograder.engine.exercise import Assignment
from autograder.grader.grade import Plan, Progress, grade
from autograder.grader.repair import source_behind
from course.release import exercise_of, read_solution, source_of

HOSTILE = "mallory"
WITHHELD = (
    "This submission attacks the grader on purpose. Without a sandbox it is not run."
    " On a machine with bubblewrap it gets what its work earns."
)
SEED = b"the sample class is no secret"

_SOLUTION_MARK = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[ \t]*(?:\n|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class Member:
    """One student of the class and what they hand in."""

    student: str
    notebook: str
    solved: int | None = None  # so many of the exercises, from the first on; None for all
    mistakes: dict[str, str] = field(default_factory=dict)  # exercise -> name of a misconception
    extra: str = ""  # code of a cell added in front
    damage: Callable[[str], bytes] = str.encode
    name: str = ""  # of the file, where it is not the notebook's


def _truncated(text: str) -> bytes:
    return text.encode()[: len(text) // 2]


def _from_windows(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-16")


ATTACK = """\
# Tries what graders have fallen for: forged helpers, printed results, secrets, an early end.
import os, torch
torch.allclose = lambda *args, **kwargs: True
torch.testing.assert_close = lambda *args, **kwargs: None
print('{"score": 100, "max_score": 100, "status": "graded"}')
for name in (".seed", "gradebook.db", "solutions", "/proc/1/environ", "../../results.json"):
    try:
        print(open(name).read())
    except OSError:
        pass
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'{"value": 100}')
    except OSError:
        pass
os._exit(0)
"""

MEMBERS = (
    Member("ada", "language_models"),
    Member("blaise", "language_models", solved=0),
    Member("chen", "language_models", solved=3),
    Member(
        "dorothy",
        "language_models",
        mistakes={"bigram_counts": "transposed", "bits_per_character": "forgets_ln_2"},
    ),
    Member("emmy", "language_models", damage=_truncated),
    Member(HOSTILE, "language_models", solved=2, extra=ATTACK),
    Member("fatima", "rnn"),
    Member("grace", "rnn", mistakes={"rnn_backward": "truncated_to_one_step"}),
    Member("hedy", "rnn", mistakes={"clip_grad_norm_": "always_scales"}, damage=_from_windows),
    Member("ida", "lstm", name="My LSTM (final) v2"),
    Member("john", "lstm", mistakes={"lstm_cell": "no_forget", "gru_cell": "flipped_z"}),
)


def make(root: Path, folder: Path) -> None:
    """Write the class's submissions to `folder/<student>/<assignment>/`."""
    shutil.rmtree(folder, ignore_errors=True)
    for member in MEMBERS:
        assignment = load(member.notebook)
        place = folder / member.student / assignment.name
        place.mkdir(parents=True)
        text = json.dumps(notebook_of(root, assignment, member), indent=1, ensure_ascii=False)
        (place / f"{member.name or member.notebook}.ipynb").write_bytes(member.damage(text))


def grade_sample(root: Path, progress: Progress = lambda done, total: None) -> list[dict[str, Any]]:
    """Make the class under `build/sample-class` and grade it; returns the rows.

    This is our own code, so it is graded without a sandbox where there is none, the hostile member
    left out.
    """
    folder = root / "build" / "sample-class"
    make(root, folder / "submitted")
    plan = Plan(
        exercises=root / "exercises",
        out=folder,
        secret=SEED,
        trust=True,
        cache=root / "build" / "grading",
        only_sandboxed={HOSTILE: WITHHELD},
    )
    return grade(folder / "submitted", plan, progress)


def notebook_of(root: Path, assignment: Assignment, member: Member) -> dict[str, Any]:
    """The released notebook as this student filled it in."""
    notebook = json.loads(exercise_of(root, assignment).read_text(encoding="utf-8"))
    answers = answers_of(root, assignment)
    names = [exercise.name for exercise in assignment.exercises][: member.solved]
    for cell in notebook["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name in member.mistakes:
            cell["source"] = mistaken(assignment, name, member.mistakes[name])
        elif name in names:
            cell["source"] = answers[name]
    if member.extra:
        cell = {"cell_type": "code", "id": "extra", "metadata": {}, "source": member.extra}
        notebook["cells"].insert(2, cell | {"outputs": [], "execution_count": None})
    return notebook


def answers_of(root: Path, assignment: Assignment) -> dict[str, str]:
    """The solved answer cells by exercise."""
    cells = read_solution(source_of(root, assignment)).cells
    return {
        cell.metadata["answer"]: _SOLUTION_MARK.sub("", cell.source)
        for cell in cells
        if "answer" in cell.metadata
    }


def mistaken(assignment: Assignment, exercise: str, mistake: str) -> str:
    """A misconception as a student would have written it, under the exercise's own name.

    Raises `ValueError` where it leans on what no student has.
    """
    catalogue = next(e for e in assignment.exercises if e.name == exercise).misconceptions
    wrong = next(m for m in catalogue if m.name == mistake).implementation
    module: types.ModuleType = sys.modules[wrong.__module__]
    tree = ast.parse(inspect.getsource(module))
    tree.body = [node for node in tree.body if not _is_the_checks(node)]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            node.decorator_list = [d for d in node.decorator_list if not _declares(d)]
    named = hasattr(wrong, "__name__")  # else an object of a class that can be called
    name = wrong.__name__ if named else type(wrong).__name__
    source = source_behind(name, [ast.unparse(tree)])
    if not source:
        raise ValueError(f"{mistake}, of {exercise}, is no function or class of its own")
    if absent := _imported_by(source) - {f"rnn2gpt.{name}" for name in assignment.modules}:
        raise ValueError(f"{mistake}, of {exercise}, imports {', '.join(sorted(absent))}")
    return f"{source}\n\n{exercise} = {name}{'' if named else '()'}\n"


_KINDS = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def _is_the_checks(node: ast.stmt) -> bool:
    """Whether a statement only declares or judges: a case, a loop that names mistakes, a function
    of a handle, or `name = ASSIGNMENT.exercise(...)`, where the name is the student's own."""
    if isinstance(node, ast.FunctionDef):
        taken = {
            arg.annotation.id for arg in node.args.args if isinstance(arg.annotation, ast.Name)
        }
        return node.name == "_" or not taken.isdisjoint(("Handle", "Exercise"))
    made = node.value if isinstance(node, ast.Assign) else None
    called = made.func if isinstance(made, ast.Call) else None
    is_exercise = isinstance(called, ast.Attribute) and called.attr == "exercise"
    return is_exercise or not isinstance(node, _KINDS)


def _imported_by(source: str) -> set[str]:
    """The modules of ours that a source imports."""
    nodes = list(ast.walk(ast.parse(source)))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    found |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    return {name for name in found if name.startswith(("autograder.", "rnn2gpt."))}


def _declares(decorator: ast.expr) -> bool:
    """Whether a decorator is one of the catalogue: `@exercise.misconception(...)`, or a module's
    own short form of it, `@_mistake(...)`. A bare `@_variant` makes the function what it is."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Name):
        return called is not decorator and called.id.startswith("_")
    return isinstance(called, ast.Attribute) and called.attr in ("misconception", "case")
