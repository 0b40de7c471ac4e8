"""What a student runs from a shell: their own notebook on the visible cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import autograder
from autograder.engine.judge import CaseResult, ExerciseResult
from autograder.engine.notebook import as_text as verdict_as_text
from autograder.grader.ingest import IngestError, ingest
from autograder.grader.run import GraderError, Work, run


class CheckError(Exception):
    """The notebook could not be checked; the text says why."""


def check_notebook(path: Path, assignment: str | None = None) -> dict[str, Any]:
    """The result of a notebook on the visible cases, as `run` gives it."""
    try:
        submission, *more = ingest(path, assignment)
        if more:
            raise CheckError(f"{path} holds several notebooks. Give one.")
        if submission.data is None or submission.problem:
            raise CheckError(submission.problem)
        release = _release(submission.assignment, submission.notebook)
        work = Work(
            submission.notebook, submission.data, submission.suffix, release, "process", False
        )
        result = run(work)
    except (IngestError, GraderError) as error:
        raise CheckError(str(error)) from error
    if result["status"] == "refused":
        raise CheckError(result["message"])
    return {"assignment": submission.assignment, "notebook": submission.notebook} | {
        key: result[key] for key in ("score", "max_score", "message", "exercises", "notes")
    }


def _release(assignment: str, notebook: str) -> bytes | None:
    """Our own notebook, where the course lies on this machine; a student may have only theirs."""
    course = Path(autograder.__file__).resolve().parents[1]
    path = course / "exercises" / assignment / f"{notebook}.ipynb"
    return path.read_bytes() if path.is_file() else None


def as_text(result: dict[str, Any]) -> str:
    """The verdicts as the notebook words them, and a line with the points."""
    lines = [_verdict(exercise) for exercise in result["exercises"]]
    lines += [f"Note: {note}" for note in result["notes"]]
    lines.append(
        f"Points: {result['score']:g} of {result['max_score']:g} on the visible cases."
        " Grading adds hidden cases and the written answer."
    )
    return "\n".join(lines)


def _verdict(fields: dict[str, Any]) -> str:
    cases = [CaseResult(**case) for case in fields["cases"]]
    verdict = verdict_as_text(ExerciseResult(**fields | {"cases": cases}))
    if fields["status"] != "wrong":
        return verdict
    marks = [f"    {'✓' if case.passed else '✗'} {case.name}" for case in cases if case.visible]
    return "\n".join([verdict, *marks])
