"""Points in the form that Canvas, Moodle and Gradescope read or write.

Given the list that such a system exports, a copy of it is written with the points filled in.
Without one, a list is made of the students that a download named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autograder.grader.export import harmless

Line = dict[str, str]
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE = ("Identifier", "Full name", "Grade", "Maximum grade", "Feedback comments")
GRADESCOPE = ("Name", "SID", "Email", "Total Score", "Max Points", "Status", "Submission ID")
_WHO = (
    "ID", "Identifier", "SID", "SIS User ID", "SIS Login ID", "Student", "ID number", "Username",
    "Email", "Email address", "Full name", "Name",
)  # fmt: skip


class RosterError(Exception):
    """A list that cannot be filled in; the text says why."""


def fill(rows: list[dict[str, Any]], text: str) -> tuple[str, str, list[str]]:
    """(system, the list with points, students of ours that are not in it)."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    head = [name for name in reader.fieldnames or () if name is not None]
    system = _system_of(head)
    assignments = sorted({row["assignment"] for row in rows if row["assignment"]})
    if system != "canvas" and len(assignments) > 1:
        raise RosterError(
            f"A list of {system.capitalize()} holds one assignment, and there are"
            f" {len(assignments)} here. Name one with --assignment."
        )
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for key in _keys(row):
            by_key.setdefault(key, []).append(row)
    lines, met = list(reader), set[str]()
    for line in lines:
        found = next((by_key[key] for key in _keys_of(line) if key in by_key), [])
        found = [row for row in found if row["assignment"]]
        met |= {row["student"] for row in found}
        _enter(system, line, found)
    if system == "canvas":
        head = [name for name in head if name in CANVAS] + assignments
        _points_possible(lines, rows)
    else:
        new = {"gradescope": ("Total Score", "Max Points", "Status")}.get(system, ())
        head += [name for name in new if name not in head]
    missing = sorted({row["student"] for row in rows} - met)
    return system, _as_text(head, lines), missing


def made_from(rows: list[dict[str, Any]]) -> dict[str, str]:
    """A list for each system that the rows came from, by its name."""
    lists = {}
    for system, head in (("canvas", CANVAS), ("moodle", MOODLE), ("gradescope", GRADESCOPE)):
        people = {
            row["student"]: row["person"] for row in rows if row["person"].get("lms") == system
        }
        if people:
            theirs = [row for row in rows if row["student"] in people]
            lines = [_line_of(system, person) for person in people.values()]
            try:
                lists[system] = fill(theirs, _as_text(head, lines))[1]
            except RosterError:  # several assignments: one list each is the user's to ask for
                continue
    return lists


def _line_of(system: str, person: dict[str, str]) -> Line:
    name = harmless(person.get("name", ""))
    if system == "canvas":
        return {"Student": name, "ID": person["id"]}
    if system == "moodle":
        return {"Identifier": f"Participant {person['id']}", "Full name": name}
    facts = {"SID": person.get("sid", ""), "Email": person.get("email", "")}
    return {"Name": name, "Submission ID": person["submission"]} | facts


def _system_of(head: Iterable[str]) -> str:
    names = set(head)
    if {"Identifier", "Grade"} <= names:
        return "moodle"
    if {"Student", "ID"} <= names:
        return "canvas"
    if {"SID", "Email"} & names:
        return "gradescope"
    raise RosterError(
        "This is no list of Canvas (columns Student, ID), Moodle (Identifier, Grade)"
        " or Gradescope (SID or Email)."
    )


def _keys(row: dict[str, Any]) -> set[str]:
    """What may stand for a row's student in a list."""
    person = row["person"]
    words = {row["student"], *(person.get(name, "") for name in ("id", "sid", "email"))}
    return {word.strip().lower() for word in words if word.strip()}


def _keys_of(line: Line) -> Iterable[str]:
    """What a line calls its student, numbers first."""
    for column in _WHO:
        text = (line.get(column) or "").strip().lower()
        yield text.removeprefix("participant ")
        yield text.partition("@")[0]


def _enter(system: str, line: Line, found: list[dict[str, Any]]) -> None:
    """Points, and nothing where nothing was handed in."""
    for row in found:
        total = f"{row['total']:g}"
        if system == "canvas":
            line[row["assignment"]] = total
        elif system == "moodle":
            line["Grade"], line["Feedback comments"] = total, row["message"]
            line.setdefault("Maximum grade", "")
            line["Maximum grade"] = line["Maximum grade"] or f"{row['max_total']:g}"
        else:
            line |= {"Total Score": total, "Max Points": f"{row['max_total']:g}"}
            line["Status"] = "Ungraded" if row["waiting"] else "Graded"


def _points_possible(lines: list[Line], rows: list[dict[str, Any]]) -> None:
    """Canvas's line under the header."""
    possible = {r["assignment"]: f"{r['max_total']:g}" for r in rows if r["assignment"]}
    for line in lines:
        if line.get("Student", "").strip() == "Points Possible":
            line |= possible
            return
    lines.insert(0, {"Student": "    Points Possible"} | possible)


def _as_text(head: Iterable[str], lines: list[Line]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(head), extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def write_lists(
    rows: list[dict[str, Any]], out: Path, roster: Path | None
) -> tuple[list[Path], list[str]]:
    """The files written to `out`, and the students that the roster lacks."""
    lists, missing = made_from(rows), list[str]()
    if roster is not None:
        try:
            text = roster.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise RosterError(f"{roster} cannot be read: {error}") from None
        system, filled, missing = fill(rows, text)
        lists[system] = filled
    paths = []
    for system, text in lists.items():
        paths.append(out / f"{system}.csv")
        paths[-1].write_text(text, encoding="utf-8-sig", newline="")
    return paths, missing
