"""The page that says where everything runs: each link has a target, each command exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from course.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "systems.md").read_text("utf-8")
ROWS = [row for row in re.findall(r"^\| (?!system|task|question)(.+?) \|$", PAGE, re.M)]
LINK = re.compile(r"\{(ref|doc)\}`[^`<]+<([\w-]+)>`")


def pages_in_the_contents() -> set[str]:
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))["parts"]
    return {chapter["file"] for part in parts for chapter in part["chapters"]}


def labels() -> set[str]:
    pages = (ROOT / "book" / f"{page}.md" for page in pages_in_the_contents())
    return {
        label
        for page in pages
        for label in re.findall(r"^\(([\w-]+)\)=$", page.read_text("utf-8"), re.M)
    }


def test_the_page_stands_in_the_contents_and_covers_the_field():
    assert "systems" in pages_in_the_contents()
    assert len(ROWS) >= 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" |")[0])
def test_every_entry_has_a_place_to_read_and_a_command_that_exists(row):
    name, read, run = row.split(" | ")
    links, commands = LINK.findall(read), re.findall(r"`([^`]+)`", run)
    assert name and links and len(commands) == 1
    for kind, target in links:
        assert target in (labels() if kind == "ref" else pages_in_the_contents())
    program, *words = shlex.split(commands[0])
    if program == "python":
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "rnn2gpt"
        options = {name: p for p in main.commands[words[0]].params for name in p.opts}
        for word, value in zip(words, [*words[1:], ""], strict=True):
            assert not word.startswith("--") or word in options
            if word in options and isinstance(options[word].type, click.Choice):
                assert value in options[word].type.choices
