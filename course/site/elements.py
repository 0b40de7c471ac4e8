"""The directives that make a page of this book more than prose.

`{exercise-notebook} 01-language-models/language_models`
    A box with the notebook's download link, its minutes and its points (read from the notebook in
    `exercises/`), and "Open in Colab" once `repository.url` is set in `_config.yml`.

`{question}`: a question with choices, every one of which is explained::

    :::{question} What does a bigram model know about the third character back?
    - [ ] Everything: it has seen the whole text.
      It has counted pairs. Of a triple it has seen only the two pairs inside.
    - [x] Nothing.
      Its next-character row depends on one character alone.
    :::

    A choice is the first paragraph or first line of a list item; what follows is its explanation.
    Exactly one or more choices are marked `[x]`. Choosing one opens its explanation. Without
    scripts every explanation is there to unfold.

`{kill-table}`: the table of wrong and right answers from `book/_data/kill_table.json`.
"""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def raw(html: str) -> nodes.raw:
    return nodes.raw("", html, format="html")


# ------------------------------------------------------------------------------ exercise notebook


def notebook_facts(path: Path) -> dict[str, Any]:
    """Minutes, points and graded parts of a student notebook.

    >>> # {"title": "Language models", "minutes": 60, "points": 20, "parts": 5}
    """
    notebook = nbformat.read(path, as_version=4)
    graded = [
        cell.metadata["nbgrader"]
        for cell in notebook.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    ]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", prose, re.M)
    points = sum(cell.get("points", 0) for cell in graded)
    return {
        "title": heading.group(1) if heading else path.stem.replace("_", " ").capitalize(),
        "minutes": notebook.metadata.get("rnn2gpt", {}).get("minutes"),
        "points": int(points) if points == int(points) else points,
        "parts": len(graded),
    }


def colab_url(repository: str, branch: str, notebook: str) -> str | None:
    """Where Colab opens `notebook` from a GitHub repository; None for no or another host."""
    match = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?", repository or "")
    if match is None:
        return None
    return f"https://colab.research.google.com/github/{match.group(1)}/blob/{branch}/{notebook}"


class ExerciseNotebook(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = f"exercises/{self.arguments[0]}.ipynb"
        path = Path(self.env.srcdir).parent / name
        if not path.is_file():
            logger.warning("no such notebook: %s", name, location=self.get_location())
            return []
        self.env.note_dependency(str(path))
        facts = notebook_facts(path)
        notebooks = registry(self.env, "course_notebooks")
        mine = notebooks.setdefault(self.env.docname, [])
        mine.append(name)
        anchor = ' id="exercise-notebook"' if len(mine) == 1 else ""
        root = "../" * self.env.docname.count("/")
        options = self.config.html_theme_options
        colab = colab_url(
            options.get("repository_url", ""), options.get("repository_branch") or "main", name
        )
        size = [
            f"about {facts['minutes']} minutes" if facts["minutes"] else "",
            f"{facts['parts']} graded parts" if facts["parts"] else "",
            f"{facts['points']} points" if facts["points"] else "",
        ]
        links = [
            f'<a class="button" href="{root}{name}" download>Download '
            f"<code>{escape(path.name)}</code></a>"
        ]
        if colab:
            links.append(f'<a class="button" href="{escape(colab)}">Open in Colab</a>')
        return [
            raw(
                f'<aside class="exercise-notebook"{anchor} aria-label="Exercise notebook">'
                f'<p class="label">Exercise notebook</p><p class="title">{escape(facts["title"])}'
                f"</p><p>{' · '.join(filter(None, size))}</p><p>{' '.join(links)}</p></aside>"
            )
        ]


# ---------------------------------------------------------------------------------- the question


class question(nodes.General, nodes.Element):
    """Children: the question's text, then its choices."""


class question_text(nodes.General, nodes.Element): ...


class choice(nodes.General, nodes.Element):
    """Children: the choice's text, then its explanation; attributes: right, group."""


class choice_text(nodes.General, nodes.Element): ...


class explanation(nodes.General, nodes.Element): ...


MARK = re.compile(r"^\[( |x|X)\]\s*")


def _split_first_line(paragraph: nodes.paragraph) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """The inline nodes before and after the paragraph's first line break."""
    for i, child in enumerate(paragraph.children):
        if isinstance(child, nodes.Text) and "\n" in child:
            before, after = str(child).split("\n", 1)
            first = [*paragraph.children[:i], nodes.Text(before)]
            return first, [nodes.Text(after), *paragraph.children[i + 1 :]]
    return list(paragraph.children), []


class Question(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        serial = self.env.new_serialno("question") + 1
        text = question_text()
        title, messages = self.state.inline_text(self.arguments[0], self.lineno)
        text += nodes.paragraph("", "", *title)
        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        lists = [child for child in body.children if isinstance(child, nodes.bullet_list)]
        if len(lists) != 1 or body.children[-1] is not lists[0]:
            raise self.error("a question is its text followed by one list of choices")
        text += body.children[:-1]
        group = f"q{serial}-{self.env.docname.replace('/', '-')}"
        result = question(number=serial, group=group)
        result += text
        result += [self._choice(item, group) for item in lists[0].children]
        rights = [c for c in result.children if isinstance(c, choice) and c["right"]]
        if not rights:
            raise self.error("a question needs a right choice, marked - [x]")
        return [result, *messages]

    def _choice(self, item: nodes.Node, group: str) -> choice:
        paragraph = item.children[0]
        if not isinstance(paragraph, nodes.paragraph):
            raise self.error("a choice begins with a line of text")
        first, rest = _split_first_line(paragraph)
        mark = MARK.match(str(first[0])) if first and isinstance(first[0], nodes.Text) else None
        if mark is None:
            raise self.error("each choice begins with [ ] or [x]")
        first[0] = nodes.Text(str(first[0])[mark.end() :])
        why = explanation()
        if rest:
            why += nodes.paragraph("", "", *rest)
        why += item.children[1:]
        if not why.children:
            raise self.error(f"explain this choice too: {paragraph.astext()}")
        result = choice(right=mark.group(1) != " ", group=group)
        result += choice_text("", *first)
        result += why
        return result


def _visit_question(self: HTML5Translator, node: question) -> None:
    self.body.append(
        f'<div class="question" id="{node["group"]}"><fieldset><legend>'
        f'<span class="label">Question {node["number"]}</span></legend>'
    )


def _depart_question(self: HTML5Translator, node: question) -> None:
    self.body.append('</fieldset><p class="verdict" role="status"></p></div>\n')


def _visit_choice(self: HTML5Translator, node: choice) -> None:
    self.body.append(f'<div class="choice" data-right="{str(node["right"]).lower()}">')


def _visit_choice_text(self: HTML5Translator, node: choice_text) -> None:
    group = node.parent["group"]
    self.body.append(f'<label><input type="radio" name="{group}"/><span>')


def _visit_explanation(self: HTML5Translator, node: explanation) -> None:
    verdict = "Right." if node.parent["right"] else "Not so."
    self.body.append(f"<details><summary>Explanation</summary><div><p class='mark'>{verdict}</p>")


# -------------------------------------------------------------------------------- the kill table


class KillTable(SphinxDirective):
    """The rows that `rnn2gpt kill-table` stores, see `course.kill_table.Row`."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "_data" / "kill_table.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [nodes.paragraph("", "The table has not been computed for this copy yet.")]
        rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
        return [raw(kill_table_html(rows))]


ACCEPTED = ("solution", "right answer")


def kill_table_html(rows: list[dict[str, Any]]) -> str:
    """The kill table as HTML: a summary, then one folded table for each graded object."""
    right = [row for row in rows if row["kind"] in ACCEPTED]
    wrong = [row for row in rows if row["kind"] not in ACCEPTED]
    parts = [
        f"<p>{_share(right)} right answers get full marks. {_share(wrong)} wrong answers are "
        "refused, each named mistake by the message written for it.</p>"
    ]
    for chapter in dict.fromkeys(row["chapter"] for row in rows):
        parts.append(f'<p class="kill-chapter">{escape(chapter.replace("_", " "))}</p>')
        mine = [row for row in rows if row["chapter"] == chapter]
        for exercise in dict.fromkeys(row["exercise"] for row in mine):
            parts.append(_kill_exercise(exercise, [r for r in mine if r["exercise"] == exercise]))
    return "".join(parts)


def _share(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row['ok'] for row in rows)} of {len(rows)}"


def _kill_exercise(exercise: str, rows: list[dict[str, Any]]) -> str:
    body = "".join(
        f'<tr class="{"ok" if row["ok"] else "bad"}"><td>{escape(row["kind"])}</td>'
        f"<td><code>{escape(row['answer'])}</code></td>"
        f"<td>{row['points']:g} of {row['max_points']:g}</td>"
        f"<td>{_message(row)}</td></tr>"
        for row in rows
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("Kind", "Answer", "Points", "Verdict"))
    return (
        f'<details class="kill-table"><summary><code>{escape(exercise)}</code>: '
        f"{_share(rows)} as they should be</summary>"
        f'<div class="table-scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _message(row: dict[str, Any]) -> str:
    if row["ok"]:
        return _code(row["got"])
    return f"{_code(row['got'])} <strong>Expected:</strong> {_code(row['expected'])}"


def _code(message: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(message))


# ------------------------------------------------------------------------------------- citations


def _visit_citation(self: HTML5Translator, node: nodes.citation) -> None:
    """An entry of the bibliography is an item of its list; docutils' own role is deprecated."""
    HTML5Translator.visit_citation(self, node)
    self.body[-1] = self.body[-1].replace('role="doc-biblioentry"', 'role="listitem"')


# -------------------------------------------------------------------------------------- plumbing


def registry(env: Any, name: str) -> dict[str, list[str]]:
    if not hasattr(env, name):
        setattr(env, name, {})
    found: dict[str, list[str]] = getattr(env, name)
    return found


def _purge(app: Sphinx, env: Any, docname: str) -> None:
    registry(env, "course_notebooks").pop(docname, None)


def _copy_files(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    root, out = Path(app.srcdir).parent, Path(app.outdir)
    for names in registry(app.env, "course_notebooks").values():
        for name in names:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)


def setup(app: Sphinx) -> None:
    app.add_directive("exercise-notebook", ExerciseNotebook)
    app.add_directive("question", Question)
    app.add_directive("kill-table", KillTable)

    def closes(tag: str) -> Any:
        return lambda self, node: self.body.append(tag)

    def opens(tag: str) -> Any:
        return lambda self, node: self.body.append(tag)

    app.add_node(question, html=(_visit_question, _depart_question))
    app.add_node(question_text, html=(opens('<div class="question-text">'), closes("</div>")))
    app.add_node(choice, html=(_visit_choice, closes("</div>")))
    app.add_node(choice_text, html=(_visit_choice_text, closes("</span></label>")))
    app.add_node(explanation, html=(_visit_explanation, closes("</div></details>")))
    closing = HTML5Translator.depart_citation
    app.add_node(nodes.citation, override=True, html=(_visit_citation, closing))
    app.connect("env-purge-doc", _purge)
    app.connect("build-finished", _copy_files)
