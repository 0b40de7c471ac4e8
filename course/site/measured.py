"""The directives that show what was measured of the grader, from the JSON that commands store.

`{threat-table}`: what hostile and broken submissions came to, from `book/_data/threats.json`.
`{grading-benchmark} PART`: a table of `book/_data/grading_benchmark.json`; PART is `chapters`,
    `compare`, `scaling` or `crash`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

NOT_RUN = "This has not been measured for this copy yet."


class _Stored(SphinxDirective):
    """Reads one JSON file of `book/_data` and shows it as HTML."""

    file: ClassVar[str]

    def html(self, result: dict[str, Any]) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "_data" / self.file
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [nodes.paragraph("", NOT_RUN)]
        return [nodes.raw("", self.html(json.loads(path.read_text("utf-8"))), format="html")]


class ThreatTable(_Stored):
    """The table that `rnn2gpt threats` stores, see `course.threats.survey`."""

    file = "threats.json"

    def html(self, result: dict[str, Any]) -> str:
        return threats_html(result)


class GradingBenchmark(_Stored):
    """The tables that `benchmarks/grading.py` stores."""

    file, required_arguments = "grading_benchmark.json", 1

    def html(self, result: dict[str, Any]) -> str:
        part = self.arguments[0]
        if part not in result:
            return f"<p>{NOT_RUN}</p>"
        where = f"{result['machine']}; load average {result['load']:g} before the run."
        return PARTS[part](result[part]) + f"<p><small>{escape(where)}</small></p>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; the cells are escaped text."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="table-scroll"><table class="table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def threats_html(result: dict[str, Any]) -> str:
    """A sentence, then one folded table for each family."""
    threats, near = result["threats"], result["neighbors"]
    right = sum(row["ok"] for row in threats)
    parts = [
        f"<p>{right} of {len(threats)} submissions got the score that their work earned."
        f" {near['right']} of {near['of']} honest neighbors, graded in the same run, got full"
        f" marks. Isolation: <code>{escape(result['isolation'])}</code>.</p>"
    ]
    for family in dict.fromkeys(row["family"] for row in threats):
        rows = [row for row in threats if row["family"] == family]
        share = f"{sum(row['ok'] for row in rows)} of {len(rows)}"
        shown = table(
            ("Submission", "Score", "Earned", "What the row says"),
            (
                (
                    row["does"],
                    f"{row['score']:g} of {row['max_score']:g}",
                    f"{row['expected']:g}" if row["status"] != "refused" else "refused",
                    " ".join([row["message"], *row["notes"][:1]]),
                )
                for row in rows
            ),
        )
        parts.append(
            f'<details class="kill-table"><summary>{escape(family)}: {share} as they should'
            f" be</summary>{shown}</details>"
        )
    return "".join(parts)


def _chapters(result: dict[str, dict[str, float]]) -> str:
    states = list(next(iter(result.values())))
    rows = [(name, *(f"{row[state]:.2f}" for state in states)) for name, row in result.items()]
    return table(("Chapter", *states), rows)


def _compare(result: dict[str, Any]) -> str:
    rounds, ratio = result["rounds"], result["ratio"]
    rows = [("this grader", _range([r["warm"]["processor"] for r in rounds["ours"]]), "1")]
    for name in ("nbgrader", "otter"):
        if isinstance(rounds[name], list):
            middle, least, most = ratio[name]
            cost = _range([cost["processor"] for cost in rounds[name]])
            rows.append((name, cost, f"{middle:g} ({least:g} to {most:g})"))
        else:
            rows.append((name, rounds[name], "–"))
    return table(("Grader", "Processor seconds a submission", "Times ours"), rows)


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _scaling(result: dict[str, Any]) -> str:
    count = result["students"]
    rows = [
        (
            name,
            f"{cost['processor'] / count:.2f}",
            f"{cost['wall'] / count:.2f}",
            f"{cost['megabytes']}",
        )
        for name, cost in result.items()
        if isinstance(cost, dict)
    ]
    heads = ("Workers", "Processor seconds a submission", "Wall seconds", "Memory, MB")
    return table(heads, rows)


def _crash(result: dict[str, int]) -> str:
    says = {
        "students": "submissions",
        "killed_after": "results stored when the grader was killed",
        "results_whole": "of them whole",
        "results_unchanged": "of them taken up unchanged",
        "processes_left": "processes left over",
        "graded_again": "submissions graded by the second run",
        "rows": "rows after it",
        "scores_as_expected": "of them with the score expected",
        "feedback_pages": "feedback pages",
    }
    return table(("what", "count"), [(text, str(result[key])) for key, text in says.items()])


PARTS = {"chapters": _chapters, "compare": _compare, "scaling": _scaling, "crash": _crash}


def setup(app: Sphinx) -> None:
    app.add_directive("threat-table", ThreatTable)
    app.add_directive("grading-benchmark", GradingBenchmark)
