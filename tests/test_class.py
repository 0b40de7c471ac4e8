"""What is made of a class's rows: lateness, lists for learning systems, likenesses, the report."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import submissions as s

from autograder.checks import load
from autograder.grader import late, report, systems
from autograder.grader.similar import alike

TASK = s.assignment()
NAMES = [exercise.name for exercise in TASK.exercises]


def row(student: str, right: int = 0, **more: Any) -> dict[str, Any]:
    """A graded row, the first exercises of it right, the others wrong without a name."""
    exercises = [
        {
            "name": e.name,
            "points": e.points if place < right else 0.0,
            "max_points": e.points,
            "status": "right" if place < right else "wrong",
            "message": "",
            "misconception": None,
            "see": "",
            "cases": [],
        }
        for place, e in enumerate(TASK.exercises)
    ]
    score, most = (sum(e[key] for e in exercises) for key in ("points", "max_points"))
    made = {
        "student": student,
        "assignment": TASK.name,
        "notebook": TASK.notebook,
        "status": "graded",
        "message": f"{right} right.",
        "score": score,
        "max_score": most,
        "total": score,
        "max_total": most + 2,
        "waiting": False,
        "seconds": 1.0,
        "exercises": exercises,
        "notes": [],
        "person": {},
        "submitted": "",
        "work": None,
    }
    return made | late.NO_LATENESS | more


# --- lateness ------------------------------

DEADLINES = f"""
penalty = 10
late_days = 2
grace_minutes = 15
[due]
{TASK.name} = 2026-10-01T23:59:00+02:00
02-rnn = 2026-10-08T23:59:00+02:00
[extensions.dee]
{TASK.name} = 1
"""


@pytest.fixture
def deadlines(tmp_path):
    path = tmp_path / "deadlines.toml"
    path.write_text(DEADLINES, encoding="utf-8")
    return late.read_deadlines(path, {TASK.name: 1, "02-rnn": 1})


@pytest.mark.parametrize(
    ("submitted", "days"),
    [
        ("2026-10-01T21:59:00+00:00", 0),  # to the second, in another zone
        ("2026-10-01T22:13:00+00:00", 0),  # within the grace
        ("2026-10-01T22:15:00+00:00", 1),
        ("2026-10-02T21:59:00+00:00", 1),
        ("2026-10-02T22:30:00+00:00", 2),
        ("", 0),
    ],
)
def test_days_late(deadlines, submitted, days):
    assert deadlines.days_late("ada", TASK.name, submitted) == days
    assert deadlines.days_late("dee", TASK.name, submitted) == max(0, days - 1)
    assert deadlines.days_late("ada", "03-lstm", submitted) == 0


def test_late_days_are_spent_in_the_order_of_the_due_dates(deadlines):
    second = row("ada", 5, assignment="02-rnn", submitted="2026-10-10T10:00:00+00:00")
    first = row("ada", 5, submitted="2026-10-02T10:00:00+00:00")
    never = row("bob", 5, submitted="2026-12-24T10:00:00+00:00")
    rows = [second, first, never, row("cyd", 5)]
    late.apply(deadlines, rows)
    assert [(r["days_late"], r["late_days_used"], r["penalty_percent"]) for r in rows] == [
        (2, 1, 10.0), (1, 1, 0.0), (84, 2, 100.0), (0, 0, 0.0),
    ]  # fmt: skip
    assert second["lateness"] == "Handed in 2 days late; 1 day free, 10 % is taken off."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[due]\n99-none = 2026-10-01T23:59:00+02:00", "no assignment"),
        (f"[due]\n{TASK.name} = 2026-10-01T23:59:00", "zone"),
        (f'[due]\n{TASK.name} = "soon"', "zone"),
        ("penalties = 3", "penalties"),
        ('penalty = "much"', "wrong kind"),
        ("[due", "cannot be read"),
    ],
)
def test_a_wrong_file_of_deadlines_is_explained(tmp_path, text, said):
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(late.DeadlineError, match=said):
        late.read_deadlines(tmp_path / "d.toml", {TASK.name: 1})


# --- lists for Canvas, Moodle, Gradescope ------------------------------

CANVAS = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Homework (12),Final Score\n"
    "    Points Possible,,,,,10,(read only)\n"
    '"Lovelace, Ada",4711,S1,ada,A,,\n"Curie, Marie",4712,S2,marie,A,,\n"No, One",9,S9,none,A,,\n'
)
MOODLE = (
    "Identifier,Full name,Email address,Status,Grade,Maximum grade,Feedback comments\n"
    "Participant 4711,Ada Lovelace,ada@example.org,Submitted,,14.00,\n"
    "Participant 4712,Marie Curie,marie@example.org,Submitted,,14.00,\n"
    "Participant 9,No One,none@example.org,No submission,,14.00,\n"
)
GRADESCOPE = (
    "First Name,Last Name,SID,Email,Sections\n"
    "Ada,Lovelace,4711,ada@example.org,\nMarie,Curie,,marie@example.org,\nNo,One,9,none@x.org,\n"
)


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("system", "roster", "column"),
    [("canvas", CANVAS, TASK.name), ("moodle", MOODLE, "Grade"), ("gradescope", GRADESCOPE,
      "Total Score")],
)  # fmt: skip
def test_a_systems_own_list_is_filled_in(system, roster, column):
    ada = row("lovelaceada-4711", 5, person={"lms": system, "id": "4711", "sid": "4711"})
    marie = row("marie", 1)  # by a login, or the part of an address before the @
    if system == "moodle":
        marie = row("Marie Curie", 1)
    stranger = row("zoe", 5)
    found, text, missing = systems.fill([ada, marie, stranger], "\ufeff" + roster)
    assert (found, missing) == (system, ["zoe"])
    lines = [line for line in lines_of(text) if "Points Possible" not in line.get("Student", "")]
    assert [line[column] for line in lines] == [f"{ada['total']:g}", f"{marie['total']:g}", ""]
    if system == "canvas":  # what Canvas asks for, and nothing read-only
        assert list(lines[0]) == [*systems.CANVAS, TASK.name]
        assert f"{ada['max_total']:g}" in text.splitlines()[1]
    if system == "moodle":
        assert lines[0]["Feedback comments"] == "5 right."


def test_without_a_list_one_is_made_of_those_whom_a_download_named(tmp_path):
    canvas = row("lovelaceada-4711", 5, person={"lms": "canvas", "id": "4711", "name": "lovelace"})
    moodle = row("=Ada-1", 1, person={"lms": "moodle", "id": "1", "name": "=1+1"})
    group = {"lms": "gradescope", "submission": "7", "sid": "", "email": "c@x.org", "name": "C"}
    paths, missing = systems.write_lists(
        [canvas, moodle, row("c@x.org", 2, person=group), row("local")], tmp_path, None
    )
    assert sorted(path.name for path in paths) == ["canvas.csv", "gradescope.csv", "moodle.csv"]
    assert not missing
    (line,) = lines_of((tmp_path / "moodle.csv").read_text("utf-8-sig"))
    assert (line["Identifier"], line["Full name"]) == ("Participant 1", "'=1+1")
    assert line["Grade"] == f"{moodle['total']:g}"
    (line,) = lines_of((tmp_path / "gradescope.csv").read_text("utf-8-sig"))
    assert (line["Email"], line["Submission ID"], line["Status"]) == ("c@x.org", "7", "Graded")


def test_what_is_no_list_is_said(tmp_path):
    for text in ("a,b\n1,2\n", ""):
        with pytest.raises(systems.RosterError, match="no list of Canvas"):
            systems.fill([row("ada")], text)
    two = [row("ada"), row("ada", assignment="02-rnn")]
    with pytest.raises(systems.RosterError, match="--assignment"):
        systems.fill(two, MOODLE)
    assert "02-rnn" in systems.fill(two, CANVAS)[1].splitlines()[0]
    with pytest.raises(systems.RosterError, match="cannot be read"):
        systems.write_lists([], tmp_path, tmp_path / "none.csv")


# --- answers that are built alike ------------------------------

OWN = [  # eight ways of one exercise, structures of their own
    "def f(x, n):\n    total = 0\n    for i in range(n):\n        if x[i] > 3 * i and i % 2:\n"
    "            total += x[i] ** 2 - i\n        else:\n            total -= 1\n    return total\n",
    "def f(x, n):\n    return sum(v ** 2 - i if v > 3 * i and i % 2 else -1"
    " for i, v in enumerate(x[:n]))\n",
    "def f(x, n):\n    i = 0\n    out = []\n    while i < n:\n        v = x[i]\n"
    "        out.append((v * v - i) if (i % 2 and v > 3 * i) else -1)\n        i = i + 1\n"
    "    result = 0\n    for o in out:\n        result = result + o\n    return result\n",
    "def f(x, n):\n    import torch\n    i = torch.arange(n)\n    x = torch.tensor(x[:n])\n"
    "    good = (x > 3*i) & (i % 2 == 1)\n    return int(torch.where(good, x**2 - i, -1).sum())\n",
    "def f(x, n):\n    def one(i):\n        good = i % 2 == 1 and x[i] > i * 3\n"
    "        return x[i] * x[i] - i if good else -1\n    return sum(map(one, range(n)))\n",
]  # fmt: skip


def renamed(source: str) -> str:
    """The same code in another's hand: names, comments, layout, annotations."""
    for old, new in {"total": "acc", "x": "values", "n": "count", "i": "k"}.items():
        source = re.sub(rf"\b{old}\b", new, source)
    head, _, body = source.partition("\n")
    return head.replace("count)", "count: int) -> int") + "\n    # mine\n" + body + "\n\n"


def with_code(student: str, source: str) -> dict[str, Any]:
    cell = {"name": NAMES[0], "source": source, "place": 1, "answer": True}
    return row(student, 1, work={"cells": [cell], "written": {}})


def test_a_renamed_copy_is_found_and_different_answers_are_not():
    rows = [with_code(f"student-{i}", source) for i, source in enumerate(OWN)]
    assert alike(rows) == []  # the control
    (pair,) = alike([*rows, with_code("copy", renamed(OWN[0]))])
    assert set(pair.students) == {"student-0", "copy"} and pair.share > 0.9
    assert pair.exercises == (NAMES[0],)


def test_what_many_share_and_what_is_short_accuses_nobody():
    same = [with_code(f"s{i}", OWN[0]) for i in range(12)]
    assert alike(same) == []
    short = "def f(x):\n    return x.exp() / x.exp().sum()\n"
    assert alike([with_code("a", short), with_code("b", short)]) == []
    broken = [with_code("a", "def f(:"), with_code("b", "def f(:"), row("c")]
    assert alike(broken) == []


# --- the report ------------------------------


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.text = set[str](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        assert tag != "img" or any(name == "alt" and value for name, value in attrs)

    def handle_data(self, data):
        self.text += data


def a_class(size: int) -> list[dict[str, Any]]:
    """Students of rising skill; the last exercise is solved against it."""
    rows = []
    for number in range(size):
        made = row(f"student-{number:02}", number * len(NAMES) // size, seconds=number / 10)
        last = made["exercises"][-1]
        last["points"] = last["max_points"] if number < size // 2 else 0.0
        last["status"] = "right" if last["points"] else "wrong"
        made["score"] = sum(exercise["points"] for exercise in made["exercises"])
        rows.append(made)
    return rows


def test_the_report_holds_what_an_instructor_asks(tmp_path):
    rows = a_class(24)
    mistake = TASK.exercises[0].misconceptions[0]
    for one in rows[:4]:
        one["exercises"][0] |= {"misconception": mistake.name, "status": "wrong"}
    rows.append(row("<script>alert(1)</script>", status="refused", message="<b>cut</b>"))
    rows += [with_code(name, OWN[0]) for name in ("eva", "max")]
    tasks = {found.name: found for found in map(load, ("language_models", "rnn"))}
    text = report.write_report(rows, tasks, tmp_path).read_text("utf-8")
    page = Page(text)
    assert not page.tags & {"script", "iframe", "form", "link", "a", "b"}
    assert page.sources and all(
        src.startswith("data:image/svg+xml;base64,") for src in page.sources
    )
    for source in page.sources:
        picture = base64.b64decode(source.partition(",")[2]).decode()
        assert picture.rstrip().endswith("</svg>") and "http://www.w3.org/2000/svg" in picture
    assert mistake.did in page.text and "eva and max" in re.sub(r"\s+", " ", page.text)
    assert "no proof of copying" in page.text and "Henrysson" in page.text
    assert "<script>alert" not in text and "default-src 'none'" in text
    assert report.as_page(rows, tasks) == report.as_page(rows, tasks)


def test_an_item_that_tells_nothing_is_flagged_in_a_large_class_alone():
    items = report._part(TASK, a_class(24))["exercises"]
    assert items[-1]["flagged"] and float(items[-1]["discrimination"]) < 0
    assert not items[0]["flagged"] and float(items[0]["discrimination"]) > report.WEAK
    small = report._part(TASK, a_class(report.MIN_STUDENTS - 1))
    assert all(item["discrimination"] == "–" for item in small["exercises"])
    assert f"there are {report.MIN_STUDENTS - 1}" in small["about_discrimination"]


def test_discrimination_is_pearsons_r_with_the_rest():
    assert report.discrimination([0, 1, 2, 3], [1, 3, 5, 7]) == pytest.approx(1)
    assert report.discrimination([0, 1, 2, 3], [3, 1, 1, 3]) == pytest.approx(0, abs=1e-12)
    assert report.discrimination([1, 1, 1], [1, 2, 3]) is None


def test_a_class_of_nobody_gets_a_page(tmp_path: Path):
    assert "0 students" in report.as_page([], {})
    one = row("ada", status="refused", message="The file is empty.")
    assert "The file is empty." in report.as_page([one], {TASK.name: TASK})
