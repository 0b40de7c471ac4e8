"""The test of the tests: every wrong answer dies by its own message, every right one lives.

For each graded object the table holds the course's own solution and the independent right
answers (full points expected), the empty stub (no points, "not written yet"), the broken code that
some are handed over with (no points), each misconception (rejected by its own sentence, in the
notebook's mode and the grader's), and generic mistakes planted in a right answer (rejected by the
guard that is there for them).
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_leaves, tree_map

from autograder.checks import CHAPTERS, load
from autograder.engine import guards
from autograder.engine.exercise import Assignment, Exercise
from autograder.engine.handle import Local
from autograder.engine.judge import MISSING, ExerciseResult, judge
from course.release import SOLUTION, read_solution, source_of

SECRET = b"the kill table's own seed"
RIGHT = ("solution", "right answer")
TABLE = Path("book/_data/kill_table.json")


@dataclass(frozen=True)
class Row:
    """One answer and what became of it."""

    chapter: str
    exercise: str
    kind: str  # solution, right answer, empty stub, handed over, misconception, generic mistake
    answer: str
    expected: str  # the message, or "full points"
    got: str
    points: float
    max_points: float
    ok: bool


def kill_table(root: Path, chapters: tuple[str, ...] = CHAPTERS) -> list[Row]:
    """Judge every answer of every exercise."""
    return [row for chapter in chapters for row in _chapter_rows(root, load(chapter, hidden=True))]


def write_table(root: Path, rows: list[Row]) -> Path:
    """Store the rows where the book's page reads them, in place of those of the same chapters."""
    path = root / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    new = [asdict(row) for row in rows]
    judged = {row["chapter"] for row in new}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    known = {load(chapter).page for chapter in CHAPTERS}
    kept = [row for row in stored if row["chapter"] in known - judged]
    table = sorted(kept + new, key=lambda row: row["chapter"])  # stable: the order of exercises
    text = json.dumps(table, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def as_table(rows: list[Row], console: Console | None = None) -> None:
    """Print one line per exercise, and every row that went wrong in full."""
    console = console or Console()
    table = Table("chapter", "exercise", "right answers", "wrong answers", box=SIMPLE)
    keys = list(dict.fromkeys((row.chapter, row.exercise) for row in rows))
    for chapter, exercise in keys:
        mine = [row for row in rows if (row.chapter, row.exercise) == (chapter, exercise)]
        right = [row for row in mine if row.kind in RIGHT]
        wrong = [row for row in mine if row.kind not in RIGHT]
        table.add_row(chapter, exercise, _share(right, "accepted"), _share(wrong, "rejected"))
    console.print(table)
    for row in rows:
        if not row.ok:
            console.print(
                f"{row.chapter} {row.exercise}: {row.kind} {row.answer}", style="bold red"
            )
            console.print(f"  expected: {row.expected}\n  got:      {row.got}", markup=False)
    ok = sum(row.ok for row in rows)
    console.print(f"{ok} of {len(rows)} answers got the verdict that is theirs.")


def _share(rows: list[Row], verb: str) -> str:
    return f"{sum(row.ok for row in rows)} of {len(rows)} {verb}"


def solved_namespace(root: Path, assignment: Assignment) -> dict[str, Any]:
    """The names that the solution's set-up and answer cells define."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    path = source_of(root, assignment)
    for cell in read_solution(path).cells:
        if cell.metadata.get("setup") or "answer" in cell.metadata:
            exec(compile(cell.source, str(path), "exec"), namespace)
    return namespace


def broken_namespace(root: Path, assignment: Assignment) -> dict[str, Any]:
    """The names that the cells define which are handed over broken, as a student gets them."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    path = source_of(root, assignment)
    for cell in read_solution(path).cells:
        if cell.metadata.get("setup") or cell.metadata.get("broken"):
            exec(compile(SOLUTION.sub("", cell.source), str(path), "exec"), namespace)
    return namespace


def _chapter_rows(root: Path, assignment: Assignment) -> Iterator[Row]:
    solved, broken = solved_namespace(root, assignment), broken_namespace(root, assignment)
    module = importlib.import_module(f"autograder.answers.{assignment.notebook}")
    for exercise in assignment.exercises:
        if exercise.on_files is not None:
            continue  # there is no object: what is wrong with files, tests of their own try
        answers = module.ANSWERS[exercise.name]
        helpers = {name: solved[name] for name in exercise.needs}
        handed = broken.get(exercise.name)
        yield from _exercise_rows(exercise, solved[exercise.name], answers, helpers, handed)


def _exercise_rows(
    exercise: Exercise, solution: Any, answers: list[Any], helpers: dict[str, Any], handed: Any
) -> Iterator[Row]:
    def verdict(answer: Any, hidden: bool = True) -> ExerciseResult:
        namespace = {exercise.name: answer, **helpers}
        return judge(exercise, lambda: Local(namespace), hidden=hidden, secret=SECRET)

    def row(kind: str, answer: str, expected: str, result: ExerciseResult, ok: bool) -> Row:
        got = result.message or "full points"
        chapter, points = exercise.assignment.page, result.points
        return Row(chapter, exercise.name, kind, answer, expected, got, points, exercise.points, ok)

    for name, answer in [("the course's solution", solution), *((a.__name__, a) for a in answers)]:
        result = verdict(answer)
        kind = "solution" if answer is solution else "right answer"
        yield row(kind, name, "full points", result, result.status == "right")

    result = verdict(_stub(solution))
    missing = f"`{exercise.name}` is {MISSING}."
    ok = result.points == 0 and result.message == missing
    yield row("empty stub", "raise NotImplementedError", missing, result, ok)

    if handed is not None:
        for hidden in (False, True):
            result, where = verdict(handed, hidden), "the grader" if hidden else "the notebook"
            ok = result.points == 0 and result.misconception is not None
            yield row("handed over", f"as it is, in {where}", "no points", result, ok)

    for wrong in exercise.misconceptions:
        verdicts = [verdict(wrong.implementation, hidden) for hidden in (False, True)]
        right = [v.points < v.max_points and v.message == wrong.message for v in verdicts]
        shown = verdicts[right.index(False)] if False in right else verdicts[-1]
        yield row("misconception", wrong.name, wrong.message, shown, all(right))

    for name, mutant, message in _generic_mistakes(exercise, answers[0]):
        result = verdict(mutant)
        ok = result.points < exercise.points and message in _messages(result)
        yield row("generic mistake", name, message or "rejected", result, ok)


def _messages(result: ExerciseResult) -> str:
    return " ".join([result.message, *(case.message for case in result.cases)])


def _stub(solution: Any) -> Any:
    """What a student is handed: the right signature and nothing behind it."""

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError()

    if not isinstance(solution, type):
        return missing
    return type(solution.__name__, (solution,), {"__init__": missing})


Mutant = Callable[..., Any]


def _generic_mistakes(exercise: Exercise, right: Any) -> Iterator[tuple[str, Any, str]]:
    """Mistakes that any function can make, planted in a right answer.

    Each yields a name, the mutant, and the sentence it must be rejected with (empty: any).
    Which of them an exercise is tested for follows from the guards it declares.
    """
    if not _has_result(right):
        return
    declared = {spec.title for spec in exercise.cases if spec.guard}
    yield "returns zeros", _mutate(right, _zeros), ""
    if guards.GRADIENT_TITLE in declared:
        yield "detaches the result", _mutate(right, _detached), guards.DETACHED
    if guards.MUTATION_TITLE in declared:
        yield "changes its inputs", _mutate(right, _changes_inputs), guards.MUTATES
    if guards.DTYPE_TITLE in declared:
        yield "always float32", _mutate(right, _float32), guards.DTYPE
    if guards.DEVICE_TITLE in declared:
        yield "result made on the CPU", _mutate(right, _on_cpu), guards.DEVICE["moved"]


def _mutate(right: Any, change: Callable[[Mutant], Mutant]) -> Any:
    """The function changed, or a subclass whose `forward` is; without one, every public method."""
    if not isinstance(right, type):
        return change(right)
    public = _public(right)
    names = ["forward"] if "forward" in public else public
    return type(right.__name__, (right,), {name: change(getattr(right, name)) for name in names})


def _has_result(right: Any) -> bool:
    """Whether there is a result to spoil: a class that only holds values has none, and neither has
    a function that returns None."""
    if isinstance(right, type):
        return bool(_public(right))
    return inspect.signature(right).return_annotation not in (None, "None")


def _public(cls: type) -> list[str]:
    return [name for name, method in inspect.getmembers(cls, callable) if name[0] != "_"]


def _map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def _zeros(right: Mutant) -> Mutant:
    def zero(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.zeros_like(leaf, requires_grad=leaf.is_floating_point())
        if isinstance(leaf, bytes):
            return bytes(len(leaf))
        if isinstance(leaf, str):
            return "0" * len(leaf)
        return 0 * leaf if isinstance(leaf, (int, float)) else leaf

    return lambda *args, **kwargs: tree_map(zero, right(*args, **kwargs))


def _detached(right: Mutant) -> Mutant:
    return lambda *args, **kwargs: _map_tensors(torch.Tensor.detach, right(*args, **kwargs))


def _changes_inputs(right: Mutant) -> Mutant:
    def changed(*args: Any, **kwargs: Any) -> Any:
        value = right(*args, **kwargs)
        for leaf in tree_leaves([args, kwargs]):
            if isinstance(leaf, torch.Tensor) and not leaf.requires_grad and leaf.numel():
                leaf.copy_(torch.zeros_like(leaf))
        return value

    return changed


def _float32(right: Mutant) -> Mutant:
    def narrowed(*args: Any, **kwargs: Any) -> Any:
        value = right(*args, **kwargs)
        return _map_tensors(lambda x: x.float() if x.is_floating_point() else x, value)

    return narrowed


def _on_cpu(right: Mutant) -> Mutant:
    return lambda *args, **kwargs: _map_tensors(lambda x: x.cpu(), right(*args, **kwargs))
