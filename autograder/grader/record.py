"""Write results into nbgrader's gradebook, so that Formgrader and `nbgrader export` show them.

One process writes, through nbgrader's own API. Marks that a human gave are never touched. Beside
the gradebook stands `autograded/<student>/<assignment>/<notebook>.ipynb`, which Formgrader shows:
our release's cells with the student's answers in them, and no outputs.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sqlalchemy.exc import SQLAlchemyError

from autograder.grader.database import failed, gradebook_url
from autograder.grader.tools import put_tools_on_path

_OPENERS = (
    re.compile(r"<(?=[A-Za-z/!?])"),  # a tag, a comment, a link in angle brackets
    re.compile(r"!(?=\[)"),  # a picture, which may be fetched from anywhere
    re.compile(r"\](?=\((?!https?://))"),  # a link
    re.compile(r"\](?=:(?!\s*https?://))"),  # a link's address, given apart
    re.compile(r"\\(?=href|require|style|cssId|class|csname)"),  # formulas' own links and styles
    re.compile(r"(?:javascript|vbscript|data)(?=\s*:)", re.IGNORECASE),
)


class RecordError(Exception):
    """The gradebook does not take the results; the text says what to do."""


def record(
    rows: list[dict[str, Any]],
    releases: dict[str, bytes],
    out: Path,
    fresh: set[int],
    db: str | None = None,
) -> None:
    """Write graded and refused rows to `db`, else `out/gradebook.db`, and to `out/autograded`.

    `releases` holds our notebook for each assignment that occurs in the rows, `fresh` the places of
    the rows that are not yet there. Each row then knows what a person marked: `total` and
    `max_total` with all marks, lateness taken off, `waiting` while one is missing, and `remarks`.
    """
    put_tools_on_path()
    known = [row for row in rows if row["assignment"] and row["status"] in ("graded", "refused")]
    if not known:
        return
    out.mkdir(parents=True, exist_ok=True)
    notebooks = {name: nbformat.reads(text.decode(), 4) for name, text in releases.items()}
    try:
        _write(rows, known, notebooks, gradebook_url(db, out), out, fresh)
    except SQLAlchemyError as error:
        raise RecordError(f"{failed(db, error)}. Mend that and run the command again.") from None


def _write(
    rows: list[dict[str, Any]],
    known: list[dict[str, Any]],
    notebooks: dict[str, NotebookNode],
    url: str,
    out: Path,
    fresh: set[int],
) -> None:
    from nbgrader.api import Gradebook

    with Gradebook(url) as gradebook, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="nbgrader")  # of SQLAlchemy, about nbgrader
        for assignment, notebook in {(row["assignment"], row["notebook"]) for row in known}:
            _declare(gradebook, url, assignment, notebook, notebooks[assignment])
        for place, row in enumerate(rows):
            if place not in fresh or row not in known:
                continue
            filled = fill(notebooks[row["assignment"]], row["work"] or {})
            _write_grades(gradebook, row, filled)
            path = out / "autograded" / row["student"] / row["assignment"]
            path.mkdir(parents=True, exist_ok=True)
            nbformat.write(filled, path / f"{row['notebook']}.ipynb")
        for row in known:
            _take_marks(gradebook, row)


def _declare(gradebook: Any, url: str, assignment: str, name: str, notebook: NotebookNode) -> None:
    """Tell the gradebook of an assignment's cells, by nbgrader's own step for it."""
    from nbgrader.preprocessors import SaveCells

    gradebook.update_or_create_assignment(assignment)
    where = {"notebook": name, "assignment": assignment, "student": ".", "db_url": url}
    try:
        SaveCells().preprocess(notebook.copy(), {"nbgrader": where})
    except RuntimeError as error:
        raise RecordError(
            f"The cells of {assignment} have changed since submissions were recorded ({error})."
            " Grade into another folder with --out, or move gradebook.db away to start anew."
        ) from error


def _write_grades(gradebook: Any, row: dict[str, Any], filled: NotebookNode) -> None:
    from nbgrader.utils import compute_checksum, is_grade, is_solution

    student, assignment, notebook = row["student"], row["assignment"], row["notebook"]
    gradebook.update_or_create_student(student)
    gradebook.update_or_create_submission(assignment, student)
    earned = {f"check_{e['name']}": e["points"] for e in row["exercises"]}
    said = {e["name"]: e["message"] for e in row["exercises"]}
    found = gradebook.find_submission_notebook(notebook, assignment, student)
    grades = {grade.name: grade for grade in found.grades}  # a query each would take far longer
    comments = {comment.name: comment for comment in found.comments}
    for cell in filled.cells:
        if "nbgrader" not in cell.metadata:
            continue
        name = cell.metadata.nbgrader["grade_id"]
        blank = cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
        if is_grade(cell):
            grade = grades[name]
            by_hand = is_solution(cell)  # a written question
            grade.auto_score = (0.0 if blank else None) if by_hand else earned.get(name, 0.0)
            grade.needs_manual_grade = grade.auto_score is None and grade.manual_score is None
        if is_solution(cell):
            comment = comments[name]
            comment.auto_comment = said.get(name) or ("No response." if blank else None)
    gradebook.db.commit()


def _take_marks(gradebook: Any, row: dict[str, Any]) -> None:
    """Bring into a row what persons marked, and into the gradebook what lateness costs."""
    from nbgrader.api import MissingEntry

    where = (row["notebook"], row["assignment"], row["student"])
    try:
        notebook = gradebook.find_submission_notebook(*where)
    except MissingEntry:  # of an earlier run, whose gradebook is gone
        return
    penalty = notebook.score * row["penalty_percent"] / 100
    notebook.late_submission_penalty = penalty
    gradebook.db.commit()
    row["total"] = round(max(0.0, notebook.score - penalty), 2)
    row["max_total"] = notebook.max_score
    row["waiting"] = bool(notebook.needs_manual_grade)
    row["remarks"] = [c.manual_comment for c in notebook.comments if c.manual_comment]


def fill(release: NotebookNode, work: dict[str, Any]) -> NotebookNode:
    """Our notebook with a student's answers in place, safe to show."""
    notebook = copy.deepcopy(release)
    answers: dict[str, list[str]] = {}
    for cell in work.get("cells", ()):
        if cell["answer"]:
            answers.setdefault(cell["name"], []).append(cell["source"])
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in answers:
            cell.source = "\n\n".join(answers[name])
        elif name in work.get("written", {}):
            cell.source = defuse(work["written"][name])
    helpers = [cell for cell in work.get("cells", ()) if not cell["answer"]]
    for number, helper in reversed(list(enumerate(helpers))):  # from the end: places stay valid
        added = nbformat.v4.new_code_cell(helper["source"], id=f"helper-{number}")
        notebook.cells.insert(helper["place"], added)
    return notebook


def defuse(markdown: str) -> str:
    """A student's Markdown without HTML and without links or formulas that run code.

    A space after each character that could begin such a thing is enough, whoever reads it: no
    parser takes `< b` for a tag or `] (` for a link. Code and mathematics stay readable.
    """
    for opener in _OPENERS:
        markdown = opener.sub(r"\g<0> ", markdown)
    return markdown
