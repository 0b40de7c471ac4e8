"""One page of feedback for one submission: self-contained, escaped, capped, without scripts.

It may be published as it is. Nothing of other students, of the machine or of the solution stands
in it, and of hidden cases only the hint that their author wrote for the student's eyes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from autograder.engine.exercise import Assignment

MAX_TEXT = 600  # characters of one message
MAX_CODE = 8_000  # characters of one exercise's code
MAX_HINTS = 6
_CODE = re.compile(r"`([^`\n]{1,200})`")
_MARKS = {"right": "✓", "wrong": "✗", "missing": "○", "forbidden": "✗"}


def write_feedback(
    row: dict[str, Any], assignment: Assignment | None, out: Path, site: str | None = None
) -> Path:
    """Write `feedback/<student>/<assignment>/<notebook>.html`; `site` is the book's address."""
    folder = out / "feedback" / row["student"] / (row["assignment"] or "unknown")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row['notebook'] or 'notebook'}.html"
    path.write_text(as_page(row, assignment, site), encoding="utf-8", errors="replace")
    return path


def as_page(row: dict[str, Any], assignment: Assignment | None, site: str | None = None) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["prose"] = _prose
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    code = _code_by_name(row.get("work") or {})
    return environment.from_string(template).render(
        row=row,
        percent=round(100 * row["score"] / row["max_score"]) if row["max_score"] else 0,
        right=sum(e["status"] == "right" for e in row["exercises"]),
        exercises=[_view(e, assignment, site, code) for e in row["exercises"]],
    )


def _prose(text: str) -> Markup:
    """Escaped and capped, with `backticks` shown as code."""
    text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _code_by_name(work: dict[str, Any]) -> dict[str, str]:
    code: dict[str, str] = {}
    for cell in work.get("cells", ()):
        if cell["answer"]:
            code[cell["name"]] = code.get(cell["name"], "") + cell["source"].strip("\n") + "\n"
    return code


def _view(
    exercise: dict[str, Any], assignment: Assignment | None, site: str | None, code: dict[str, str]
) -> dict[str, Any]:
    """An exercise as the template reads it."""
    page, _, anchor = exercise["see"].partition("#")
    hidden = [case for case in exercise["cases"] if not case["visible"]]
    hints = dict.fromkeys(case["message"] for case in hidden if not case["passed"])
    source = code.get(exercise["name"], "")
    section = assignment.sections.get(anchor, anchor) if assignment else anchor
    return (
        exercise
        | {
            "message": exercise["message"].removesuffix(f" See “{section}”."),  # the link says it
            "mark": _MARKS[exercise["status"]],
            "mood": "right" if exercise["status"] == "right" else "wrong",
            "section": section,
            "chapter": page[:2],
            "link": f"{site.rstrip('/')}/{exercise['see'].replace('#', '.html#')}" if site else "",
            "visible": [case for case in exercise["cases"] if case["visible"]],
            "hidden_total": len(hidden),
            "hidden_passed": sum(case["passed"] for case in hidden),
            "hints": list(hints)[:MAX_HINTS],
            "code": source if len(source) <= MAX_CODE else source[:MAX_CODE] + "\n…",
        }
    )
