"""What a page of the built site loads, and what that weighs on the wire."""

from __future__ import annotations

import functools
import gzip
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

PAGE_BUDGET = 350 * 1024  # bytes, gzipped, with everything the page loads without being asked
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


@functools.lru_cache(maxsize=64)
def soup_of(page: Path) -> BeautifulSoup:
    """A page, parsed once."""
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def loads_of_page(soup: BeautifulSoup) -> list[str]:
    """The addresses that a page's own elements and styles load."""
    found: list[str] = []
    for tag, attribute in LOADS.items():
        for element in soup.find_all(tag):
            if tag == "link" and set(element.get("rel") or ()) <= NOT_LOADED:
                continue
            found += [str(element[a]) for a in (attribute, f"xlink:{attribute}") if element.get(a)]
            found += [part.split()[0] for part in str(element.get("srcset", "")).split(",") if part]
    for style in soup.find_all("style"):
        found += loads_of_css(style.get_text())
    for element in soup.find_all(style=True):
        found += loads_of_css(str(element["style"]))
    return found


def loads_of_css(css: str) -> list[str]:
    """The addresses that a style sheet loads.

    >>> loads_of_css('@import "a.css"; p { background: url(b.png) }')
    ['b.png', 'a.css']
    """
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    urls = re.findall(r"""url\(\s*["']?([^"')]+)""", css)
    return urls + re.findall(r"""@import\s+["']([^"']+)""", css)


def foreign(urls: list[str]) -> list[str]:
    """Those of `urls` that lead to another host."""
    return [u for u in urls if urlsplit(u).netloc or urlsplit(u).scheme not in ("", "data")]


@functools.cache
def weight(path: Path) -> int:
    """Bytes of a file on the wire: gzipped, unless its format is packed already."""
    data = path.read_bytes()
    packed = path.suffix in {".woff2", ".png", ".jpg", ".webp"}
    return len(data) if packed else len(gzip.compress(data))


def loaded_files(page: Path) -> set[Path]:
    """The page with every file that a browser fetches for it, through its style sheets too."""
    loaded = {page}
    waiting = [(page, url) for url in loads_of_page(soup_of(page))]
    while waiting:
        origin, url = waiting.pop()
        if url.startswith(("data:", "#")):
            continue
        path = (origin.parent / unquote(urlsplit(url).path)).resolve()
        if path not in loaded and path.is_file():
            loaded.add(path)
            if path.suffix == ".css":
                waiting += [(path, u) for u in loads_of_css(path.read_text("utf-8"))]
    return loaded


def page_weight(page: Path) -> int:
    """Bytes that opening `page` costs, before the reader asks for more."""
    return sum(map(weight, loaded_files(page)))
