"""The directives that show what was measured, from the JSON that commands store.

`{threat-table}`: what hostile and broken submissions came to, from `book/_data/threats.json`.
`{grading-benchmark} PART`: a table of `book/_data/grading_benchmark.json`; PART is `chapters`,
    `compare`, `scaling` or `crash`.
`{proof} PART`: a table of `book/_data/proof.json`, see `course.proof`; PART is `summary`, `pages`,
    `explorers`, `parity` or `models`.
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


class Proof(_Stored):
    """What `rnn2gpt proof` found of the site in a browser."""

    file, required_arguments = "proof.json", 1

    def html(self, result: dict[str, Any]) -> str:
        return PROOFS[self.arguments[0]](result) if result else f"<p>{NOT_RUN}</p>"


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
    rows = [("this grader", _range([r["warm"]["wall"] for r in rounds["ours"]]), "1")]
    for name in ("nbgrader", "otter"):
        if isinstance(rounds[name], list):
            middle, least, most = ratio[name]
            cost = _range([cost["wall"] for cost in rounds[name]])
            rows.append((name, cost, f"{middle:g} ({least:g} to {most:g})"))
        else:
            rows.append((name, rounds[name], "–"))
    return table(("Grader", "Seconds a submission, one worker", "Times ours"), rows)


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


# ------------------------------------------------------------------------------- the site


def _proof_summary(result: dict[str, Any]) -> str:
    pages = result["pages"].values()
    broken = sum(len(lines) for page in pages for lines in page["violations"].values())
    done = sum(_completed(played) for played in result["explorers"].values())
    rows = [
        ("pages, each in " + ", ".join(result["modes"]), str(len(pages))),
        (f"rules of axe-core {result['axe']['version']} for each", str(result["axe"]["rules"])),
        ("violations, all pages and modes together", str(broken)),
        ("requests to other hosts", str(sum(len(page["elsewhere"]) for page in pages))),
        ("errors in the console", str(sum(len(page["errors"]) for page in pages))),
        ("pages wider than their screen", str(sum(any(p["too_wide"].values()) for p in pages))),
        ("heaviest page, gzipped with all it loads", _kilobytes(max(p["bytes"] for p in pages))),
        ("explorers completed by keyboard alone", f"{done} of {len(result['explorers'])}"),
        ("farthest number from PyTorch's", f"{max(result['parity'].values()):.1e}"),
    ]
    where = f"{result['browser']}, {result['date']}, by {result['command']}."
    return table(("what", "found"), rows) + f"<p><small>{escape(where)}</small></p>"


def _completed(played: dict[str, Any]) -> bool:
    return bool(played["verdict"] and played["figure"] and not played["left_out"])


def _kilobytes(size: int) -> str:
    return f"{size / 1024:.0f} KB"


def _proof_pages(result: dict[str, Any]) -> str:
    heads = ("page", *(f"violations, {mode}" for mode in result["modes"]))
    heads += ("KB gzipped", "requests", "to other hosts", "LCP, ms", "CLS")
    rows = [
        (
            name,
            *(str(len(page["violations"][mode])) for mode in result["modes"]),
            f"{page['bytes'] / 1024:.0f}",
            str(page["requests"]),
            str(len(page["elsewhere"])),
            str(page["lcp_ms"] if page["lcp_ms"] is not None else "–"),
            f"{page['cls']:.3f}",
        )
        for name, page in result["pages"].items()
    ]
    return table(heads, rows)


def _proof_explorers(result: dict[str, Any]) -> str:
    heads = ("explorer", "page", "controls reached", "missed", "bet graded", "figure opened")
    rows = [
        (
            name,
            played["page"],
            str(played["reached"]),
            str(len(played["left_out"])),
            "yes" if played["verdict"] else "no",
            "yes" if played["figure"] else "no",
            f"{played['inp_ms']:.0f}",
        )
        for name, played in result["explorers"].items()
    ]
    return table((*heads, "slowest answer to a key (INP), ms"), rows)


def _proof_parity(result: dict[str, Any]) -> str:
    says = {
        "logits": "logits at every position, whole text at once",
        "cache": "the same, token by token with the cache",
        "attention": "attention weights of every head",
        "lens": "logit lens at every layer, last position",
    }
    rows = [(says[what], f"{apart:.1e}") for what, apart in result["parity"].items()]
    return table(("what", "largest difference from PyTorch"), rows)


def _proof_models(result: dict[str, Any]) -> str:
    rows = [(name, f"{size / 1e6:.2f} MB") for name, size in result["models"].items()]
    return table(("model, fetched when asked for", "size"), rows)


PROOFS = {
    "summary": _proof_summary,
    "pages": _proof_pages,
    "explorers": _proof_explorers,
    "parity": _proof_parity,
    "models": _proof_models,
}


def setup(app: Sphinx) -> None:
    app.add_directive("proof", Proof)
    app.add_directive("threat-table", ThreatTable)
    app.add_directive("grading-benchmark", GradingBenchmark)
