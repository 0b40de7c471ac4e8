"""Pack what a class is given: the exercises, the model, the visible checks. Nothing secret.

The bundle is a zip that installs with `pip install .`. What is left out is listed by what is put
in: a new folder stays out until somebody adds it here on purpose.
"""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

CONTENTS = (
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "book/student_guide.md",
    "LICENSE",
    "LICENSE-TEXT",
    "rnn2gpt/**/*.py",
    "rnn2gpt/*-requirements.txt",
    "autograder/__init__.py",
    "autograder/child/*.py",
    "autograder/engine/*.py",
    "autograder/checks/*.py",
    "autograder/grader/__init__.py",
    "autograder/grader/archive.py",
    "autograder/grader/cgroups.py",
    "autograder/grader/channel.py",
    "autograder/grader/check.py",
    "autograder/grader/classroom.py",
    "autograder/grader/containers.py",
    "autograder/grader/ingest.py",
    "autograder/grader/lms.py",
    "autograder/grader/repair.py",
    "autograder/grader/run.py",
    "autograder/grader/sandbox.py",
    "autograder/grader/seccomp.py",
    "course/__init__.py",
    "course/assemble.py",
    "course/cli/*.py",
    "exercises/**/*.ipynb",
)
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a fixed time, so that equal contents give equal bytes


def contents(root: Path) -> Iterator[Path]:
    """The files of the bundle, in a fixed order."""
    for pattern in CONTENTS:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if not found:
            raise FileNotFoundError(
                f"{root / pattern}: nothing to bundle; restore it or mend CONTENTS"
            )
        yield from found


def write_bundle(root: Path) -> Path:
    """Write `dist/rnn2gpt-student-VERSION.zip` and return its path."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = f"rnn2gpt-student-{project['version']}"
    target = root / "dist" / f"{folder}.zip"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in contents(root):
            name = f"{folder}/{path.relative_to(root).as_posix()}"
            archive.writestr(zip_entry(name), path.read_bytes())
    return target


def zip_entry(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    """A file's place in an archive that is the same whenever and by whomever it is packed."""
    info = zipfile.ZipInfo(name, date_time=_LONG_AGO)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
    return info
