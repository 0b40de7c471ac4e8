"""The site for everyone: axe-core finds nothing on any page, in light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import Site, view, wait

from rnn2gpt.data import fetch_packages

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FIND = """
const done = arguments[arguments.length - 1];
const options = {resultTypes: ["violations"], runOnly: {type: "tag", values: arguments[0]}};
axe.run(document, {...options, preload: false})  // it would fetch style sheets anew, and log
  .then(({violations}) => done(violations.flatMap(
    ({id, nodes}) => nodes.map((node) => `${id}: ${node.target.join(" ")}`))));
"""


@pytest.fixture(scope="session")
def axe() -> str:
    requirements = Path(__file__).with_name("axe-requirements.txt")
    package = fetch_packages(requirements, keep="axe.min.js")
    return (package / "axe_playwright_python" / "axe.min.js").read_text("utf-8")


def violations(browser: Any, axe: str) -> list[str]:
    browser.execute_script(axe)
    return browser.execute_async_script(FIND, RULES)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_no_page_breaks_a_rule_of_accessibility(
    site: Site, browser: Any, axe: str, width: int, scheme: str
) -> None:
    browser.set_script_timeout(120)
    view(browser, width, scheme)
    found = {}
    for name in site.pages:
        browser.get(f"{site.address}/{name}")
        wait(browser, "document.readyState === 'complete'")
        if broken := violations(browser, axe):
            found[name] = broken
    assert found == {}


@pytest.mark.slow
def test_a_broken_rule_is_found(tmp_path: Path, browser: Any, axe: str) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><html lang=en><title>t</title><main><img src=data:,></main>")
    browser.get(page.as_uri())
    assert any(line.startswith("image-alt") for line in violations(browser, axe))
