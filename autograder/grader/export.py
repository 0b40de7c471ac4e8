"""Results as JSON, as CSV, and as a table in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

KEYS = (
    "student", "assignment", "notebook", "score", "max_score", "status", "message", "isolation",
    "seconds", "exercises", "notes", "path", "checks", "submitted", "person", "key",
    "days_late", "late_days_used", "penalty_percent", "lateness", "total", "max_total", "waiting",
    "remarks",
)  # fmt: skip
EXERCISE_KEYS = ("name", "points", "max_points", "status", "message", "misconception", "see")
COLUMNS = (
    "student", "assignment", "notebook", "score", "max_score", "status", "isolation", "seconds",
    "submitted", "days_late", "penalty_percent", "total", "max_total", "waiting",
)  # fmt: skip
CASE_KEYS = ("name", "visible", "passed", "message")
_COLORS = {"graded": "", "refused": "yellow", "skipped": "yellow", "failed": "red"}


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `results.json` holds it."""
    chosen = {key: row[key] for key in KEYS}
    chosen["exercises"] = [
        {key: exercise[key] for key in EXERCISE_KEYS}
        | {"measured": exercise.get("measured", {})}
        | {"cases": [{key: case[key] for key in CASE_KEYS} for case in exercise["cases"]]}
        for exercise in row["exercises"]
    ]
    return chosen


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as `results.json` holds them."""
    return json.dumps([public(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False)


def export(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write `results.json` and `results.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "results.json", as_json(rows) + "\n")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    names = list(dict.fromkeys(e["name"] for row in rows for e in row["exercises"]))
    measured = list(dict.fromkeys(key for row in rows for key in _measured(row)))
    writer.writerow([*COLUMNS, *names, *measured, "message", "notes"])
    for row in rows:
        numbers = _measured(row)
        points = {e["name"]: e["points"] for e in row["exercises"]}
        values = [*(row[key] for key in COLUMNS), *(points.get(name, "") for name in names)]
        values += [numbers.get(key, "") for key in measured]
        values += [row["message"], " ".join(row["notes"])]
        writer.writerow([harmless(value) for value in values])
    write_whole(out / "results.csv", "\ufeff" + stream.getvalue())


def _measured(row: dict[str, Any]) -> dict[str, float]:
    """What was measured of the files that came with the work, by column of the table."""
    return {
        f"{exercise['name']} {key}": value
        for exercise in row["exercises"]
        for key, value in exercise.get("measured", {}).items()
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", errors="replace", newline="")
    draft.replace(path)


def read_results(out: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run, without the students' code; none where there was no run."""
    try:
        return json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def harmless(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The rows as a table; texts of students are shown as they are, never as markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("student", overflow="fold", min_width=12, max_width=32)
    table.add_column("assignment", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("what the row says", overflow="fold")
    for row in rows:
        color = _COLORS[row["status"]]
        has_score = row["status"] in ("graded", "refused")
        score = f"{row['score']:g} / {row['max_score']:g}" if has_score else "–"
        message = row["message"] if len(row["message"]) <= 160 else row["message"][:157] + "…"
        cells = (row["student"], row["assignment"] or "?", score, message)
        table.add_row(*(Text(cell, style=color) for cell in cells))
    console.print(table)
    reused = sum(row["reused"] for row in rows)
    if reused:
        console.print(
            f"{reused} of {len(rows)} results are taken up from earlier runs, whose files, checks,"
            " environment and seed were the same. --no-cache grades them again."
        )
