"""The whole way from a folder of submissions to rows, gradebook and feedback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.batch import default_jobs, failure, read_result, run_all
from autograder.grader.cluster import Cluster, ClusterError, Notice, cluster_at
from autograder.grader.database import DatabaseError, reach
from autograder.grader.export import KEYS, export, read_results
from autograder.grader.feedback import write_feedback
from autograder.grader.ingest import IngestError, Submission, ingest
from autograder.grader.late import NO_LATENESS, DeadlineError, Deadlines, apply, read_deadlines
from autograder.grader.record import Recorder, RecordError, Releases
from autograder.grader.report import write_report
from autograder.grader.run import GraderError, Work, refused, summary
from autograder.grader.sandbox import HOW_TO_GET_ONE, best_level, why_not
from autograder.grader.systems import RosterError, write_lists

_EXPECTED = (
    IngestError, RecordError, GraderError, DeadlineError, RosterError, ClusterError, DatabaseError,
)  # fmt: skip
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
    sandbox: str | None = None  # a level of `sandbox`; the best that works where None
    jobs: int = field(default_factory=default_jobs)
    cache: Path | None = None
    students: frozenset[str] = frozenset()  # grade these again, and leave the others' rows
    only: frozenset[str] = frozenset()  # exercises to grade again; the others' points stay
    deadlines: Path | None = None  # a file, see `late`
    roster: Path | None = None  # a list of Canvas, Moodle or Gradescope to fill in
    site: str | None = None  # the book's address, for links in feedback
    scheduler: str | None = None  # of a Dask cluster, whose workers then grade
    db: str | None = None  # PostgreSQL's, for the gradebook; gradebook.db in `out` where None
    notice: Notice = lambda text: None  # is told what an instructor should know at once
    # Students whose code is not run without a sandbox even where the rest is trusted, and why.
    only_sandboxed: Mapping[str, str] = field(default_factory=dict)


def grade(
    path: Path, plan: Plan, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """Grade what lies under `path`: one row for each piece of work, in order of student.

    Writes gradebook, `autograded/`, `feedback/`, `report.html`, `results.json`, `results.csv` and
    lists for the systems that the submissions came from to `plan.out`.
    Raises `GradingError` where nothing can be graded; a single submission never does that.
    """
    try:
        with cluster_at(plan.scheduler, plan.sandbox, plan.trust, plan.notice) as cluster:
            return _grade(path, plan, progress, cluster)
    except _EXPECTED as error:
        raise GradingError(str(error)) from error


def _grade(
    path: Path, plan: Plan, progress: Progress, cluster: Cluster | None
) -> list[dict[str, Any]]:
    level = cluster.level if cluster else _level(plan)
    if plan.db is not None:
        reach(plan.db)
    assignments = {found.name: found for found in map(load, CHAPTERS)}
    deadlines = read_deadlines(plan.deadlines, assignments) if plan.deadlines else None
    release = functools.cache(functools.partial(_release, plan.exercises))
    submissions = ingest(path, plan.assignment, lambda task: release(task.name, task.notebook))
    earlier = _earlier(plan)
    releases, works = Releases(), dict[int, Work]()
    rows = dict[int, dict[str, Any]]()
    for index, one in enumerate(submissions):
        old = earlier.get((one.student, one.assignment))
        if one.assignment:
            ours = release(one.assignment, one.notebook)
            releases[one.assignment, one.notebook] = ours
        only = _only(plan, assignments.get(one.assignment)) if old else ()
        if old and ((plan.students and one.student not in plan.students) or only is None):
            work = (read_result(plan.cache, old["key"]) or {}).get("work")
            rows[index] = old | {"work": work, "reused": True}
        elif one.data is not None and one.assignment and not _is_withheld(one, level, plan):
            facts = (one.notebook, one.data, one.suffix, ours, level)
            works[index] = Work(*facts, secret=plan.secret, only=only or (), files=one.files)
    places = range(len(submissions))
    unread = [(index, None, "", False) for index in places if index not in rows | works]
    with Recorder(releases, plan.out, plan.db) as recorder:
        for index, outcome, key, reused in chain(unread, _run(works, plan, progress, cluster)):
            one = submissions[index]
            result = _result(one, outcome, assignments.get(one.assignment), level, plan)
            if index in works and works[index].only:
                result = _merged(earlier[one.student, one.assignment], result)
            rows[index] = _row(one, result) | {"key": key, "reused": reused}
            recorder.write(rows[index])
        in_order = [rows[index] for index in places]
        _finish(in_order, recorder, deadlines, plan)
    return in_order


def _level(plan: Plan) -> str:
    """This machine's isolation for the class; raises `GradingError` where there is none."""
    level = plan.sandbox or best_level()
    if reason := why_not(level):
        raise GradingError(f"The sandbox {level} does not work here: {reason}")
    if level == "process" and not plan.trust:
        raise GradingError(HOW_TO_GET_ONE)
    return level


def _earlier(plan: Plan) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the last run, where only a part is to be graded again."""
    if not (plan.students or plan.only):
        return {}
    rows = [row for row in read_results(plan.out) if set(KEYS) <= row.keys()]
    return {(row["student"], row["assignment"]): row for row in rows}


def _only(plan: Plan, assignment: Assignment | None) -> tuple[str, ...] | None:
    """The exercises to grade again; all where empty, none where None."""
    if not plan.only:
        return ()
    names = {exercise.name for exercise in assignment.exercises} if assignment else set()
    return tuple(sorted(names & plan.only)) or None


def _run(
    works: dict[int, Work], plan: Plan, progress: Progress, cluster: Cluster | None
) -> Iterator[tuple[int, Any, str, bool]]:
    """Place, a result or the error instead of one, its key, and whether it was known before."""
    places: dict[str, list[int]] = {}  # by key: the same file may come twice
    for index, work in works.items():
        places.setdefault(work.key(), []).append(index)
    again = set(places) if plan.students or plan.only else set()
    some = [works[indices[0]] for indices in places.values()]
    some.sort(key=lambda work: work.notebook)  # a worker keeps its sandbox
    elsewhere = cluster.run if cluster else None
    done = 0
    progress(0, len(works))
    for work, outcome, known in run_all(some, plan.jobs, plan.cache, again, elsewhere):
        key = work.key()
        for index in places[key]:
            yield index, outcome, key, known
        done += len(places[key])
        progress(done, len(works))


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An earlier result with some exercises graded again."""
    if new["status"] != "graded":
        return new
    fresh = {exercise["name"]: exercise for exercise in new["exercises"]}
    exercises = [fresh.get(exercise["name"], exercise) for exercise in old["exercises"]]
    points = {
        "score": round(sum(exercise["points"] for exercise in exercises), 2),
        "max_score": sum(exercise["max_points"] for exercise in exercises),
    }
    return new | points | {"exercises": exercises, "message": summary(exercises)}


def _finish(
    rows: list[dict[str, Any]], recorder: Recorder, deadlines: Deadlines | None, plan: Plan
) -> None:
    """Lateness, gradebook, lists, feedback and report; results are kept whatever happens."""
    for row in rows:
        row |= NO_LATENESS | {"total": row["score"], "max_total": row["max_score"]}
        row |= {"waiting": False, "remarks": []}
    if deadlines is not None:
        apply(deadlines, rows)
        for row in rows:
            row["total"] = round(row["score"] * (1 - row["penalty_percent"] / 100), 2)
    try:
        recorder.finish(rows)
    finally:
        export(rows, plan.out)
        assignments = {found.name: found for found in map(load, CHAPTERS)}
        for row in rows:
            if row["work"] or not row["reused"]:
                write_feedback(row, assignments.get(row["assignment"]), plan.out, plan.site)
        write_report(rows, assignments, plan.out)
        write_lists(rows, plan.out, plan.roster)


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
