"""Turn `solutions/*.py`, the one source of each exercise, into the notebooks of `exercises/`.

A source is a py:percent notebook whose cell markers carry short metadata: `setup=true`,
`answer="name"`, `check="name"`, `written="id" points=2`. An answer marked `broken=true` is handed
over with mistakes in it: they stand beneath the solution, which returns before them, and the
student gets them in place of a stub. The release writes nbgrader's source
notebooks to `build/source`, runs nbgrader's own `generate_assignment` on them, and strips what
would differ from one machine to the next. The same sources always give the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.tools import put_tools_on_path
from course.fingerprint import hash_files

INPUTS = (
    "_config.yml",
    "solutions/*.py",
    "autograder/checks/*.py",
    "autograder/engine/*.py",
    "course/release.py",
    "exercises/*/*.ipynb",
)
HINTS = re.compile(r"<!-- hints: (\w+) -->")
HINT_TITLES = ("Hint 1: a question", "Hint 2: a direction", "Hint 3: a shape or a formula")
NBGRADER = {"schema_version": 3, "task": False}
WRITTEN_STUB = "*Your answer here.*"
SOLUTION = re.compile(r"^ *### BEGIN SOLUTION\n.*?### END SOLUTION\n", re.M | re.S)
CODE_STUB = re.compile(r"^ *# YOUR CODE HERE\n *raise NotImplementedError\(\)\n", re.M)


class ReleaseError(Exception):
    """A source that cannot be released; the text names the file, the problem and the remedy."""


@dataclass(frozen=True)
class Released:
    """One released notebook."""

    assignment: str
    path: Path
    points: float
    changed: bool


def source_of(root: Path, assignment: Assignment) -> Path:
    """`solutions/05_self_attention.py` for the assignment `05-self-attention`."""
    return root / "solutions" / f"{assignment.page}.py"


def exercise_of(root: Path, assignment: Assignment) -> Path:
    """`exercises/05-self-attention/self_attention.ipynb`."""
    return root / "exercises" / assignment.name / f"{assignment.notebook}.ipynb"


def release(root: Path, fresh: bool = True) -> list[Released]:
    """Regenerate every notebook of `exercises/` and nbgrader's `build/source`.

    Unless `fresh`, nothing is done when neither the sources nor the notebooks changed.
    """
    assignments = [load(chapter) for chapter in CHAPTERS]
    stamp_file = root / "build" / "released-from"
    if not fresh and stamp_file.is_file() and stamp_file.read_text("utf-8") == _stamp(root):
        return [_unchanged(exercise_of(root, assignment)) for assignment in assignments]
    released = _release_all(root, assignments)
    stamp_file.write_text(_stamp(root), "utf-8")
    return released


def _stamp(root: Path) -> str:
    inputs = (root.glob(pattern) for pattern in INPUTS)
    return hash_files(root, itertools.chain.from_iterable(inputs))


def _unchanged(path: Path) -> Released:
    facts = nbformat.read(path, as_version=4).metadata["rnn2gpt"]
    return Released(facts["assignment"], path, facts["points"], changed=False)


def _release_all(root: Path, assignments: list[Assignment]) -> list[Released]:
    source_root = root / "build" / "source"
    shutil.rmtree(source_root, ignore_errors=True)
    for assignment in assignments:
        notebook = build_source(root, assignment)
        target = source_root / assignment.name / f"{assignment.notebook}.ipynb"
        target.parent.mkdir(parents=True)
        target.write_text(_dump(notebook), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        return [_release_one(root, Path(folder), assignment) for assignment in assignments]


def _release_one(root: Path, scratch: Path, assignment: Assignment) -> Released:
    generated = _generate_assignment(root, scratch, assignment)
    notebook = _normalize(nbformat.read(generated, as_version=4))
    text, target = _dump(notebook), exercise_of(root, assignment)
    changed = not target.exists() or target.read_text(encoding="utf-8") != text
    if changed:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    points = notebook.metadata["rnn2gpt"]["points"]
    return Released(assignment.name, target, points, changed)


def build_source(root: Path, assignment: Assignment) -> NotebookNode:
    """nbgrader's source notebook: full metadata, hints in place, solutions still in."""
    path = source_of(root, assignment)
    notebook = read_solution(path)
    notebook.cells[:0] = _colab_cells(root)
    points = 0.0
    for position, cell in enumerate(notebook.cells):
        points += _expand(cell, assignment, path)
        cell.id = _cell_id(position, cell)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "rnn2gpt": {
                "assignment": assignment.name,
                "minutes": assignment.minutes,
                "points": points,
            },
        }
    )
    notebook.nbformat_minor = 5
    _complain_about_gaps(notebook, assignment, path)
    return notebook


def read_solution(path: Path) -> NotebookNode:
    """The solved notebook as its author wrote it, with the short metadata."""
    return jupytext.read(path, fmt="py:percent")


def _colab_cells(root: Path) -> list[NotebookNode]:
    """The cell that installs the package on Colab, once the repository has an address."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    url = (config.get("repository") or {}).get("url")
    if not url:
        return []
    source = (
        "# On Colab this installs the course; elsewhere it does nothing.\nimport sys\n\n"
        f'if "google.colab" in sys.modules:\n    %pip install -q "rnn2gpt @ git+{url}"'
    )
    return [nbformat.v4.new_code_cell(source, metadata={"colab": True})]


def _expand(cell: NotebookNode, assignment: Assignment, path: Path) -> float:
    """Replace a cell's short metadata by nbgrader's; returns the points it carries."""
    short, cell.metadata = dict(cell.metadata), nbformat.from_dict({})
    cell.source = HINTS.sub(lambda found: _hints(assignment, found[1], path), cell.source)
    by_name = {exercise.name: exercise for exercise in assignment.exercises}
    for key in ("answer", "check"):
        if key in short and short[key] not in by_name:
            raise ReleaseError(
                f"{path}: the cell {key}={short[key]!r} names no exercise of"
                f" autograder/checks/{assignment.notebook}.py; declare it there or mend the name."
            )
    if short.get("setup"):
        _grading(cell, "setup", solution=False, grade=False)
    elif "answer" in short:
        _grading(cell, short["answer"], solution=True, grade=False)
        cell.metadata["broken"] = short.get("broken", False)
    elif "check" in short:
        points = by_name[short["check"]].points
        _grading(cell, f"check_{short['check']}", solution=False, grade=True, points=points)
        return points
    elif "written" in short:
        if "### BEGIN SOLUTION" not in cell.source:
            raise ReleaseError(
                f"{path}: the written question {short['written']!r} has no model answer; put one"
                " between ### BEGIN SOLUTION and ### END SOLUTION, beneath the question."
            )
        points = float(short["points"])
        _grading(cell, short["written"], solution=True, grade=True, points=points)
        return points
    return 0.0


def _grading(cell: NotebookNode, name: str, **fields: Any) -> None:
    locked = not fields["solution"]
    cell.metadata["nbgrader"] = NBGRADER | {"grade_id": name, "locked": locked} | fields


def _hints(assignment: Assignment, name: str, path: Path) -> str:
    hints = next((e.hints for e in assignment.exercises if e.name == name), None)
    if not hints:
        raise ReleaseError(
            f"{path}: hints are asked for {name!r}, which declares none in"
            f" autograder/checks/{assignment.notebook}.py; add `hints=(…)` there."
        )
    return "\n\n".join(
        f"<details><summary>{title}</summary>\n\n{hint}\n\n</details>"
        for title, hint in zip(HINT_TITLES, hints, strict=True)
    )


def _cell_id(position: int, cell: NotebookNode) -> str:
    """The grade id where there is one, else the position and a hash of the source."""
    if "nbgrader" in cell.metadata:
        return cell.metadata["nbgrader"]["grade_id"]
    return f"cell-{position:02d}-{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}"


def _complain_about_gaps(notebook: NotebookNode, assignment: Assignment, path: Path) -> None:
    """Every exercise needs its answer cell and, after it, its check cell."""
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
    for exercise in assignment.exercises:
        for name in (exercise.name, f"check_{exercise.name}"):
            if names.count(name) != 1:
                raise ReleaseError(
                    f"{path}: expected one cell {name!r}, found {names.count(name)};"
                    f" mark it `# %% answer=…` or `# %% check=…`."
                )
        if names.index(exercise.name) > names.index(f"check_{exercise.name}"):
            raise ReleaseError(f"{path}: the check of {exercise.name!r} stands before its answer.")
    if "setup" not in names:
        raise ReleaseError(f"{path}: no set-up cell; mark it `# %% setup=true`.")


def _generate_assignment(root: Path, scratch: Path, assignment: Assignment) -> Path:
    """Run nbgrader's own converter; returns the notebook it wrote."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    put_tools_on_path()
    config = Config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.source_directory = str(root / "build" / "source")
    config.CourseDirectory.release_directory = str(scratch / "release")
    config.CourseDirectory.db_url = f"sqlite:///{scratch / 'gradebook.db'}"
    config.ClearSolutions.text_stub = WRITTEN_STUB
    logger = logging.getLogger("rnn2gpt.release")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    api = NbGraderAPI(config=config)
    api.log = logger
    outcome = api.generate_assignment(assignment.name, force=True)
    if not outcome["success"]:
        raise ReleaseError(
            f"{source_of(root, assignment)}: nbgrader could not release it.\n"
            + (outcome.get("log") or outcome.get("error") or "")
        )
    return scratch / "release" / assignment.name / f"{assignment.notebook}.ipynb"


def _normalize(notebook: NotebookNode) -> NotebookNode:
    """Drop outputs, counters and everything that names a tool's version, and stubs above broken
    code."""
    keep = ("kernelspec", "language_info", "rnn2gpt")
    notebook.metadata = nbformat.from_dict(
        {key: notebook.metadata[key] for key in keep if key in notebook.metadata}
    )
    for cell in notebook.cells:
        if cell.metadata.get("broken"):
            cell.source = CODE_STUB.sub("", cell.source)
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key == "nbgrader"}
        )
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _dump(notebook: NotebookNode) -> str:
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4, indent=1, ensure_ascii=False).rstrip("\n") + "\n"
