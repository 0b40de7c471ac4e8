"""The test of the tests: no wrong answer passes, no right one loses a point."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from autograder.checks import CHAPTERS, load
from course.kill_table import TABLE, kill_table

ROOT = Path(__file__).resolve().parent.parent
chapters = pytest.mark.parametrize(  # one process judges all of a chapter
    "chapter", [pytest.param(c, marks=pytest.mark.xdist_group(f"kill-{c}")) for c in CHAPTERS]
)


@functools.cache
def rows_of(chapter):
    return kill_table(ROOT, (chapter,))


@chapters
def test_every_answer_gets_the_verdict_that_is_its_own(chapter):
    rows = rows_of(chapter)
    bad = [f"{r.exercise}: {r.kind} {r.answer}: {r.got} ({r.points})" for r in rows if not r.ok]
    assert rows and not bad, "\n".join(bad)


@chapters
def test_every_exercise_has_enough_of_each_kind(chapter):
    for exercise in load(chapter).exercises:
        if (
            exercise.on_files is not None
        ):  # no object: tests of its own hand it right and wrong files
            continue
        kinds = [row.kind for row in rows_of(chapter) if row.exercise == exercise.name]
        assert kinds.count("right answer") >= 3, exercise.name
        assert kinds.count("misconception") >= 2, exercise.name
        assert kinds.count("solution") == kinds.count("empty stub") == 1


@chapters
def test_messages_say_what_why_and_where(chapter):
    for exercise in load(chapter).exercises:
        messages = [mistake.message for mistake in exercise.misconceptions]
        assert len(set(messages)) == len(messages)
        for mistake in exercise.misconceptions:
            assert mistake.did.endswith(".") and mistake.causes.endswith(".")
            assert len(mistake.message) <= 400, mistake.name


@chapters
def test_published_table_is_the_one_that_was_run(chapter):
    published = json.loads((ROOT / TABLE).read_text(encoding="utf-8"))
    mine = [row for row in published if row["chapter"] == load(chapter).page]
    assert mine == [asdict(row) for row in rows_of(chapter)], "run `rnn2gpt kill-table`, commit"
