"""Docstrings for the reference pages: our plain style, read as reStructuredText by autodoc.

Our docstrings are prose with `code` in single backticks and examples set in by four spaces. This
module turns the first into literals and the second into code blocks, and escapes what
reStructuredText would take for markup (a lone `*`, `|`, or a name that ends in `_`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(`+)(.+?)\1", re.S)
MARKUP = re.compile(r"(\*|\||\\|_(?=\W|$))")
PLACE = "\x00{}\x00"


def to_rst(lines: list[str]) -> list[str]:
    """The docstring `lines` as reStructuredText.

    >>> to_rst(["Scales `g` in place.", "", "    g *= 2"])
    ['Scales ``g`` in place.', '', '.. code-block:: python', '', '    g *= 2', '']
    """
    result: list[str] = []
    for block in _blocks(lines):
        code = all(line.startswith("    ") for line in block)
        doctest = block[0].lstrip().startswith(">>>")
        if code and not doctest and result:
            # Neighboring code blocks are one example with blank lines in it.
            if not (_last_is_code(result)):
                result += [".. code-block:: python", ""]
            result += [*block, ""]
        elif doctest:
            result += [*block, ""]
        else:
            result += [*_prose("\n".join(block)).split("\n"), ""]
    return result


def _blocks(lines: list[str]) -> list[list[str]]:
    """The paragraphs of a docstring: runs of lines that are not blank."""
    text = "\n".join(lines).strip("\n")
    return [part.split("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def _last_is_code(result: list[str]) -> bool:
    before = [line for line in result if line.strip()]
    return bool(before) and before[-1].startswith("    ") and ">>>" not in before[-1]


def _prose(text: str) -> str:
    literals: list[str] = []

    def keep(match: re.Match[str]) -> str:
        literals.append(" ".join(match.group(2).split()))
        return PLACE.format(len(literals) - 1)

    text = MARKUP.sub(r"\\\1", CODE.sub(keep, text))
    return re.sub(r"\x00(\d+)\x00", lambda m: f"``{literals[int(m.group(1))]}``", text)


def _process(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    lines[:] = to_rst(lines)


def flat_signatures(html: str) -> str:
    """The page with long signatures as lines of text.

    Sphinx makes each parameter a description in a list without terms, which screen readers announce
    as a broken list.

    >>> flat_signatures('<dt class="sig">f(<dl><dd>x</dd></dl>)</dt>')
    '<dt class="sig">f(<span class="parameters"><span>x</span></span>)</dt>'
    """
    return re.sub(r'<dt class="sig.*?</dt>', lambda m: _flat(m.group()), html, flags=re.S)


def _flat(signature: str) -> str:
    outer = signature.replace("<dl>", '<span class="parameters">').replace("</dl>", "</span>")
    return outer.replace("<dd>", "<span>").replace("</dd>", "</span>")


def _flatten(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    for path in Path(app.outdir).glob("api_*.html"):
        path.write_text(flat_signatures(path.read_text("utf-8")), "utf-8")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _process)
    app.connect("build-finished", _flatten)
