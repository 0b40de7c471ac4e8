"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Several processes share the cores: one thread each. Small matrices gain nothing from more, and
# threads that wait for each other on a busy machine cost minutes. Kernels inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return Path(__file__).resolve().parent.parent


pytest_plugins = ("pages",)  # the site and the browser
