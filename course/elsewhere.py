"""What other systems need to grade with our checks: Gradescope and GitHub Classroom."""

from __future__ import annotations

import hashlib
import json
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Assignment
from autograder.grader.gradescope import SETTINGS
from course.bundle import zip_entry
from course.release import exercise_of

# Of the hidden cases only the assignment's own are packed, and no right answers.
PACKAGES = (
    "constraints.txt",
    "LICENSE",
    "rnn2gpt/**/*.py",
    "autograder/*.py",
    "autograder/child/*.py",
    "autograder/engine/*.py",
    "autograder/checks/*.py",
    "autograder/hidden/__init__.py",
    "autograder/grader/*.py",
    "autograder/grader/*.html",
)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image of the autograder.
set -euo pipefail
root="${AUTOGRADER_ROOT:-/autograder}"
export DEBIAN_FRONTEND=noninteractive

apt-get update
apt-get install -y --no-install-recommends bubblewrap
for python in python3.13 python3.12 python3.11; do
  if apt-get install -y "$python" "$python-venv" || command -v "$python"; then break; fi
done
"$python" -m venv "$root/venv"
pip=("$root/venv/bin/pip" install --no-cache-dir --constraint "$root/source/constraints.txt")
# the build without CUDA, which is smaller by gigabytes
"${pip[@]}" --index-url TORCH_INDEX torch
"${pip[@]}" --requirement "$root/source/requirements.txt"
"""
RUN = """\
#!/usr/bin/env bash
# Gradescope runs this for each submission; it writes results/results.json.
set -euo pipefail
root="${AUTOGRADER_ROOT:-/autograder}"
export PYTHONPATH="$root/source" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
exec "$root/venv/bin/python" -m autograder.grader.gradescope "$root"
"""
WORKFLOW = """\
# GitHub Classroom: the visible cases of {assignment}, after every push. The repository is the
# unpacked bundle for students. Made by `rnn2gpt classroom`; protect this file in the assignment's
# settings.
name: Autograding Tests
"on": [push, workflow_dispatch, repository_dispatch]
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:  # the name by which the reporter finds this run
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
          cache: pip
          cache-dependency-path: constraints.txt
      - name: Install the course
        run: |
          pip install --constraint constraints.txt --index-url {torch_index} torch
          pip install --constraint constraints.txt .
      - name: Check the notebook
        id: check
        run: |
          rnn2gpt check {notebook} --assignment {assignment} --classroom "$GITHUB_OUTPUT"
      - name: Report to GitHub Classroom
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
          CHECK_RESULTS: "${{{{ steps.check.outputs.result }}}}"
        with:
          runners: check
"""


class UnknownAssignment(Exception):
    """No assignment has that name; the text lists those there are."""


def assignment_called(name: str) -> Assignment:
    """The assignment `02-rnn`."""
    known = {found.name: found for found in map(load, CHAPTERS)}
    if name not in known:
        raise UnknownAssignment(f"No assignment {name!r}. There are: {', '.join(known)}.")
    return known[name]


def write_gradescope(
    root: Path, assignment: Assignment, secret: bytes, site: str | None, target: Path
) -> Path:
    """Write the autograder that an instructor uploads to Gradescope; returns `target`.

    Its seed is made from the class's, so that what leaks there tells nothing of the class's own.
    """
    seed = hashlib.sha256(b"gradescope " + secret).hexdigest()
    settings = {"assignment": assignment.name, "seed": seed, "site": site}
    texts = {
        "setup.sh": SETUP.replace("TORCH_INDEX", TORCH_INDEX),
        "run_autograder": RUN,
        "requirements.txt": "\n".join(_requirements(root)) + "\n",
        SETTINGS: json.dumps(settings, indent=1) + "\n",
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {p.relative_to(root).as_posix(): p.read_bytes() for p in _sources(root, assignment)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            mode = 0o755 if name in ("setup.sh", "run_autograder") else 0o644
            archive.writestr(zip_entry(name, mode), data)
    return target


def _sources(root: Path, assignment: Assignment) -> Iterator[Path]:
    for pattern in PACKAGES:
        yield from sorted(path for path in root.glob(pattern) if path.is_file())
    yield root / "autograder" / "hidden" / f"{assignment.notebook}.py"
    yield exercise_of(root, assignment)


def _requirements(root: Path) -> list[str]:
    """What a student's installation has, and what feedback is written with."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    course = project["optional-dependencies"]["course"]
    return [*project["dependencies"], *(text for text in course if text.startswith("jinja2"))]


def write_workflow(root: Path, assignment: Assignment, folder: Path) -> Path:
    """Write `.github/workflows/classroom.yml` in `folder`; returns its path."""
    text = WORKFLOW.format(
        assignment=assignment.name,
        notebook=exercise_of(root, assignment).relative_to(root).as_posix(),
        torch_index=TORCH_INDEX,
    )
    path = folder / ".github" / "workflows" / "classroom.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
