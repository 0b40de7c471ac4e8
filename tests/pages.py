"""The built site and one browser, for every test that looks at pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from course.browser import BrowserMissing, Site, open_browser, served, view, wait
from course.build import build_site

__all__ = ["Site", "served", "view", "wait"]


@pytest.fixture(scope="session")
def site(root: Path) -> Iterator[Site]:
    html = Path(build_site(root).path)
    with served(html) as address:
        yield Site(html, address)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        with open_browser() as driver:
            yield driver
    except BrowserMissing as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
