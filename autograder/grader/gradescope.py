"""Grade one submission inside Gradescope's container and write Gradescope's own `results.json`.

The container's folders and the file's form are those of Gradescope's documentation, "Autograder
specifications", https://gradescope-autograders.readthedocs.io/en/latest/specs/. What a student
reads there is what the feedback page says, and of hidden cases no more than that.

    python -m autograder.grader.gradescope /autograder
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.export import write_whole
from autograder.grader.feedback import as_facts
from autograder.grader.ingest import ingest
from autograder.grader.run import Work, refused, run
from autograder.grader.sandbox import best_level

SETTINGS = "settings.json"  # beside the packages: assignment, seed, the book's address
_MARKS = {True: "✓", False: "✗"}


def main(root: Path) -> None:
    """Grade what lies in `submission/`; `source/` holds the packages, the release and settings."""
    source = root / "source"
    settings = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
    assignment = next(a for a in map(load, CHAPTERS) if a.name == settings["assignment"])
    release = source / "exercises" / assignment.name / f"{assignment.notebook}.ipynb"
    row = grade_one(
        root / "submission", assignment, release.read_bytes(), bytes.fromhex(settings["seed"])
    )
    results = as_results(row, assignment, settings["site"])
    (root / "results").mkdir(exist_ok=True)
    write_whole(root / "results" / "results.json", json.dumps(results, indent=1) + "\n")


def grade_one(
    folder: Path, assignment: Assignment, release: bytes, secret: bytes
) -> dict[str, Any]:
    """The row of the one student whose files lie in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "student" / assignment.name  # as `ingest` knows a student's folder
        with contextlib.suppress(shutil.Error):  # of what is no ordinary file; the rest is there
            shutil.copytree(folder, place, symlinks=True)
        (found,) = ingest(place, assignment.name, lambda task: release)
    level = best_level()
    if found.data is None:
        result = refused(assignment, found.problem, level)
    else:
        facts = (found.notebook, found.data, found.suffix, release, level)
        result = run(Work(*facts, secret=secret, files=found.files))
    about = {name: getattr(found, name) for name in ("student", "assignment", "notebook")}
    return about | result | {"notes": [*found.notes, *result["notes"]]}


def as_results(
    row: dict[str, Any], assignment: Assignment, site: str | None = None
) -> dict[str, Any]:
    """A row in Gradescope's form: one test an exercise, whose points Gradescope adds up."""
    facts = as_facts(row, assignment, site)
    right = f"{facts['right']} of {len(facts['exercises'])} exercises are right."
    said = [facts["message"] or right, *facts["notes"]]
    said.append("A person grades the written question; its points come on top of these.")
    return {
        "output": "\n".join(said),
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "execution_time": row["seconds"],
        "extra_data": {"isolation": row["isolation"], "checks": row["checks"]},
        "tests": [_test(exercise) for exercise in facts["exercises"]],
    }


def _test(exercise: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": exercise["name"],
        "score": exercise["points"],
        "max_score": exercise["max_points"],
        "status": "passed" if exercise["status"] == "right" else "failed",
        "output": "\n".join(_lines(exercise)),
        "output_format": "text",
        "visibility": "visible",
    }


def _lines(exercise: dict[str, Any]) -> list[str]:
    """One exercise as the feedback page words it, in plain text."""
    lines = [" ".join(filter(None, (exercise["did"], exercise["causes"], exercise["message"])))]
    if exercise["section"] and exercise["status"] != "right":
        where = f"Where to read: “{exercise['section']}”, chapter {exercise['chapter']}."
        lines.append(" ".join(filter(None, (where, exercise["link"]))))
    if exercise["hint"]:
        lines.append(f"A hint: {exercise['hint']}")
    for case in exercise["cases"]:
        message = f": {case['message']}" if case["message"] and not case["passed"] else ""
        lines.append(f"{_MARKS[case['passed']]} {case['name']}{message}")
    further = exercise["further"]
    if further["of"]:
        lines.append(f"{further['passed']} of {further['of']} further cases pass.")
    lines += [f"✗ {hint}" for hint in exercise["further_hints"]]
    return [line for line in lines if line]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
