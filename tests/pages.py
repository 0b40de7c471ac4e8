"""The built site behind a local server, and a browser that reaches nothing else."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from course.build import build_site


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


@pytest.fixture(scope="session")
def site(root: Path) -> Iterator[Site]:
    html = Path(build_site(root).path)
    with served(html) as address:
        yield Site(html, address)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if not (binary and chromedriver):
        missing = "chromium and chromedriver are not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = selenium.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
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
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = selenium.chrome.service.Service(chromedriver)
        driver = selenium.Chrome(options=options, service=service)
        yield driver
        driver.quit()


def view(browser: Any, width: int, scheme: str = "light") -> None:
    """Set the screen: `width` pixels wide, in light or dark mode."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(browser: Any, script: str, seconds: float = 10.0) -> Any:
    """The first true value of `script`, asked for again until the time is up."""
    end = time.monotonic() + seconds
    while not (value := browser.execute_script(f"return {script}")):
        assert time.monotonic() < end, f"waited in vain for {script}"
        time.sleep(0.05)
    return value
