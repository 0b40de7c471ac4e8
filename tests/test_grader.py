"""The grader from a folder of files to rows, gradebook and feedback."""

from __future__ import annotations

import codecs
import copy
import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import submissions as s
from click.testing import CliRunner

from autograder.grader import grade as grade_module
from autograder.grader.batch import failure, run_all
from autograder.grader.export import show
from autograder.grader.feedback import _prose, as_page
from autograder.grader.grade import GradingError, Plan, grade
from autograder.grader.ingest import IngestError, ingest
from autograder.grader.record import defuse
from autograder.grader.repair import Refused, definitions, repair, source_behind
from autograder.grader.run import Work
from autograder.grader.sandbox import best_level
from autograder.grader.seed import read_seed
from course import sample_class
from course.cli import main

NAMES = [exercise.name for exercise in s.assignment().exercises]
FIRST = NAMES[0]
FULL = sum(exercise.points for exercise in s.assignment().exercises)
HERE = s.assignment().name

# --- repair: what a file amounts to ------------------------------


def repaired(made: dict[str, Any] | bytes, suffix: str = ".ipynb"):
    data = made if isinstance(made, bytes) else s.as_bytes(made)
    return repair(data, suffix, s.assignment(), s.release())


def code_of(result) -> dict[str, str]:
    return {cell.name: cell.source.strip() for cell in result.cells if cell.answer}


RIGHT = {name: source.strip() for name, source in s.answers().items()}


def as_old_format(made: dict[str, Any]) -> bytes:
    """The same notebook in nbformat 3."""
    cells = copy.deepcopy(made["cells"])
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["input"] = cell.pop("source")
    return json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}).encode()


def without_metadata(made: dict[str, Any]) -> bytes:
    cells = [cell | {"metadata": {}} for cell in copy.deepcopy(made["cells"])]
    for cell in cells:
        cell.pop("id", None)
    return json.dumps({"cells": cells}).encode()


def as_script(made: dict[str, Any]) -> bytes:
    code = [c["source"] for c in made["cells"] if c["cell_type"] == "code"]
    return "\n\n# In[3]:\n\n".join("".join(source) for source in code).encode()


def western(text: str) -> str:
    """What is left of a text in an old encoding: the code, if not every letter of the comments."""
    return text.encode("cp1252", "replace").decode("cp1252")


WORN = {
    "plain": (s.as_bytes, ".ipynb", None),
    "byte order mark": (
        lambda m: codecs.BOM_UTF8 + s.as_bytes(m),
        ".ipynb",
        "encoded as utf-8-sig",
    ),
    "UTF-16": (lambda m: s.as_bytes(m).decode().encode("utf-16"), ".ipynb", "as utf-16"),
    "CRLF": (lambda m: s.as_bytes(m).replace(b"\n", b"\r\n"), ".ipynb", None),
    "CRLF in the code": (
        lambda m: json.dumps(m).replace("\\n", "\\r\\n").encode(),
        ".ipynb",
        None,
    ),
    "Windows-1252": (
        lambda m: s.as_bytes(s.with_cell(m, "# caf\u00e9")).decode().encode("cp1252", "replace"),
        ".ipynb",
        "not UTF-8",
    ),
    "nbformat 3": (as_old_format, ".ipynb", "old format"),
    "no metadata": (without_metadata, ".ipynb", "without their mark"),
    "a script": (as_script, ".py", "script"),
}


@pytest.mark.parametrize("name", WORN)
def test_worn_files_are_read_all_the_same(name):
    wear, suffix, note = WORN[name]
    result = repaired(wear(s.solved()), suffix)
    assert {n: western(c) for n, c in code_of(result).items()} == {
        n: western(c) for n, c in RIGHT.items()
    }
    assert result.setup == "".join(s.cell_of(s.unsolved(), "setup")["source"])
    assert note is None or any(note in text for text in result.notes), result.notes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"   \n", "empty"),
        (bytes(4096), "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (s.as_bytes(s.solved())[:5000], "cut off"),
        (s.as_bytes(s.solved()).replace(b'"cells"', b"cells", 1), r"broken in line \d"),
        (b'{"cells": [\n<<<<<<< HEAD\n]}', "unfinished merge"),
        (b"not a notebook", "plain text"),
        (b"PK\x03\x04\0\0", "zip archive"),
        (b"<html><body>Sign in</body></html>", "web page"),
        (b"\0\1\2\0", "another kind"),
        (b"[1, 2]", "not a notebook"),
        (b'{"cells": 7}', "not a notebook"),
        (b"[" * 100_000, "broken"),
        (b'{"cells": ' + b"9" * 10_000 + b"}", "broken"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(data, reason):
    with pytest.raises(Refused, match=reason):
        repaired(data)


def test_odd_cells_do_not_hurt():
    made = s.solved()
    made["cells"] += [7, None, {"cell_type": 3}, {"source": {"a": 1}, "cell_type": "code"}, {}]
    made["cells"] += [{"cell_type": "code", "source": ["x = 1", 5], "metadata": [], "id": 9}]
    assert code_of(repaired(made)) == RIGHT


def test_roles_come_from_our_release_not_from_the_file():
    """Tags, points, locks, types, ids and check cells of a file count for nothing."""
    made = s.solved()
    made["metadata"] = {"kernelspec": {"name": "evil"}, "celltoolbar": "x"}
    for cell in made["cells"]:
        cell["metadata"]["tags"] = ["skip-execution", "hide-input"]
        if "nbgrader" in cell["metadata"]:
            cell["metadata"]["nbgrader"] |= {"points": 1000, "locked": False, "schema_version": 99}
    checks = [c for c in made["cells"] if (s.grade_id(c) or "").startswith("check_")]
    checks[0]["source"] = "print('full marks')"
    made["cells"].remove(checks[1])
    made["cells"].append(copy.deepcopy(checks[2]))
    result = repaired(made)
    assert code_of(result) == RIGHT
    plain = s.result_of(s.solved())
    assert s.result_of(made)["score"] == plain["score"] == FULL


def test_a_pasted_copy_of_the_empty_cell_undoes_nothing():
    made = s.solved()
    made["cells"].append(copy.deepcopy(s.cell_of(s.unsolved(), FIRST)))
    assert code_of(repaired(made)) == RIGHT


def test_retyped_cells_and_helpers_are_used():
    made = s.with_cell(s.solved(), "import math\nhelper = math.pi")
    s.cell_of(made, FIRST)["cell_type"] = "markdown"
    result = repaired(made)
    assert code_of(result) == RIGHT
    assert [c.source for c in result.cells if not c.answer] == ["import math\nhelper = math.pi"]
    assert any("were no code" in note for note in result.notes)


def test_an_edited_cell_of_ours_keeps_what_it_defines():
    made = s.solved()
    setup = s.cell_of(made, "setup")
    setup["source"] = "".join(setup["source"]) + "\nimport string\nprint(open('/etc/passwd'))\n"
    (helper,) = [c for c in repaired(made).cells if not c.answer]
    assert "import string" in helper.source and "passwd" not in helper.source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1"),
        ("!pip install torch\nx = 1", "pass\nx = 1"),
        ("for i in range(2):\n    !ls {i}", "for i in range(2):\n    pass"),
        ("%%time\nx = 1", "x = 1"),
        ("%%bash\nrm -rf ~", ""),
        ("files = !ls", "pass"),
        ("torch.softmax?", "pass"),
        ("```python\nx = 1\n```", "pass\nx = 1\npass"),
        ("x = (5\n  % 3)", "x = (5\n  % 3)"),  # a remainder, not a magic
        ("def broken(:", "def broken(:"),  # the student reads their own syntax error
    ],
)
def test_lines_for_ipython_are_left_out(source, expected):
    cells = [c.source for c in repaired(s.with_cell(s.solved(), source)).cells if not c.answer]
    assert cells == ([expected] if expected else [])


def test_what_is_odd_about_cells_is_said_once():
    made = s.solved()
    merged = "\n\n".join("".join(s.cell_of(made, name)["source"]) for name in NAMES[:-1])
    cell = {"cell_type": "code", "metadata": {}, "source": merged}
    notes = repaired(made | {"cells": [cell]}).notes
    assert notes == [
        f"Cells without their mark were taken for what they define: `{NAMES[0]}`.",
        f"Missing from the notebook: `{NAMES[-1]}`.",
    ]


def test_written_answers_are_kept_apart():
    made = s.solved()
    written = next(c for c in made["cells"] if (s.grade_id(c) or "").startswith("written"))
    written["source"] = "Because **counts** are few."
    result = repaired(made)
    assert result.written == {s.grade_id(written): "Because **counts** are few."}


def stripped(made: dict[str, Any], text: str) -> bytes:
    """The notebook without any mark, its written answer replaced by a text."""
    return without_metadata(written(copy.deepcopy(made), text))


def question() -> str:
    cell = next(c for c in s.unsolved()["cells"] if (s.grade_id(c) or "").startswith("written"))
    return "".join(cell["source"])


@pytest.mark.parametrize("answer", [question() + "\n\nFew counts.", "Few counts."])
def test_a_written_answer_without_its_mark_is_found(answer):
    result = repaired(stripped(s.solved(), answer))
    assert list(result.written.values()) == [answer]
    assert any("has no mark" in note for note in result.notes)


def test_a_written_answer_beside_its_cell_is_found_and_remarks_elsewhere_are_not():
    made = s.solved()
    made["cells"].insert(3, {"cell_type": "markdown", "metadata": {}, "source": "a remark"})
    assert repaired(made).written == {}
    at = next(i for i, c in enumerate(made["cells"]) if (s.grade_id(c) or "").startswith("written"))
    made["cells"].insert(at + 1, {"cell_type": "markdown", "metadata": {}, "source": "Few."})
    assert list(repaired(made).written.values()) == ["Few."]


def test_what_was_handed_out_is_told_from_work():
    assert repaired(s.unsolved()).untouched and repaired(without_metadata(s.unsolved())).untouched
    assert not repaired(written(s.unsolved(), "Few.")).untouched
    assert not repaired(s.solved()).untouched


def test_python_in_a_file_of_another_name_is_read():
    assert code_of(repaired(as_script(s.solved()), ".ipynb")) == RIGHT
    assert code_of(repaired(s.solved(), ".py")) == RIGHT


def test_definitions_and_what_lies_behind_a_name():
    source = "import os\nX = 3\ny = f()\n@deco\ndef g():\n    return X\nprint(g())\nclass C: pass"
    assert definitions(source) == (
        "import os\nX = 3\n@deco\ndef g():\n    return X\nclass C:\n    pass"
    )
    assert definitions("import os; x = 1; os.abort()") == "import os\nx = 1"
    behind = source_behind("a", ["def a(): return b()", "def b(): return F.x", "def c(): pass"])
    assert "F.x" in behind and "def c" not in behind


# --- ingest: what was handed in ------------------------------


@pytest.fixture
def tree(tmp_path):
    """nbgrader's tree, with a helper to put files into it."""

    def put(student: str, name: str, data: bytes = b"x", assignment: str = HERE) -> Path:
        path = tmp_path / "submitted" / student / assignment / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    put.root = tmp_path / "submitted"  # type: ignore[attr-defined]
    return put


def test_everybody_gets_one_row(tree, tmp_path):
    tree("ada", f"{s.NOTEBOOK}.ipynb", b"right")
    tree("bob", "Final FINAL (2).ipynb", b"named otherwise")
    tree("cyd", "work.py", b"a script")
    tree("dee", "deep/er/notebook.ipynb", b"nested")
    tree("eve", "readme.txt")
    (tree.root / "fay" / HERE).mkdir(parents=True)
    tree("gus", "old.ipynb", b"old")
    os.utime(tree.root / "gus" / HERE / "old.ipynb", (1, 1))
    tree("gus", "new.ipynb", b"new")
    (tree.root / ".hidden").mkdir()
    rows = {row.student: row for row in ingest(tree.root)}
    assert list(rows) == ["ada", "bob", "cyd", "dee", "eve", "fay", "gus"]
    assert {row.assignment for row in rows.values()} == {HERE}
    assert [rows[n].data for n in ("ada", "bob", "cyd", "dee", "gus")] == [
        b"right", b"named otherwise", b"a script", b"nested", b"new",
    ]  # fmt: skip
    assert rows["cyd"].suffix == ".py"
    assert all(rows[name].problem for name in ("eve", "fay"))
    assert any("named" in note for note in rows["bob"].notes)
    assert any("of 2 files, new.ipynb, the latest," in note for note in rows["gus"].notes)


def test_of_several_attempts_the_latest_with_work_in_it_counts(tree):
    for time_, (name, data) in enumerate(
        {
            "first.ipynb": s.as_bytes(s.solved(**{FIRST: "x = 1"})),
            "second.ipynb": s.as_bytes(s.solved()),
            f"{s.NOTEBOOK}.ipynb": s.as_bytes(s.unsolved()),
            "broken.ipynb": s.as_bytes(s.solved())[:500],
        }.items()
    ):
        os.utime(tree("ada", name, data), (time_ + 1, time_ + 1))
    (row,) = ingest(tree.root, release=lambda task: s.release(task.notebook))
    assert row.data == s.as_bytes(s.solved())
    assert any("second.ipynb, the latest with work in it, counts" in note for note in row.notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_and_pipes_are_not_followed(tree, tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(b"someone else's")
    for student in ("link", "pipe", "folder"):
        (tree.root / student / HERE).mkdir(parents=True)
    (tree.root / "link" / HERE / f"{s.NOTEBOOK}.ipynb").symlink_to(secret)
    os.mkfifo(tree.root / "pipe" / HERE / f"{s.NOTEBOOK}.ipynb")
    (tree.root / "folder" / HERE / "there").symlink_to(tmp_path)
    (tree.root / "whole").symlink_to(tmp_path)
    rows = {row.student: row for row in ingest(tree.root)}
    assert set(rows) == {"link", "pipe", "folder", "whole"}
    assert all(row.data is None and row.problem for row in rows.values())
    assert any("no ordinary file" in note for note in rows["pipe"].notes)


def test_files_and_flat_folders(tmp_path):
    (tmp_path / f"ada_{s.NOTEBOOK}.ipynb").write_bytes(b"1")
    (tmp_path / f"{s.NOTEBOOK}-bob.ipynb").write_bytes(b"2")
    (tmp_path / "cyd.ipynb").write_bytes(f"def {FIRST}(".encode())
    (tmp_path / "dee.ipynb").write_bytes(b"who knows")
    (one,) = (row for row in ingest(tmp_path) if row.student == "dee")
    assert one.assignment == HERE and any("like the others" in note for note in one.notes)
    (tmp_path / "eve.ipynb").write_bytes(b"def rnn_cell(")  # now the class has done two
    found = {row.student: row for row in ingest(tmp_path)}
    assert [found[name].assignment for name in ("ada", "bob", "cyd", "dee")] == [HERE] * 3 + [""]
    assert "--assignment" in found["dee"].problem
    assert {row.assignment for row in ingest(tmp_path, HERE)} == {HERE}
    (one,) = ingest(tmp_path / "cyd.ipynb")
    assert (one.student, one.assignment, one.notebook) == ("cyd", HERE, s.NOTEBOOK)


def test_one_file_or_one_student_of_a_tree(tree):
    path = tree("ada", "x.ipynb", b"1")
    tree("ada", "rnn.ipynb", b"2", assignment=s.assignment("rnn").name)
    (one,) = ingest(path)
    assert (one.student, one.assignment) == ("ada", HERE)
    assert [row.assignment for row in ingest(tree.root / "ada")] == [
        HERE,
        s.assignment("rnn").name,
    ]
    (one,) = ingest(tree.root / "ada" / HERE)
    assert (one.student, one.assignment) == ("ada", HERE)
    (one,) = ingest(tree.root, HERE)
    assert one.assignment == HERE


def test_what_cannot_be_graded_at_all_says_what_to_give(tmp_path):
    for path, assignment, said in (
        (tmp_path / "no", None, "does not exist"),
        (tmp_path, None, "no notebook"),
        (tmp_path, "99-none", HERE),
    ):
        with pytest.raises(IngestError, match=said):
            ingest(path, assignment)


# --- the whole way ------------------------------

NAUGHTY = "<script>alert(1)</script><img src=x onerror=alert(2)> [c](javascript:alert(3))"


def written(made: dict[str, Any], text: str) -> dict[str, Any]:
    next(c for c in made["cells"] if (s.grade_id(c) or "").startswith("written"))["source"] = text
    return made


def raising(text: str) -> str:
    return f"def {FIRST}(*a):\n    # {text}\n    raise ValueError({text!r})\n"


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class graded once: (folder, rows by student)."""
    folder = tmp_path_factory.mktemp("class")
    ends = f"def {FIRST}(*a):\n    import os\n    os._exit(0)\n"
    handed_in = {
        "ada": s.as_bytes(written(s.solved(), "Few counts.")),
        "bob": s.as_bytes(s.unsolved()),
        "cyd": s.as_bytes(s.with_cell(s.solved(**{FIRST: ends}), "while True: pass")),
        "dee": s.as_bytes(s.solved())[:3000],
        "eve": s.as_bytes(written(s.solved(**{FIRST: raising(NAUGHTY)}), NAUGHTY)),
        "fay": s.as_bytes(s.solved()),
    }
    for student, data in handed_in.items():
        place = folder / "submitted" / student / HERE
        place.mkdir(parents=True)
        (place / f"{s.NOTEBOOK}.ipynb").write_bytes(data)
    (folder / "submitted" / "gus" / HERE).mkdir(parents=True)
    rows = grade(folder / "submitted", plan_for(folder))
    return folder, {row["student"]: row for row in rows}


def plan_for(folder: Path, **more: Any) -> Plan:
    fields = {"secret": s.SECRET, "trust": True, "jobs": 2, "cache": folder / "cache"} | more
    return Plan(exercises=s.ROOT / "exercises", out=folder, **fields)


def test_rows_say_what_happened(graded):
    _, rows = graded
    assert [rows[n]["score"] for n in ("ada", "bob", "dee", "fay", "gus")] == [FULL, 0, 0, FULL, 0]
    assert {n: rows[n]["status"] for n in rows} == dict.fromkeys(rows, "graded") | {
        "dee": "refused",
        "gus": "refused",
    }
    assert all(row["max_score"] == FULL for row in rows.values())
    cost = next(e.points for e in s.assignment().exercises if e.name == FIRST)
    assert rows["cyd"]["score"] == rows["eve"]["score"] == FULL - cost
    assert "ended the Python process" in rows["cyd"]["message"]
    assert any("did not return within" in note for note in rows["cyd"]["notes"])
    assert "cut off" in rows["dee"]["message"] and "no notebook" in rows["gus"]["message"]


def test_results_hold_the_promised_form(graded):
    folder, rows = graded
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [row["student"] for row in results] == sorted(rows)
    for row in results:
        assert set(row) >= {
            "student", "assignment", "notebook", "score", "max_score", "status", "message",
            "isolation", "seconds", "exercises",
        }  # fmt: skip
        assert row["isolation"] == best_level()
        for exercise in row["exercises"]:
            assert set(exercise) >= {"name", "points", "max_points", "misconception", "cases"}
            for case in exercise["cases"]:
                assert set(case) == {"name", "visible", "passed", "message"}
    assert {e["name"] for e in results[0]["exercises"]} == set(NAMES)
    with (folder / "results.csv").open(encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    assert [(line["student"], float(line["score"])) for line in table] == [
        (row["student"], row["score"]) for row in results
    ]
    assert all(line["notes"] == " ".join(rows[line["student"]]["notes"]) for line in table)
    assert "did not return" in next(line["notes"] for line in table if line["student"] == "cyd")
    assert float(table[0][FIRST]) == results[0]["exercises"][0]["points"]


def test_no_text_of_a_student_becomes_a_formula():
    from autograder.grader.export import harmless

    assert [harmless(v) for v in ("=1+1", "@x", "plain", 3.5)] == ["'=1+1", "'@x", "plain", 3.5]


class Collector(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= set(attrs)


def test_feedback_is_safe_to_publish(graded):
    folder, rows = graded
    for student, row in rows.items():
        page = (folder / "feedback" / student / HERE / f"{s.NOTEBOOK}.html").read_text("utf-8")
        found = Collector()
        found.feed(page)
        told = json.loads((folder / "feedback" / student / HERE / f"{s.NOTEBOOK}.json").read_text())
        assert (told["student"], told["score"]) == (student, row["score"])
        assert not any(
            re.search(rf"\b{name}\b", json.dumps(told)) for name in set(rows) - {student}
        )
        assert not found.tags & {"script", "img", "iframe", "svg", "object", "form", "a", "link"}
        assert not any(name.startswith("on") for name, _ in found.attributes)
        assert "default-src 'none'" in page
        others = set(rows) - {student}
        assert not any(re.search(rf"\b{other}\b", page) for other in others)
        for secret in (str(s.ROOT), str(folder), s.SECRET.decode(), os.uname().nodename):
            assert secret not in page
        assert f"{row['score']:g} of {row['max_score']:g} points" in page
        assert len(page) < 200_000
    page = (folder / "feedback" / "eve" / HERE / f"{s.NOTEBOOK}.html").read_text("utf-8")
    assert "&lt;script&gt;" in page


def test_of_hidden_cases_only_the_hint_is_published():
    row = json.loads(json.dumps(s.result_of(s.solved(**{FIRST: f"def {FIRST}(*a): return 1"}))))
    row |= {"student": "x", "assignment": HERE, "notebook": s.NOTEBOOK}
    page = as_page(row, s.assignment(), site="https://example.org/book/")
    specs = {case.title: case for case in s.assignment().exercises[0].cases}
    shown = [case for case in row["exercises"][0]["cases"] if not case["visible"]]
    assert shown and all(case["message"] == specs[case["name"]].hint for case in shown)
    assert "further cases pass" in page
    first = s.assignment().exercises[0].hints[0]
    assert _prose(first) in page  # only what any code passes holds, so the first hint
    broken = s.result_of(b"{") | {"student": "x", "assignment": HERE, "notebook": s.NOTEBOOK}
    assert _prose(first) not in as_page(broken, s.assignment())
    wrong = s.result_of(
        s.solved(**{FIRST: sample_class.mistaken(s.assignment(), FIRST, "transposed")})
    )
    wrong |= {"student": "x", "assignment": HERE, "notebook": s.NOTEBOOK}
    page = as_page(wrong, s.assignment(), site="https://example.org/book/")
    assert f"{len(NAMES) - 1} of {len(NAMES)} exercises are right" in page
    first = wrong["exercises"][0]
    assert first["misconception"] == "transposed"
    assert f'href="https://example.org/book/{first["see"].replace("#", ".html#")}"' in page
    section = s.assignment().sections[first["see"].partition("#")[2]]
    assert first["message"].endswith(f"See “{section}”.") and page.count(section) == 1


def test_mistakes_are_written_down_with_what_students_have():
    made = s.assignment("gpt")
    source = sample_class.mistaken(made, "GPT", "untied_head")
    assert "autograder" not in source
    result = s.result_of(s.solved("gpt", GPT=source), "gpt", only=("GPT",))
    (found,) = result["exercises"]
    assert found["misconception"] == "untied_head" and not result["notes"]
    with pytest.raises(ValueError, match=r"imports rnn2gpt\.transformer"):
        sample_class.mistaken(s.assignment("transformer"), "DecoderBlock", "masks_swapped")


def gradebook(folder: Path):
    from nbgrader.api import Gradebook

    return Gradebook(f"sqlite:///{folder / 'gradebook.db'}")


def test_the_gradebook_holds_the_scores(graded):
    folder, rows = graded
    with gradebook(folder) as book:
        for student, row in rows.items():
            submission = book.find_submission_notebook(s.NOTEBOOK, HERE, student)
            assert submission.score == row["score"]
            written_grade = next(g for g in submission.grades if g.name.startswith("written"))
            assert written_grade.needs_manual_grade == (student in ("ada", "eve"))
        grades = {g.name: g for g in book.find_submission_notebook(s.NOTEBOOK, HERE, "eve").grades}
        assert grades[f"check_{FIRST}"].auto_score == 0
        assert not grades[f"check_{FIRST}"].needs_manual_grade
        said = book.find_comment(FIRST, s.NOTEBOOK, HERE, "eve").auto_comment
        assert said == rows["eve"]["exercises"][0]["message"]


def test_autograded_notebooks_are_our_cells_with_their_answers(graded):
    folder, _ = graded
    for student in ("ada", "cyd", "dee", "eve"):
        path = folder / "autograded" / student / HERE / f"{s.NOTEBOOK}.ipynb"
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        ours = {c.id: c for c in nbformat.reads(s.release().decode(), 4).cells}
        theirs = {c.id: c for c in notebook.cells}
        assert set(ours) <= set(theirs)
        locked = [i for i, c in ours.items() if c.metadata.get("nbgrader", {}).get("locked")]
        assert locked and all(theirs[i].source == ours[i].source for i in locked)
        assert not any(c.get("outputs") for c in notebook.cells)
        markdown = "".join(c.source for c in notebook.cells if c.id.startswith("written"))
        assert "<script" not in markdown and "javascript:" not in markdown
    assert theirs[FIRST].source.startswith(f"def {FIRST}")


def test_grading_again_is_free_and_keeps_manual_marks(graded):
    folder, rows = graded
    with gradebook(folder) as book:
        notebook = book.find_submission_notebook(s.NOTEBOOK, HERE, "ada")
        grade_by_hand = next(g for g in notebook.grades if g.name.startswith("written"))
        grade_by_hand.manual_score, grade_by_hand.needs_manual_grade = 1.5, False
        comment = book.find_comment(grade_by_hand.name, s.NOTEBOOK, HERE, "ada")
        comment.manual_comment = "Well seen."
        name = grade_by_hand.name
        book.db.commit()
    start = sum(os.times()[:4])  # processor time, children's too: on a busy machine walls lie
    again = grade(folder / "submitted", plan_for(folder))
    assert sum(os.times()[:4]) - start < 10
    assert all(
        row["reused"] == (row["work"] is not None or row["student"] == "dee") for row in again
    )
    ada = next(row for row in again if row["student"] == "ada")
    assert (ada["total"], ada["waiting"], ada["remarks"]) == (FULL + 1.5, False, ["Well seen."])
    page = (folder / "feedback" / "ada" / HERE / f"{s.NOTEBOOK}.html").read_text("utf-8")
    assert f"{FULL + 1.5:g} of " in page and "Well seen." in page
    by_person = dict.fromkeys(("reused", "total", "waiting", "remarks"))
    first_time = {name: row | by_person for name, row in rows.items()}
    assert {row["student"]: row | by_person for row in again} == first_time
    with gradebook(folder) as book:
        mark = book.find_grade(name, s.NOTEBOOK, HERE, "ada")
        assert (mark.manual_score, mark.needs_manual_grade) == (1.5, False)
        assert book.find_submission_notebook(s.NOTEBOOK, HERE, "ada").score == FULL + 1.5
        comment = book.find_comment(name, s.NOTEBOOK, HERE, "ada")
        assert comment.comment == "Well seen."


def test_one_student_or_one_exercise_is_graded_again_and_the_rest_stays(graded, tmp_path):
    folder, rows = graded
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    submitted = out / "submitted"
    for student in ("bob", "fay"):  # both hand in anew; only one is graded again
        (submitted / student / HERE / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(s.solved()))
    (submitted / "fay" / HERE / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(s.unsolved()))
    plan = plan_for(out, cache=folder / "cache")
    again = {r["student"]: r for r in grade(submitted, replace(plan, students=frozenset({"bob"})))}
    assert (again["bob"]["score"], again["bob"]["reused"]) == (FULL, False)
    assert again["fay"]["score"] == FULL and again["fay"]["reused"]
    assert [again[name]["score"] for name in again if name != "bob"] == [
        rows[name]["score"] for name in rows if name != "bob"
    ]
    with gradebook(out) as book:
        assert book.find_submission_notebook(s.NOTEBOOK, HERE, "bob").score == FULL
    (submitted / "bob" / HERE / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(s.unsolved()))
    only = replace(plan, only=frozenset({FIRST}))
    again = {r["student"]: r for r in grade(submitted / "bob", only)}
    cost = next(e.points for e in s.assignment().exercises if e.name == FIRST)
    assert again["bob"]["score"] == FULL - cost  # of the others, the earlier points
    assert [e["status"] for e in again["bob"]["exercises"]].count("right") == len(NAMES) - 1


def test_a_changed_exercise_is_not_mixed_into_an_old_gradebook(graded, tmp_path):
    folder, _ = graded
    exercises, out = tmp_path / "exercises", tmp_path / "out"
    shutil.copytree(s.ROOT / "exercises", exercises)
    out.mkdir()
    shutil.copy(folder / "gradebook.db", out)
    made = s.unsolved()
    made["cells"] = [c for c in made["cells"] if not (s.grade_id(c) or "").startswith("written")]
    (exercises / HERE / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(made))
    plan = Plan(exercises=exercises, out=out, secret=s.SECRET, trust=True, jobs=1)
    with pytest.raises(GradingError, match=r"move gradebook\.db away"):
        grade(folder / "submitted" / "bob", plan)
    assert (out / "results.json").exists()  # the grading itself is not lost


def test_results_follow_the_seed_and_the_bytes():
    work = Work(s.NOTEBOOK, b"x", ".ipynb", s.release(), "process", secret=b"1")
    keys = {work.key()}
    for change in ({"secret": b"2"}, {"data": b"y"}, {"level": "bubblewrap"}, {"hidden": False}):
        keys.add(Work(**{**work.__dict__, **change}).key())
    assert len(keys) == 5
    assert work.key() == Work(**work.__dict__).key()


def test_a_worker_that_dies_takes_no_other_result_along(tmp_path):
    """`kill` stands for whatever might take a grading process down."""
    works = [
        Work(s.NOTEBOOK, s.as_bytes(s.solved())[:100], ".ipynb", s.release(), "process"),
        Work("os_kill_no_such_checks", b"x", ".ipynb", None, "process"),
    ]
    works[1].__dict__["key"] = lambda: "1"  # its checks cannot even be fingerprinted
    outcomes = {w.notebook: outcome for w, outcome, _ in run_all(works, 2, tmp_path)}
    assert outcomes[s.NOTEBOOK]["status"] == "refused"
    assert isinstance(outcomes[works[1].notebook], Exception)
    assert "failed" in failure(outcomes[works[1].notebook])


_GRADES = """
import sys
from pathlib import Path
from autograder.grader.grade import Plan, grade
folder, exercises = map(Path, sys.argv[1:])
cache = folder / "cache"
grade(folder / "submitted", Plan(exercises, folder, b"x", trust=True, jobs=1, cache=cache))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is a signal of POSIX systems")
def test_a_grader_killed_in_the_middle_loses_nothing_and_leaves_nothing(tmp_path):
    members = [f"student-{number}" for number in range(5)]
    for student in members:
        place = tmp_path / "submitted" / student / HERE
        place.mkdir(parents=True)
        made = s.with_cell(s.solved(), f"name = {student!r}")
        (place / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(made))
    command = [sys.executable, "-c", _GRADES, str(tmp_path), str(s.ROOT / "exercises")]
    grader = subprocess.Popen(command, cwd=s.ROOT)
    cache = tmp_path / "cache"
    deadline = time.monotonic() + 400
    while len(list(cache.glob("*.json"))) < 2:
        assert grader.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(grader.pid).children(recursive=True)
    grader.kill()
    grader.wait()
    known = {path: path.read_bytes() for path in cache.glob("*.json")}
    assert 2 <= len(known) < len(members) and not (tmp_path / "results.json").exists()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, "processes outlived the grader that started them"
    plan = Plan(s.ROOT / "exercises", tmp_path, b"x", trust=True, jobs=1, cache=cache)
    rows = grade(tmp_path / "submitted", plan)
    assert [(row["student"], row["score"]) for row in rows] == [(name, FULL) for name in members]
    assert sum(row["reused"] for row in rows) >= len(known)
    assert all(path.read_bytes() == data for path, data in known.items())
    with gradebook(tmp_path) as book:
        assert all(book.find_submission(HERE, name).score == FULL for name in members)


def test_the_seed_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "deep" / ".seed"
    first = read_seed(path)
    assert len(first) == 64 and read_seed(path) == first
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


HOSTILE_MARKDOWN = (
    NAUGHTY,
    "<b onmouseover=alert(1)>x</b> <!-- --> <?php ?> </div><svg/onload=alert(1)>",
    "[a](javascript:alert(1)) [b](java&#115;cript:alert(1)) [c](javascript\\:alert(1))",
    "[d][e]\n\n[e]: javascript:alert(1)\n\n> [f]:  data:text/html,x\n\n[f]",
    "![p](https://tracker.example/p.png) <javascript:alert(1)> <https://example.org>",
    "```\n<script>alert(1)</script>\n",
    "$\\href{javascript:alert(1)}{x}$ $\\require{html}\\style{color:red}{x}$",
    "`` ` ``<script>alert(1)</script>",
    "$<script>alert(1)</script>$ $$\n<img src=x onerror=alert(1)>\n$$",
    "[x](http&#58;//a)<iframe srcdoc=x> [y]( javascript:alert(1))",
)


def as_web_page(markdown: str) -> str:
    """The page that Formgrader's own converter makes of a cell."""
    from nbconvert import HTMLExporter

    cell = nbformat.v4.new_markdown_cell(markdown)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    return HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]


@pytest.mark.parametrize("text", HOSTILE_MARKDOWN)
def test_students_markdown_is_defused(text):
    page, control = Collector(), Collector()
    page.feed(as_web_page(defuse(text)))
    control.feed(as_web_page("harmless"))
    assert page.tags - control.tags <= {"a", "code", "pre", "p", "blockquote", "br"}
    for name, value in page.attributes - control.attributes:
        assert not name.startswith("on") and name != "src"
        assert name != "href" or (value or "").startswith(("http", "#"))
    assert "\\href{" not in defuse(text) and "\\require{" not in defuse(text)


def test_code_and_mathematics_stay_readable():
    text = 'Since $a < b$, `x[0] < y` and `p > q`:\n\n```python\nif n<m and d["k"]: f()\n```'
    assert defuse(text) == text.replace("n<m", "n< m").replace("]: f", "] : f")
    page = as_web_page(defuse(text))
    assert "&amp;lt;" not in page and "$a &lt; b$" in page and "x[0] &lt; y" in page
    assert 'href="https://example.org"' in as_web_page(defuse("[read](https://example.org)"))


# --- the commands ------------------------------


def test_the_table_cuts_no_name_and_says_what_was_reused(graded):
    from rich.console import Console

    _, rows = graded
    name = "Wolfeschlegelsteinhausenbergerdorff-31415926"
    row = rows["ada"] | {"student": name, "reused": True}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show([row, rows["bob"]], console)
    said = console.export_text()
    first = said.partition("Wolfe")[1:]
    assert "…" not in "".join(first).partition("bob")[0]
    pieces = [line.split()[0] for line in "".join(first).splitlines()[:3] if line.strip()]
    assert "".join(pieces).startswith(name)
    assert "1 of 2 results are taken up" in said


def test_no_sandbox_no_grading_unless_trusted(graded, monkeypatch, tmp_path):
    folder, _ = graded
    monkeypatch.setattr(grade_module, "best_level", lambda: "process")
    one = folder / "submitted" / "bob"
    seed = ["--seed-file", str(tmp_path / "seed"), "--no-cache"]
    refused = CliRunner().invoke(main, ["grade", str(one), "--out", str(tmp_path), *seed])
    assert refused.exit_code == 1
    assert "apt-get install bubblewrap" in refused.output and "--trust" in refused.output
    arguments = ["grade", str(one), "--out", str(tmp_path), *seed, "--trust", "--json"]
    trusted = CliRunner().invoke(main, arguments)
    assert trusted.exit_code == 0, trusted.output
    (row,) = json.loads(trusted.stdout)
    assert (row["student"], row["isolation"], row["score"]) == ("bob", "process", 0)


def test_the_grade_command_needs_something_to_grade():
    for arguments in (["grade"], ["grade", "x", "--sample"], ["grade", "/no/such/folder"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code != 0 and "Traceback" not in result.output


def test_a_student_checks_their_own_notebook(tmp_path):
    path = tmp_path / "mine.ipynb"
    wrong = sample_class.mistaken(s.assignment(), FIRST, "transposed")
    path.write_bytes(s.as_bytes(s.solved(**{FIRST: wrong})))
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 0, result.output
    message = next(
        m.message for m in s.assignment().exercises[0].misconceptions if m.name == "transposed"
    )
    assert message in result.output
    last = result.output.strip().splitlines()[-1]
    assert re.match(r"Points so far: [\d.]+ of \d+ on the visible cases", last)
    assert "other inputs" not in result.output  # hidden cases stay with the grader
    path.write_bytes(b"{")
    result = CliRunner().invoke(main, ["check", str(path), "--assignment", HERE])
    assert result.exit_code == 1 and "cut off" in result.output


def ran(made: dict[str, Any]) -> dict[str, Any]:
    """The notebook as it is saved after all cells were run."""
    for count, cell in enumerate(c for c in made["cells"] if c["cell_type"] == "code"):
        cell["execution_count"] = count + 1
    return made


def test_a_file_that_is_ready_is_told_from_one_that_is_not(tmp_path):
    good, bad = tmp_path / f"{s.NOTEBOOK}.ipynb", tmp_path / "My rnn.ipynb"
    good.write_bytes(s.as_bytes(ran(written(s.solved(), "Few counts."))))
    result = CliRunner().invoke(main, ["check", str(good), "--submit-ready"])
    assert result.exit_code == 0, result.output
    assert result.output.strip().splitlines()[-1] == "✓ The file is ready to hand in."
    shortcut = "def cross_entropy(logits, targets):\n    import torch.nn.functional as F\n"
    made = s.solved(cross_entropy=f"{shortcut}    return F.cross_entropy(logits, targets)\n")
    cells = [cell for cell in made["cells"] if s.grade_id(cell) != NAMES[0]]
    twice = [copy.deepcopy(cell) for cell in cells if s.grade_id(cell) == NAMES[1]]
    last = {"output_type": "error", "ename": "NameError", "evalue": "x", "traceback": []}
    twice[0]["outputs"] = [last]
    bad.write_bytes(s.as_bytes(made | {"cells": [*cells, *twice], "x": "0" * (11 << 20)}))
    command = ["check", str(bad), "--assignment", HERE, "--submit-ready"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    for said in (
        f"The file is named My rnn.ipynb, not {s.NOTEBOOK}.ipynb",
        f"Missing from the notebook: `{NAMES[0]}`.",
        f"Answers in several cells were run in order: `{NAMES[1]}`.",
        "leans on `cross_entropy`",
        "The set-up cell was not run in this file.",
        f"Cell {len(cells) + 1} stopped with NameError when it was run last.",
        "The file has 11 MB",
        f"○ Not written yet: `{NAMES[0]}`",
        "○ The written answer is empty.",
    ):
        assert said in result.output, (said, result.output)
    assert re.search(r"Mend \d+ things first\.", result.output)
    bad.write_bytes(b"")
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 1 and "empty" in json.loads(result.stdout)["problems"][0]


@pytest.mark.slow
def test_the_sample_class(tmp_path, monkeypatch):
    rows = {row["student"]: row for row in sample_class.grade_sample(s.ROOT)}
    assert len(rows) == len(sample_class.MEMBERS)
    for member in sample_class.MEMBERS:
        row = rows[member.student]
        if member.damage is sample_class._truncated:
            assert row["status"] == "refused"
        elif member.solved is None and not member.mistakes:
            assert row["score"] == row["max_score"], row["message"]
        for exercise in row["exercises"]:
            if exercise["name"] in member.mistakes and row["status"] == "graded":
                assert exercise["misconception"] == member.mistakes[exercise["name"]]
    if best_level() != "process":
        hostile = next(m for m in sample_class.MEMBERS if m.student == sample_class.HOSTILE)
        earned = s.assignment(hostile.notebook).exercises[: hostile.solved]
        assert rows[hostile.student]["score"] == sum(e.points for e in earned)
    first = {p: p.read_bytes() for p in (s.ROOT / "build/sample-class/submitted").rglob("*.ipynb")}
    sample_class.make(s.ROOT, tmp_path)
    again = {p.name: p.read_bytes() for p in tmp_path.rglob("*.ipynb")}
    assert sorted(first.values()) == sorted(p.read_bytes() for p in tmp_path.rglob("*.ipynb"))
    assert again


@pytest.mark.slow
def test_without_a_sandbox_the_hostile_member_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(grade_module, "best_level", lambda: "process")
    monkeypatch.setattr(
        sample_class,
        "MEMBERS",
        [m for m in sample_class.MEMBERS if m.student in ("emmy", sample_class.HOSTILE)],
    )
    shutil.copytree(s.ROOT / "exercises", tmp_path / "exercises")
    shutil.copytree(s.ROOT / "solutions", tmp_path / "solutions")
    rows = {row["student"]: row for row in sample_class.grade_sample(tmp_path)}
    assert rows[sample_class.HOSTILE]["status"] == "skipped"
    assert "not run" in rows[sample_class.HOSTILE]["message"]


@pytest.mark.slow
def test_stock_nbgrader_works_on_these_folders(tmp_path):
    """generate_assignment, validate, autograde and export, as their own commands."""
    from course.release import build_source

    shutil.copy(s.ROOT / "nbgrader_config.py", tmp_path)
    source = tmp_path / "build" / "source" / HERE / f"{s.NOTEBOOK}.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(build_source(s.ROOT, s.assignment()), source)
    place = tmp_path / "submitted" / "ada" / HERE
    place.mkdir(parents=True)
    (place / f"{s.NOTEBOOK}.ipynb").write_bytes(s.as_bytes(written(s.solved(), "Few.")))
    commands = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([commands, os.environ["PATH"]])}

    def nbgrader(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    nbgrader("generate_assignment", HERE, "--create")
    released = nbformat.read(tmp_path / "exercises" / HERE / f"{s.NOTEBOOK}.ipynb", 4)
    assert not any("SOLUTION" in cell.source for cell in released.cells)
    said = nbgrader("validate", str(place / f"{s.NOTEBOOK}.ipynb"))
    assert "Success" in said and "FAILED" not in said, said
    nbgrader("autograde", HERE)
    grade_csv = tmp_path / "grades.csv"
    nbgrader("export")
    (line,) = csv.DictReader(grade_csv.open(encoding="utf-8"))
    assert (line["student_id"], float(line["score"])) == ("ada", FULL)
    # the same gradebook then takes our grader's results
    shutil.copytree(s.ROOT / "exercises", tmp_path / "ours")
    plan = Plan(exercises=tmp_path / "ours", out=tmp_path, secret=s.SECRET, trust=True, jobs=1)
    grade(tmp_path / "submitted", plan)
    nbgrader("export")
    (line,) = csv.DictReader(grade_csv.open(encoding="utf-8"))
    assert float(line["score"]) == FULL


# --- what pages show of it ------------------------------


def test_stored_measurements_become_tables():
    from course.site.measured import PARTS, threats_html

    attack = {
        "family": "killing", "does": "<b>exits</b>", "expected": 0, "score": 0, "max_score": 11,
        "status": "graded", "message": "Nothing.", "notes": [], "seconds": 1, "ok": True,
    }  # fmt: skip
    result = {
        "isolation": "bubblewrap",
        "neighbors": {"right": 2, "of": 2},
        "threats": [attack, attack | {"ok": False, "score": 11}],
    }
    page = threats_html(result)
    assert "1 of 2 submissions" in page and "killing: 1 of 2" in page and "<b>" not in page
    cost = {"processor": 0.25, "wall": 0.5}
    compared = {
        "rounds": {"ours": [{"warm": cost}], "nbgrader": [cost, cost], "otter": "left out: x"},
        "ratio": {"nbgrader": [20.0, 19.5, 21.0]},
    }
    page = PARTS["compare"](compared)
    assert "20 (19.5 to 21)" in page and "left out: x" in page
    assert "0.31" in PARTS["chapters"]({"rnn": {"solved": 0.312, "unsolved": 0.1}})
    scaled = PARTS["scaling"]({"students": 2, "1 worker": cost | {"megabytes": 700}})
    assert "700" in scaled and "0.12" in scaled
