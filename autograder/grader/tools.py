"""Let nbgrader find the commands it starts by name, whether or not the environment is active."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def put_tools_on_path() -> None:
    """Prepend this Python's own folder of commands to PATH, once.

    nbgrader starts `alembic` as a command; `.venv/bin/rnn2gpt` run from outside the environment
    would not find it.
    """
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])
