"""What stands around a page: how other sites describe it, how to cite it, the page as a notebook,
the page for wrong addresses and the list of all pages.

Addresses that others need in full (the site map, the preview image) begin with `html.baseurl` of
`_config.yml`; while it is empty they are relative to the site's root.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import yaml
from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 200  # characters of a description
CHAPTER = re.compile(r"\d\d_")
TREE = """This page belongs to the course "{title}". Its code reads the course's own files: open it
in the folder `book/` of a checkout, where `figures.py` and `_data/` stand."""


# ------------------------------------------------------------------------- for other sites


def description(document: nodes.document | None) -> str:
    """The page's first sentences, at most 200 characters, cut after a sentence or a word."""
    if document is None:
        return ""
    for paragraph in document.findall(nodes.paragraph):
        if "reading-time" in paragraph["classes"]:
            continue
        text = " ".join(paragraph.astext().split())
        if len(text) <= LONGEST:
            return text
        cut = text[:LONGEST]
        sentences = cut.rfind(". ")
        return cut[: sentences + 1] if sentences > LONGEST / 3 else cut.rsplit(" ", 1)[0] + " …"
    return ""


def _describe(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    base = app.config.html_baseurl
    context["page_description"] = description(doctree) or app.config.html_title
    context["page_address"] = urljoin(base, f"{pagename}.html") if base else ""
    context["preview_image"] = urljoin(base, "_static/preview.png")
    if "body" not in context:
        return
    notebooks: set[str] = getattr(app.env, "course_page_notebooks", set())
    if pagename in notebooks:
        root = "../" * pagename.count("/")
        link = (
            f'<p class="page-tools"><a href="{root}notebooks/{pagename}.ipynb" download>'
            "Download this page as a notebook</a></p>"
        )
        context["body"] = re.sub(
            r"(</h1>\s*(?:<p class=\"reading-time\">.*?</p>)?)",
            lambda m: m.group(1) + link,
            context["body"],
            count=1,
            flags=re.S,
        )
    if CHAPTER.match(pagename) or pagename == app.config.root_doc:
        title = re.sub("<[^>]+>", "", context.get("title", ""))
        context["body"] += citation_html(app, title, pagename)


# ------------------------------------------------------------------------------ to cite it


def bibtex(facts: dict[str, Any], title: str, address: str) -> str:
    """A BibTeX entry for one page of the course; `facts` are those of CITATION.cff."""
    year = str(facts["date-released"])[:4]
    fields = {
        "author": " and ".join("{" + author["name"] + "}" for author in facts["authors"]),
        "title": title,
        "booktitle": facts["title"],
        "year": year,
        "note": f"Version {facts['version']}",
    }
    if address:
        fields["url"] = address
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    key = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"@incollection{{rnn2gpt-{key}-{year},\n{body}\n}}"


def citation_html(app: Sphinx, title: str, pagename: str) -> str:
    """A folded box with the page's BibTeX entry."""
    path = Path(app.srcdir).parent / "CITATION.cff"
    if not path.is_file():
        return ""
    base = app.config.html_baseurl
    entry = bibtex(
        yaml.safe_load(path.read_text("utf-8")),
        title,
        urljoin(base, f"{pagename}.html") if base else "",
    )
    return (
        '<details class="cite-this"><summary>Cite this page</summary>'
        f'<div class="highlight-bibtex notranslate"><div class="highlight"><pre>{escape(entry)}\n'
        "</pre></div></div></details>"
    )


# -------------------------------------------------------------------- a page as a notebook


def as_notebook(text: str, title: str) -> str:
    """A page's MyST source as a notebook, the same bytes each time.

    Needs jupytext. Cell ids follow from place and content; a first cell says what the code needs.
    """
    import jupytext
    import nbformat

    notebook = jupytext.reads(text, fmt="md:myst")
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(TREE.format(title=title)))
    for place, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{place} {cell.source}".encode()).hexdigest()[:12]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _find_notebooks(app: Sphinx, env: Any) -> None:
    sources = {doc: Path(env.doc2path(doc)) for doc in env.found_docs}
    env.course_page_notebooks = {
        doc for doc, path in sources.items() if "\n```{code-cell}" in path.read_text("utf-8")
    }


def _write_notebooks(app: Sphinx) -> None:
    for doc in getattr(app.env, "course_page_notebooks", set()):
        source = Path(app.env.doc2path(doc)).read_text("utf-8")
        target = Path(app.outdir) / "notebooks" / f"{doc}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(as_notebook(source, app.config.html_title), "utf-8")


# ------------------------------------------------------- wrong addresses, and all of them


def _missing_page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page that a server shows for an address that leads nowhere."""
    body = (
        "<section><h1>There is no such page</h1><p>The address leads nowhere in this book. A page"
        ' may have moved: <a href="search.html">search</a> for a word of it, or begin at the'
        f' <a href="{app.config.root_doc}.html">first page</a>.</p></section>'
    )
    yield "404", {"title": "There is no such page", "body": body, "missing_page": True}, "page.html"


def site_map(names: list[str], base: str) -> str:
    """The site map of pages `names`, in the form of sitemaps.org."""
    places = "".join(f"  <url><loc>{escape(urljoin(base, name))}</loc></url>\n" for name in names)
    note = (
        "" if base else "<!-- Addresses are complete once html.baseurl is set in _config.yml. -->\n"
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{note}'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}</urlset>\n'
    )


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pages = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.html"))
    listed = [name for name in pages if name not in ("404.html", "search.html")]
    (out / "sitemap.xml").write_text(site_map(listed, app.config.html_baseurl), "utf-8")
    _write_notebooks(app)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", _describe)
    app.connect("env-updated", lambda app, env: _find_notebooks(app, env))
    app.connect("html-collect-pages", _missing_page)
    app.connect("build-finished", _finish, priority=950)  # once stale pages are gone
