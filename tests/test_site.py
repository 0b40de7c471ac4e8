"""The site: self-contained, light, readable with mouse, keyboard, phone and in the dark."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner
from fontTools.ttLib import TTFont
from math_core import LatexError
from pages import Site, view, wait

from course.build import BuildError, build_site, stamp
from course.site.assets import icon_codepoints, icon_names, math_codepoints
from course.site.elements import colab_url, kill_table_html, notebook_facts
from course.site.execution import execution_key
from course.site.explorers import scripts
from course.site.mathml import to_mathml
from course.site.reference import to_rst
from rnn2gpt.gpt import GPTConfig, count_parameters, flops_per_token
from rnn2gpt.tokenizer import BPETokenizer, train_bpe

PAGE_BUDGET = 350 * 1024  # bytes, gzipped, with everything the page loads
HEADER = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3}
---
"""


# ------------------------------------------------------------------------------ without a build


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\operatorname{softmax}(h_t)", "<mi>softmax</mi>"),
        (r"\text{bits per character}", "<mtext>bits\xa0per\xa0character</mtext>"),
        (r"\mathbb{R}^{H \times D}", "ℝ"),
        (r"f \odot c_{t-1}", "⊙"),
        (r"\sum_{i=1}^{N} x_i", "<munderover>"),
        (r"h'_t", "′"),
        (r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}", "<mtable"),
        (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", "<mtable"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "<mtable"),
        (r"a &= b \\ &= c", "<mtable"),
        (r"\underbrace{a + b}_{n}", "<munder"),
        (r"\lVert g \rVert_2 \le \sqrt{d_k}", "<msqrt>"),
        (r"\frac{\partial L}{\partial h_t}", "<mfrac>"),
        (r"\mathbf{W}\,\hat{y}\,\bar{x}\,\tilde{c}", "<mover"),
    ],
)
def test_math_that_the_book_uses_is_converted(latex: str, expected: str) -> None:
    math = to_mathml(latex, display=True)
    assert expected in math
    assert 'display="block"' in math
    assert len(BeautifulSoup(math, "html.parser").find_all("math")) == 1


def test_math_leaves_numbers_to_sphinx_and_refuses_what_it_does_not_know() -> None:
    numbered = to_mathml(r"\begin{align} a &= b \\ c &= d \end{align}", display=True)
    assert "(1)" not in BeautifulSoup(numbered, "html.parser").get_text()
    with pytest.raises(LatexError):
        to_mathml(r"\nosuchcommand{x}", display=False)


def test_math_characters_include_the_italics_that_a_browser_draws() -> None:
    found = {chr(c) for c in math_codepoints("x <math><mi>h</mi><mi>W</mi><mo>⊙</mo></math> y")}
    assert found == {"h", "ℎ", "W", "𝑊", "⊙"}


def test_math_characters_include_the_root_sign_that_a_browser_draws() -> None:
    assert ord("√") in math_codepoints("<math><msqrt><mi>d</mi></msqrt></math>")


def test_icons_in_use_are_found_by_name_and_by_the_style_sheets_own_use() -> None:
    css = (
        '.fa-bars:before,.fa-navicon:before{content:"\\f0c9"}.fa-ghost:before{content:"\\f6e2"}'
        ':root{--icon:"\uf058"}.arrow:after{content:"\\f107"}'
    )
    names = icon_names(['<i class="fa-solid fa-bars"></i>'])
    assert icon_codepoints(css, names) == {0xF0C9, 0xF058, 0xF107}


@pytest.mark.parametrize("url", ["https://github.com/a/b", "https://github.com/a/b.git"])
def test_colab_link_follows_the_repository(url: str) -> None:
    link = colab_url(url, "main", "exercises/02-rnn/rnn.ipynb")
    assert link == (
        "https://colab.research.google.com/github/a/b/blob/main/exercises/02-rnn/rnn.ipynb"
    )


@pytest.mark.parametrize("url", ["", "https://gitlab.com/a/b", "https://github.com/a"])
def test_no_colab_link_without_a_github_repository(url: str) -> None:
    assert colab_url(url, "main", "x.ipynb") is None


def test_docstrings_become_clean_restructuredtext() -> None:
    doc = ["Scales `g` in place: see clip_grad_norm_ and *args.", "", "    g *= 2", "", "After."]
    assert to_rst(doc) == [
        r"Scales ``g`` in place: see clip_grad_norm\_ and \*args.",
        "",
        ".. code-block:: python",
        "",
        "    g *= 2",
        "",
        "After.",
        "",
    ]


def test_kill_table_shows_failures_and_escapes_messages() -> None:
    row = {"chapter": "01_a", "exercise": "f", "kind": "misconception", "answer": "g"}
    row |= {"expected": "Use `x`.", "got": "<b>", "points": 0.0, "max_points": 2.0}
    html = kill_table_html([row | {"ok": True}, row | {"ok": False}])
    assert "1 of 2 wrong answers" in html
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert html.count("Expected:") == 1 and "<code>x</code>" in html


@pytest.fixture(scope="module")
def figures(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("figures", root / "book" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_line_names_stand_at_the_ends_and_apart(figures: Any) -> None:
    fig, ax = figures.figure()
    for level, name in ((0.0, "low"), (5.0, "high"), (5.1, "higher")):
        ax.plot([0, 10], [0, level], label=name)
    ax.plot([0, 10], [1, 1])  # no label, no name
    figures.label_lines(ax)
    fig.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(boxes) == {"low", "high", "higher"}
    assert boxes["low"].y1 < boxes["high"].y0 and boxes["high"].y1 <= boxes["higher"].y0 + 1
    assert all(box.x0 > ax.transData.transform((10, 0))[0] for box in boxes.values())
    assert max(box.x1 for box in boxes.values()) <= fig.bbox.x1  # the layout made room


def test_a_figure_needs_a_finding_and_words_for_it(figures: Any) -> None:
    fig, _ = figures.figure()
    for title, alt in (("", "words"), ("finding", " ")):
        with pytest.raises(ValueError, match="title"):
            figures.show(fig, title=title, alt=alt)


def test_figures_on_one_page_share_no_ids(figures: Any) -> None:
    def ids(alt: str) -> set[str]:
        fig, ax = figures.figure()
        ax.plot([1, 2], [3, 4])
        return set(re.findall(r'id="([^"]+)"', figures.svg(fig, alt)))

    assert ids("one") and not ids("one") & ids("two")
    assert ids("one") == ids("one")  # the same bytes on every build


# --------------------------------------------------------------------- a small book of our making


@pytest.fixture()
def tiny(tmp_path: Path, root: Path) -> Path:
    """A book of two pages with the real configuration, beside a package that pages import."""
    book = tmp_path / "book"
    book.mkdir()
    shutil.copy(root / "_config.yml", tmp_path)
    for name in ("_static", "_templates"):
        shutil.copytree(root / "book" / name, book / name)
    shutil.copy(root / "book" / "figures.py", book)
    (book / "references.bib").write_text("", "utf-8")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n  - file: second\n", "utf-8"
    )
    cut = root / "book" / "_build" / ".fonts"
    if cut.is_dir():  # kept under a hash of what they were cut from: saves seconds, changes nothing
        shutil.copytree(cut, book / "_build" / ".fonts")
    package = tmp_path / "rnn2gpt"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 'written first'\n", "utf-8")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / "book" / f"{name}.md").write_text(HEADER + text, "utf-8")


def page(root: Path, name: str = "index") -> BeautifulSoup:
    text = (root / "book" / "_build" / "html" / f"{name}.html").read_text("utf-8")
    return BeautifulSoup(text, "html.parser")


def article(root: Path, name: str = "index") -> str:
    found = page(root, name).find("article")
    assert found is not None
    return found.get_text()


SAME_CODE = """
```{code-cell} python
import rnn2gpt
print("the package says", rnn2gpt.VALUE, __import__("os").urandom(8).hex())
```
"""


@pytest.mark.slow
def test_pages_run_again_when_the_package_changes_and_only_then(tiny: Path) -> None:
    write(tiny, "index", "# One\n" + SAME_CODE)
    write(tiny, "second", "# Two\n" + SAME_CODE)
    assert not build_site(tiny).skipped
    first, second = article(tiny), article(tiny, "second")
    assert "written first" in first and "written first" in second
    # Equal code on two pages is two runs: the random number printed differs.
    assert first.split()[-1] != second.split()[-1]

    again = build_site(tiny)
    assert again.skipped and again.seconds < 5
    stale = tiny / "book" / "_build" / "html" / "gone.html"
    stale.write_text("a page of an earlier build", "utf-8")

    # Prose alone changed: the page is read again, its code is not run again.
    write(tiny, "index", "# One\n\nA new sentence.\n" + SAME_CODE)
    assert not build_site(tiny).skipped
    assert "A new sentence." in article(tiny)
    assert not stale.exists()
    assert article(tiny).split()[-1] == first.split()[-1]

    # The package changed: both pages run again although neither source did.
    key = execution_key(tiny)
    (tiny / "rnn2gpt" / "__init__.py").write_text("VALUE = 'written later'\n", "utf-8")
    assert execution_key(tiny) != key
    assert not build_site(tiny).skipped
    assert "written later" in article(tiny) and "written later" in article(tiny, "second")


@pytest.mark.slow
def test_page_elements(tiny: Path) -> None:
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"rnn2gpt": {"minutes": 45}},
        "cells": [
            {"id": "a", "cell_type": "markdown", "metadata": {}, "source": "# Tiny exercise"},
            {
                "id": "b",
                "cell_type": "code",
                "metadata": {"nbgrader": {"grade": True, "points": 3}},
                "source": "",
                "outputs": [],
                "execution_count": None,
            },
        ],
    }
    exercise = tiny / "exercises" / "01-tiny" / "tiny.ipynb"
    exercise.parent.mkdir(parents=True)
    exercise.write_text(json.dumps(notebook), "utf-8")
    assert notebook_facts(exercise)["points"] == 3
    (tiny / "book" / "explorers").mkdir()
    (tiny / "book" / "explorers" / "dial.js").write_text(
        'explorer("dial", (root, data) => { root.textContent = "dial " + data.n; });', "utf-8"
    )
    write(
        tiny,
        "index",
        """# Elements

:::{exercise-notebook} 01-tiny/tiny
:::

$$
h_t = \\tanh(x_t W) \\\\
y_t = h_t
$$ (eq-cell)

By {eq}`eq-cell`, inline $x_{<t}$.

:::{question} Is $1 < 2$?
- [ ] No.
  Then two would not follow one.
- [x] Yes.

  Count, `1`, then `2`.
:::

```{code-cell} python
from figures import figure, publish, say, show
fig, ax = figure()
ax.plot([1, 2, 4], label="line")
show(fig, title="It <rises>", alt="It doubles.", table={"n": [1, 2], "x": [0.123456, 2.0]})
publish("dial", {"n": 7})
say("n", 42)
```

The answer is {glue:text}`n`.

:::{explorer} dial
:label: A dial
Seven, at rest.
:::
""",
    )
    write(tiny, "second", "# Two\n\nNothing here.\n")
    build_site(tiny)
    soup = page(tiny)

    box = soup.select_one(".exercise-notebook")
    assert box is not None
    assert "Tiny exercise" in box.get_text() and "about 45 minutes" in box.get_text()
    assert "3 points" in box.get_text()
    assert [a["href"] for a in box.select("a")] == ["exercises/01-tiny/tiny.ipynb"]  # no Colab
    html = tiny / "book" / "_build" / "html"
    assert (html / "exercises/01-tiny/tiny.ipynb").read_bytes() == exercise.read_bytes()

    equation = soup.select_one("#equation-eq-cell")
    assert equation is not None and equation.find("mtable") and "(1)" in equation.get_text()
    assert soup.select('a[href="#equation-eq-cell"]')
    assert not soup.select(".math.notranslate")

    choices = soup.select(".question .choice")
    assert [c["data-right"] for c in choices] == ["false", "true"]
    assert all(c.select_one("input[type=radio]") and c.select_one("details") for c in choices)
    assert len({c.input["name"] for c in choices if c.input}) == 1
    assert "Then two would not follow one." in choices[0].details.get_text()  # type: ignore[union-attr]
    assert choices[1].details.find("code")  # type: ignore[union-attr]
    assert "[x]" not in soup.select_one(".question").get_text()  # type: ignore[union-attr]

    svg = soup.select_one("figure.course-figure svg")
    assert svg is not None and svg["role"] == "img" and svg["aria-label"] == "It doubles."
    assert "currentcolor" in str(svg).lower() and "var(--figure-blue" in str(svg)
    assert "#101010" not in str(svg)
    assert "It <rises>" in soup.select_one(".figure-title").get_text()  # type: ignore[union-attr]
    cells = [td.get_text() for td in soup.select("details.figure-data td")]
    assert cells == ["1", "0.1235", "2", "2"]
    assert "The answer is 42." in soup.get_text()

    assert soup.select_one('[data-explorer="dial"]') is not None
    assert soup.select('script[src*="explorers/dial.js"]')
    assert not page(tiny, "second").select('script[src*="explorers/"]')
    assert (html / "_static" / "explorers" / "dial.js").is_file()


@pytest.mark.slow
def test_a_build_names_every_problem(tiny: Path) -> None:
    write(
        tiny,
        "index",
        """# Wrong

$\\nosuchcommand$

:::{question} Why?
- [ ] Because.
- [x] For a reason.
  A good one.
:::

:::{exercise-notebook} 99-none/none
:::

:::{explorer} nowhere
:::
""",
    )
    write(tiny, "second", "# Two\n\n{doc}`missing`\n")
    with pytest.raises(BuildError) as error:
        build_site(tiny)
    for problem in (
        r"\nosuchcommand",
        "explain this choice too",
        "no such notebook: exercises/99-none/none.ipynb",
        "no such explorer: book/explorers/nowhere.js",
        "missing",
    ):
        assert problem in str(error.value)
    assert not (tiny / "book" / "_build" / ".stamp").exists()

    write(tiny, "index", "# Code\n\n```{code-cell} python\nraise ValueError('on this page')\n```\n")
    write(tiny, "second", "# Two\n")
    with pytest.raises(BuildError, match="on this page"):
        build_site(tiny)


# ----------------------------------------------------------------------------------- the real site


LOADS = {  # what a browser fetches without being asked; links to click are none of these
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "embed": "src",
    "video": "src",
    "audio": "src",
    "track": "src",
    "input": "src",
    "object": "data",
    "image": "href",
    "use": "href",
    "link": "href",
}
NOT_LOADED = {"index", "search", "next", "prev", "canonical", "author", "license"}


def loads_of_page(soup: BeautifulSoup) -> list[str]:
    found: list[str] = []
    for tag, attribute in LOADS.items():
        for element in soup.find_all(tag):
            if tag == "link" and set(element.get("rel", [])) <= NOT_LOADED:
                continue
            found += [str(element[a]) for a in (attribute, f"xlink:{attribute}") if element.get(a)]
            found += [part.split()[0] for part in str(element.get("srcset", "")).split(",") if part]
    for style in soup.find_all("style"):
        found += loads_of_css(style.get_text())
    for element in soup.find_all(style=True):
        found += loads_of_css(str(element["style"]))
    return found


def loads_of_css(css: str) -> list[str]:
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    urls = re.findall(r"""url\(\s*["']?([^"')]+)""", css)
    return urls + re.findall(r"""@import\s+["']([^"']+)""", css)


def foreign(urls: list[str]) -> list[str]:
    return [u for u in urls if urlsplit(u).netloc or urlsplit(u).scheme not in ("", "data")]


@pytest.mark.slow
def test_no_page_or_style_sheet_loads_from_another_host(site: Site) -> None:
    for name in site.pages:
        soup = BeautifulSoup((site.html / name).read_text("utf-8"), "html.parser")
        assert foreign(loads_of_page(soup)) == [], name
    for sheet in site.html.rglob("*.css"):
        assert foreign(loads_of_css(sheet.read_text("utf-8"))) == [], sheet.name
    for script in site.html.rglob("*.js"):
        if script.name == "searchindex.js":
            continue
        # Addresses that scripts name: XML namespaces and one link in a console message.
        hosts = set(re.findall(r"""["'`](?:https?:)?//([\w.-]+)""", script.read_text("utf-8")))
        assert hosts <= {"www.w3.org"}, script.name


@pytest.mark.slow
def test_what_the_book_does_without_is_gone(site: Site) -> None:
    names = [path.name for path in site.html.rglob("*") if path.is_file()]
    assert not [n for n in names if re.search(r"thebe|fontawesome\.js|MathJax|\.map$|\.ttf$", n)]
    fonts = [n for n in names if n.endswith((".woff", ".otf", ".eot", ".woff2"))]
    assert fonts and all(n.endswith(".woff2") for n in fonts)
    for name in site.pages:
        text = (site.html / name).read_text("utf-8")
        assert not re.search(r"thebe|mathjax[\w./-]*\.js|cdn\.|unpkg|require\.min", text, re.I), (
            name
        )
        soup = BeautifulSoup(text, "html.parser")
        visible = [s for s in soup.select("form.bd-search") if not s.find_parent("dialog")]
        assert len(visible) <= 1, name


@pytest.mark.slow
def test_every_local_link_leads_somewhere(site: Site) -> None:
    ids: dict[str, set[str]] = {}
    soups = {
        n: BeautifulSoup((site.html / n).read_text("utf-8"), "html.parser") for n in site.pages
    }
    for name, soup in soups.items():
        ids[name] = {str(e["id"]) for e in soup.find_all(id=True)}
    broken = []
    for name, soup in soups.items():
        for link in [str(a["href"]) for a in soup.find_all("a", href=True)] + loads_of_page(soup):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("#", ""):
                continue
            target = site.html / name
            if parts.path:
                target = (site.html / name).parent / unquote(parts.path)
            inside = target.resolve().relative_to(site.html.resolve()).as_posix()
            if not target.is_file() or (
                parts.fragment and inside in ids and unquote(parts.fragment) not in ids[inside]
            ):
                broken.append((name, link))
    assert broken == []


@pytest.mark.slow
def test_chapters_and_only_chapters_say_how_long_they_take(site: Site) -> None:
    for name in site.pages:
        soup = BeautifulSoup((site.html / name).read_text("utf-8"), "html.parser")
        said = [p.get_text() for p in soup.select("h1 + .reading-time")]
        assert len(said) == bool(re.match(r"\d\d_", name)), name
        assert all(re.fullmatch(r"About \d?[05] minutes to read", text) for text in said), name


@pytest.mark.slow
def test_every_page_weighs_little(site: Site) -> None:
    @functools.cache
    def weight(path: Path) -> int:
        data = path.read_bytes()
        packed = path.suffix in {".woff2", ".png", ".jpg", ".webp"}
        return len(data) if packed else len(gzip.compress(data))

    heavy = {}
    for name in site.pages:
        loaded = {site.html / name}
        soup = BeautifulSoup((site.html / name).read_text("utf-8"), "html.parser")
        waiting = [(site.html / name, url) for url in loads_of_page(soup)]
        while waiting:  # style sheets load fonts, images and other style sheets
            origin, url = waiting.pop()
            if url.startswith(("data:", "#")):
                continue
            path = (origin.parent / unquote(urlsplit(url).path)).resolve()
            if path not in loaded and path.is_file():
                loaded.add(path)
                if path.suffix == ".css":
                    waiting += [(path, u) for u in loads_of_css(path.read_text("utf-8"))]
        total = sum(map(weight, loaded))
        if total > PAGE_BUDGET:
            heavy[name] = {p.name: weight(p) for p in sorted(loaded, key=weight)[-5:]}
    assert heavy == {}


@pytest.mark.slow
def test_fonts_draw_what_pages_show(site: Site) -> None:
    fonts = site.html / "_static" / "fonts"
    math = TTFont(fonts / "math.woff2")
    assert "MATH" in math  # without it, radicals, fences and scripts are not laid out
    shown = set().union(*(math_codepoints((site.html / n).read_text("utf-8")) for n in site.pages))
    # Variation selectors and invisible operators have no glyph to draw.
    unseen = {*range(0xFE00, 0xFE10), *range(0x2061, 0x2065), ord("&"), ord(";")}
    missing = shown - set(math.getBestCmap()) - unseen
    assert {chr(c) for c in missing} <= set("⁠​"), [hex(c) for c in missing]
    assert all(len(p.read_bytes()) < 60_000 for p in fonts.glob("*.woff2"))
    for name in ("serif-regular", "serif-italic", "serif-semibold"):
        assert set(map(ord, "Azé–“”−")) <= set(TTFont(fonts / f"{name}.woff2").getBestCmap())


@pytest.mark.slow
def test_reference_covers_the_packages(site: Site, root: Path) -> None:
    shown = "".join((site.html / n).read_text("utf-8") for n in site.pages if n.startswith("api_"))
    for path in sorted((root / "rnn2gpt").glob("*.py")):
        if path.stem != "__init__":
            assert f'id="module-rnn2gpt.{path.stem}"' in shown, path.stem
    for name in ("exercise", "expect", "handle"):
        assert f'id="module-autograder.engine.{name}"' in shown


@pytest.mark.slow
def test_a_second_build_does_nothing(site: Site, root: Path) -> None:
    from course.cli import main

    result = CliRunner().invoke(main, ["build", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["skipped"] and report["seconds"] < 5
    assert report["pages"] == len(site.pages)
    assert (root / "book" / "_build" / ".stamp").read_text("utf-8") == stamp(root)


# ------------------------------------------------------------------------------------- in a browser


@pytest.mark.slow
def test_pages_load_alone_without_errors_and_fit_a_phone(site: Site, browser: Any) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    for name in site.pages:
        for width, scheme in ((360, "dark"), (1280, "light")):
            view(browser, width, scheme)
            browser.get(f"{site.address}/{name}")
            wait(browser, "document.readyState === 'complete'")
            assert browser.execute_script("return document.documentElement.dataset.theme") == scheme
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide on a screen of {width}"
            errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
            assert errors == [], name
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in sent
        if event["method"] == "Network.requestWillBeSent"
    }
    assert urls
    assert {u for u in urls if re.match(r"(https?|wss?|ftp):", u)} >= {f"{site.address}/index.html"}
    strangers = {u for u in urls if not u.startswith((site.address, "data:", "blob:", "chrome:"))}
    assert strangers == set()


@pytest.mark.slow
def test_math_is_mathml_drawn_with_our_font(site: Site, browser: Any) -> None:
    pages = [n for n in site.pages if "<math" in (site.html / n).read_text("utf-8")]
    assert pages, "no page shows mathematics"
    view(browser, 1280)
    browser.get(f"{site.address}/{pages[0]}")
    wait(
        browser,
        "[...document.fonts].some(f => /Course Math/.test(f.family) && f.status == 'loaded')",
    )
    height = browser.execute_script(
        "return document.querySelector('math').getBoundingClientRect().height"
    )
    assert height > 5


@pytest.mark.slow
def test_pages_open_from_a_folder(site: Site, browser: Any) -> None:
    view(browser, 1280)
    browser.get_log("browser")  # what other pages left there
    for name in ("index.html", "contributor_guide.html"):
        browser.get((site.html / name).as_uri())
        wait(browser, "document.readyState === 'complete'")
        errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        assert errors == [], name
        font = "getComputedStyle(document.querySelector('h1')).fontFamily"
        assert "Course Serif" in browser.execute_script(f"return {font}")


def explore(browser: Any, root: Path, folder: Path, name: str, data: object) -> None:
    """Open a page that holds nothing but the explorer `name` and its data."""
    files = [root / "book/_static/course.js", *scripts(root / "book", name)]
    tags = "".join(f"<script>{file.read_text('utf-8')}</script>" for file in files)
    page = folder / f"{name}.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><div data-explorer={name}>at rest</div>"
        f'<script type="application/json" id="data-{name}">{json.dumps(data)}</script>{tags}',
        "utf-8",
    )
    browser.get(page.as_uri())
    wait(browser, "document.readyState === 'complete'")


def texts(browser: Any, selector: str) -> list[str]:
    return [e.text for e in browser.find_elements("css selector", selector)]


@pytest.mark.slow
def test_explorer_of_counts_bets_and_writes(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    tables = [{"": ["e ", [600, 400]]}, {"o": ["u", [1000]], "u": ["o", [1000]]}]
    explore(browser, root, tmp_path, "next_character", {"tables": tables})
    assert texts(browser, ".bars .name") == ["u"]
    assert texts(browser, ".bars .value") == ["100.0 %"]
    text, order = browser.find_elements("css selector", "input")
    browser.find_element("css selector", "button").click()
    assert text.get_attribute("value").endswith("thou")
    assert texts(browser, ".bars .name") == ["o"]
    order.send_keys(Keys.ARROW_LEFT)  # n = 1: no context
    assert texts(browser, ".bars .name") == ["e", "space"]
    order.send_keys(Keys.ARROW_RIGHT)
    text.send_keys("z")  # never counted: falls back to no context and says so
    assert texts(browser, ".bars .name") == ["e", "space"]
    assert "not counted" in texts(browser, ".reading")[0]


@pytest.mark.slow
def test_explorer_of_reach_reads_the_gradient(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    near = {"name": "near", "reach": [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]]}
    far = {"name": "far", "reach": [[1.0], [0.9, 0.1], [0.5, 0.3, 0.2]]}
    explore(browser, root, tmp_path, "reach", {"text": "abc", "models": [near, far]})
    position = browser.find_element("css selector", "input")
    position.send_keys(Keys.END)
    readings = texts(browser, ".reading")
    assert "last 1 character." in readings[0] and "last 3 characters." in readings[1]
    position.send_keys(Keys.ARROW_LEFT)
    assert "last 2 characters." in texts(browser, ".reading")[1]
    assert len(browser.find_elements("css selector", ".unread")) == 2  # c, for both models


@pytest.mark.slow
def test_explorer_of_tokens_cuts_as_the_package_does(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    merges = train_bpe("low low lower lowest slow " * 3 + "we were here " * 2, 256 + 20)
    tokenizer = BPETokenizer(merges)
    data = {"merges": tokenizer.to_json()["merges"], "text": "low"}
    explore(browser, root, tmp_path, "tokens", data)
    text = browser.find_element("css selector", "textarea")

    def shown(written: str) -> list[str]:
        text.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, written)
        return [
            e.get_attribute("title") for e in browser.find_elements("css selector", ".tokens *")
        ]

    for written in ("low", "lowest of the lower, we'll  slow 123!", "é中", "were\nlower"):
        assert shown(written) == [f"id {i}" for i in tokenizer.encode(written)], written
    assert shown("") == []
    shown("lowé")
    slider = browser.find_element("css selector", "input[type=range]")
    slider.send_keys(Keys.HOME)  # no merge: bytes, those of é in hexadecimal
    assert texts(browser, ".tokens *") == ["l", "o", "w", "C3", "A9"]
    back, forth = browser.find_elements("css selector", "button")
    assert back.get_attribute("disabled")
    forth.send_keys(Keys.ENTER)  # the first merge that acts on this text
    first = next(left + right for left, right in merges if left + right in (b"ow", b"lo"))
    assert first.decode() in texts(browser, ".tokens *")
    assert "4 characters, 5 bytes, 4 tokens" in texts(browser, ".reading")[0]
    back.send_keys(Keys.ENTER)
    assert len(texts(browser, ".tokens *")) == 5


@pytest.mark.slow
def test_explorer_of_temperature_is_softmax(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"prompt": "x", "characters": ["a", "b"], "logits": [0.0, 1.0986123]}  # ln 3
    explore(browser, root, tmp_path, "temperature", data)
    assert texts(browser, ".bars .name") == ["b", "a"]
    assert texts(browser, ".bars .value") == ["75.0 %", "25.0 %"]
    assert "0.81 bits" in texts(browser, ".reading")[0]
    browser.find_element("css selector", "input").send_keys(Keys.HOME)  # temperature 1/4
    assert texts(browser, ".bars .value") == ["98.8 %", "1.2 %"]  # 81 to 1


@pytest.mark.slow
def test_explorer_of_alignment_says_where_a_token_looks(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    number = {"task": "numbers", "source": ["ten", "thousand"], "target": ["一", "万", "<eos>"]}
    date = {"task": "dates", "source": ["7", "."], "target": ["7", "<eos>"]}
    weights = {"weights": [[0.98, 0.02], [0.25, 0.75], [0.5, 0.5]]}
    explore(browser, root, tmp_path, "alignment", [number | weights, date | weights])
    reading = "“thousand” at place 2 (75 %), “ten” at place 1 (25 %)"
    assert reading in texts(browser, ".reading")[0]  # the jump is what one sees first
    pressed = "button[aria-pressed=true]"
    assert texts(browser, pressed) == ["万"]
    first = browser.find_element("css selector", "button")
    first.send_keys(Keys.SPACE)
    assert texts(browser, pressed) == ["一"]
    assert texts(browser, ".reading")[0].endswith("it looks at “ten” at place 1 (98 %).")
    browser.find_element("css selector", "select").send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".answer button") == ["7", "end"]
    assert "to write “7” it looks at “7”" in texts(browser, ".reading")[0]


@pytest.mark.slow
def test_explorer_of_rotary_knows_distances_only(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    # One pair that turns by one radian a token: at distance m − n the score is cos(m − n).
    data = {"query": [1.0, 0.0], "key": [1.0, 0.0], "base": 10000}
    explore(browser, root, tmp_path, "rotary", data)
    query, key, together = browser.find_elements("css selector", "input")

    def reading() -> str:
        return texts(browser, ".reading")[0].split("With")[0]

    assert "Distance 3: turned, the score is −0.99." in reading()
    query.send_keys(Keys.ARROW_LEFT)
    assert "Distance 2: turned, the score is −0.42." in reading()
    both, added = texts(browser, "output"), texts(browser, ".reading")[0].split("With")[1]
    together.send_keys(Keys.SPACE)
    query.send_keys(Keys.ARROW_RIGHT)
    assert texts(browser, "output") == [str(int(at) + 1) for at in both]
    assert "Distance 2: turned, the score is −0.42." in reading()
    assert texts(browser, ".reading")[0].split("With")[1] != added
    query.send_keys(Keys.END)  # neither leaves its slider
    assert texts(browser, "output") == ["60", "58"]
    key.send_keys(Keys.END)
    assert texts(browser, "output") == ["60", "58"]
    label = browser.find_element("css selector", "svg").get_attribute("aria-label")
    assert label == "Pair 0: query and key add −0.42."


@pytest.mark.slow
def test_explorer_of_norm_placement_compares_first_and_last_block(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def stack(*gradient: float) -> dict[str, Any]:
        sizes = [1.0 + k for k in range(len(gradient))]
        return {"depth": len(gradient), "gradient": gradient, "stream_rms": sizes}

    data = {
        "pre": [stack(0.5, 0.5), stack(0.5, 0.4, 0.5, 0.5)],
        "post": [stack(0.25, 0.5), stack(0.0625, 0.125, 0.25, 0.5)],
    }
    explore(browser, root, tmp_path, "norm_placement", data)
    assert texts(browser, "output") == ["4"]
    assert len(browser.find_elements("css selector", "svg rect")) == 8
    assert "pre-norm × 1.0, post-norm × 8.0" in texts(browser, ".reading")[0]
    browser.find_element("css selector", "input").send_keys(Keys.ARROW_LEFT)
    assert texts(browser, "output") == ["2"]
    assert "pre-norm × 1.0, post-norm × 2.0" in texts(browser, ".reading")[0]
    browser.find_element("css selector", "select").send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".reading")[0].endswith("pre-norm × 2.0, post-norm × 2.0.")


@pytest.mark.slow
def test_print_is_light_and_unfolded_and_leaves_the_screen_as_it_was(
    site: Site, browser: Any
) -> None:
    view(browser, 1280, "dark")
    browser.get(f"{site.address}/contributor_guide.html")
    wait(browser, "document.querySelector('.question.live')")
    opened = "document.querySelectorAll('details[open]').length"
    state = f"[document.documentElement.dataset.theme, {opened}]"
    assert browser.execute_script(f"return {state}") == ["dark", 0]
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    printed, unfolded = browser.execute_script(f"return {state}")
    assert printed == "light" and unfolded >= 2
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(f"return {state}") == ["dark", 0]


@pytest.mark.slow
def test_search_finds_a_word(site: Site, browser: Any) -> None:
    view(browser, 1280)
    browser.get(f"{site.address}/search.html?q=perplexity")
    results = "[...document.querySelectorAll('#search-results li a')]"  # they come one by one
    for name in ("glossary.html", "01_language_models.html"):
        assert wait(browser, f"{results}.some(a => a.href.includes('{name}'))")


@pytest.mark.slow
def test_keyboard_reaches_and_shows_what_it_reaches(site: Site, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    view(browser, 1280)
    browser.get(f"{site.address}/index.html")
    seen = []
    for _ in range(8):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(
            browser.execute_script(
                "const e = document.activeElement, s = getComputedStyle(e);"
                "return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]"
            )
        )
    assert len({tuple(s) for s in seen} - {("BODY", "none", 0)}) >= 1
    assert all(style != "none" and width >= 2 for tag, style, width in seen if tag != "BODY"), seen


@pytest.mark.slow
def test_questions_answer_to_the_keyboard(site: Site, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    pages = [n for n in site.pages if 'class="question"' in (site.html / n).read_text("utf-8")]
    if not pages:
        pytest.skip("no page holds a question yet")
    view(browser, 360, "dark")
    for name in pages:
        browser.get(f"{site.address}/{name}")
        wait(browser, "document.querySelector('.question.live')")
        first = browser.find_element("css selector", ".question input")
        first.send_keys(Keys.SPACE)
        shown = "document.querySelector('.question .choice.chosen details').open"
        assert browser.execute_script(f"return {shown}")
        first.send_keys(Keys.ARROW_DOWN)
        opened = browser.execute_script(
            "return [...document.querySelectorAll('.question')[0].querySelectorAll('.choice')]"
            ".map(c => c.querySelector('details').open)"
        )
        assert opened[:2] == [False, True]
        verdict = browser.execute_script("return document.querySelector('.verdict').textContent")
        assert verdict.startswith(("Right.", "Not so."))
        browser.refresh()  # the answer is kept in this browser
        chosen = "document.querySelector('.question .chosen details[open]')"
        assert wait(browser, f"{chosen}?.textContent").strip().endswith(verdict)
        browser.execute_script("localStorage.clear()")


@pytest.mark.slow
def test_explorer_of_attention_shows_what_the_root_is_for(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"query": "q", "keys": ["a", "b"], "scores": [0.0, 1.0]}
    explore(browser, root, tmp_path, "attention", data)
    divided = ["26.9 %", "73.1 %"]  # 1 to e
    assert texts(browser, ".bars .value") == [*divided, "0.0 %", "100.0 %"]  # 1 to e⁸ at d_k = 64
    width, score, _ = browser.find_elements("css selector", "input")
    width.send_keys(Keys.HOME)  # d_k = 1: the root is 1
    assert texts(browser, ".bars .value") == [*divided, *divided]
    assert "1.79 of 2 keys" in texts(browser, ".reading")[0]
    width.send_keys(Keys.END)  # d_k = 1024: the divided shares stay
    assert texts(browser, ".bars .value") == [*divided, "0.0 %", "100.0 %"]
    score.send_keys(*[Keys.ARROW_RIGHT] * 10)  # both scores 1
    assert texts(browser, ".bars .value") == ["50.0 %"] * 4
    assert "gradient is 0.500" in texts(browser, ".reading")[1]


@pytest.mark.slow
def test_explorer_of_loss_scaling_moves_gradients_into_the_window(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"powers": [-30, -20, -10], "shares": [25.0, 25.0, 50.0]}
    explore(browser, root, tmp_path, "loss_scaling", data)
    assert texts(browser, ".reading") == [
        "In float16, 25.0 % become 0, 25.0 % lose bits, 50.0 % are kept with all bits."
    ]
    power = browser.find_element("css selector", "input")
    for _ in range(16):  # −30 → −14, the smallest power with all bits
        power.send_keys(Keys.ARROW_RIGHT)
    assert texts(browser, ".reading") == ["In float16, 100.0 % are kept with all bits."]
    power.send_keys(Keys.END)  # −10 → 30, beyond the largest number
    assert "100.0 % are kept" not in texts(browser, ".reading")[0]
    assert "are infinite. The step is skipped" in texts(browser, ".reading")[0]
    browser.find_element("css selector", "select").send_keys("b")
    assert texts(browser, ".reading") == ["In bfloat16, 100.0 % are kept with all bits."]


@pytest.mark.slow
def test_explorer_of_gpt_size_counts_as_the_package_does(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    keys = ("n_layers", "n_heads", "d_model", "block_size", "vocab_size")
    shapes = {"one": (3, 4, 64, 64, 64), "GPT-2": (12, 12, 768, 1024, 50257)}
    shapes |= {"odd": (5, 7, 91, 37, 1001), "GPT-3": (96, 96, 12288, 2048, 50257)}
    configs = {name: dict(zip(keys, sizes, strict=True)) for name, sizes in shapes.items()}
    models = [{"name": name} | sizes for name, sizes in configs.items()]
    explore(browser, root, tmp_path, "gpt_size", {"models": models, "start": 1})
    select = Select(browser.find_element("css selector", "select"))
    assert select.first_selected_option.text == "GPT-2"
    for name, sizes in configs.items():
        select.select_by_visible_text(name)
        reading, config = texts(browser, ".reading")[0], GPTConfig(**sizes)
        assert reading.startswith(f"{count_parameters(config):,} parameters.")
        flops = float(reading.split("Training: ")[1].split()[0])
        unit = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
        flops *= unit[reading.split("Training: ")[1].split()[1]]
        assert flops == pytest.approx(flops_per_token(config), rel=0.01)
        assert f"Each head is {config.d_model // config.n_heads} wide." in reading
    layers = browser.find_element("css selector", "[data-key=n_layers]")
    layers.send_keys(Keys.HOME)  # one layer: the sizes are now the reader's own
    assert select.first_selected_option.text == "your own"
    one = GPTConfig(**configs["GPT-3"] | {"n_layers": 1})
    assert texts(browser, ".reading")[0].startswith(f"{count_parameters(one):,} parameters.")
    browser.find_element("css selector", "[data-key=n_heads]").send_keys(Keys.ARROW_LEFT)
    width = browser.find_element("css selector", "[data-key=d_model]")
    width.send_keys(Keys.HOME)  # 64 features for 64 heads, then for 48
    browser.find_element("css selector", "[data-key=n_heads]").send_keys(Keys.ARROW_LEFT)
    assert "48 heads cannot share a width of 64" in texts(browser, ".reading")[0]


@pytest.mark.slow
def test_explorer_of_fill_in_sets_both_sides_beside_the_left(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def row(right: int, *guesses: str) -> dict[str, Any]:
        return {"tokens": list(guesses), "shares": [900, 60][: len(guesses)], "right": right}

    first = {"tokens": ["t", "h", "y"], "bert": [row(100, "t")] + [row(900, "h", "o")] * 2}
    second = {"tokens": ["\n", " "], "bert": [row(5, "a"), row(900, " ")]}
    lines = [line | {"gpt": [row(60, "o", "h")] * 3} for line in (first, second)]
    explore(browser, root, tmp_path, "fill_in", {"lines": lines, "start": [0, 1]})
    assert texts(browser, ".tokens *") == ["t", "[MASK]", "y"]
    assert texts(browser, ".bars .name") == ["h ✓", "o", "o", "h ✓"]  # BERT's guesses, then GPT's
    assert texts(browser, ".bars .value") == ["90.0 %", "6.0 %"] * 2
    reading = "Hidden: “h”. BERT gives it 90.0 %, GPT, which has not seen what follows, 6.0 %."
    assert texts(browser, ".reading") == [reading]
    browser.find_element("css selector", "input").send_keys(Keys.ARROW_LEFT)
    assert texts(browser, ".tokens *") == ["[MASK]", "h", "y"]
    browser.find_element("css selector", "select").send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".tokens *") == ["[MASK]", "␣"]
    browser.find_elements("css selector", ".tokens *")[1].click()
    assert texts(browser, ".bars .name")[0] == "␣ ✓"


@pytest.mark.slow
def test_explorer_of_decoding_cuts_as_the_package_does(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    import torch
    from selenium.webdriver.common.keys import Keys

    from rnn2gpt.generation import filter_logits

    logits = [-300, 0, -100, -50, -400]  # hundredths below the largest
    data = {"tokens": ["a", "b", " c", "d\n", "e"], "prompts": [{"text": "x", "logits": logits}]}
    explore(browser, root, tmp_path, "decoding", data)
    temperature, top_k, top_p = browser.find_elements("css selector", "input[type=range]")

    def after(divisor: float = 1.0, **filters: Any) -> list[str]:
        exact = filter_logits(torch.tensor([logits]) / 100 / divisor, **filters)[0].softmax(0)
        falling = exact.sort(descending=True).values.tolist()
        return [f"{100 * p:.1f} %" if p else "cut" for p in falling]

    assert texts(browser, ".bars .name") == ["b", "d⏎", "␣c", "a", "e"]
    assert texts(browser, ".bars .value") == after()
    assert "5 of 5 tokens" in texts(browser, ".reading")[1]
    check, draw = browser.find_elements("css selector", "button")
    browser.find_element("css selector", "input[type=number]").send_keys("2")
    check.send_keys(Keys.ENTER)  # three reach 0.9: 0.49, 0.30, 0.18
    assert texts(browser, ".reading")[0].startswith("More. It takes 3 of 5")
    assert texts(browser, ".bars .value") == after(top_p=0.9)
    top_p.send_keys(Keys.END)
    top_k.send_keys(Keys.HOME)  # 2 to the power 0: greedy
    assert texts(browser, ".bars .value") == after(top_k=1)
    draw.send_keys(Keys.ENTER)
    assert texts(browser, ".drawn") == [" · ".join(["b"] * 10)]
    top_k.send_keys(Keys.END)
    temperature.send_keys(Keys.END)  # 2
    assert texts(browser, ".bars .value") == after(divisor=2.0)
