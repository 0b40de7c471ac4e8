"""Verdicts: run the cases of one exercise, score them, name the mistake.

Everything here runs on the check's side. What comes back from the student's side is data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from autograder.child.protocol import ProtocolError
from autograder.engine.exercise import CaseSpec, Exercise, Misconception, Rng, seed_for
from autograder.engine.expect import Mismatch, same
from autograder.engine.handle import (
    Conversation,
    Ended,
    Handle,
    Local,
    Missing,
    Step,
    StudentError,
    Transport,
)

MISSING = "not written yet"


@dataclass(frozen=True)
class CaseResult:
    """One case's outcome; `message` is fit for the student's eyes."""

    name: str
    visible: bool
    passed: bool
    message: str = ""


@dataclass(frozen=True)
class ExerciseResult:
    """One exercise's outcome."""

    name: str
    points: float
    max_points: float
    status: str  # right, wrong, missing, forbidden
    message: str = ""  # the one sentence
    misconception: str | None = None  # the mistake's name
    see: str = ""  # page#anchor
    cases: list[CaseResult] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)  # of files, what a ranking goes by

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Run:
    """What running one case showed."""

    spec: CaseSpec
    passed: bool
    message: str
    steps: list[Step]
    mistake: str | None = None
    missing: bool = False


def judge(
    exercise: Exercise,
    connect: Callable[[], Transport],
    *,
    hidden: bool = False,
    secret: bytes = b"",
    shortcuts: tuple[str, ...] = (),
) -> ExerciseResult:
    """Run an exercise's cases on the object that `connect()` leads to.

    `hidden` adds the cases that only the grader runs, on inputs drawn from `secret`. `shortcuts`
    are forbidden names that a scan of the source found.
    """
    used: set[str] = set(shortcuts)
    runs: list[_Run] = []
    for spec in exercise.cases:
        if spec.visible or hidden:
            run, seen = _run(exercise, spec, connect, secret)
            runs.append(run)
            used |= seen
            if run.missing:
                return _missing(exercise, runs)
    results = [_result(run) for run in runs]
    if used:
        return ExerciseResult(
            exercise.name, 0.0, exercise.points, "forbidden", _forbidden(used), cases=results
        )
    if all(run.passed for run in runs):
        return ExerciseResult(
            exercise.name, exercise.points, exercise.points, "right", cases=results
        )
    mistake = _diagnose(exercise, runs, secret)
    return ExerciseResult(
        exercise.name,
        _score(exercise.points, runs),
        exercise.points,
        "wrong",
        mistake.message if mistake else _first_message(runs),
        mistake.name if mistake else None,
        f"{mistake.page}#{mistake.anchor}" if mistake else "",
        results,
    )


def _run(
    exercise: Exercise, spec: CaseSpec, connect: Callable[[], Transport], secret: bytes
) -> tuple[_Run, set[str]]:
    conversation = Conversation(connect(), exercise.forbidden)
    handle = Handle(conversation, exercise.name)
    run = _Run(spec, False, "", conversation.steps)
    try:
        spec.run(handle, Rng(seed_for(exercise, spec, secret)))
        conversation.settle()
        run.passed = True
    except Mismatch as mismatch:
        run.message, run.mistake = str(mismatch), mismatch.mistake
    except Missing:
        run.message, run.missing = f"`{exercise.name}` is {MISSING}.", True
    except StudentError as error:
        run.message = _raised(exercise, error)
    except Ended as end:
        run.message = f"`{exercise.name}` {end}."
    except ProtocolError as error:
        run.message = f"`{exercise.name}` broke the connection to the check: {error}."
    except Exception as error:
        # The case itself tripped over what came back: a tuple of the wrong length, say.
        run.message = f"the result does not have the form asked for ({error})."
    return run, conversation.used


def _raised(exercise: Exercise, error: StudentError) -> str:
    where = f" in the line `{error.line.strip()}`" if error.line.strip() else ""
    return f"`{exercise.name}` stopped with {error.kind}: {error.message}{where}."


def _missing(exercise: Exercise, runs: list[_Run]) -> ExerciseResult:
    results = [_result(run) for run in runs]
    message = runs[-1].message
    return ExerciseResult(exercise.name, 0.0, exercise.points, "missing", message, cases=results)


def _result(run: _Run) -> CaseResult:
    spec = run.spec
    message = run.message if spec.visible or run.passed else spec.hint
    return CaseResult(spec.title, spec.visible, run.passed, message)


def _forbidden(used: set[str]) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(used))
    return (
        f"Your code leans on {names}, which is what this exercise asks you to write."
        " Build it from basic tensor operations."
    )


def _score(points: float, runs: list[_Run]) -> float:
    """Cases earn their weight; guards earn only beside right values."""
    values_right = all(run.passed for run in runs if not run.spec.guard)
    earned = sum(
        run.spec.weight for run in runs if run.passed and (values_right or not run.spec.guard)
    )
    total = sum(run.spec.weight for run in runs)
    return round(points * earned / total, 2)


def _first_message(runs: list[_Run]) -> str:
    """The first telling failure in its own words."""
    first = _most_telling(runs)[0]
    return f"{first.spec.title}: {_result(first).message}"


def _diagnose(exercise: Exercise, runs: list[_Run], secret: bytes) -> Misconception | None:
    """The misconception that explains most of what failed, by name or by equal behavior.

    Only the most telling failures count (visible before hidden, values before guards), so the
    notebook and the grader name the same mistake. A mistake that would have failed where the
    student did not is no explanation.
    """
    failing = _most_telling(runs)
    named = [run.mistake for run in failing if run.mistake]
    passed = [run for run in runs if run.passed and run.spec.visible and not run.spec.guard]
    best, most = None, len(failing) / 2
    for misconception in exercise.misconceptions:
        agreeing = named.count(misconception.name) * len(runs)  # a proof outweighs likeness
        for left, run in zip(range(len(failing), 0, -1), failing, strict=True):
            if agreeing + left <= most:
                break  # it cannot explain more than the best so far
            agreeing += _behaves_alike(exercise, misconception, run, secret)
        if agreeing > most and (named or not _fails_any(exercise, misconception, passed, secret)):
            best, most = misconception, agreeing
    return best


def _most_telling(runs: list[_Run]) -> list[_Run]:
    def rank(run: _Run) -> tuple[bool, bool]:
        return not run.spec.visible, run.spec.guard

    failing = [run for run in runs if not run.passed]
    first = min(map(rank, failing))
    return [run for run in failing if rank(run) == first]


def _replay(exercise: Exercise, wrong: Misconception, spec: CaseSpec, secret: bytes) -> _Run:
    """The case on the wrong implementation; kept, since a class makes the same mistakes often."""
    key = (wrong.name, spec.title, secret)
    if key not in exercise.replays:
        namespace = {exercise.name: wrong.implementation}
        exercise.replays[key] = _run(exercise, spec, lambda: Local(namespace), secret)[0]
    return exercise.replays[key]


def _fails_any(exercise: Exercise, wrong: Misconception, passed: list[_Run], secret: bytes) -> bool:
    return any(not _replay(exercise, wrong, run.spec, secret).passed for run in passed)


def _behaves_alike(exercise: Exercise, wrong: Misconception, run: _Run, secret: bytes) -> bool:
    """Whether the wrong implementation, asked the same questions, gives the same answers."""
    replay = _replay(exercise, wrong, run.spec, secret)
    pairs = list(zip(replay.steps, run.steps, strict=False))
    if len(replay.steps) != len(run.steps) or any(
        mine.verb != theirs.verb or mine.error != theirs.error for mine, theirs in pairs
    ):
        return False
    return all(same(mine.value, theirs.value) for mine, theirs in pairs)
