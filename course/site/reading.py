"""How long a chapter takes to read, said under its title."""

from __future__ import annotations

import math
import re

from docutils import nodes
from sphinx.application import Sphinx

WORDS_PER_MINUTE = 150  # with formulas, code and figures between them: below a novel's 240


def reading_minutes(document: nodes.document) -> int:
    """Minutes to read a page's prose, rounded up to 5: nobody reads code in words."""
    words = sum(len(p.astext().split()) for p in document.findall(nodes.paragraph))
    return 5 * math.ceil(words / WORDS_PER_MINUTE / 5)


def _say(app: Sphinx, document: nodes.document) -> None:
    title = next(iter(document.findall(nodes.title)), None)
    if title is None or not re.match(r"\d\d_", app.env.docname):
        return
    text = f"About {reading_minutes(document)} minutes to read"
    section = title.parent
    section.insert(section.index(title) + 1, nodes.paragraph("", text, classes=["reading-time"]))


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", _say)
