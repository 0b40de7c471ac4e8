"""The test of the tests: no wrong answer passes, no right one loses a point."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from autograder.checks import CHAPTERS, load
from course.kill_table import TABLE, kill_table


@pytest.fixture(scope="module")
def rows(root):
    return kill_table(root)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_answer_gets_the_verdict_that_is_its_own(rows, chapter):
    mine = [row for row in rows if row.chapter == load(chapter).page]
    bad = [f"{r.exercise}: {r.kind} {r.answer}: {r.got} ({r.points})" for r in mine if not r.ok]
    assert mine and not bad, "\n".join(bad)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_enough_of_each_kind(rows, chapter):
    for exercise in load(chapter).exercises:
        kinds = [row.kind for row in rows if row.exercise == exercise.name]
        assert kinds.count("right answer") >= 3, exercise.name
        assert kinds.count("misconception") >= 2, exercise.name
        assert kinds.count("solution") == kinds.count("empty stub") == 1


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_messages_say_what_why_and_where(chapter):
    for exercise in load(chapter).exercises:
        messages = [mistake.message for mistake in exercise.misconceptions]
        assert len(set(messages)) == len(messages)
        for mistake in exercise.misconceptions:
            assert mistake.did.endswith(".") and mistake.causes.endswith(".")
            assert len(mistake.message) <= 400, mistake.name


def test_published_table_is_the_one_that_was_run(root, rows):
    published = json.loads((root / TABLE).read_text(encoding="utf-8"))
    assert published == [asdict(row) for row in rows], "run `rnn2gpt kill-table` and commit"
