"""Find what students handed in, and read it without following it anywhere.

Understood are one file; a folder with one file or one folder per student; nbgrader's tree
`submitted/<student>/<assignment>/`; the downloads of Canvas, Moodle and Gradescope; and zip
archives of all these. Whatever stands where work is expected becomes one `Submission`, readable or
not, so that every student gets a row.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment, HandedIn, files_beside, too_large
from autograder.grader.archive import Entry, entries_of
from autograder.grader.lms import METADATA, Person, read_metadata, recognize
from autograder.grader.repair import Refused, repair

SUFFIXES = (".ipynb", ".py")
MAX_FILES = 200  # of one student
MAX_TRIED = 20  # files of one student that are read to see which one counts
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')

Releases = Callable[[Assignment], bytes | None]


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
    submitted: str = ""  # when, in UTC
    person: dict[str, str] = field(default_factory=dict)  # what Canvas, Moodle or Gradescope knows
    files: tuple[tuple[str, HandedIn], ...] = ()  # that the assignment asks for, by name


@dataclass
class _File:
    """One file of a student's."""

    entry: Entry
    person: Person
    data: bytes | None = None
    worth: int = 0  # 2: work, 1: the release as it was handed out, 0: unreadable

    @property
    def name(self) -> str:
        return self.person.original or self.entry.name

    @property
    def suffix(self) -> str:
        return _plain(self.name).suffix.lower()

    @property
    def time(self) -> float:
        return self.person.submitted or self.entry.time


def _plain(name: str) -> Path:
    """A file's name without what browsers append to it: `rnn.ipynb.txt`, `rnn.ipynb.json`."""
    return Path(re.sub(r"(\.ipynb)\.\w+$", r"\1", name, flags=re.IGNORECASE))


def ingest(
    path: Path, assignment: str | None = None, release: Releases = lambda assignment: None
) -> list[Submission]:
    """All submissions under `path`, by student; `assignment` settles which work it is.

    `release` gives our own notebook of an assignment, to tell work from untouched copies.
    """
    known = {found.name: found for found in map(load, CHAPTERS)}
    if assignment is not None and assignment not in known:
        raise IngestError(f"No assignment {assignment!r}. There are: {', '.join(known)}.")
    if not path.exists():
        raise IngestError(f"{path} does not exist.")
    entries = _relevant(_placed(path, known))
    metadata = _metadata(entries)
    by_student: dict[str, list[_File]] = {}
    for entry in entries:
        for person in _people(entry, known, metadata):
            by_student.setdefault(person.student, []).append(_File(entry, person))
    found = list[Submission]()
    for student, files in by_student.items():
        found += _Student(student, files, known, release).submissions(assignment)
    if not found:
        raise IngestError(
            f"{path} holds no notebook and no student's folder. Give a notebook, a folder of"
            " notebooks, a zip archive from Canvas, Moodle or Gradescope, or nbgrader's"
            " submitted/<student>/<assignment>/ tree."
        )
    if path.is_file() and path.suffix.lower() in SUFFIXES:  # one notebook, where it was written
        found = [
            replace(one, files=tuple(files_beside(path.parent, known[one.assignment]).items()))
            for one in found
            if one.assignment
        ] or found
    return sorted(_like_the_class(found, known), key=lambda s: (s.student, s.assignment))


def _placed(path: Path, known: dict[str, Assignment]) -> list[Entry]:
    """The entries, led by the folders above `path` where those name student and assignment."""
    entries, above = entries_of(path), path.resolve().parts
    if not path.is_dir():
        above = above[:-1]
    lead: tuple[str, ...] = ()
    if len(above) > 1 and above[-1] in known:  # submitted/<student>/<assignment>
        lead = above[-2:]
    elif path.is_dir() and any(entry.parts[0] in known for entry in entries):  # one student's
        lead = above[-1:]
    if path.is_dir() and not entries and lead:
        entries = [Entry(())]
    return [replace(entry, parts=(*lead, *entry.parts)) for entry in entries]


def _relevant(entries: list[Entry]) -> list[Entry]:
    """Without what systems leave behind, and without one folder around everything."""

    def is_left(part: str) -> bool:
        return part.startswith((".", "__MACOSX"))

    kept = [entry for entry in entries if not any(map(is_left, entry.parts))]
    tops = {entry.parts[0] for entry in kept}
    bare = {entry.parts[0] for entry in entries if not is_left(entry.parts[0])} - tops
    kept += [Entry((top,)) for top in sorted(bare)]  # a student may have nothing else
    inner = [replace(entry, parts=entry.parts[1:]) for entry in kept if len(entry.parts) > 1]
    names = {entry.parts[0] for entry in inner}
    is_class = METADATA in names or any(recognize(name, {}) for name in names)
    if len(tops) == 1 and is_class and not recognize(tops.pop(), {}):
        return inner
    return kept


def _metadata(entries: list[Entry]) -> dict[str, list[Person]]:
    for entry in entries:
        if entry.parts == (METADATA,):
            try:
                return read_metadata(entry.read())
            except OSError:
                return {}
    return {}


def _people(
    entry: Entry, known: dict[str, Assignment], metadata: dict[str, list[Person]]
) -> list[Person]:
    """The students to whom an entry belongs."""
    top, alone = entry.parts[0], len(entry.parts) == 1
    if people := recognize(top, metadata):
        return [_safe(person if alone else replace(person, original="")) for person in people]
    for place, part in enumerate(entry.parts):
        if part in known and place > 0:  # nbgrader's tree, in whatever folder
            return [_safe(Person(entry.parts[place - 1].removesuffix(".zip")))]
    is_file = alone and entry.load is not None and not entry.problem
    if is_file and _plain(top).suffix.lower() not in SUFFIXES:
        return []  # a file of the instructor's: a list of names, a remark
    is_named_after = is_file or top.lower().endswith(".zip")
    return [_safe(Person(_student_of(top, known) if is_named_after else top))]


def _safe(person: Person) -> Person:
    """With a name that may be a folder's, here and elsewhere."""
    name = _UNSAFE.sub("_", person.student).strip(". ")[:80]
    return replace(person, student=name or "student")


def _student_of(file_name: str, known: dict[str, Assignment]) -> str:
    """The student that a file is named after: `ada_rnn.ipynb`, `rnn-ada.ipynb` and the like."""
    stem = _plain(file_name).stem
    for name in (a.notebook for a in known.values()):
        bare = re.sub(rf"(?:^|[-_. ]+){re.escape(name)}(?=$|[-_. ])|^{re.escape(name)}", "", stem)
        if bare != stem:
            return bare.strip("-_. ") or "student"
    return stem or "student"


class _Student:
    """What one student handed in."""

    def __init__(
        self, student: str, files: list[_File], known: dict[str, Assignment], release: Releases
    ):
        self.student, self.known, self.release = student, known, release
        self.all = files
        self.stamp = next((f for f in files if f.entry.name == "timestamp.txt"), None)
        readable = [f for f in files if f.entry.load is not None and not f.entry.problem]
        self.files = [f for f in readable if f.suffix in SUFFIXES][:MAX_FILES]
        self.notes = list(dict.fromkeys(f.entry.problem for f in files if f.entry.problem))[:5]
        if len(readable) > MAX_FILES:
            self.notes.append(f"Only the first {MAX_FILES} files were looked at.")

    def submissions(self, wanted: str | None) -> list[Submission]:
        """One for each assignment that there is work on, or a folder for work."""
        folders = {task.name for f in self.all if (task := self._task_by_path(f))}
        tasks: dict[str, list[_File]] = {}
        for file in self.files:
            task = self._task_by_path(file) or self._task_by_name(file)
            task = task or self.known.get(wanted or "") or self._task_by_content(file)
            tasks.setdefault(task.name if task else "", []).append(file)
        if len(tasks) > 1:  # files that tell nothing, beside some that do
            tasks.pop("", None)
        if wanted and wanted not in tasks and not folders and tasks:  # a misleading name
            tasks = {wanted: self.files}
        empty = folders - tasks.keys() if tasks or folders else {wanted or ""}
        rows = [self._nothing(self.known.get(name)) for name in empty]
        rows += [self._submission(self.known.get(name), files) for name, files in tasks.items()]
        return [row for row in rows if wanted in (None, row.assignment)]

    def _nothing(self, task: Assignment | None) -> Submission:
        readable = [f.name for f in self.all if f.entry.load is not None and not f.entry.problem]
        there = f" Handed in: {', '.join(sorted(readable)[:5])}." if readable else ""
        problem = next(iter(self.notes), "") if not readable else ""
        return Submission(
            self.student,
            task.name if task else "",
            task.notebook if task else "",
            "/".join(self.all[0].entry.parts),
            problem=problem or f"Nothing to grade was handed in: no notebook was found.{there}",
            notes=tuple(self.notes),
            person=self.all[0].person.facts,
        )

    def _submission(self, task: Assignment | None, files: list[_File]) -> Submission:
        notes = list(self.notes)
        chosen = self._choose(files, task, notes)
        problem = ""
        if chosen.data is None:
            try:
                chosen.data = chosen.entry.read()
            except OSError as error:
                problem = str(error.strerror or error)
        if chosen.data is not None and task is None:
            problem = "It cannot be told which assignment this is. Name it with --assignment."
            problem = problem if chosen.data.strip() else f"The file is empty. {problem}"
        return Submission(
            self.student,
            task.name if task else "",
            task.notebook if task else "",
            "/".join(chosen.entry.parts),
            chosen.suffix,
            chosen.data,
            problem,
            tuple(notes),
            self._submitted(chosen),
            chosen.person.facts,
            tuple(self._beside(chosen, task)),
        )

    def _beside(self, chosen: _File, task: Assignment | None) -> Iterator[tuple[str, HandedIn]]:
        """The files that the assignment asks for: those in the notebook's folder, else the latest.

        No more of a file is read than it may be long.
        """
        for name, most in task.files.items() if task else ():
            found = [file for file in self.all if file.name.lower() == name]
            found = [file for file in found if self._task_by_path(file) in (None, task)]
            if not found:
                continue
            here = chosen.entry.parts[:-1]
            file = max(found, key=lambda file: (file.entry.parts[:-1] == here, file.time))
            try:
                data = file.entry.read(most)
            except OSError as error:
                yield name, HandedIn(problem=str(error.strerror or error))
                continue
            whole = len(data) <= most
            yield name, HandedIn(data) if whole else HandedIn(problem=too_large(name, most))

    def _submitted(self, chosen: _File) -> str:
        """When it was handed in: by nbgrader's own note, else by system or time stamp."""
        when = chosen.time
        if self.stamp is not None:
            try:
                text = self.stamp.entry.read()[:40].decode("ascii", "replace").strip()
                zone = datetime.datetime.fromisoformat(text.removesuffix(" UTC"))
                when = zone.replace(tzinfo=zone.tzinfo or datetime.UTC).timestamp()
            except (OSError, ValueError):
                pass
        if not when:
            return ""
        return datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat(timespec="seconds")

    def _task_by_path(self, file: _File) -> Assignment | None:
        return next((self.known[part] for part in file.entry.parts if part in self.known), None)

    def _task_by_name(self, file: _File) -> Assignment | None:
        stem = Path(file.name).stem.lower()
        names = {a.notebook: a for a in self.known.values()}
        for name in sorted(names, key=len, reverse=True):
            if re.search(rf"(?:^|[^a-z]){re.escape(name)}(?:$|[^a-z0-9])", stem):
                return names[name]
        return None

    def _task_by_content(self, file: _File) -> Assignment | None:
        """The assignment most of whose graded names the file defines."""
        try:
            file.data = data = file.entry.read()
        except OSError:
            return None

        def count(assignment: Assignment) -> int:
            names = [exercise.name.encode() for exercise in assignment.exercises]
            return sum(b"def " + name in data or b"class " + name in data for name in names)

        best = max(self.known.values(), key=count)
        return best if count(best) else None

    def _choose(self, files: list[_File], task: Assignment | None, notes: list[str]) -> _File:
        """The latest; but what is untouched or unreadable never comes before work."""

        def rank(file: _File) -> tuple[int, bool, int, float, bool]:
            right = task is not None and Path(file.name).stem == task.notebook
            notebook = file.suffix == ".ipynb"
            return file.worth, notebook, file.person.attempt, file.time, right

        if len(files) > 1:
            files = sorted(files, key=rank)[-MAX_TRIED:]
            for file in files:
                self._weigh(file, task)
        chosen, latest = max(files, key=rank), max(files, key=lambda file: rank(file)[1:])
        for file in files:
            if file is not chosen:
                file.data = None
        if task and Path(chosen.name).stem != task.notebook:
            notes.append(f"The file is named {chosen.name}, not {task.notebook}.ipynb; graded.")
        if len(files) > 1:
            which = "the latest" if chosen is latest else "the latest with work in it"
            notes.append(
                f"Several attempts: of {len(files)} files, {chosen.name}, {which}, counts."
            )
        return chosen

    def _weigh(self, file: _File, task: Assignment | None) -> None:
        """Read a file to see whether there is work in it."""
        try:
            file.data = file.data if file.data is not None else file.entry.read()
            if task is not None:
                repaired = repair(file.data, file.suffix, task, self.release(task))
                file.worth = 1 if repaired.untouched else 2
        except (OSError, Refused):
            file.worth = 0


def _like_the_class(found: list[Submission], known: dict[str, Assignment]) -> list[Submission]:
    """Where the whole class did one assignment, so did who does not say."""
    named = {one.assignment for one in found} - {""}
    if len(named) != 1:
        return found
    task = known[named.pop()]
    note = f"Nothing in it tells which assignment it is; taken for {task.name}, like the others."
    return [
        one
        if one.assignment
        else replace(
            one,
            assignment=task.name,
            notebook=task.notebook,
            problem="" if one.data is not None else one.problem,
            notes=(*one.notes, note),
        )
        for one in found
    ]
