"""What a page loads: nothing from another host, and little.

After the build this module removes the theme's files that no page uses, cuts the icon font to the
icons in use, and cuts the text and mathematics fonts from packages of the index to what the book
needs. All fonts are woff2.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import logging as _logging
import re
import shutil
import unicodedata
from pathlib import Path

import fontTools
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
_logging.getLogger("fontTools").setLevel(_logging.ERROR)  # it tells every table it cuts

LATIN = [*range(0x20, 0x7F), *range(0xA0, 0x180), *map(ord, "–—‘’“”•…′″←↑→↓−≈≠≤≥×·√")]
TEXT_FONTS = {  # file in the site: (package on the index, file in it)
    "serif-regular": ("font_source_serif_pro", "files/SourceSerifPro-Regular.otf"),
    "serif-italic": ("font_source_serif_pro", "files/SourceSerifPro-It.otf"),
    "serif-semibold": ("font_source_serif_pro", "files/SourceSerifPro-Semibold.otf"),
}
TEXT_FEATURES = ["kern", "liga", "onum", "lnum", "tnum", "mark", "mkmk"]
MATH_FEATURES = ["ssty", "dtls", "flac", "kern"]  # script sizes, dotless letters, flat accents
LICENSES = {"serif": ("font_source_serif_pro", "files/LICENSE.txt")}
UNUSED = (  # globs in the built _static folder
    "scripts/fontawesome.js*",
    "**/*.map",
    "**/*.LICENSE.txt",
    "vendor/fontawesome/webfonts/*.ttf",
    "images/logo_*",
    "locales",
    "webpack-macros.html",
    "sbt-webpack-macros.html",
)


def cut_font(
    source: Path, target: Path, codepoints: set[int], features: list[str], cache: Path
) -> None:
    """Write the part of `source` that draws `codepoints` to `target` as woff2.

    Cutting takes seconds, so the result is kept in the folder `cache` under a hash of its inputs.
    """
    recipe = json.dumps([fontTools.version, sorted(codepoints), features])
    key = hashlib.sha256(source.read_bytes() + recipe.encode()).hexdigest()[:24]
    kept = cache / f"{key}.woff2"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _cut(source, kept, codepoints, features)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, target)


def _cut(source: Path, target: Path, codepoints: set[int], features: list[str]) -> None:
    options = subset.Options()
    options.flavor = "woff2"
    options.layout_features = features
    options.name_IDs = [0, 1, 2, 13, 14]  # family, copyright and license stay with the font
    options.hinting = False
    options.notdef_outline = True
    font = TTFont(source, recalcTimestamp=False)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=codepoints)
    subsetter.subset(font)
    partial = target.with_suffix(".partial")
    subset.save_font(font, str(partial), options)
    partial.replace(target)


def math_codepoints(html: str) -> set[int]:
    """The characters drawn inside `<math>`, with the italic forms a browser makes of `<mi>x</mi>`.

    >>> sorted(map(chr, math_codepoints("<p>no</p><math><mi>a</mi><mn>2</mn></math>")))
    ['2', 'a', '𝑎']
    """
    found: set[int] = set()
    for math in re.findall(r"<math.*?</math>", html, re.S):
        found.update(map(ord, re.sub(r"<[^>]+>|\s", "", math)))
        if re.search("<msqrt|<mroot", math):
            found.add(ord("√"))  # the browser's own: it stands in no text
    return found | {_ITALIC[c] for c in found if c in _ITALIC}


def _italics() -> dict[int, int]:
    """Code point of each letter -> code point of its mathematical italic form."""
    italic: dict[int, int] = {ord("h"): 0x210E}
    for point in [*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]:
        plain = unicodedata.normalize("NFKC", chr(point))
        if len(plain) == 1 and unicodedata.category(chr(point)) != "Cn":
            italic[ord(plain)] = point
    return italic


_ITALIC = _italics()


def icon_names(texts: list[str]) -> set[str]:
    """The Font Awesome icons that pages and scripts name, without the `fa-` prefix."""
    return {name for text in texts for name in re.findall(r"\bfa-([a-z0-9-]+)\b", text)}


def icon_codepoints(css: str, names: set[str]) -> set[int]:
    """The code points that style sheet `css` draws for the icons in `names` and for itself.

    >>> icon_codepoints('.fa-bars:before{content:"\\f0c9"}.fa-x:before{content:"x"}', {"bars"})
    {61641}
    """
    points = set()
    for selectors, code in re.findall(r'([^{}]*)\{content:"(\\[0-9a-f]+|.)"\}', css):
        icons = set(re.findall(r"\.fa-([a-z0-9-]+)", selectors))
        if not icons or icons & names:
            points.add(int(code[1:], 16) if code[0] == "\\" else ord(code))
    points.update(ord(c) for c in re.sub(r'content:"."', "", css) if "\ue000" <= c <= "\uf8ff")
    return points


def without_icons(css: str, names: set[str]) -> str:
    """The style sheet without its rules for icons that are not in `names`.

    >>> without_icons('.fa-bars:before{content:"\\f0c9"}.fa-x:before{content:"x"}p{}', {"bars"})
    '.fa-bars:before{content:"\\f0c9"}p{}'
    """

    def kept(rule: re.Match[str]) -> str:
        icons = set(re.findall(r"\.fa-([a-z0-9-]+)", rule.group(1)))
        return "" if icons and not icons & names else rule.group()

    return re.sub(r'([^{}]*)\{content:"(?:\\[0-9a-f]+|.)"\}', kept, css)


def _package_file(package: str, name: str) -> Path:
    return Path(str(importlib.resources.files(package).joinpath(name)))


def _remove_unused(static: Path) -> None:
    for pattern in UNUSED:
        for path in list(static.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_stale_pages(app: Sphinx) -> None:
    """Pages of earlier builds that are no longer part of the book."""
    out = Path(app.outdir)
    written = {f"{name}.html" for name in (*app.env.found_docs, "search", "404")}
    for path in out.rglob("*.html"):
        if path.relative_to(out).as_posix() not in written:
            path.unlink()


def _cut_icons(static: Path, pages: list[str], cache: Path) -> None:
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    css = re.sub(r',url\([^)]*\.ttf\) format\("truetype"\)', "", sheet.read_text("utf-8"))
    scripts = [path.read_text("utf-8") for path in static.rglob("*.js")]
    names = icon_names(pages + scripts)
    sheet.write_text(without_icons(css, names), "utf-8")
    sheets = "".join(path.read_text("utf-8") for path in static.rglob("*.css"))
    points = icon_codepoints(sheets, names)
    for font in (static / "vendor" / "fontawesome" / "webfonts").glob("*.woff2"):
        # From the theme's own file: the one in the site may have been cut by an earlier build.
        whole = f"theme/pydata_sphinx_theme/static/vendor/fontawesome/webfonts/{font.name}"
        cut_font(_package_file("pydata_sphinx_theme", whole), font, points, [], cache)


def _cut_fonts(static: Path, pages: list[str], cache: Path) -> None:
    for name, (package, file) in TEXT_FONTS.items():
        source, target = _package_file(package, file), static / "fonts" / f"{name}.woff2"
        cut_font(source, target, set(LATIN), TEXT_FEATURES, cache)
    for name, (package, file) in LICENSES.items():
        text = _package_file(package, file).read_text("utf-8", errors="replace")
        (static / "fonts" / f"{name}-LICENSE.txt").write_text(text, "utf-8")
    points = set(range(0x20, 0x7F)).union(*map(math_codepoints, pages))
    source = _package_file("ziamath", "fonts/STIXTwoMath-Regular.ttf")
    cut_font(source, static / "fonts" / "math.woff2", points, MATH_FEATURES, cache)


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name not in ("html", "singlehtml"):
        return
    out = Path(app.outdir)
    static, cache = out / "_static", out.parent / ".fonts"
    _remove_stale_pages(app)
    pages = [path.read_text("utf-8") for path in sorted(out.rglob("*.html"))]
    logger.info("cutting fonts to what %d pages use", len(pages))
    _remove_unused(static)
    _cut_icons(static, pages, cache)
    _cut_fonts(static, pages, cache)


def setup(app: Sphinx) -> None:
    app.connect("build-finished", _finish, priority=900)
