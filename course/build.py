"""Build the site: `build_site` runs Jupyter Book on `book/` and skips what did not change.

Jupyter Book does the work; this module adds a stamp (nothing changed: nothing to do), a progress
bar over the pages, warnings as errors, and a report of where to look when a build fails.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bs4 import BeautifulSoup
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from course.browser import chromium, print_page
from course.fingerprint import hash_files
from course.site.execution import execution_key

# Everything a page is made of. `exercises` are offered for download, `rnn2gpt` and `autograder`
# are run by pages and described in the reference.
INPUTS = (
    "_config.yml",
    "book/**/*",
    "course/build.py",
    "course/site/*.py",
    "exercises/**/*.ipynb",
    "rnn2gpt/**/*.py",
    "autograder/**/*.py",
)
TOOLS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "math-core", "fonttools")
PROGRESS = re.compile(r"(reading sources|writing output)\.\.\. \[\s*(\d+)%\] (.+)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(RuntimeError):
    """The site could not be built; the message holds the warnings and errors."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did: `seconds` of wall time, `pages` written in all, `skipped` if up to date."""

    path: str
    pages: int
    seconds: float
    skipped: bool

    def to_text(self) -> str:
        done = "is up to date" if self.skipped else f"built in {self.seconds:.0f} s"
        return f"Site {done}: {self.pages} pages. Open {self.path}{os.sep}index.html"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def repository_root() -> Path:
    """The folder that holds `_config.yml`: the checkout that this package was installed from."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "_config.yml").is_file():
        raise BuildError(f"{root} holds no _config.yml: run this from a checkout of the course")
    return root


def _input_files(root: Path) -> Iterator[Path]:
    for pattern in INPUTS:
        for path in root.glob(pattern):
            parts = path.relative_to(root).parts
            if path.is_file() and "_build" not in parts and "__pycache__" not in parts:
                yield path


def stamp(root: Path) -> str:
    """A hash of all that the site under `root` is built from, tool versions included."""
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in TOOLS]
    return " ".join([hash_files(root, _input_files(root)), execution_key(root), *versions])


def build_site(root: Path, *, fresh: bool = False, console: Console | None = None) -> BuildReport:
    """Build `root/book` into `root/book/_build/html`; with `fresh`, every page is read again.

    Executed pages come from a cache while their code and everything it may use are unchanged, also
    in a fresh build. Raises BuildError when a page does not execute or on any warning.
    """
    started = time.perf_counter()
    console = console or Console(stderr=True)
    build = root / "book" / "_build"
    html, stamp_file = build / "html", build / ".stamp"
    build.mkdir(parents=True, exist_ok=True)
    with FileLock(build / ".lock"):  # two builds in one folder would mix their pages
        wanted = stamp(root)
        current = stamp_file.read_text("utf-8") if stamp_file.is_file() else ""
        skipped = not fresh and current == wanted and (html / "index.html").is_file()
        if not skipped:
            stamp_file.unlink(missing_ok=True)
            _run_jupyter_book(root, build, fresh=fresh, console=console)
            stamp_file.write_text(wanted, "utf-8")
    pages = sum(1 for _ in html.rglob("*.html"))
    return BuildReport(str(html), pages, round(time.perf_counter() - started, 1), skipped)


def on_paper(html: str) -> str:
    """A page as paper needs it: nothing folded but the kill table, what it shows where there are no
    scripts, no links to files beside it, and without the reference, which is for looking things up.

    >>> on_paper('<details><a href="a.zip">A</a><a href="#b">B</a></details><script>1</script>')
    '<details open=""><a>A</a><a href="#b">B</a></details>'
    """
    soup = BeautifulSoup(html, "html.parser")
    for place in soup.select('.toctree-wrapper > span[id^="document-api_"]'):
        if section := place.find_next_sibling("section"):
            section.decompose()
        place.decompose()
    for script in soup.find_all("script"):
        script.decompose()
    for aside in soup.find_all("noscript"):
        aside.unwrap()
    for fold in soup.select("details:not(.kill-table)"):
        fold["open"] = ""
    for link in soup.find_all("a", href=re.compile(r"^(?!#|https?:|mailto:)")):
        del link["href"]
    return str(soup)


def print_book(root: Path, *, console: Console | None = None) -> Path:
    """Print `root/book` into `root/book/_build/pdf/book.pdf`: Jupyter Book's one page of it all.

    As its `pdfhtml` does, with the machine's own Chromium; the page has no scripts, so explorers
    show their figures. Pages that were executed for the site are not executed again. Raises
    BuildError as `build_site` does, and BrowserMissing.
    """
    chromium()  # missing, it is missed before the work
    console = console or Console(stderr=True)
    build = root / "book" / "_build"
    target = build / "pdf" / "book.pdf"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(build / ".lock"):
        _run_jupyter_book(root, build, builder="singlehtml", fresh=False, console=console)
        page = build / "singlehtml" / "paper.html"
        page.write_text(on_paper(page.with_name("index.html").read_text("utf-8")), "utf-8")
        with console.status("printing"):
            try:
                print_page(page, target)
            except RuntimeError as error:
                raise BuildError(str(error)) from None
    return target


def _run_jupyter_book(
    root: Path, build: Path, *, builder: str = "html", fresh: bool, console: Console
) -> None:
    arguments = ["build", "book", "--path-output", "book", "--config", "_config.yml"]
    arguments += ["--builder", builder, "-W", "--keep-going", *(["--all"] if fresh else [])]
    program = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",  # pages measure one thread; more gain nothing at these sizes
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    lines: list[str] = []
    with (
        Progress(*columns, console=console, transient=True) as bar,
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        task = bar.add_task("starting Jupyter Book", total=200)
        assert process.stdout is not None
        for line in process.stdout:
            line = ANSI.sub("", line).rstrip()
            lines.append(line)
            if match := PROGRESS.search(line):
                phase, percent, page = match.groups()
                offset = 100 if phase.startswith("writing") else 0
                bar.update(task, description=f"{phase}: {page}", completed=offset + int(percent))
    log = build / "build.log"
    log.write_text("\n".join(lines) + "\n", "utf-8")
    if process.returncode != 0:
        raise BuildError(f"{_problems(lines)}\nThe whole log is in {log}.")


TROUBLE = re.compile(r"WARNING|ERROR|CRITICAL|Traceback|Error\b|Exception")
NOISE = re.compile(r"IPKernelApp|site-packages|lib/python3|^\s*[\^~]+$")


def _problems(lines: list[str]) -> str:
    """The lines of a failed build that say why: warnings, errors and tracebacks of pages."""
    keep: list[str] = []
    for i, line in enumerate(lines):
        if line.startswith("Exception occurred:") and keep:
            break  # Sphinx repeats the error with its own stack
        if TROUBLE.search(line):
            keep += lines[i : i + 12] if "Traceback" in line else [line]
    keep = [line for line in dict.fromkeys(keep) if line.strip() and not NOISE.search(line)]
    return "\n".join(keep) or "\n".join(lines[-20:])


def serve_site(root: Path, *, port: int = 8000, open_browser: bool = False) -> None:
    """Serve the built site on the loopback address until interrupted; builds nothing."""
    html = root / "book" / "_build" / "html"
    if not (html / "index.html").is_file():
        raise BuildError("The site is not built yet: run `rnn2gpt build` first.")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(html))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise BuildError(f"Port {port} is taken ({error}): try `rnn2gpt serve --port 0`.") from None
    with server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"Serving {html} at {address} (Ctrl+C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
