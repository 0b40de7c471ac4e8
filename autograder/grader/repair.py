"""From the bytes of a submission to the code that its student wrote.

Of what was handed in, only the source of the student's own cells is used. Metadata, tags, outputs,
kernel and locked cells are those of our release, whatever the file says. What can be mended is
mended and noted; what cannot is refused with a reason.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from autograder.engine.exercise import Assignment

MAX_BYTES = 100 * 1024 * 1024  # room for 50 MB of stored output
MAX_CELLS = 500
MAX_SOURCE = 400_000  # characters of code in all
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)

_SHELL = re.compile(r"^\s*(?:[%!?]|```|[\w.]+\s*=\s*[%!](?!=))|\?\s*$")
_HARMLESS_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")
_SCRIPT_CELL = re.compile(r"^# (?:%%|In\[)[^\n]*\n?", re.MULTILINE)


class Refused(Exception):
    """A submission that cannot be read; the text says why, for its student."""


@dataclass(frozen=True)
class Cell:
    """One code cell of the student's: an answer, or a helper they added."""

    name: str  # the exercise's name, or "cell 7"
    source: str
    place: int  # how many cells of the release stand before it
    answer: bool


@dataclass
class Repaired:
    """What a submission amounts to."""

    setup: str  # our set-up cell
    cells: list[Cell] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)  # grade id -> the student's text
    notes: list[str] = field(default_factory=list)

    @property
    def untouched(self) -> bool:
        """Whether it is the release as it was handed out."""
        return not self.cells and not self.written

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Raw:
    """A cell as it stands in a file."""

    kind: str
    source: str
    ids: tuple[str, ...]  # nbgrader's grade id, the cell's own id
    solution: bool = False  # asks for the student's text; believed in our release alone


def repair(data: bytes, suffix: str, assignment: Assignment, release: bytes | None) -> Repaired:
    """The student's code in `data`, a file of that suffix; raises `Refused`.

    `release` is our own notebook. Without it (a student checks on a machine that has only the
    package) the set-up cell is the file's own and demonstrations count as helpers.
    """
    notes: list[str] = []
    raw = _read(data, suffix, notes)
    ours = _read(release, ".ipynb", []) if release is not None else []
    return _Sorter(assignment, ours, notes).sort(raw)


def _read(data: bytes, suffix: str, notes: list[str]) -> list[_Raw]:
    if len(data) > MAX_BYTES:
        raise Refused(f"The file is larger than {MAX_BYTES >> 20} MB. Clear its outputs.")
    text = _decode(data, notes).strip("\0").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise Refused("The file is empty.")
    if not text.lstrip().startswith(("{", "[")):  # as JSON begins, whatever the file is called
        if suffix != ".py" and not (_parses(text) and _defined_in(text)):
            raise Refused(f"The file is not a notebook: it holds {_what(data)}.")
        notes.append("A script was handed in, not a notebook; its code was read all the same.")
        return [_Raw("code", part, ()) for part in _SCRIPT_CELL.split(text) if part.strip()]
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The file is no whole notebook: {_fault(text, error)}") from None
    cells = _cells_of(notebook, notes)
    if len(cells) > MAX_CELLS:
        notes.append(f"Only the first {MAX_CELLS} cells were read.")
    return [_raw(cell) for cell in cells[:MAX_CELLS] if isinstance(cell, dict)]


def _what(data: bytes) -> str:
    """What a file that is no notebook holds, by its first characters."""
    start = data.lstrip()[:200].lower()
    for mark, kind in (
        (b"pk\x03\x04", "a zip archive"),
        (b"%pdf", "a PDF"),
        (b"<", "a web page, or another markup; download the notebook itself"),
        (b"\x89png", "a picture"),
        (b"version https://git-lfs", "a pointer of Git LFS, not what it points to"),
    ):
        if start.startswith(mark):
            return kind
    return "data of another kind" if b"\0" in data[:1000] else "plain text"


def _fault(text: str, error: Exception) -> str:
    """What is wrong with a file that begins as a notebook does."""
    if re.search(r"^(?:<{7}|>{7}) ", text, re.MULTILINE):
        return "it holds the marks of an unfinished merge (<<<<<<<). Resolve them and save it."
    if not isinstance(error, json.JSONDecodeError):
        return "its JSON is broken."
    if error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - 1:
        return "it ends in the middle, as if cut off while it was saved or uploaded."
    return f"its JSON is broken in line {error.lineno}."


def _decode(data: bytes, notes: list[str]) -> str:
    """The text of a file, its encoding known by a byte order mark or by where its zeros stand."""
    encoding = json.detect_encoding(data)
    if encoding != "utf-8":
        notes.append(f"The file is encoded as {encoding}, not plain UTF-8; it was read as that.")
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        notes.append("The file is not UTF-8; it was read as Windows-1252.")
        return data.decode("cp1252", errors="replace")


def _cells_of(notebook: Any, notes: list[str]) -> list[Any]:
    """The cells of a notebook of any format version."""
    if isinstance(notebook, dict):
        cells = notebook.get("cells")
        if isinstance(cells, list):
            return cells
        sheets = notebook.get("worksheets")
        if isinstance(sheets, list):  # formats 2 and 3
            notes.append("The notebook is in an old format; its cells were read all the same.")
            found = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
            return [cell for cells in found if isinstance(cells, list) for cell in cells]
    raise Refused("The file is JSON but not a notebook: it has no list of cells.")


def _raw(cell: dict[str, Any]) -> _Raw:
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    source = source.replace("\r\n", "\n") if isinstance(source, str) else ""
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    ids = tuple(name for name in (grade_id, cell.get("id")) if isinstance(name, str))
    solution = isinstance(nbgrader, dict) and nbgrader.get("solution") is True
    return _Raw(str(cell.get("cell_type")), source, ids, solution)


def _plain(source: str) -> str:
    """A source as cells are compared: trailing blanks do not count."""
    return "\n".join(line.rstrip() for line in source.strip().split("\n"))


class _Sorter:
    """Tells a student's cells from ours."""

    def __init__(self, assignment: Assignment, ours: list[_Raw], notes: list[str]):
        self.notes = notes
        self.names = [exercise.name for exercise in assignment.exercises]
        self.position = {name: i for i, cell in enumerate(ours) for name in cell.ids}
        self.place_of = {_plain(cell.source): i for i, cell in reversed(list(enumerate(ours)))}
        self.release = ours
        self.unsolved = {_plain(cell.source) for cell in ours if cell.kind == "code"}
        self.known = bool(ours)
        self.retyped, self.unmarked = set[str](), set[str]()  # answers not in cells as we gave them

    def sort(self, raw: list[_Raw]) -> Repaired:
        result = Repaired(setup=self._our("setup"), notes=self.notes)
        place, read, stubs = 0, 0, set[str]()
        prose: list[tuple[int, int, str]] = []  # number, place and text of cells without a mark
        for number, cell in enumerate(raw, start=1):
            at = self._position_of(cell)
            place = max(place, at + 1) if at is not None else place
            name = self._answer_name(cell) if len(cell.source) <= MAX_SOURCE else None
            written = next((i for i in cell.ids if self._is_written(i)), None)
            if len(cell.source) + read > MAX_SOURCE:
                self._note(f"From cell {number} on there is too much code; it was left out.")
                break
            read += len(cell.source)
            if _plain(cell.source) in self.unsolved:
                stubs |= {name} if name else set()
            elif written is not None and name is None:
                self._write(result.written, written, cell)
            elif name is None and cell.kind != "code":
                if cell.source.strip() and at is None:
                    prose.append((number, place, cell.source))
            elif name is not None:
                self.retyped |= {name} if cell.kind != "code" else set()
                self.unmarked |= {name} if name not in cell.ids else set()
                result.cells.append(Cell(name, self._code(cell.source, name), place, True))
            elif cell.source.strip():
                self._add_helper(result, cell, number, place)
        self._recover_written(result.written, prose)
        self._note_answers(result, stubs)
        return result

    def _our(self, grade_id: str) -> str:
        at = self.position.get(grade_id)
        return self.release[at].source if at is not None else ""

    def _position_of(self, cell: _Raw) -> int | None:
        """Which cell of the release this is: by its ids, else by its text."""
        by_id = next((self.position[i] for i in cell.ids if i in self.position), None)
        return by_id if by_id is not None else self.place_of.get(_plain(cell.source))

    def _is_written(self, name: str) -> bool:
        at = self.position.get(name)
        return at is not None and self.release[at].solution and name not in self.names

    def _answer_name(self, cell: _Raw) -> str | None:
        """The exercise that a cell answers: by what it defines, else by its id."""
        by_id = next((name for name in cell.ids if name in self.names), None)
        if cell.kind != "code":
            return by_id if by_id and _defined_in(cell.source) else None
        if by_id:
            return by_id
        defined = _defined_in(cell.source)
        return next((name for name in self.names if name in defined), None)

    def _add_helper(self, result: Repaired, cell: _Raw, number: int, place: int) -> None:
        source = self._code(cell.source, f"cell {number}")
        at = self._position_of(cell)
        if at is not None:  # one of our own cells, edited: keep what it defines, not what it does
            source = definitions(source)
            self._note(f"Cell {number} is one of ours, edited; only what it defines was used.")
        if source.strip():
            result.cells.append(Cell(f"cell {number}", source, place, False))

    def _write(self, written: dict[str, str], name: str, cell: _Raw) -> None:
        if _plain(cell.source) != _plain(self.release[self.position[name]].source):
            written[name] = cell.source

    def _recover_written(self, written: dict[str, str], prose: list[tuple[int, int, str]]) -> None:
        """Find answers that lost their mark, or were given in a cell beside the one meant.

        A cell that still holds the question's first paragraph is the answer; failing that, the
        text that stands where the question stood, or next to it.
        """
        for name, at in self.position.items():
            if name in written or not self._is_written(name):
                continue
            question = _plain(self.release[at].source).partition("\n\n")[0]
            quoting = [cell for cell in prose if question in _plain(cell[2])]
            found = quoting or [cell for cell in prose if cell[1] in (at, at + 1)]
            if found:
                written[name] = "\n\n".join(text for _, _, text in found)
                numbers = ", ".join(str(number) for number, _, _ in found)
                self._note(f"The written answer was taken from cell {numbers}, which has no mark.")

    def _note_answers(self, result: Repaired, stubs: set[str]) -> None:
        """Say of all answers at once what is odd about their cells."""
        answers = [cell for cell in result.cells if cell.answer]
        count = Counter(cell.name for cell in answers)
        several = {name for name in count if count[name] > 1}
        there = stubs.union(count, *(_defined_in(cell.source) for cell in answers))
        missing = set(self.names) - there if self.known else set()
        for what, found in (
            ("Cells that were no code any more were run as code", self.retyped),
            ("Cells without their mark were taken for what they define", self.unmarked),
            ("Answers in several cells were run in order", several),
            ("Missing from the notebook", missing),
        ):
            names = ", ".join(f"`{name}`" for name in self.names if name in found)
            if names:
                self._note(f"{what}: {names}.")

    def _code(self, source: str, name: str) -> str:
        """Plain Python: lines of another language are left out where they stand in the way."""
        if _parses(source):
            return source
        mended = _without_shell(source)
        if mended != source and _parses(mended):
            self._note(f"In {name}, lines for IPython, the shell or Markdown were left out.")
            return mended
        return source

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except UNPARSABLE:
        return False
    return True


def _without_shell(source: str) -> str:
    first, _, rest = source.lstrip().partition("\n")
    if first.startswith("%%"):
        return rest if first.split()[0] in _HARMLESS_MAGICS else ""
    lines = source.split("\n")
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + "pass" if _SHELL.search(line) else line
        for line in lines
    )


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def definitions(source: str) -> str:
    """The imports, functions, classes and constants of a cell, without what it does."""

    def stays(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return not any(isinstance(part, ast.Call) for part in ast.walk(node.value))
        return isinstance(node, _DEFINITIONS)

    try:
        body = ast.parse(source).body
    except UNPARSABLE:
        return ""
    return "\n".join(_text(node) or "" for node in body if stays(node))


def _text(node: ast.stmt) -> str | None:
    """A statement's source; None where it is nested too deeply to be written."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return None


def _bound_by(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, _DEFINITIONS[:3]):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _defined_in(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except UNPARSABLE:  # a cell with a syntax error is still its exercise's cell
        return set(re.findall(r"^(?:def|class)\s+(\w+)", source, re.MULTILINE))
    return {name for node in body for name in _bound_by(node) if not isinstance(node, ast.Import)}


def source_behind(name: str, sources: list[str]) -> str:
    """The statements that `name` rests on, its own definition and whatever those use in turn."""
    binding: dict[str, list[int]] = {}  # name -> the numbers of the statements that bind it
    statements: list[_Statement] = []
    for source in sources:
        for statement in _statements(source):
            for bound in statement.binds:
                binding.setdefault(bound, []).append(len(statements))
            statements.append(statement)
    names, taken = [name], set[int]()
    while names:
        for number in binding.pop(names.pop(), ()):
            taken.add(number)
            names += statements[number].reads
    return "\n".join(dict.fromkeys(statements[number].text for number in sorted(taken)))


class _Statement(NamedTuple):
    """A top-level statement: the names it binds and mentions, and its source."""

    binds: set[str]
    reads: set[str]
    text: str


@functools.lru_cache(maxsize=64)  # each exercise of a submission looks at the same cells
def _statements(source: str) -> list[_Statement]:
    try:
        body = ast.parse(source).body
    except UNPARSABLE:
        return []
    return [_Statement(_bound_by(node), _mentioned(node), _text(node) or source) for node in body]


def _mentioned(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
