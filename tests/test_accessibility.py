"""The site for everyone, in a browser: every page is opened once and looked at in two modes.

`course.proof` does the looking, here and for the page that publishes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from pages import Site, view, wait

from course.browser import go
from course.proof import (
    MODES,
    MOST_SHIFT,
    STORED,
    complete,
    faults,
    load_axe,
    look_at,
    opening_figure,
    parity,
    play,
    violations,
)
from course.site.explorers import kept_figure

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="session")
def axe(root: Path) -> str:
    return load_axe(root)


def answer_first_question(browser: Any) -> list[Any]:
    """Answer the page's first question by keyboard: what opened at each key, and the verdict."""
    from selenium.webdriver.common.keys import Keys

    first = browser.find_element("css selector", ".question input")
    first.send_keys(Keys.SPACE)
    opened = (
        "return [...document.querySelector('.question').querySelectorAll('.choice details')]"
        ".map(d => d.open)"
    )
    once = browser.execute_script(opened)
    first.send_keys(Keys.ARROW_DOWN)
    verdict = browser.execute_script("return document.querySelector('.verdict').textContent")
    return [once, browser.execute_script(opened), verdict]


@pytest.fixture(scope="session")
def seen(site: Site, browser: Any, axe: str) -> dict[str, dict[str, Any]]:
    """What was found on each page, opened once: `look_at`, then its explorers, a question."""
    found: dict[str, dict[str, Any]] = {}
    for name in site.pages:
        found[name] = page = look_at(browser, site, name, axe, MODES[::2])
        page["figures"] = {e: opening_figure(browser, e) for e in page["explorers"]}
        page["played"] = {e: play(browser, e) for e in page["explorers"]}
        if browser.find_elements("css selector", ".question.live"):
            page["question"] = answer_first_question(browser)
    return found


def over(seen: dict[str, Any], what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """What each page has of `what`, pages that have nothing left out."""
    return {name: value for name, page in seen.items() if (value := what(page))}


def test_no_page_breaks_a_rule_of_accessibility(seen: dict[str, Any]) -> None:
    assert over(seen, lambda page: [*chain(*page["violations"].values())]) == {}


def test_pages_load_alone_without_errors_and_fit_a_phone(seen: dict[str, Any]) -> None:
    assert over(seen, lambda page: page["errors"]) == {}
    assert over(seen, lambda page: page["elsewhere"]) == {}
    assert over(seen, lambda page: any(page["too_wide"].values()) and page["too_wide"]) == {}
    assert over(seen, lambda page: page["cls"] > MOST_SHIFT and page["cls"]) == {}
    assert all(page["requests"] > 3 for page in seen.values())


def test_every_explorer_is_completed_by_keyboard_and_leads_on(seen: dict[str, Any]) -> None:
    played = {name: one for page in seen.values() for name, one in page["played"].items()}
    assert played
    assert {name: one for name, one in played.items() if not complete(one)} == {}
    assert {name for name, one in played.items() if not one["exercise"]} == set()


def test_questions_answer_to_the_keyboard(seen: dict[str, Any], site: Site, browser: Any) -> None:
    answers = over(seen, lambda page: page.get("question"))
    assert answers
    for name, (once, twice, verdict) in answers.items():
        assert once[:2] == [True, False] and twice[:2] == [False, True], name
        assert verdict.startswith(("Right.", "Not so.")), name
    name = next(iter(answers))
    go(browser, f"{site.address}/{name}")  # the answer is kept in this browser
    chosen = "document.querySelector('.question .chosen details[open]')"
    assert wait(browser, f"{chosen}?.textContent").strip().endswith(answers[name][2])
    browser.execute_script("localStorage.clear()")


def shape(figure: str) -> list[tuple[list[str], bool]]:
    """The columns of each table of a figure, and whether it has rows; numbers may differ."""
    tables = BeautifulSoup(figure, "html.parser").find_all("table")
    return [([th.get_text() for th in t.find_all("th")], bool(t.find("td"))) for t in tables]


def test_without_scripts_every_explorer_shows_its_figure_and_data(
    seen: dict[str, Any], site: Site, root: Path
) -> None:
    for page, found in seen.items():
        for name, live in found["figures"].items():
            again = f"{page}: {name}. Run `rnn2gpt proof`."
            kept = kept_figure(root / "book", name)
            assert kept.is_file(), again
            assert shape(kept.read_text("utf-8")) == shape(live), again
            assert kept.read_text("utf-8") in (site.html / page).read_text("utf-8"), again


def test_the_published_proof_covers_every_page_and_explorer(
    seen: dict[str, Any], root: Path
) -> None:
    stored = json.loads((root / STORED).read_text("utf-8"))
    assert set(stored["pages"]) == set(seen), "run `rnn2gpt proof`"
    assert set(stored["explorers"]) == {e for page in seen.values() for e in page["explorers"]}
    assert stored["modes"] == [f"{width} {scheme}" for width, scheme in MODES]
    assert faults(stored) == []
    for name, page in stored["pages"].items():
        assert page["bytes"] == pytest.approx(seen[name]["bytes"], rel=0.05), name


def test_the_browser_computes_what_pytorch_computes(site: Site, browser: Any, root: Path) -> None:
    apart = parity(browser, site, root)
    assert set(apart) == {"logits", "cache", "attention", "lens"}
    assert max(apart.values()) < 1e-3, apart


def test_a_broken_rule_is_found(tmp_path: Path, browser: Any, axe: str) -> None:
    page = tmp_path / "page.html"
    pale = "<p style='color: #ccc'>too pale</p>"
    lost = "<div style='background: #222'><p>lost</p></div>"
    page.write_text(
        "<!doctype html><html lang=en><title>t</title><body style='background: #fff'><main>"
        f"<h1>t</h1><img src=data:,>{'<p>dark</p>' * 50}{pale}{lost}"
    )
    view(browser, 1280)
    browser.get(page.as_uri())
    found = violations(browser, axe)
    assert "image-alt: img" in found
    assert len([line for line in found if line.startswith("color-contrast")]) == 2, found
