"""From one source to what a student gets: reproducible, complete, and without the answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from autograder.checks import CHAPTERS, load
from course import bundle
from course.release import (
    ReleaseError,
    build_source,
    exercise_of,
    read_solution,
    release,
    source_of,
)

REGION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.S)
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()", "*Your answer here.*")
chapters = pytest.mark.parametrize("chapter", CHAPTERS)


def released(root: Path, chapter: str) -> nbformat.NotebookNode:
    return nbformat.read(exercise_of(root, load(chapter)), as_version=4)


@pytest.mark.slow
def test_releasing_again_changes_nothing(root, tmp_path):
    for folder in ("solutions", "exercises"):  # a copy: other tests read the tree meanwhile
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "_config.yml", tmp_path)
    changed = [one.assignment for one in release(tmp_path) if one.changed]
    assert not changed, f"run `rnn2gpt release` and commit: {changed}"
    for chapter in CHAPTERS:
        ours, theirs = (exercise_of(place, load(chapter)) for place in (root, tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not any(one.changed for one in release(tmp_path, fresh=False))


@chapters
def test_no_solution_leaks(root, chapter):
    text = "\n".join(cell.source for cell in released(root, chapter).cells)
    assert "SOLUTION" not in text and "solutions/" not in text
    for cell in read_solution(source_of(root, load(chapter))).cells:
        for region in REGION.findall(cell.source):
            assert region.strip() not in text


@chapters
def test_every_stub_line_stands_in_the_solution(root, chapter):
    solved = {}
    for cell in read_solution(source_of(root, load(chapter))).cells:
        if "answer" in cell.metadata:
            solved[cell.metadata["answer"]] = cell.source.splitlines()
    for cell in released(root, chapter).cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in solved:
            lines = [line for line in cell.source.splitlines() if line.strip() not in STUB]
            assert [line for line in lines if line not in solved[name]] == []


@chapters
def test_notebook_has_what_a_student_needs(root, chapter):
    assignment, notebook = load(chapter), released(root, chapter)
    nbformat.validate(notebook)
    grades = {
        cell.metadata["nbgrader"]["grade_id"]: cell.metadata["nbgrader"]
        for cell in notebook.cells
        if "nbgrader" in cell.metadata
    }
    for exercise in assignment.exercises:
        assert grades[exercise.name]["solution"] and not grades[exercise.name]["grade"]
        check = grades[f"check_{exercise.name}"]
        assert check["grade"] and check["locked"] and check["points"] == exercise.points
        assert len(exercise.hints) == 3
    written = [g for name, g in grades.items() if name.startswith("written")]
    assert written and all(g["grade"] and g["solution"] for g in written)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert text.count("Hint 3: a shape or a formula") == len(assignment.exercises)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def execute(notebook: nbformat.NotebookNode, folder: Path, kernel: str = "python3"):
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()
    return notebook


def outcome_of(cell: nbformat.NotebookNode) -> tuple[float, str]:
    """Points and card of an executed check cell."""
    data = next(o for o in cell.outputs if o.output_type == "execute_result").data
    return float(data["text/plain"]), data["text/html"]


def checks_of(notebook: nbformat.NotebookNode) -> dict[str, tuple[float, str]]:
    found = {}
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if name.startswith("check_"):
            found[name.removeprefix("check_")] = outcome_of(cell)
    return found


def handed_over_broken(root: Path, chapter: str) -> set[str]:
    """The answers that have mistakes for a stub: the one exception to "not written yet"."""
    cells = read_solution(source_of(root, load(chapter))).cells
    return {cell.metadata["answer"] for cell in cells if cell.metadata.get("broken")}


@chapters
def test_broken_code_takes_the_stubs_place(root, chapter):
    broken = handed_over_broken(root, chapter)
    for cell in released(root, chapter).cells:
        grading = cell.metadata.get("nbgrader", {})
        if grading.get("solution") and not grading["grade"]:
            handed = grading["grade_id"] in broken
            assert handed != any(line in cell.source for line in STUB), grading["grade_id"]
            assert handed == ("return" in cell.source.splitlines()[-1])


@pytest.mark.slow
@chapters
def test_unsolved_notebook_runs_and_says_what_is_missing(root, chapter, tmp_path):
    notebook, broken = execute(released(root, chapter), tmp_path), handed_over_broken(root, chapter)
    for name, (points, card) in checks_of(notebook).items():
        said = " See “" if name in broken else f"<code>{name}</code> is not written yet."
        assert points == 0 and said in card


@pytest.mark.slow
@chapters
def test_solved_notebook_runs_and_gets_full_marks(root, chapter, tmp_path):
    assignment = load(chapter)
    notebook = execute(build_source(root, assignment), tmp_path)
    points = {exercise.name: exercise.points for exercise in assignment.exercises}
    assert {name: earned for name, (earned, _) in checks_of(notebook).items()} == points
    closing = [o for cell in notebook.cells[-8:] for o in cell.get("outputs", [])]
    shown = any("image/png" in o.get("data", {}) or len(o.get("text", "")) > 200 for o in closing)
    assert shown, "the notebook ends without a picture or a text of some length"


# --- sources that cannot be released ------------------------------------------------------------


def miniature(folder: Path, cells: str) -> Path:
    (folder / "solutions").mkdir()
    (folder / "_config.yml").write_text("title: test\n")
    (folder / "solutions" / "01_language_models.py").write_text(cells)
    return folder


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ('# %% answer="bigram_count"\npass\n', "names no exercise"),
        ("# %% [markdown]\n# <!-- hints: bigram -->\n", "declares none"),
        ('# %% [markdown] written="w" points=1\n# Why?\n', "no model answer"),
        ("# %% setup=true\nimport torch\n", "expected one cell 'bigram_counts', found 0"),
    ],
)
def test_mistakes_in_a_source_are_named_with_file_and_remedy(tmp_path, cells, problem):
    root = miniature(tmp_path, cells)
    with pytest.raises(ReleaseError, match=problem) as caught:
        build_source(root, load("language_models"))
    assert "01_language_models.py" in str(caught.value)


def test_colab_cell_follows_the_one_setting(root, tmp_path):
    source = source_of(root, load("rnn")).read_text(encoding="utf-8")
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "02_rnn.py").write_text(source, encoding="utf-8")
    (tmp_path / "_config.yml").write_text("repository: {}\n")
    assert "google.colab" not in build_source(tmp_path, load("rnn")).cells[0].source
    url = "https://github.com/someone/course"
    (tmp_path / "_config.yml").write_text(f"repository:\n  url: {url}\n")
    assert f"git+{url}" in build_source(tmp_path, load("rnn")).cells[0].source


# --- the bundle ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(bundle.write_bundle(root)) as archive:
        archive.extractall(folder)
    return next(folder.iterdir())


def test_bundle_holds_no_answer_and_no_hidden_case(root, packed):
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert not [n for n in names if re.search(r"solutions|hidden|answers|seed|record|gradebook", n)]
    assert "autograder/checks/rnn.py" in names and "exercises/02-rnn/rnn.ipynb" in names
    text = "\n".join(path.read_text(encoding="utf-8") for path in packed.rglob("*.py"))
    for chapter in CHAPTERS:
        for cell in read_solution(source_of(root, load(chapter))).cells:
            for region in REGION.findall(cell.source):
                assert region.strip() not in text or len(region.strip()) < 60


@pytest.mark.slow
def test_bundle_works_in_an_environment_of_its_own(root, packed):
    environment = packed.parent / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [python, "-m", "pip", "install", "-q", "--no-compile"]  # it runs once: as it is
    install += ["-c", packed / "constraints.txt"]
    subprocess.run([*install, "torch"], check=True, cwd=packed)
    subprocess.run([*install, packed], check=True, cwd=packed)
    notebook = packed / "exercises" / "02-rnn" / "rnn.ipynb"
    command = "import autograder, rnn2gpt; print(autograder.__file__)"
    where = subprocess.run(
        [python, "-c", command], cwd=packed.parent, capture_output=True, text=True, check=True
    )
    assert str(environment) in where.stdout
    checked = subprocess.run(
        [environment / "bin" / "rnn2gpt", "check", notebook], capture_output=True, text=True
    )
    assert "`rnn_cell` is not written yet." in checked.stdout, checked.stderr
