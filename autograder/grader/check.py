"""What a student runs from a shell: their own notebook on the visible cases, and as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autograder
from autograder.engine.judge import CaseResult, ExerciseResult
from autograder.engine.notebook import as_text as verdict_as_text
from autograder.grader.ingest import IngestError, Submission, ingest
from autograder.grader.repair import MAX_BYTES
from autograder.grader.run import GraderError, Work, run

LARGE = 10 << 20  # bytes; far below what is refused, far above a notebook's code


class CheckError(Exception):
    """The notebook could not be checked; the text says why."""


@dataclass(frozen=True)
class Readiness:
    """What handing a file in would meet: `problems` to mend first, `remarks` that may be meant."""

    problems: list[str]
    remarks: list[str]


def check_notebook(path: Path, assignment: str | None = None) -> dict[str, Any]:
    """The result of a notebook on the visible cases, as `run` gives it; raises `CheckError`."""
    submission, result = _checked(path, assignment)
    return {"assignment": submission.assignment, "notebook": submission.notebook} | {
        key: result[key] for key in ("score", "max_score", "message", "exercises", "notes")
    }


def submit_ready(path: Path, assignment: str | None = None) -> Readiness:
    """What is wrong with a file that is to be handed in, in the words of the grader's own notes."""
    try:
        submission, result = _checked(path, assignment)
    except CheckError as error:
        return Readiness([str(error)], [])
    problems = [*submission.notes, *result["notes"]]
    problems += [
        f"`{exercise['name']}`: {exercise['message']}"
        for exercise in result["exercises"]
        if exercise["status"] == "forbidden"
    ]
    assert submission.data is not None
    problems += [*_size(submission.data), *_stored_runs(submission.data)]
    return Readiness(problems, _open_ends(submission, result))


def _checked(path: Path, assignment: str | None) -> tuple[Submission, dict[str, Any]]:
    try:
        submission, *more = ingest(path, assignment)
        if more:
            raise CheckError(f"{path} holds several notebooks. Give one.")
        if submission.data is None or submission.problem:
            raise CheckError(submission.problem)
        release = _release(submission.assignment, submission.notebook)
        facts = (submission.notebook, submission.data, submission.suffix, release, "process", False)
        work = Work(*facts, files=submission.files)
        result = run(work)
    except (IngestError, GraderError) as error:
        raise CheckError(str(error)) from error
    if result["status"] == "refused":
        raise CheckError(result["message"])
    return submission, result


def _release(assignment: str, notebook: str) -> bytes | None:
    """Our own notebook, where the course lies on this machine; a student may have only theirs."""
    course = Path(autograder.__file__).resolve().parents[1]
    path = course / "exercises" / assignment / f"{notebook}.ipynb"
    return path.read_bytes() if path.is_file() else None


def _size(data: bytes) -> list[str]:
    if len(data) <= LARGE:
        return []
    return [
        f"The file has {len(data) / (1 << 20):.0f} MB, nearly all of it stored output. Clear the"
        f" outputs and save it; above {MAX_BYTES >> 20} MB it is refused."
    ]


def _stored_runs(data: bytes) -> list[str]:
    """What the file's own record of its last run says; grading does not depend on it."""
    try:
        cells = json.loads(data.decode("utf-8-sig"))["cells"]
    except (ValueError, TypeError, KeyError):
        return []  # a script, or a format whose repair has its own note
    found = list[str]()
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        if cell.get("id") == "setup" and cell.get("execution_count") is None:
            found.append("The set-up cell was not run in this file. Run all cells and save it.")
        outputs = cell.get("outputs")
        for output in outputs if isinstance(outputs, list) else ():
            if isinstance(output, dict) and output.get("output_type") == "error":
                kind = str(output.get("ename", "an error"))[:80]
                found.append(f"Cell {number} stopped with {kind} when it was run last.")
    return found


def _open_ends(submission: Submission, result: dict[str, Any]) -> list[str]:
    """What is not there yet, perhaps on purpose."""
    missing = [e["name"] for e in result["exercises"] if e["status"] == "missing"]
    found = [f"Not written yet: {', '.join(f'`{name}`' for name in missing)}."] if missing else []
    if not result["work"]["written"] and _release(submission.assignment, submission.notebook):
        found.append("The written answer is empty.")
    return found


def as_text(result: dict[str, Any]) -> str:
    """The verdicts as the notebook words them, and a line with the points."""
    lines = [_verdict(exercise) for exercise in result["exercises"]]
    lines += [f"Note: {note}" for note in result["notes"]]
    lines.append(
        f"Points so far: {result['score']:g} of {result['max_score']:g} on the visible cases."
        " Grading adds hidden cases and the written answer."
    )
    return "\n".join(lines)


def readiness_as_text(readiness: Readiness) -> str:
    """One line for each thing to mend, one for each that is open, and the verdict."""
    lines = [f"✗ {problem}" for problem in readiness.problems]
    lines += [f"○ {remark}" for remark in readiness.remarks]
    count = len(readiness.problems)
    what = "1 thing" if count == 1 else f"{count} things"
    lines.append(f"Mend {what} first." if count else "✓ The file is ready to hand in.")
    return "\n".join(lines)


def _verdict(fields: dict[str, Any]) -> str:
    cases = [CaseResult(**case) for case in fields["cases"]]
    verdict = verdict_as_text(ExerciseResult(**fields | {"cases": cases}))
    if fields["status"] != "wrong":
        return verdict
    marks = [f"    {'✓' if case.passed else '✗'} {case.name}" for case in cases if case.visible]
    return "\n".join([verdict, *marks])
