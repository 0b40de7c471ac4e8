"""Write results into nbgrader's gradebook, so that Formgrader and `nbgrader export` show them.

One thread writes, through nbgrader's own API. Marks that a human gave are never touched. Beside
the gradebook stands `autograded/<student>/<assignment>/<notebook>.ipynb`, which Formgrader shows:
our release's cells with the student's answers in them, and no outputs.
"""

from __future__ import annotations

import copy
import queue
import re
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import (
    Session,
    contains_eager,
    scoped_session,
    selectinload,
    sessionmaker,
    undefer,
)

from autograder.grader.database import failed, gradebook_url
from autograder.grader.tools import put_tools_on_path

Releases = dict[tuple[str, str], bytes]  # our notebook by assignment and notebook's name
TOGETHER = 500  # students whose marks one query asks for
# nbgrader's tables have no index on what its own queries for one student look up.
_INDEXES = tuple(
    text(f"CREATE INDEX IF NOT EXISTS {table}_of_notebook ON {table} (notebook_id)")
    for table in ("grade", "comment")
)
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


class Recorder:
    """Writes rows while others are still graded, in a thread of its own.

    They go to `db`, else `out/gradebook.db`, and to `out/autograded`. `releases` holds what occurs
    in the rows. All that waits is written in one transaction, since each waits for the disk.
    """

    def __init__(self, releases: Releases, out: Path, db: str | None = None):
        put_tools_on_path()
        self.releases = {key: nbformat.reads(data.decode(), 4) for key, data in releases.items()}
        self.url, self.out, self.db = gradebook_url(db, out), out, db
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._known: list[dict[str, Any]] = []
        self._pool = ThreadPoolExecutor(1)
        self._done: Future[None] | None = None

    def __enter__(self) -> Recorder:
        if self.releases:
            self._done = self._pool.submit(self._serve)
        return self

    def __exit__(self, *ended: object) -> None:
        self._rows.put(None)
        self._pool.shutdown()

    def write(self, row: dict[str, Any]) -> None:
        """Have a row written if a gradebook has a place for it."""
        if _belongs(row):
            self._rows.put(row)

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """Wait until all is written; each of `rows`, lateness known, is then told of its marks.

        It gets `total` and `max_total` with all marks, lateness taken off, `waiting` while one is
        missing, and `remarks`. Raises `RecordError`.
        """
        self._known = [row for row in rows if _belongs(row)]
        self._rows.put(None)
        try:
            if self._done is not None:
                self._done.result()
        except SQLAlchemyError as error:
            said = failed(self.db, error)
            raise RecordError(f"{said}. Mend that and run the command again.") from None

    def _serve(self) -> None:
        from nbgrader.api import Gradebook

        self.out.mkdir(parents=True, exist_ok=True)
        with Gradebook(self.url) as gradebook, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="nbgrader")  # of SQLAlchemy, about nbgrader
            for (assignment, name), notebook in self.releases.items():
                _declare(gradebook, self.url, assignment, name, notebook)
            gradebook.db = scoped_session(sessionmaker(gradebook.engine, class_=_Session))
            session = gradebook.db()
            for index in _INDEXES:
                session.execute(index)
            session.keep()
            for row in iter(self._rows.get, None):
                self._write(gradebook, row)
                if self._rows.empty():
                    session.keep()
            session.keep()
            for assignment, _ in self.releases:
                _take_marks(gradebook, assignment, self._known)
            session.keep()

    def _write(self, gradebook: Any, row: dict[str, Any]) -> None:
        filled = fill(self.releases[row["assignment"], row["notebook"]], row["work"] or {})
        _write_grades(gradebook, row, filled)
        path = self.out / "autograded" / row["student"] / row["assignment"]
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{row['notebook']}.ipynb").write_text(nbformat.v4.writes(filled), "utf-8")


class _Session(Session):
    """Keeps what nbgrader's API would commit step by step until it is told to."""

    def commit(self) -> None:
        self.flush()

    def keep(self) -> None:
        super().commit()


def _belongs(row: dict[str, Any]) -> bool:
    return bool(row["assignment"]) and row["status"] in ("graded", "refused")


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

    gradebook.update_or_create_student(row["student"])
    submission = gradebook.update_or_create_submission(row["assignment"], row["student"])
    earned = {f"check_{e['name']}": e["points"] for e in row["exercises"]}
    said = {e["name"]: e["message"] for e in row["exercises"]}
    (found,) = submission.notebooks
    cells = (*found.notebook.grade_cells, *found.notebook.solution_cells)
    names = {cell.id: cell.name for cell in cells}
    grades = {names[grade.cell_id]: grade for grade in found.grades}
    comments = {names[comment.cell_id]: comment for comment in found.comments}
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


def _take_marks(gradebook: Any, assignment: str, rows: list[dict[str, Any]]) -> None:
    """Bring into rows what persons marked, and into the gradebook what lateness costs."""
    from nbgrader.api import SubmittedAssignment, SubmittedNotebook

    of_student = {row["student"]: row for row in rows if row["assignment"] == assignment}
    students = list(of_student)
    query = (
        gradebook.db.query(SubmittedNotebook)
        .join(SubmittedNotebook.assignment)
        .filter(SubmittedAssignment.assignment_id == gradebook.find_assignment(assignment).id)
        .options(
            contains_eager(SubmittedNotebook.assignment),
            selectinload(SubmittedNotebook.comments),
            undefer(SubmittedNotebook.score),
            undefer(SubmittedNotebook.max_score),
            undefer(SubmittedNotebook.needs_manual_grade),
        )
    )
    for start in range(0, len(students), TOGETHER):
        some = SubmittedAssignment.student_id.in_(students[start : start + TOGETHER])
        for notebook in query.filter(some):
            row = of_student[notebook.assignment.student_id]
            penalty = notebook.score * row["penalty_percent"] / 100
            notebook.late_submission_penalty = penalty
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
