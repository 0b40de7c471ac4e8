"""Feedback on one submission, as a page and as JSON: self-contained, escaped, capped, no scripts.

It may be published as it is. Nothing of other students, of the machine or of the solution stands
in it, and of hidden cases only the hint that their author wrote for the student's eyes.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup, escape

from autograder.engine.exercise import Assignment, Exercise
from autograder.grader.export import write_whole

MAX_TEXT = 600  # characters of one message
MAX_CODE = 8_000  # characters of one exercise's code
MAX_PAGE = 400_000  # characters of a page; above it, code is left out
MAX_HINTS, MAX_NOTES, MAX_CASES = 6, 12, 60
_CODE = re.compile(r"`([^`\n]{1,200})`")
_MARKS = {"right": "✓", "wrong": "✗", "missing": "○", "forbidden": "✗"}


def write_feedback(
    row: dict[str, Any], assignment: Assignment | None, out: Path, site: str | None = None
) -> Path:
    """Write `feedback/<student>/<assignment>/<notebook>.html` and `.json` beside it.

    `site` is the book's address. Returns the page's path.
    """
    folder = out / "feedback" / row["student"] / (row["assignment"] or "unknown")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row['notebook'] or 'notebook'}.html"
    write_whole(path, as_page(row, assignment, site))
    facts = as_facts(row, assignment, site)
    for exercise in facts["exercises"]:
        del exercise["code"]
    write_whole(path.with_suffix(".json"), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return path


def as_page(row: dict[str, Any], assignment: Assignment | None, site: str | None = None) -> str:
    """The page as text."""
    template, facts = _template(), as_facts(row, assignment, site)
    page = template.render(facts=facts, marks=_MARKS)
    if len(page) > MAX_PAGE:
        for exercise in facts["exercises"]:
            exercise["code"] = ""
        page = template.render(facts=facts, marks=_MARKS)
    return page


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["prose"] = _prose
    return environment.from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))


def as_facts(
    row: dict[str, Any], assignment: Assignment | None, site: str | None = None
) -> dict[str, Any]:
    """All that a student is told, as JSON and page show it."""
    code = _code_by_name(row.get("work") or {})
    known = {exercise.name: exercise for exercise in assignment.exercises} if assignment else {}
    return {
        "student": row["student"],
        "assignment": row["assignment"],
        "notebook": row["notebook"],
        "status": row["status"],
        "score": row["score"],
        "max_score": row["max_score"],
        "percent": round(100 * row["score"] / row["max_score"]) if row["max_score"] else 0,
        "total": row.get("total", row["score"]),
        "max_total": row.get("max_total", row["max_score"]),
        "waiting": row.get("waiting", False),
        "remarks": [_capped(remark, 4 * MAX_TEXT) for remark in row.get("remarks", ())],
        "lateness": row.get("lateness", ""),
        "message": _capped(row["message"]) if row["status"] != "graded" else "",
        "notes": [_capped(note) for note in row["notes"][:MAX_NOTES]],
        "right": sum(exercise["status"] == "right" for exercise in row["exercises"]),
        "exercises": [
            _view(exercise, known.get(exercise["name"]), site, code.get(exercise["name"], ""))
            for exercise in row["exercises"]
        ],
    }


def _view(
    result: dict[str, Any], exercise: Exercise | None, site: str | None, source: str
) -> dict[str, Any]:
    """One exercise: what is wrong, what it does, where to read, what to think about next."""
    page, _, anchor = result["see"].partition("#")
    section = exercise.assignment.sections.get(anchor, anchor) if exercise else anchor
    hidden = [case for case in result["cases"] if not case["visible"]]
    visible = [case for case in result["cases"] if case["visible"]]
    failed = {case["name"]: case["message"] for case in visible if not case["passed"]}
    told = any(result["message"] == f"{name}: {said}" for name, said in failed.items())
    again = {f"{name} (other inputs)" for name in failed}  # of what failed on the visible ones
    mistakes = exercise.misconceptions if exercise else []
    mistake = next((m for m in mistakes if m.name == result["misconception"]), None)
    kept = ("name", "points", "max_points", "status", "misconception")
    return {key: result[key] for key in kept} | {
        "message": "" if mistake or told else _capped(result["message"]),
        "did": mistake.did if mistake else "",
        "causes": mistake.causes if mistake else "",
        "section": section,
        "chapter": page[:2],
        "link": f"{site.rstrip('/')}/{result['see'].replace('#', '.html#')}"
        if site and result["see"]
        else "",
        "hint": _hint(result, exercise),
        "cases": [
            {key: case[key] for key in ("name", "passed")} | {"message": _capped(case["message"])}
            for case in visible[:MAX_CASES]
        ],
        "further": {"passed": sum(case["passed"] for case in hidden), "of": len(hidden)},
        "further_hints": list(
            dict.fromkeys(
                _capped(case["message"])
                for case in hidden
                if not case["passed"] and case["name"] not in again
            )
        )[:MAX_HINTS],
        "code": source if len(source) <= MAX_CODE else source[:MAX_CODE] + "\n…",
    }


def _hint(result: dict[str, Any], exercise: Exercise | None) -> str:
    """The hint of the tier that fits: none beside a named mistake, which says more.

    An answer that is not written, or of which nothing holds, gets the question; one that holds in
    part the direction; one that fails only further cases the shape or formula. One that was not
    tried, as in a file that cannot be read, needs another file and no hint.
    """
    if exercise is None or not exercise.hints or result["misconception"]:
        return ""
    tried = result["cases"] or exercise.on_files is not None
    if not tried or result["status"] not in ("wrong", "missing"):
        return ""
    telling = {spec.title for spec in exercise.cases if spec.visible and not spec.guard}
    visible = [case["passed"] for case in result["cases"] if case["name"] in telling]
    tier = 2 if visible and all(visible) else 1 if any(visible) else 0
    return exercise.hints[min(tier, len(exercise.hints) - 1)]


def _capped(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _prose(text: str) -> Markup:
    """Escaped, with `backticks` shown as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _code_by_name(work: dict[str, Any]) -> dict[str, str]:
    code: dict[str, str] = {}
    for cell in work.get("cells", ()):
        if cell["answer"]:
            code[cell["name"]] = code.get(cell["name"], "") + cell["source"].strip("\n") + "\n"
    return code
