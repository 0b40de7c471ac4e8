"""The gradebook in a real PostgreSQL: a cluster of the test's own, on a port of the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import submissions as s
from test_grader import FIRST, FULL, HERE, NAMES, plan_for, written

from autograder.grader.database import DatabaseError, gradebook_url, reach, shown
from autograder.grader.grade import GradingError, grade
from autograder.grader.record import _declare

PASSWORD = "correct horse"
pytestmark = pytest.mark.xdist_group("postgresql")


# --- addresses ------------------------------


def test_without_a_database_the_gradebook_is_a_file(tmp_path):
    assert gradebook_url(None, tmp_path) == f"sqlite:///{tmp_path / 'gradebook.db'}"
    assert shown(None, tmp_path) == str(tmp_path / "gradebook.db")


def test_no_password_is_shown(tmp_path):
    pytest.importorskip("psycopg")
    url = "postgresql://ada:secret@db.example.org/class"
    assert "secret" in gradebook_url(url, tmp_path) and "+psycopg" in gradebook_url(url, tmp_path)
    assert "secret" not in shown(url, tmp_path) and "db.example.org" in shown(url, tmp_path)


@pytest.mark.parametrize("db", ["class", "mysql://ada@host/class", "postgresql://ada@host", "::"])
def test_an_address_of_another_kind_is_explained(db, tmp_path):
    with pytest.raises(DatabaseError, match="postgresql://USER@HOST/DATABASE"):
        gradebook_url(db, tmp_path)


def test_a_database_that_is_not_there_is_found_out_before_anything_is_graded(tmp_path):
    pytest.importorskip("psycopg")
    db = f"postgresql://ada:secret@127.0.0.1:{free_port()}/class"
    with pytest.raises(GradingError, match="does not work") as caught:
        grade(tmp_path, plan_for(tmp_path, db=db))
    assert "secret" not in str(caught.value) and not (tmp_path / "results.json").exists()


# --- a server ------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def tool(name: str) -> str:
    """A program of PostgreSQL's; without it the tests are skipped, but not where CI is set."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing; install the package postgresql")
        pytest.skip(f"{name} is not installed (Debian: sudo apt-get install postgresql)")
    return str(Path(found).resolve())


def unprivileged() -> dict[str, Any]:
    """As whom PostgreSQL may run: it refuses root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL that lives as long as these tests."""
    initdb, postgres = tool("initdb"), tool("postgres")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            place.chmod(0o755)
            for path in (place, place / "password"):
                shutil.chown(path, "nobody")
        run = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LANG": "C"}} | unprivileged()
        rules = ("--auth", "scram-sha-256", "--username", "ada", "--pwfile", "password")
        command = [initdb, "--no-sync", "--encoding", "UTF8", "--locale", "C", *rules, "data"]
        made = subprocess.run(command, capture_output=True, text=True, **run)
        assert made.returncode == 0, made.stderr
        port = free_port()
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
        options = [part for s in (*settings, "fsync=off") for part in ("-c", s)]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen([postgres, "-D", "data", *options], stderr=log, **run)
        try:
            with connected(f"postgresql://ada@127.0.0.1:{port}/postgres") as connection:
                connection.execute("CREATE DATABASE class")
            yield f"postgresql://ada@127.0.0.1:{port}/class"
        finally:
            process.send_signal(signal.SIGINT)  # at once, whoever is still connected
            process.wait(60)


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """A connection of psycopg's, once the server answers."""
    psycopg = pytest.importorskip("psycopg")
    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(url, password=PASSWORD, autocommit=True) as connection:
                yield connection
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture
def db(server, monkeypatch) -> str:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return server


def opened(db: str) -> Any:
    from nbgrader.api import Gradebook

    return Gradebook(gradebook_url(db, Path()))


# --- the gradebook in it ------------------------------


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory) -> Path:
    """A class whose results are kept: the tests record them again and again."""
    folder = tmp_path_factory.mktemp("class")
    naughty = s.solved(**{FIRST: f"def {FIRST}(*a):\n    raise ValueError('\\0 \\ud800 ü')\n"})
    for student, data in {
        "ada": s.as_bytes(written(s.solved(), "Few counts.")),
        "bob": s.as_bytes(s.unsolved()),
        "dee": s.as_bytes(s.solved())[:3000],
        "ève": s.as_bytes(written(naughty, "Zero \0 and ü.")),
    }.items():
        place = folder / "submitted" / student / HERE
        place.mkdir(parents=True)
        (place / f"{s.NOTEBOOK}.ipynb").write_bytes(data)
    return folder


def graded(folder: Path, out: Path, db: str | None) -> list[dict[str, Any]]:
    return grade(folder / "submitted", plan_for(out, db=db, cache=folder / "cache", jobs=1))


def facts(url: str) -> dict[str, Any]:
    """What nbgrader's own commands and Formgrader read of a gradebook, without its random keys."""
    from nbgrader.api import Gradebook

    def plain(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        rows = [{key: row[key] for key in row if key != "id" or key == name} for row in rows]
        return sorted(rows, key=lambda row: row.get("student") or row["id"])

    with Gradebook(url) as book:
        cells = {
            student.id: {
                grade.name: (grade.score, grade.max_score, grade.needs_manual_grade)
                for grade in book.find_submission_notebook(s.NOTEBOOK, HERE, student.id).grades
            }
            for student in book.students
        }
        said = {
            student.id: {
                comment.name: comment.comment
                for comment in book.find_submission_notebook(s.NOTEBOOK, HERE, student.id).comments
            }
            for student in book.students
        }
        return {
            "cells": cells,
            "said": said,
            "students": plain(book.student_dicts(), "id"),
            "submissions": plain(book.submission_dicts(HERE), "student"),
            "notebooks": plain(book.notebook_submission_dicts(s.NOTEBOOK, HERE), "student"),
            "average": book.average_assignment_score(HERE),
            "assignment": book.find_assignment(HERE).max_score,
        }


@pytest.mark.slow
def test_postgresql_holds_what_a_file_would(handed_in, db, tmp_path):
    url = gradebook_url(db, tmp_path)
    reach(db)
    with opened(db) as book:  # without submissions, an exercise may still change its cells
        older = nbformat.reads(s.release().decode(), 4)
        older.cells = [cell for cell in older.cells if not cell.id.startswith("written")]
        _declare(book, url, HERE, s.NOTEBOOK, older)
        assert len(book.find_notebook(s.NOTEBOOK, HERE).grade_cells) == len(NAMES)
    rows = graded(handed_in, tmp_path / "a", db)
    assert not (tmp_path / "a" / "gradebook.db").exists()
    assert [(row["student"], row["score"]) for row in rows][:3] == [
        ("ada", FULL),
        ("bob", 0),
        ("dee", 0),
    ]
    again = graded(handed_in, tmp_path / "b", None)
    for one, other in zip(rows, again, strict=True):
        assert one | {"reused": True} == other | {"reused": True}
    theirs, ours = facts(url), facts(gradebook_url(None, tmp_path / "b"))
    for name in ours:
        assert theirs[name] == ours[name], name
    assert ours["cells"]["ada"][f"check_{NAMES[0]}"][0] > 0


@pytest.mark.slow
def test_marks_of_persons_stay_in_postgresql(handed_in, db, tmp_path):
    graded(handed_in, tmp_path, db)
    with opened(db) as book:
        notebook = book.find_submission_notebook(s.NOTEBOOK, HERE, "ada")
        mark = next(g for g in notebook.grades if g.name.startswith("written"))
        mark.manual_score, mark.needs_manual_grade = 1.5, False
        book.find_comment(mark.name, s.NOTEBOOK, HERE, "ada").manual_comment = "Well seen."
        book.db.commit()
    rows = graded(handed_in, tmp_path, db)
    ada = rows[0]
    assert (ada["total"], ada["waiting"], ada["remarks"]) == (FULL + 1.5, False, ["Well seen."])
    with opened(db) as book:
        assert book.find_submission_notebook(s.NOTEBOOK, HERE, "ada").score == FULL + 1.5


@pytest.mark.slow
def test_a_wrong_password_is_said_and_not_shown(db, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wrong horse")
    with pytest.raises(GradingError, match="password authentication failed") as caught:
        grade(tmp_path, plan_for(tmp_path, db=db))
    assert "horse" not in str(caught.value)
