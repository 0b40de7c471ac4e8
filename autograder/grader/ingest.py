"""Find what students handed in, and read it without following it anywhere.

Three shapes are understood: one file; a folder with one file or one folder per student; nbgrader's
tree `submitted/<student>/<assignment>/`. Whatever stands where work is expected becomes one
`Submission`, readable or not, so that every student gets a row.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.repair import MAX_BYTES

SUFFIXES = (".ipynb", ".py")
MAX_DEPTH, MAX_FILES = 4, 200  # of one student's folder


class IngestError(Exception):
    """A path that cannot be graded at all; the text says what to give instead."""


@dataclass(frozen=True)
class Submission:
    """One student's work on one assignment, as it was handed in."""

    student: str
    assignment: str  # "" where nothing tells which it is
    notebook: str
    path: str
    suffix: str = ".ipynb"
    data: bytes | None = None
    problem: str = ""  # why there is no data
    notes: tuple[str, ...] = field(default=())


def ingest(path: Path, assignment: str | None = None) -> list[Submission]:
    """All submissions under `path`, by student; `assignment` settles which work it is."""
    known = {found.name: found for found in map(load, CHAPTERS)}
    if assignment is not None and assignment not in known:
        raise IngestError(f"No assignment {assignment!r}. There are: {', '.join(known)}.")
    if not path.exists():
        raise IngestError(f"{path} does not exist.")
    if not path.is_dir():
        inside = _in_tree(path, known)
        student = inside[0] if inside else _student_of(path, known)
        return [_submission(student, [path], [], known, assignment or (inside and inside[1]))]
    if path.name in known and not _folders(path):  # submitted/<student>/<assignment>
        return [_from_folder(path.resolve().parent.name, path, known, assignment or path.name)]
    students = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    if any(folder.name in known for folder in _folders(path)):  # one student of a tree
        students, path = [path], path.resolve().parent
    found = []
    for entry in students:
        tasks = [task for task in _folders(entry) if task.name in known]
        if tasks:
            wanted = [task for task in tasks if assignment in (None, task.name)]
            found += [_from_folder(entry.name, task, known, task.name) for task in wanted]
        elif entry.is_dir() and not entry.is_symlink():
            found.append(_from_folder(entry.name, entry, known, assignment))
        elif entry.suffix in SUFFIXES or not entry.is_file():
            student = _student_of(entry, known)
            found.append(_submission(student, [entry], [], known, assignment))
    if not found:
        raise IngestError(
            f"{path} holds no notebook and no student's folder. Give a notebook, a folder of"
            " notebooks, or nbgrader's submitted/<student>/<assignment>/ tree."
        )
    return _one_row_each(found)


def _folders(path: Path) -> list[Path]:
    if path.is_symlink() or not path.is_dir():
        return []
    return sorted(e for e in path.iterdir() if e.is_dir() and not e.is_symlink())


def _in_tree(path: Path, known: dict[str, Assignment]) -> tuple[str, str] | None:
    """(student, assignment) of a file that lies in nbgrader's tree."""
    parents = path.resolve().parents
    if len(parents) > 1 and parents[0].name in known and parents[1].name:
        return parents[1].name, parents[0].name
    return None


def _student_of(path: Path, known: dict[str, Assignment]) -> str:
    """The student that a file is named after: `ada_rnn.ipynb`, `rnn-ada.ipynb` and the like."""
    stem = path.stem
    for name in (a.notebook for a in known.values()):
        bare = re.sub(rf"(?:^|[-_. ]+){re.escape(name)}(?=$|[-_. ])|^{re.escape(name)}", "", stem)
        if bare != stem:
            return bare.strip("-_. ") or "student"
    return stem or "student"


def _from_folder(
    student: str, folder: Path, known: dict[str, Assignment], assignment: str | None
) -> Submission:
    """The one file of a folder that counts, links and other traps left alone."""
    files, notes = list[Path](), list[str]()
    for place, folders, names in os.walk(folder, followlinks=False):
        here = Path(place)
        if len(here.relative_to(folder).parts) >= MAX_DEPTH:
            folders.clear()
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for name in sorted([*names, *(n for n in folders if (here / n).is_symlink())]):
            entry = here / name
            if not stat.S_ISREG(entry.lstat().st_mode):
                notes.append(f"{name} is no ordinary file and was not opened.")
            elif entry.suffix in SUFFIXES and not name.startswith("."):
                files.append(entry)
        if len(files) >= MAX_FILES:
            notes.append(f"Only the first {MAX_FILES} files were looked at.")
            break
    return _submission(student, files, notes[:5], known, assignment, folder)


def _submission(
    student: str,
    files: list[Path],
    notes: list[str],
    known: dict[str, Assignment],
    assignment: str | None,
    folder: Path | None = None,
) -> Submission:
    target = known.get(assignment) if assignment else _guess(files, known)
    name, notebook = (target.name, target.notebook) if target else ("", "")
    if not files:
        problem = "Nothing to grade was handed in: no notebook was found in the folder."
        where = str(folder or "")
        return Submission(student, name, notebook, where, problem=problem, notes=tuple(notes))
    chosen = _choose(files, notebook, notes)
    try:
        data, problem = _read(chosen), ""
    except OSError as error:
        data, problem = None, str(error.strerror or error)
    if data is not None and target is None:
        target = _guess_by_content(data, known)
        name, notebook = (target.name, target.notebook) if target else ("", "")
        if target is None:
            problem = "It cannot be told which assignment this is. Name it with --assignment."
            problem = problem if data.strip() else f"The file is empty. {problem}"
    return Submission(
        student, name, notebook, str(chosen), chosen.suffix, data, problem, tuple(notes)
    )


def _guess(files: list[Path], known: dict[str, Assignment]) -> Assignment | None:
    """The assignment whose name, or whose notebook's name, stands in a path."""
    for assignment in known.values():
        notebook = re.compile(rf"(?:^|[^a-z]){re.escape(assignment.notebook)}(?:$|[^a-z0-9])")
        for file in files:
            if assignment.name in file.parts or notebook.search(file.stem):
                return assignment
    return None


def _guess_by_content(data: bytes, known: dict[str, Assignment]) -> Assignment | None:
    """The assignment most of whose graded names the file defines."""

    def count(assignment: Assignment) -> int:
        names = [exercise.name.encode() for exercise in assignment.exercises]
        return sum(b"def " + name in data or b"class " + name in data for name in names)

    best = max(known.values(), key=count)
    return best if count(best) else None


def _choose(files: list[Path], notebook: str, notes: list[str]) -> Path:
    """The right name before others, notebooks before scripts, the latest of several."""

    def rank(path: Path) -> tuple[bool, bool, float]:
        return path.stem == notebook, path.suffix == ".ipynb", path.lstat().st_mtime

    chosen = max(files, key=rank)
    if notebook and chosen.stem != notebook:
        notes.append(f"The file is named {chosen.name}, not {notebook}.ipynb; it was graded.")
    if len(files) > 1:
        notes.append(f"Of {len(files)} files, {chosen.name} was graded.")
    return chosen


def _read(path: Path) -> bytes:
    """The bytes of an ordinary file, read through no link and no pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise OSError(0, "The file is a link and was not followed.")
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "This is no ordinary file; it was not read.")
        return file.read(MAX_BYTES + 1)  # one too many is refused with a reason


def _one_row_each(found: list[Submission]) -> list[Submission]:
    """Several files of one student on one assignment: the last by modification time counts."""
    latest: dict[tuple[str, str], Submission] = {}
    for one in sorted(found, key=lambda s: os.lstat(s.path).st_mtime if s.path else 0.0):
        before = latest.get((one.student, one.assignment))
        if before is not None:
            note = f"Several attempts: {Path(one.path).name} is the latest and was graded."
            one = Submission(**{**one.__dict__, "notes": (*one.notes, note)})
        latest[one.student, one.assignment] = one
    return sorted(latest.values(), key=lambda s: (s.student, s.assignment))
