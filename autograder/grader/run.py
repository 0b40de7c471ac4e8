"""Grade one submission: a pure function of its bytes, the checks, the environment and the seed.

The student's code runs in a child; every verdict is reached here, from the data that came back.
A child that hangs or dies is replaced, without the cell that ended it, and the rest of the work is
still graded.
"""

from __future__ import annotations

import ast
import atexit
import compileall
import contextlib
import functools
import hashlib
import importlib.util
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import autograder
from autograder.checks import CHAPTERS, load
from autograder.engine.callers import charge, names_in
from autograder.engine.exercise import Assignment, Exercise, HandedIn
from autograder.engine.handle import Ended
from autograder.engine.judge import ExerciseResult, judge
from autograder.engine.shortcuts import shortcuts_in
from autograder.grader.channel import Channel, Hung
from autograder.grader.repair import Cell, Refused, Repaired, definitions, repair, source_behind
from autograder.grader.sandbox import COMMON, START_SECONDS, Sandbox, SandboxError

CELL_SECONDS = 10.0
CELLS_SECONDS = 60.0  # for all cells together, restarts not counted
EXERCISE_ROUNDS = 6  # an exercise may take this many times what one request may take
MAX_STARTS = 20  # of children, while cells that fail are found
MAX_ENDS = 2  # children that one exercise may cost
_STEPS = ("repair", "sandbox", "containers", "cgroups", "seccomp", "channel", "run")
SUBMISSION_SECONDS = 120.0  # for all cells and exercises; what is not reached by then gets nothing


class GraderError(Exception):
    """The grader itself cannot work here; the text says what is wrong."""


@dataclass(frozen=True)
class Work:
    """All that a result depends on."""

    notebook: str  # which checks: "rnn"
    data: bytes
    suffix: str
    release: bytes | None
    level: str
    hidden: bool = True
    secret: bytes = b""
    only: tuple[str, ...] = ()  # exercises to judge; all where there is none
    files: tuple[tuple[str, HandedIn], ...] = ()  # that came with the notebook, by name

    def key(self) -> str:
        """The same key, the same result."""
        parts = (
            self.notebook.encode(),
            self.suffix.encode(),
            self.level.encode(),
            str(self.hidden).encode(),
            self.secret,
            "/".join(self.only).encode(),
            self.release or b"",
            self.data,
            fingerprint(self.notebook).encode(),
            *(part for name, file in self.files for part in (name.encode(), *_bytes_of(file))),
        )
        digest = hashlib.sha256()
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()


def _bytes_of(file: HandedIn) -> tuple[bytes, bytes]:
    return file.data or b"", file.problem.encode()


@functools.cache
def fingerprint(notebook: str) -> str:
    """Checks and environment in one string."""
    digest = hashlib.sha256()
    room = Path(autograder.__file__).parent
    files = [*room.glob("child/*.py"), *room.glob("engine/*.py")]
    files += [room / "grader" / f"{step}.py" for step in _STEPS]
    files += [room / "checks" / f"{notebook}.py", room / "hidden" / f"{notebook}.py"]
    files += _package_folder("rnn2gpt").glob("*.py")
    for file in sorted(files):
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    where = (platform.python_version(), torch.__version__, platform.system(), platform.machine())
    return " ".join(where) + " " + digest.hexdigest()


def run(work: Work) -> dict[str, Any]:
    """The result of a submission, as JSON; whatever was handed in, there is one."""
    start = time.monotonic()
    assignment = load(work.notebook, hidden=work.hidden)
    try:
        repaired = repair(work.data, work.suffix, assignment, work.release)
    except Refused as refusal:
        return _clean(_files_alone(assignment, work, str(refusal)))
    attempt = Attempt(work.notebook, sandbox(work.level), repaired)
    with contextlib.closing(attempt):
        results = list[ExerciseResult]()
        for exercise in assignment.exercises:
            if not work.only or exercise.name in work.only:
                results.append(_judge(exercise, attempt, work, results))
    result = _outline(assignment, results, work.level)
    result["message"] = summary(result["exercises"])
    result["notes"] = repaired.notes + attempt.notes()
    result["seconds"] = round(time.monotonic() - start, 2)
    result["work"] = repaired.to_json()
    return _clean(result)


def _files_alone(assignment: Assignment, work: Work, reason: str) -> dict[str, Any]:
    """The result of a notebook that cannot be read, the files beside it judged all the same."""
    result = refused(assignment, reason, work.level)
    for place, exercise in enumerate(assignment.exercises):
        if exercise.on_files is not None and work.files:
            judged = exercise.on_files(exercise, dict(work.files)).to_json()
            result["exercises"][place] = judged
            result["score"] = round(result["score"] + judged["points"], 2)
    return result


def refused(assignment: Assignment | None, reason: str, level: str) -> dict[str, Any]:
    """The result of what could not be graded."""
    exercises = assignment.exercises if assignment else []
    results = [ExerciseResult(e.name, 0.0, e.points, "missing") for e in exercises]
    return _outline(assignment, results, level) | {"status": "refused", "message": reason}


def _outline(
    assignment: Assignment | None, results: list[ExerciseResult], level: str
) -> dict[str, Any]:
    return {
        "score": round(sum(result.points for result in results), 2),
        "max_score": sum(result.max_points for result in results),
        "status": "graded",
        "message": "",
        "isolation": level,
        "seconds": 0.0,
        "exercises": [result.to_json() for result in results],
        "notes": [],
        "work": None,
        "checks": fingerprint(assignment.notebook) if assignment else "",
    }


def summary(exercises: list[dict[str, Any]]) -> str:
    """One sentence for the row."""
    right = sum(exercise["status"] == "right" for exercise in exercises)
    missing = [exercise for exercise in exercises if exercise["status"] == "missing"]
    if right == len(exercises):
        return "Everything is right."
    if len(missing) == len(exercises):
        return f"Nothing is written yet that could be graded. {missing[0]['message']}"
    wrong = [e for e in exercises if e["status"] not in ("right", "missing")]
    return f"{right} of {len(exercises)} right. {(wrong or missing)[0]['message']}"


def _judge(
    exercise: Exercise, attempt: Attempt, work: Work, earlier: list[ExerciseResult]
) -> ExerciseResult:
    if exercise.on_files is not None:
        return exercise.on_files(exercise, dict(work.files))
    source = source_behind(exercise.name, [cell.source for cell in attempt.cells])
    line = Line(attempt, exercise)
    result = judge(
        exercise,
        lambda: line,
        hidden=work.hidden,
        secret=work.secret,
        shortcuts=shortcuts_in(source, exercise.forbidden),
    )
    problem = attempt.problem_of(exercise.name)
    if result.status == "missing" and problem:
        return replace(result, message=problem)
    return result if result.status == "right" else charge(result, names_in(source), earlier)


class Attempt:
    """A submission's cells, alive in a child; started again when the child has ended."""

    def __init__(self, chapter: str, sandbox: Sandbox, repaired: Repaired):
        self.chapter, self.sandbox = chapter, sandbox
        self.setup, self.cells = repaired.setup, list(repaired.cells)
        self.problems: dict[int, str] = {}  # index of a cell -> what happened to it
        self.left_out: set[int] = set()
        self.starts = 0
        self.spent = 0.0  # seconds of requests, each counted for no more than it was allowed
        self.lost = 0.0  # seconds that cells took which then ended the child
        self._channel: Channel | None = None
        self._resources = contextlib.ExitStack()

    def close(self) -> None:
        """End the child and all that it started."""
        if self._channel is not None:
            self._channel.close()
        self._resources.close()
        self._channel = None

    def channel(self) -> Channel:
        """A living child in which every cell has run that does not end it."""
        while self._channel is None or not self._channel.alive:
            self.close()
            self.starts += 1
            self._channel = self._start()
            if not self._run_cells(self._channel):
                self._channel.close()
        return self._channel

    def ask(
        self,
        channel: Channel,
        request: dict[str, Any] | list[dict[str, Any]],
        seconds: float,
        callbacks: Mapping[int, Callable[..., Any]] | None = None,
    ) -> Any:
        """What comes back, its time counted; what a busy machine adds to a deadline is not."""
        start = time.monotonic()
        try:
            return channel.ask(request, seconds, callbacks)
        finally:
            self.spent += min(seconds, time.monotonic() - start)

    def _start(self) -> Channel:
        try:
            child = self._resources.enter_context(self.sandbox.child(self.chapter))
        except SandboxError as error:
            raise GraderError(f"The sandbox does not start. {error}") from None
        channel = Channel(child)
        try:
            request = {"op": "cell", "name": "setup", "source": self.setup}
            reply = channel.ask(request, START_SECONDS)
        except Ended as end:
            child.errors.seek(0)
            text = child.errors.read(4000).decode(errors="replace").strip()
            raise GraderError(f"The child process {end} as it started. {text[-1000:]}") from None
        if "error" in reply:
            raise GraderError(f"The exercise's own set-up cell fails here: {reply['error']}")
        return channel

    def _run_cells(self, channel: Channel) -> bool:
        """Whether the child outlived its cells; the cell that ended it is changed or left out."""
        before = self.spent - self.lost
        for index, cell in enumerate(self.cells):
            if index in self.left_out:
                continue
            start, left = self.spent, CELLS_SECONDS - (self.spent - before)
            if left <= 0:
                self._leave_out(index, "was not run: the cells before it took too long")
                continue
            request = {"op": "cell", "name": cell.name, "source": cell.source}
            try:
                reply = self.ask(channel, request, min(CELL_SECONDS, left))
            except Ended as fate:
                self.lost += self.spent - start
                self._replace(index, str(fate))
                if self.starts >= MAX_STARTS:
                    self.left_out.update(range(index, len(self.cells)))
                return False
            if "error" in reply:
                self._replace(index, _raised(reply["error"]))
                if self.starts < MAX_STARTS:
                    return False  # memory, processes or threads may be used up: start afresh
        return True

    def _replace(self, index: int, fate: str) -> None:
        """Try what a cell defines, without what it does; leave it out if that was tried."""
        bare = definitions(self.cells[index].source)
        if index in self.problems or not bare.strip():
            self._leave_out(index, fate)
            return
        self.problems[index] = (
            f"{_called(self.cells[index])} {fate}; only what it defines was used."
        )
        self.cells[index] = replace(self.cells[index], source=bare)

    def _leave_out(self, index: int, fate: str) -> None:
        self.problems[index] = f"{_called(self.cells[index])} {fate}, so it was left out."
        self.left_out.add(index)

    def problem_of(self, name: str) -> str:
        """What happened to the cells of an exercise, if anything did."""
        indices = [i for i, cell in enumerate(self.cells) if cell.name == name]
        return next((self.problems[i] for i in indices if i in self.problems), "")

    def notes(self) -> list[str]:
        """What happened to cells, in order."""
        return [self.problems[index] for index in sorted(self.problems)]


def _called(cell: Cell) -> str:
    return f"The cell of `{cell.name}`" if cell.answer else cell.name.capitalize()


def _raised(error: Any) -> str:
    """What the child says of a cell that raised, every field forced to its type."""
    fields = error if isinstance(error, dict) else {}
    kind, message, line = (str(fields.get(key, ""))[:300] for key in ("kind", "message", "line"))
    where = f" in the line `{line.strip()}`" if line.strip() else ""
    return f"stopped with {kind}: {message}{where}"


class Line:
    """The transport of one exercise: bounds its time and the children that it may cost.

    An object that hung once is not tried again, so that an endless loop costs one deadline.
    """

    def __init__(self, attempt: Attempt, exercise: Exercise):
        self.attempt, self.seconds = attempt, exercise.seconds
        self.left = EXERCISE_ROUNDS * exercise.seconds
        self.ends: list[Ended] = []

    def send(
        self, requests: list[dict[str, Any]], callbacks: Mapping[int, Callable[..., Any]]
    ) -> Any:
        if self.ends and isinstance(self.ends[-1], Hung):
            raise Ended(f"was not tried again, since it {self.ends[-1]}")
        if len(self.ends) >= MAX_ENDS:
            raise self.ends[-1]
        if self.attempt.spent > SUBMISSION_SECONDS:
            raise Ended(f"was not tried: the whole notebook took over {SUBMISSION_SECONDS:g} s")
        if self.left <= 0:
            raise Ended(f"took more than {EXERCISE_ROUNDS * self.seconds:g} s in all")
        channel, before = self.attempt.channel(), self.attempt.spent
        try:
            return self.attempt.ask(channel, requests, self.seconds, callbacks)
        except Ended as end:
            self.ends.append(end)
            raise
        finally:
            self.left -= self.attempt.spent - before


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def sandbox(level: str) -> Sandbox:
    """The sandbox of this process, kept for the next submission and closed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rnn2gpt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fill(folder)
    sandbox = Sandbox(level, folder, _libraries_in(folder))
    atexit.register(sandbox.close)
    return sandbox


def _libraries_in(folder: Path) -> list[str]:
    """The modules that the chapters' own modules import from elsewhere."""
    found = set[str]()
    for path in folder.rglob("rnn2gpt/*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return sorted(name for name in found if not name.startswith("rnn2gpt"))


def _fill(folder: Path) -> None:
    """All that children may see of the course: their half of the engine, each chapter's modules."""
    child = folder / COMMON / "autograder" / "child"
    child.mkdir(parents=True)
    (child.parent / "__init__.py").touch()
    for file in (Path(autograder.__file__).parent / "child").glob("*.py"):
        shutil.copy(file, child)
    for chapter in CHAPTERS:
        package = folder / chapter / "rnn2gpt"
        package.mkdir(parents=True)
        for module in ("__init__", *load(chapter).modules):
            shutil.copy(_package_folder("rnn2gpt") / f"{module}.py", package)
    compileall.compile_dir(folder, quiet=2)  # a child could not keep what it compiles
    folder.chmod(0o755)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _clean(value: Any) -> Any:
    """The same JSON without characters that a terminal, a file or a page would stumble over."""
    if isinstance(value, str):
        return _CONTROL.sub("�", value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
