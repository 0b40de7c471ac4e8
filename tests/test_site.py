"""The site: self-contained, light, readable with mouse, keyboard, phone and in the dark."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner
from fontTools.ttLib import TTFont
from math_core import LatexError
from pages import Site, view, wait

from course.browser import go
from course.build import BuildError, build_site, print_book, stamp
from course.site.around import site_map
from course.site.assets import icon_codepoints, icon_names, math_codepoints, without_icons
from course.site.elements import colab_url, kill_table_html, notebook_facts
from course.site.execution import execution_key
from course.site.explorers import kept_figure
from course.site.mathml import to_mathml
from course.site.reference import to_rst
from course.weight import (
    PAGE_BUDGET,
    foreign,
    loaded_files,
    loads_of_css,
    loads_of_page,
    page_weight,
    soup_of,
    weight,
)

pytestmark = pytest.mark.xdist_group("browser")  # one process: one browser, pages parsed once
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
    assert "ghost" not in without_icons(css, names)
    assert icon_codepoints(without_icons(css, names), names) == {0xF0C9, 0xF058, 0xF107}


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


def test_the_site_map_has_full_addresses_once_the_site_has_one() -> None:
    assert "<loc>https://a.example/b/x.html</loc>" in site_map(["x.html"], "https://a.example/b/")
    assert "<loc>x.html</loc>" in site_map(["x.html"], "")


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
def test_page_elements(tiny: Path, root: Path) -> None:
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
    kept_figure(tiny / "book", "dial").parent.mkdir(parents=True)
    kept_figure(tiny / "book", "dial").write_text("<figure>seven, drawn</figure>", "utf-8")
    shutil.copy(root / "book" / "explorers" / "stage.js", tiny / "book" / "explorers")
    shutil.copy(root / "CITATION.cff", tiny)
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
:exercise: turn
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

    dial = soup.select_one('[data-explorer="dial"]')
    assert dial is not None and dial["data-exercise"] == "turn"
    assert "Seven, at rest." in dial.get_text()
    assert dial.noscript and "seven, drawn" in dial.noscript.get_text()
    assert soup.select('script[src*="explorers/stage.js"]')
    assert soup.select('script[src*="explorers/dial.js"]')
    assert not page(tiny, "second").select('script[src*="explorers/"]')
    assert (html / "_static" / "explorers" / "dial.js").is_file()

    # Around the page: what other sites show of it, how to cite it, itself as a notebook.
    meta = {m.get("property") or m.get("name"): m.get("content") for m in soup.select("meta")}
    assert meta["og:title"] == "Elements" and meta["og:image"] == "_static/preview.png"
    assert meta["og:description"] == meta["description"] != ""
    cited = soup.select_one("details.cite-this pre")
    assert cited is not None and "title = {Elements}" in cited.get_text()
    assert not page(tiny, "second").select(".cite-this")
    link = soup.select_one("h1 ~ .page-tools a")
    assert link is not None and link["href"] == "notebooks/index.ipynb"
    assert not page(tiny, "second").select(".page-tools")
    offered = nbformat.read(html / "notebooks" / "index.ipynb", as_version=4)
    nbformat.validate(offered)
    assert [c.cell_type for c in offered.cells if "publish" in c.source] == ["code"]
    assert not (html / "notebooks" / "second.ipynb").exists()
    listed = (html / "sitemap.xml").read_text("utf-8")
    assert "<loc>index.html</loc>" in listed and "404" not in listed
    assert "There is no such page" in article(tiny, "404")


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


@pytest.mark.slow
def test_no_page_or_style_sheet_loads_from_another_host(site: Site) -> None:
    for name in site.pages:
        soup = soup_of(site.html / name)
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
        soup = soup_of(site.html / name)
        visible = [s for s in soup.select("form.bd-search") if not s.find_parent("dialog")]
        assert len(visible) <= 1, name


@pytest.mark.slow
def test_every_local_link_leads_somewhere(site: Site) -> None:
    ids: dict[str, set[str]] = {}
    soups = {name: soup_of(site.html / name) for name in site.pages}
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
        soup = soup_of(site.html / name)
        said = [p.get_text() for p in soup.select("h1 + .reading-time")]
        assert len(said) == bool(re.match(r"\d\d_", name)), name
        said += [e.get_text() for e in soup.select(".prev-next-title .reading-time")]
        assert all(re.fullmatch(r"About \d?[05] minutes to read", text) for text in said), name
        chapters = soup.select(".prev-next-area a[href]")
        assert len(soup.select(".prev-next-title .reading-time")) == sum(
            bool(re.match(r"\d\d_", str(a["href"]))) for a in chapters
        ), name


@pytest.mark.slow
def test_every_page_weighs_little(site: Site) -> None:
    heavy = {}
    for name in site.pages:
        page = site.html / name
        if page_weight(page) > PAGE_BUDGET:
            heavy[name] = {p.name: weight(p) for p in sorted(loaded_files(page), key=weight)[-5:]}
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
def test_what_stands_in_for_the_serif_is_as_wide(site: Site, browser: Any) -> None:
    """Else the text moves when the serif arrives, which the page asks for before its styles."""
    view(browser, 1280)
    go(browser, f"{site.address}/index.html")
    ahead = browser.execute_script(
        "return performance.getEntriesByType('resource').filter((e) => e.initiatorType === 'link')"
        ".map((e) => e.name.split('/').at(-1))"
    )
    assert {"serif-regular.woff2", "serif-semibold.woff2"} <= set(ahead)
    widths = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const text = [...document.querySelectorAll("article p")].map((p) => p.textContent);
        const paper = document.createElement("canvas").getContext("2d");
        async function wide(style, family) {
          const font = `${style} 16px "${family}"`;
          if (!(await document.fonts.load(font).catch(() => [])).length) return null;
          paper.font = font;
          return paper.measureText(text.join(" ").replace(/\\s+/g, " ")).width;
        }
        const names = ["", " as Times", " as DejaVu", " as Noto"];
        Promise.all(["normal", "600", "italic"].map((style) =>
          Promise.all(names.map((name) => wide(style, "Course Serif" + name))))).then(done);
        """
    )
    others = [(own, other) for own, *rest in widths for other in rest if other]
    assert others, "none of the serifs that stand in is installed here"
    for own, other in others:
        assert other == pytest.approx(own, rel=0.03)


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
def test_without_scripts_a_page_has_its_colors(site: Site, browser: Any) -> None:
    """The figures that stand in for explorers are drawn in them."""
    view(browser, 1280)
    switch = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(switch, {"value": True})
    try:
        browser.get(f"{site.address}/index.html")
        color = browser.execute_script(
            "return getComputedStyle(document.querySelector('.explorer rect')).fill"
        )
    finally:
        browser.execute_cdp_cmd(switch, {"value": False})
    assert color == "rgb(0, 114, 178)"  # --figure-blue of light mode


@pytest.mark.slow
def test_the_book_prints_into_one_file(tiny: Path, browser: Any) -> None:
    write(tiny, "index", "# One\n\n```{dropdown} Folded\n{download}`references.bib`\n```\n")
    write(tiny, "second", "# Two\n\nSee {doc}`index`.\n")
    printed = print_book(tiny)
    assert printed == tiny / "book" / "_build" / "pdf" / "book.pdf"
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", content)) == 2  # each chapter begins a page
    assert b"file:" not in content  # no link into the folder that it was printed from


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
