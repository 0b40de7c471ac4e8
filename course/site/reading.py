"""How long a chapter takes to read, said under its title and where another page leads to it."""

from __future__ import annotations

import math
import re
from typing import Any

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


def _say_beside(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    _, *others = getattr(app.builder, "relations", {}).get(pagename, (None, None, None))
    for side, other in zip(("prev", "next"), others, strict=True):
        paragraphs = app.env.get_doctree(other).findall(nodes.paragraph) if other else ()
        said = next((p.astext() for p in paragraphs if "reading-time" in p["classes"]), None)
        if said and context.get(side):
            title = context[side]["title"]
            context[f"{side}_title"] = f'{title} <span class="reading-time">{said}</span>'


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", _say)
    app.connect("html-page-context", _say_beside)
