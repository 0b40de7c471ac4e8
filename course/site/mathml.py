"""Mathematics as native MathML, rendered when the site is built.

A page then needs no script and no network for its formulas; the browser draws them with the
subset of STIX Two Math that `assets` cuts. LaTeX that cannot be converted is a warning, and the
build takes warnings for errors.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

# Environments that number their lines in LaTeX. Sphinx numbers equations here, so that references
# to them work; the starred forms leave that to it.
NUMBERED = re.compile(r"\\(begin|end)\{(equation|align|gather|alignat|multline)\}")


def to_mathml(latex: str, *, display: bool, macros: dict[str, str] | None = None) -> str:
    r"""Convert LaTeX to a `<math>` element; raises `math_core.LatexError` for what is not LaTeX.

    >>> to_mathml("x^2", display=False)
    '<math><msup><mi>x</mi><mn>2</mn></msup></math>'
    """
    source = NUMBERED.sub(r"\\\1{\2*}", latex.strip())
    if display and r"\\" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"
    converter = LatexToMathML(macros=macros or {}, fancy_error=False)
    return converter.convert_with_local_state(source, displaystyle=display)


def _convert(translator: HTML5Translator, node: nodes.Element, *, display: bool) -> str:
    try:
        return to_mathml(node.astext(), display=display, macros=translator.config.mathml_macros)
    except LatexError as error:
        logger.warning("LaTeX not understood: %s in %s", error, node.astext(), location=node)
        return f"<code>{escape(node.astext())}</code>"


def visit_inline(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(_convert(translator, node, display=False))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    math = _convert(translator, node, display=True)
    ids = "".join(f' id="{escape(i)}"' for i in node.get("ids", [])[:1])
    number = ""
    if node.get("number"):
        link = f'<a class="headerlink" href="#{node["ids"][0]}" title="Link to this equation">#</a>'
        number = f'<span class="eqno">({get_node_equation_number(translator, node)}){link}</span>'
    translator.body.append(
        f'<div class="equation"{ids}><div class="equation-body">{math}</div>{number}</div>\n'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_config_value("mathml_macros", {}, "env", [dict])
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
