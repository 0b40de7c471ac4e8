"""Something to play with: the directive, its scripts, and the models that run in the browser.

`{explorer} NAME`: `book/explorers/NAME.js` runs on this page only and calls
    `explorer("NAME", (root, data) => { ... })`; `data` is what the page's code gave to
    `figures.publish("NAME", ...)`, or the JSON file named by `:data:`. The content of the
    directive is what a reader without scripts sees in its place, followed by the figure of the
    opening state that `rnn2gpt proof` keeps in `book/explorers/figures/NAME.html`. `:label:` says
    aloud what it is; `:exercise:` names what the reader writes of it in the chapter's exercise,
    and `:exercise-page:` the chapter, where the explorer stands on another page.

A script names what it builds on in comments at its top: `// needs: weights bpe gpt` for scripts
beside it, loaded before it, and `// model: small-gpt` for a folder of `book/_data/models/`, which
is then served as `_static/models/small-gpt.safetensors` and fetched when the reader asks;
`// model-if-stored: small-instruct` does so where the folder is there.
"""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from course.site.elements import raw, registry


def named(script: Path, what: str) -> list[str]:
    """What a script's comment `// WHAT: one two` lists.

    >>> named(Path("book/explorers/tokens.js"), "needs")
    ['bpe']
    """
    found = re.search(rf"^// {what}: (.+)$", script.read_text("utf-8"), re.M)
    return found.group(1).split() if found else []


def scripts(book: Path, name: str) -> list[Path]:
    """The scripts of explorer NAME in the order in which they are loaded, the shared one first."""
    script = book / "explorers" / f"{name}.js"
    return [script.with_name(f"{other}.js") for other in ("stage", *named(script, "needs"), name)]


def kept_figure(book: Path, name: str) -> Path:
    """Where the figure of an explorer's opening state is kept, for readers without scripts."""
    return book / "explorers" / "figures" / f"{name}.html"


class Explorer(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "data": directives.unchanged,
        "label": directives.unchanged_required,
        "exercise": directives.unchanged_required,
        "exercise-page": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        script = Path(self.env.srcdir) / "explorers" / f"{name}.js"
        if not script.is_file():
            raise self.error(f"no such explorer: book/explorers/{name}.js")
        self.env.note_dependency(str(script))
        registry(self.env, "course_explorers").setdefault(self.env.docname, []).append(name)
        label = escape(self.options.get("label", name.replace("_", " ")), quote=True)
        fallback = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, fallback)
        result: list[nodes.Node] = []
        if "data" in self.options:
            path = Path(self.env.srcdir) / self.options["data"]
            self.env.note_dependency(str(path))
            text = json.dumps(json.loads(path.read_text("utf-8")), separators=(",", ":"))
            text = text.replace("<", "\\u003c")
            result.append(raw(f'<script type="application/json" id="data-{name}">{text}</script>'))
        leads = "".join(
            f' data-{option}="{escape(self.options[option], quote=True)}"'
            for option in ("exercise", "exercise-page")
            if option in self.options
        )
        result.append(
            raw(
                f'<div class="explorer" role="group" aria-label="{label}" data-explorer="{name}"'
                f"{leads}>"
            )
        )
        result += fallback.children
        figure = kept_figure(Path(self.env.srcdir), name)
        self.env.note_dependency(str(figure))
        if figure.is_file():
            result.append(raw(f"<noscript>{figure.read_text('utf-8')}</noscript>"))
        result.append(raw("</div>"))
        return result


def _purge(app: Sphinx, env: Any, docname: str) -> None:
    registry(env, "course_explorers").pop(docname, None)


def _add_scripts(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    names = registry(app.env, "course_explorers").get(pagename, [])
    every = [script for name in names for script in scripts(Path(app.srcdir), name)]
    for place, script in enumerate(dict.fromkeys(every)):
        address = f"explorers/{script.name}"
        app.add_js_file(address, loading_method="defer", priority=800 + place)


def _copy_files(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    book, static = Path(app.srcdir), Path(app.outdir) / "_static"
    models = book / "_data" / "models"
    for name in {name for page in registry(app.env, "course_explorers").values() for name in page}:
        (static / "explorers").mkdir(parents=True, exist_ok=True)
        for script in scripts(book, name):
            shutil.copyfile(script, static / "explorers" / script.name)
        stored = [m for m in named(script, "model-if-stored") if (models / m).is_dir()]
        for model in [*named(script, "model"), *stored]:
            from course.web import export_web  # torch: only a site with such a script waits for it

            export_web(models / model, static / "models" / f"{model}.safetensors")


def setup(app: Sphinx) -> None:
    app.add_directive("explorer", Explorer)
    app.connect("env-purge-doc", _purge)
    app.connect("html-page-context", _add_scripts)
    app.connect("build-finished", _copy_files)
