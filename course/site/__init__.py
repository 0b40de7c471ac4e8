"""The book's Sphinx extension: what Jupyter Book lacks for a self-contained course.

`mathml` pre-renders mathematics, `elements` adds the directives that pages use, `execution` keys
the cache of executed pages, `assets` removes and subsets what a page would load. `_config.yml`
lists this package as an extension.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from course.site import assets, elements, execution, mathml


def setup(app: Sphinx) -> dict[str, Any]:
    for module in (mathml, elements, execution, assets):
        module.setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
