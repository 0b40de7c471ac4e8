"""`{common-mistakes} language_models`: the mistakes that a chapter's checks know by name.

The sentences are the checks' own, so the page, the notebook and the grader say the same.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from autograder.checks import CHAPTERS, load
from autograder.engine.exercise import Exercise, Misconception
from autograder.engine.notebook import with_code

logger = logging.getLogger(__name__)


def mistake_html(mistake: Misconception) -> str:
    """One sentence, its section linked."""
    section = f'<a href="#{escape(mistake.anchor)}">{with_code(mistake.section)}</a>'
    return f"<li>{with_code(mistake.did)} {with_code(mistake.causes)} See “{section}”.</li>"


def exercise_html(exercise: Exercise) -> str:
    """One folded list for a graded object."""
    items = "".join(mistake_html(mistake) for mistake in exercise.misconceptions)
    count = len(exercise.misconceptions)
    summary = f"<code>{escape(exercise.name)}</code>: {count} mistake{'s' * (count != 1)}"
    return f"<details><summary>{summary}</summary><ul>{items}</ul></details>"


class CommonMistakes(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        chapter = self.arguments[0]
        if chapter not in CHAPTERS:
            logger.warning("no checks for %s", chapter, location=self.get_location())
            return []
        for folder in ("checks", "engine"):
            for path in (Path(self.env.srcdir).parent / "autograder" / folder).glob("*.py"):
                self.env.note_dependency(str(path))
        listed = "".join(exercise_html(exercise) for exercise in load(chapter).exercises)
        html = f'<div class="common-mistakes">{listed}</div>'
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> None:
    app.add_directive("common-mistakes", CommonMistakes)
