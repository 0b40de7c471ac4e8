"""One page about a class, for its instructor: scores, mistakes, weak items, time, likenesses."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from autograder.engine.exercise import Assignment
from autograder.grader.similar import COMMON, alike

MIN_STUDENTS = 20  # below which a correlation says nothing about an exercise
WEAK = 0.2  # a corrected item-total correlation below which an exercise is flagged
MAX_PAIRS, MAX_MISTAKES = 50, 30
_ABOUT = (
    "Discrimination is the corrected item-total correlation: Pearson's r between the points of an"
    " exercise and the sum of the others (S. Henrysson, Psychometrika 28, 1963). Below"
    f" {WEAK:g} it is marked: who does well elsewhere does not do better here, so look at the"
    " exercise and its cases."
)
_TOO_FEW = f" It is shown for {MIN_STUDENTS} or more graded students; there are {{}}."


def write_report(
    rows: Sequence[dict[str, Any]], assignments: Mapping[str, Assignment], out: Path
) -> Path:
    """Write `report.html`."""
    path = out / "report.html"
    path.write_text(as_page(rows, assignments), encoding="utf-8", errors="replace")
    return path


def as_page(rows: Sequence[dict[str, Any]], assignments: Mapping[str, Assignment]) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, trim_blocks=True)
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    names = sorted({row["assignment"] for row in rows if row["assignment"] in assignments})
    return environment.from_string(template).render(
        rows=rows,
        students=len({row["student"] for row in rows}),
        statuses=sorted(Counter(row["status"] for row in rows).items()),
        parts=[_part(assignments[name], rows) for name in names],
        others=[row for row in rows if row["status"] != "graded"],
        common=f"{100 * COMMON:g} %",
    )


def _part(assignment: Assignment, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page says of one assignment."""
    theirs = [row for row in rows if row["assignment"] == assignment.name]
    graded = [row for row in theirs if row["status"] == "graded"]
    part: dict[str, Any] = {
        "name": assignment.name, "count": len(graded), "handed_in": len(theirs)
    }  # fmt: skip
    if not graded:
        return part
    scores, seconds = [row["score"] for row in graded], [row["seconds"] for row in graded]
    most = max(row["max_score"] for row in graded)
    mistakes, unnamed = _mistakes(assignment, graded)
    few = _TOO_FEW.format(len(graded)) if len(graded) < MIN_STUDENTS else ""
    return part | {
        "mean": statistics.mean(scores),
        "median": statistics.median(scores),
        "max_score": most,
        "scores": _histogram(scores, (0, most), "points", "students", 2.4),
        "exercises": [_item(exercise.name, graded) for exercise in assignment.exercises],
        "about_discrimination": _ABOUT + few,
        "mistakes": mistakes,
        "unnamed": unnamed,
        "chart": _bars(mistakes) if mistakes else "",
        "chart_height": _bars_height(mistakes) * 100,
        "times": _histogram(seconds, (0, max(seconds) or 1), "seconds", "submissions", 2.0),
        "time_median": statistics.median(seconds),
        "time_most": max(seconds),
        "slowest": max(graded, key=lambda row: row["seconds"])["student"],
        "pairs": alike(graded)[:MAX_PAIRS],
        "not_compared": sum(not row["work"] for row in graded),
        "leaderboard": _leaderboard(graded),
    }


def _leaderboard(graded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who handed in files that were measured, the least loss first; equal ones share a place."""
    entries = [
        {"student": row["student"]} | exercise["measured"]
        for row in graded
        for exercise in row["exercises"]
        if exercise.get("measured")
    ]
    entries.sort(key=lambda one: (one["nats_per_character"], one["student"]))
    losses = [one["nats_per_character"] for one in entries]
    return [
        one
        | {
            "place": losses.index(one["nats_per_character"]) + 1,
            "bits": one["nats_per_character"] / math.log(2),
            "twice": losses.count(one["nats_per_character"]) > 1,
        }
        for one in entries
    ]


def _item(name: str, graded: list[dict[str, Any]]) -> dict[str, Any]:
    """One exercise's numbers."""
    found = [next(e for e in row["exercises"] if e["name"] == name) for row in graded]
    points = [exercise["points"] for exercise in found]
    rest = [row["score"] - own for row, own in zip(graded, points, strict=True)]
    value = discrimination(points, rest) if len(graded) >= MIN_STUDENTS else None
    return {
        "name": name,
        "mean": statistics.mean(points),
        "max_points": found[0]["max_points"],
        "right": sum(exercise["status"] == "right" for exercise in found),
        "missing": sum(exercise["status"] == "missing" for exercise in found),
        "discrimination": "–" if value is None else f"{value:.2f}",
        "flagged": value is not None and value < WEAK,
    }


def discrimination(points: Sequence[float], rest: Sequence[float]) -> float | None:
    """Pearson's r of an item with the sum of the others; None where one of them never varies."""
    try:
        value = statistics.correlation(points, rest)
    except statistics.StatisticsError:
        return None
    return value if math.isfinite(value) else None


def _mistakes(
    assignment: Assignment, graded: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """The named mistakes by exercise, the most frequent first; how many have no name."""
    wrong = [e for row in graded for e in row["exercises"] if e["status"] == "wrong"]
    counts = Counter((e["name"], e["misconception"]) for e in wrong if e["misconception"])
    did = {(e.name, m.name): m.did for e in assignment.exercises for m in e.misconceptions}
    order = {exercise.name: place for place, exercise in enumerate(assignment.exercises)}
    ranked = sorted(counts.items(), key=lambda pair: (order[pair[0][0]], -pair[1]))
    named = [
        {"exercise": key[0], "name": key[1], "count": count, "did": did.get(key, "")}
        for key, count in ranked[:MAX_MISTAKES]
    ]
    return named, len(wrong) - counts.total()


def _bars_height(mistakes: list[Any]) -> float:
    return 0.8 + 0.28 * len(mistakes)


def _bars(mistakes: list[dict[str, Any]]) -> str:
    figure, axes = _figure(_bars_height(mistakes))
    labels = [f"{one['exercise']}: {one['name'].replace('_', ' ')}" for one in mistakes]
    axes.barh(labels, [one["count"] for one in mistakes], color="#D55E00", height=0.7)
    axes.invert_yaxis()
    axes.set_xlabel("students")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _as_image(figure)


def _histogram(
    values: list[float], span: tuple[float, float], x: str, y: str, height: float
) -> str:
    figure, axes = _figure(height)
    axes.hist(values, bins=20, range=span, color="#0072B2", edgecolor="white")
    axes.set(xlabel=x, ylabel=y, xlim=span)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _as_image(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no state of pyplot's, and no screen

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _as_image(figure: Any) -> str:
    """A figure as an address that holds the picture itself."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
