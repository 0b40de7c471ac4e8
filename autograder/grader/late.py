"""Due dates, late days and penalties, from a small TOML file.

penalty = 10          # percent of the points earned, for each day begun
late_days = 3         # free days of each student, over all assignments
grace_minutes = 15    # that nobody is asked about

[due]
01-language-models = 2026-10-01T23:59:00+02:00

[extensions.ada]      # days more, for one student
01-language-models = 2
"""

from __future__ import annotations

import datetime
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_LATENESS = {"days_late": 0, "late_days_used": 0, "penalty_percent": 0.0, "lateness": ""}
DAY = 24 * 60 * 60  # seconds


class DeadlineError(Exception):
    """The file of deadlines does not say what it should; the text names the line."""


@dataclass(frozen=True)
class Deadlines:
    """When work is due, and what lateness costs."""

    due: dict[str, datetime.datetime]  # by assignment
    penalty: float = 0.0  # percent for each day begun
    late_days: int = 0
    grace: float = 0.0  # seconds
    extensions: dict[str, dict[str, int]] = field(default_factory=dict)

    def days_late(self, student: str, assignment: str, submitted: str) -> int:
        """Days begun between the due date, extension and grace included, and a time of ours."""
        if assignment not in self.due or not submitted:
            return 0
        seconds = (
            datetime.datetime.fromisoformat(submitted) - self.due[assignment]
        ).total_seconds()
        seconds -= DAY * self.extensions.get(student, {}).get(assignment, 0)
        return math.ceil(seconds / DAY) if seconds > self.grace else 0


def read_deadlines(path: Path, assignments: Mapping[str, Any]) -> Deadlines:
    """The deadlines in a file; raises `DeadlineError`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeadlineError(f"{path} cannot be read: {error}") from None
    wrong = table.keys() - {"penalty", "late_days", "grace_minutes", "due", "extensions"}
    if wrong:
        raise DeadlineError(f"{path} says {', '.join(sorted(wrong))}, which means nothing here.")
    due = table.get("due", {})
    for name, when in due.items():
        if name not in assignments:
            raise DeadlineError(f"{path}: there is no assignment {name!r}.")
        if not isinstance(when, datetime.datetime) or when.tzinfo is None:
            raise DeadlineError(
                f"{path}: give {name} a time with its zone, as in 2026-10-01T23:59:00+02:00."
            )
    try:
        return Deadlines(
            due,
            float(table.get("penalty", 0)),
            int(table.get("late_days", 0)),
            60.0 * float(table.get("grace_minutes", 0)),
            {str(who): dict(days) for who, days in table.get("extensions", {}).items()},
        )
    except (TypeError, ValueError) as error:
        raise DeadlineError(f"{path}: a value is of the wrong kind ({error}).") from None


def apply(deadlines: Deadlines, rows: list[dict[str, Any]]) -> None:
    """Give each row its lateness: days late, late days used, and the percentage taken off.

    A student's late days are spent in the order of the due dates.
    """
    left: dict[str, int] = {}
    in_order = [row for row in rows if row["assignment"] in deadlines.due]
    for row in sorted(in_order, key=lambda row: deadlines.due[row["assignment"]]):
        student = row["student"]
        late = deadlines.days_late(student, row["assignment"], row["submitted"])
        used = min(late, left.get(student, deadlines.late_days))
        left[student] = left.get(student, deadlines.late_days) - used
        row["days_late"], row["late_days_used"] = late, used
        row["penalty_percent"] = min(100.0, deadlines.penalty * (late - used))
        if late:
            taken = f"{row['penalty_percent']:g} % is taken off"
            row["lateness"] = f"Handed in {_days(late)} late; {_days(used)} free, {taken}."


def _days(number: int) -> str:
    return f"{number} day" if number == 1 else f"{number} days"
