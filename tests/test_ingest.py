"""What learning systems and file managers make of submissions: archives, names, attempts, traps."""

from __future__ import annotations

import io
import os
import stat
import sys
import time
import zipfile
from pathlib import Path

import pytest
import submissions as s

from autograder.grader import archive as archive_module
from autograder.grader.ingest import Submission, ingest

HERE, BOOK = s.assignment().name, f"{s.NOTEBOOK}.ipynb"
SOLVED, UNSOLVED = s.as_bytes(s.solved()), s.as_bytes(s.unsolved())


def zipped(files: dict[str, bytes], at: float = 0.0) -> bytes:
    """An archive, deflated; `at` moves its members' times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, time.localtime(1.7e9 + at)[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, data)
    return buffer.getvalue()


def rows_of(path: Path, data: bytes | None = None, **more) -> dict[str, Submission]:
    if data is not None:
        path.write_bytes(data)
    found = ingest(path, release=lambda task: s.release(task.notebook), **more)
    assert len({(row.student, row.assignment) for row in found}) == len(found)
    return {row.student: row for row in found}


# --- names that systems give ------------------------------

CANVAS = {
    f"lovelaceada_4711_900001_{BOOK}": UNSOLVED,
    f"lovelaceada_4711_900007_{s.NOTEBOOK}-1.ipynb": SOLVED,
    f"curiemarie_LATE_4712_900002_{BOOK}": SOLVED,
    "turingalan_4713_900003_essay.pdf": b"%PDF-1.7",
    "noetheremmy_4714_900004_work.zip": zipped({f"my work/{BOOK}": SOLVED}),
}
MOODLE = {
    f"Ada Lovelace_4711_assignsubmission_file_/{BOOK}": SOLVED,
    f"Marie Curie_4712_assignsubmission_file_/deep/er/{BOOK}": SOLVED,
    "Alan Turing_4713_assignsubmission_file_/essay.pdf": b"%PDF-1.7",
    f"José Niño_4714_assignsubmission_file_{BOOK}": SOLVED,
}
METADATA = b"""---
submission_21:
  :submitters:
  - :name: Ada Lovelace
    :sid: '4711'
    :email: ada@example.org
  :created_at: 2026-03-01 12:30:00.000000000 Z
  :score: 0.0
  :history: []
submission_22:
  :submitters:
  - :name: Marie Curie
    :sid:
    :email: marie@example.org
  - :name: Pierre Curie
    :sid: '4713'
    :email: pierre@example.org
  :created_at: !ruby/object:Time 2026-03-02 00:00:00 Z
"""
GRADESCOPE = {
    "assignment_5_export/submission_metadata.yml": METADATA,
    f"assignment_5_export/submission_21/{BOOK}": SOLVED,
    "assignment_5_export/submission_22/Untitled.ipynb": SOLVED,
    f"assignment_5_export/submission_23/{BOOK}": SOLVED,
}


@pytest.mark.parametrize("unpacked", [False, True])
def test_canvas(tmp_path, unpacked):
    rows = download(tmp_path, CANVAS, unpacked)
    assert set(rows) == {
        "lovelaceada-4711", "curiemarie-4712", "turingalan-4713", "noetheremmy-4714",
    }  # fmt: skip
    ada = rows["lovelaceada-4711"]
    assert ada.data == SOLVED and ada.person["id"] == "4711"
    assert any("of 2 files" in note for note in ada.notes)
    assert rows["curiemarie-4712"].person["late"] == "yes"
    assert "essay.pdf" in rows["turingalan-4713"].problem
    assert rows["noetheremmy-4714"].data == SOLVED
    assert {row.assignment for row in rows.values()} == {HERE}


def download(
    tmp_path: Path, files: dict[str, bytes], unpacked: bool, **more
) -> dict[str, Submission]:
    """The rows of a system's archive, or of the folder into which someone unpacked it."""
    if not unpacked:
        return rows_of(tmp_path / "submissions.zip", zipped(files), **more)
    for name, data in files.items():
        path = tmp_path / "submissions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return rows_of(tmp_path / "submissions", **more)


@pytest.mark.parametrize("unpacked", [False, True])
def test_moodle(tmp_path, unpacked):
    rows = download(tmp_path, MOODLE, unpacked)
    assert set(rows) == {
        "Ada Lovelace-4711", "Marie Curie-4712", "Alan Turing-4713", "José Niño-4714",
    }  # fmt: skip
    assert rows["Alan Turing-4713"].problem and rows["Alan Turing-4713"].data is None
    assert all(row.data == SOLVED for name, row in rows.items() if "Turing" not in name)
    assert rows["José Niño-4714"].person == {"lms": "moodle", "id": "4714", "name": "José Niño"}


@pytest.mark.parametrize("unpacked", [False, True])
def test_gradescope(tmp_path, unpacked):
    rows = download(tmp_path, GRADESCOPE, unpacked)
    assert set(rows) == {"4711", "marie@example.org", "4713", "submission_23"}
    assert all(row.data == SOLVED for row in rows.values())  # a group's work is everybody's
    assert rows["4711"].submitted == "2026-03-01T12:30:00+00:00"
    assert rows["4711"].person["email"] == "ada@example.org"


def test_nbgraders_time_stamp_counts_and_else_the_files(tmp_path):
    place = tmp_path / "submitted" / "ada" / HERE
    place.mkdir(parents=True)
    (place / BOOK).write_bytes(SOLVED)
    os.utime(place / BOOK, (1, 1))
    assert rows_of(tmp_path / "submitted")["ada"].submitted == "1970-01-01T00:00:01+00:00"
    (place / "timestamp.txt").write_text("2026-02-03 15:58:23.948203 UTC")
    assert rows_of(tmp_path / "submitted")["ada"].submitted == "2026-02-03T15:58:23+00:00"


def test_trees_and_folders_in_archives(tmp_path):
    tree = {f"submitted/{name}/{HERE}/{BOOK}": SOLVED for name in ("ada", "bob")}
    tree |= {"__MACOSX/submitted/ada/x.ipynb": b"", "submitted/ada/.DS_Store": b"x"}
    assert set(rows_of(tmp_path / "a.zip", zipped(tree))) == {"ada", "bob"}
    flat = {f"ada_{BOOK}": SOLVED, f"bob_{BOOK}": SOLVED, "names.csv": b"x"}
    assert set(rows_of(tmp_path / "b.zip", zipped(flat))) == {"ada", "bob"}
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("ada", "bob"):
        (folder / f"{name}.zip").write_bytes(zipped({BOOK: SOLVED, "notes.txt": b"x"}))
    rows = rows_of(folder)
    assert set(rows) == {"ada", "bob"} and all(row.data == SOLVED for row in rows.values())


def test_one_folder_with_work_on_several_assignments(tmp_path):
    folder = tmp_path / "ada"
    folder.mkdir()
    (folder / BOOK).write_bytes(SOLVED)
    (folder / "RNN (1).ipynb").write_bytes(s.as_bytes(s.solved("rnn")))
    found = ingest(tmp_path)
    assert [(row.student, row.notebook) for row in found] == [("ada", s.NOTEBOOK), ("ada", "rnn")]
    (one,) = ingest(tmp_path, s.assignment("rnn").name)
    assert one.notebook == "rnn"
    (one,) = ingest(tmp_path, s.assignment("lstm").name)  # named otherwise, and told what it is
    assert one.notebook == "lstm"


def test_names_that_browsers_give_are_read(tmp_path):
    folder = tmp_path / "class"
    (folder / "ada").mkdir(parents=True)
    (folder / "ada" / f"{BOOK}.txt").write_bytes(SOLVED)
    (folder / f"bob_{BOOK}.json").write_bytes(SOLVED)
    rows = rows_of(folder)
    assert set(rows) == {"ada", "bob"}
    assert all(row.suffix == ".ipynb" and row.data == SOLVED for row in rows.values())


def test_who_handed_in_what_is_hidden_has_a_row(tmp_path):
    hidden = tmp_path / "class" / "ada" / ".ipynb_checkpoints"
    hidden.mkdir(parents=True)
    (hidden / BOOK).write_bytes(SOLVED)
    (tmp_path / "class" / ".git").mkdir()
    (tmp_path / "class" / ".git" / BOOK).write_bytes(SOLVED)
    rows = rows_of(tmp_path / "class")
    assert set(rows) == {"ada"} and "no notebook" in rows["ada"].problem


@pytest.mark.skipif(sys.platform != "linux", reason="only there are names any bytes")
def test_names_of_any_bytes_are_told_apart_and_can_be_written(tmp_path):
    for name in (b"bad\xff", b"bad\xfe"):
        folder = os.fsencode(tmp_path) + b"/class/" + name
        os.makedirs(folder)
        Path(os.fsdecode(folder), BOOK).write_bytes(SOLVED)
    rows = rows_of(tmp_path / "class")
    assert len(rows) == 2
    for student, row in rows.items():
        assert row.data == SOLVED and (student + row.path).encode()


# --- what reaches past nothing ------------------------------


def linking(name: str, target: str) -> bytes:
    """An archive with a symbolic link in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, target)
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped({BOOK: SOLVED}))
    data[6] |= 1  # the flag in the member's own header, and in the directory's
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def quine(depth: int) -> bytes:
    data = zipped({BOOK: SOLVED})
    for _ in range(depth):
        data = zipped({"inner.zip": data})
    return data


TRAPS = {
    "link": (linking(BOOK, "/etc/passwd"), "link"),
    "path": (zipped({f"../../{BOOK}": SOLVED}), "leads out"),
    "absolute path": (zipped({f"/home/{BOOK}": SOLVED}), "leads out"),
    "Windows path": (zipped({f"..\\..\\{BOOK}": SOLVED}), "leads out"),
    "bomb": (zipped({BOOK: bytes(50_000_000)}), "packed too tightly"),
    "bomb in a bomb": (zipped({"x.zip": zipped({BOOK: bytes(50_000_000)})}), "packed too tightly"),
    "many archives deep": (quine(5), "archive within archives"),
    "deep folders": (zipped({"d/" * 40 + BOOK: SOLVED}), "nested too deeply"),
    "encrypted": (encrypted(), "encrypted"),
    "cut off": (zipped({BOOK: SOLVED})[:2000], "no whole zip"),
    "no archive": (b"hello", "no whole zip"),
    "empty": (zipped({}), "no notebook was found"),
    "damaged": (zipped({BOOK: SOLVED}).replace(b"\x00\x00\x08\x00", b"\x00\x00\x63\x00"), ""),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_gets_a_row_and_hurts_nobody(tmp_path, name):
    data, reason = TRAPS[name]
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / f"mallory_{HERE}.zip").write_bytes(data)
    (folder / f"ada_{BOOK}").write_bytes(SOLVED)
    before = sorted(tmp_path.rglob("*"))
    rows = rows_of(folder)
    assert rows["ada"].data == SOLVED and not rows["ada"].problem
    (trapped,) = (row for student, row in rows.items() if student != "ada")
    assert trapped.data is None and reason in trapped.problem, trapped
    assert trapped.problem
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked anywhere


def test_an_archives_header_may_lie_about_sizes(tmp_path, monkeypatch):
    """Declared small, unpacked large: no more is read than allowed, and a reason given."""
    monkeypatch.setattr(archive_module, "MAX_BYTES", 1000)
    data = bytearray(zipped({BOOK: SOLVED}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    row = rows_of(tmp_path / "a.zip", bytes(data))["student"]
    assert row.data is None or len(row.data) <= 1001


def test_counts_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 50)
    many = {f"ada/{number}.txt": b"" for number in range(80)} | {f"ada/{BOOK}": SOLVED}
    (row,) = rows_of(tmp_path / "ada.zip", zipped(many)).values()
    assert row.problem or row.notes
    assert any("first 50 files" in text for text in (row.problem, *row.notes))


def test_a_students_name_is_never_a_path(tmp_path):
    metadata = METADATA.replace(b"'4711'", b"'../../etc'")
    rows = rows_of(tmp_path / "g.zip", zipped(GRADESCOPE | {next(iter(GRADESCOPE)): metadata}))
    assert not any("/" in name or name.startswith(".") for name in rows)
    for text in (b"", b"- [", b"submission_1: 7", b"submission_1:\n  :submitters: [x, 7]\n"):
        broken = GRADESCOPE | {next(iter(GRADESCOPE)): text}
        assert len(rows_of(tmp_path / "g.zip", zipped(broken))) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_link_may_even_be_what_was_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "real.zip").write_bytes(zipped({BOOK: SOLVED}))
    (tmp_path / "link.zip").symlink_to(tmp_path / "real.zip")
    for name in ("pipe.zip", "link.zip"):
        (row,) = ingest(tmp_path / name)
        assert row.data is None and ("link" in row.problem or "no ordinary" in row.problem)
    (tmp_path / BOOK).symlink_to(tmp_path / "real.zip")
    (row,) = ingest(tmp_path / BOOK)
    assert row.data is None and "link" in row.problem
