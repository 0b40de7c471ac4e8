"""The book's Sphinx extension: what Jupyter Book lacks for a self-contained course.

`around` adds what stands around a page,
`mathml` pre-renders mathematics, `elements`, `explorers`, `measured` and `mistakes` add the
directives that pages use, `reading` says how long a chapter takes, `execution` keys the cache of
executed pages, `reference` reads our docstrings, `assets` removes and cuts down what a page loads.
`_config.yml` lists this package as an extension.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from course.site import (
    around,
    assets,
    elements,
    execution,
    explorers,
    mathml,
    measured,
    mistakes,
    reading,
    reference,
)


def setup(app: Sphinx) -> dict[str, Any]:
    pages = (around, elements, explorers, measured, mistakes, reading)
    for module in (mathml, *pages, execution, reference, assets):
        module.setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
