"""The built site behind a local server, and a headless browser that reaches nothing else.

The tests and `rnn2gpt proof` look at the site through this module. Selenium and Chromium are needed
for it and for nothing else, so both are imported and looked for when a browser is opened.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing but our server
)


class BrowserMissing(RuntimeError):
    """There is no browser to look with; the message says what to install."""


class Site:
    """The built book behind a server on the loopback address."""

    def __init__(self, html: Path, address: str) -> None:
        self.html, self.address = html, address
        self.pages = sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html"))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server on the loopback interface that serves `folder`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def chromium() -> str:
    """Where Chromium is; raises `BrowserMissing` where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if not binary:
        raise BrowserMissing("chromium is not installed")
    return binary


@contextmanager
def open_browser() -> Iterator[Any]:
    """A Chromium without a window; raises `BrowserMissing` where there is none."""
    try:
        from selenium import webdriver
    except ImportError:
        raise BrowserMissing("selenium is not installed: pip install selenium") from None
    chromedriver = shutil.which("chromedriver")
    if not chromedriver:
        raise BrowserMissing("chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(chromedriver)
        driver = webdriver.Chrome(options=options, service=service)
        driver.set_script_timeout(180)
        try:
            yield driver
        finally:
            driver.quit()


def view(browser: Any, width: int, scheme: str = "light") -> None:
    """Set the screen: `width` pixels wide, in light or dark mode."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(browser: Any, script: str, seconds: float = 20.0) -> Any:
    """The first true value of `script`, asked for again until the time is up."""
    end = time.monotonic() + seconds
    while not (value := browser.execute_script(f"return {script}")):
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {script}")
        time.sleep(0.05)
    return value


def go(browser: Any, address: str) -> None:
    """Open a page and wait until all of it is there."""
    browser.get(address)
    wait(browser, "document.readyState === 'complete'")


def print_page(page: Path, target: Path) -> None:
    """Print the file `page` into the PDF `target`, with an outline: minutes for a book.

    Raises `BrowserMissing` where there is no Chromium, `RuntimeError` when it does not print.
    """
    target.unlink(missing_ok=True)
    flags = ("--no-pdf-header-footer", "--generate-pdf-document-outline")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), *FLAGS, *flags, f"--user-data-dir={profile}"]
        command += [f"--print-to-pdf={target.resolve()}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not target.is_file():
        raise RuntimeError(f"Chromium did not print {page}: {done.stderr.strip()}")
