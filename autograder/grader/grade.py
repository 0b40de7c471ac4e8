"""The whole way from a folder of submissions to rows, gradebook and feedback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.batch import default_jobs, failure, run_all
from autograder.grader.export import export
from autograder.grader.feedback import write_feedback
from autograder.grader.ingest import IngestError, Submission, ingest
from autograder.grader.record import RecordError, record
from autograder.grader.run import GraderError, Work, refused
from autograder.grader.sandbox import HOW_TO_GET_ONE, best_level

Progress = Callable[[int, int], None]


class GradingError(Exception):
    """Nothing was graded; the text says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """How to grade."""

    exercises: Path  # the released notebooks: <assignment>/<notebook>.ipynb
    out: Path
    secret: bytes
    assignment: str | None = None
    trust: bool = False
    jobs: int = field(default_factory=default_jobs)
    cache: Path | None = None
    site: str | None = None  # the book's address, for links in feedback
    # Students whose code is not run without a sandbox even where the rest is trusted, and why.
    only_sandboxed: Mapping[str, str] = field(default_factory=dict)


def grade(
    path: Path, plan: Plan, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """Grade what lies under `path`: one row for each piece of work, in order of student.

    Writes gradebook, `autograded/`, `feedback/`, `results.json` and `results.csv` to `plan.out`.
    Raises `GradingError` where nothing can be graded; a single submission never does that.
    """
    try:
        return _grade(path, plan, progress)
    except (IngestError, RecordError, GraderError) as error:
        raise GradingError(str(error)) from error


def _grade(path: Path, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    level = best_level()
    if level == "process" and not plan.trust:
        raise GradingError(HOW_TO_GET_ONE)
    assignments = {found.name: found for found in map(load, CHAPTERS)}
    release = functools.cache(functools.partial(_release, plan.exercises))
    by_name = {name: assignment.notebook for name, assignment in assignments.items()}
    submissions = ingest(path, plan.assignment, lambda task: release(task.name, task.notebook))
    releases = {
        name: release(name, by_name[name])
        for name in {s.assignment for s in submissions if s.assignment}
    }
    works = {
        index: Work(s.notebook, s.data, s.suffix, releases[s.assignment], level, secret=plan.secret)
        for index, s in enumerate(submissions)
        if s.data is not None and s.assignment and not _is_withheld(s, level, plan)
    }
    results: dict[str, Any] = {}
    taken_up = set[str]()
    progress(0, len(works))
    in_order = sorted(works.values(), key=lambda work: work.notebook)  # a worker keeps its sandbox
    for work, outcome, known in run_all(in_order, plan.jobs, plan.cache):
        results[work.key()] = outcome
        taken_up |= {work.key()} if known else set()
        progress(sum(w.key() in results for w in works.values()), len(works))
    rows = []
    for index, submission in enumerate(submissions):
        outcome = results[works[index].key()] if index in works else None
        result = _result(submission, outcome, assignments.get(submission.assignment), level, plan)
        reused = index in works and works[index].key() in taken_up
        rows.append(_row(submission, result) | {"reused": reused})
    export(rows, plan.out)
    for row in rows:
        write_feedback(row, assignments.get(row["assignment"]), plan.out, plan.site)
    record(rows, releases, plan.out)
    return rows


def _release(exercises: Path, assignment: str, notebook: str) -> bytes:
    path = exercises / assignment / f"{notebook}.ipynb"
    try:
        return path.read_bytes()
    except OSError:
        raise GraderError(f"{path} is missing. Make it with `rnn2gpt release`.") from None


def _is_withheld(submission: Submission, level: str, plan: Plan) -> bool:
    return level == "process" and submission.student in plan.only_sandboxed


def _result(
    submission: Submission, outcome: Any, assignment: Assignment | None, level: str, plan: Plan
) -> dict[str, Any]:
    if _is_withheld(submission, level, plan):
        reason = plan.only_sandboxed[submission.student]
        return refused(assignment, reason, "not run") | {"status": "skipped"}
    if outcome is None:
        return refused(assignment, submission.problem, level)
    if isinstance(outcome, Exception):
        return refused(assignment, failure(outcome), level) | {"status": "failed"}
    return outcome


def _row(submission: Submission, result: dict[str, Any]) -> dict[str, Any]:
    about = {
        "student": submission.student,
        "assignment": submission.assignment,
        "notebook": submission.notebook,
        "path": submission.path,
        "submitted": submission.submitted,
        "person": submission.person,
    }
    return about | result | {"notes": [*submission.notes, *result["notes"]]}
