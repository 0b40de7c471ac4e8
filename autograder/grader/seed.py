"""The instructor's secret: hidden cases draw their inputs from it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def read_seed(path: Path) -> bytes:
    """The secret in `path`, made on first use and readable by its owner alone.

    Keep the file for as long as a class lasts: with the same seed everybody meets the same inputs,
    and a second run gives the same results.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    return path.read_bytes().strip()
