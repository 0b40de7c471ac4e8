"""Limits on memory and processes that hold for a whole sandbox: control groups, version 2.

Limits of the kind that a process sets for itself hold for each process alone, so that sixty of them
may use sixty times as much. Where systemd runs the machine, it makes a group with limits of its own
for a sandbox, for root and for users alike. In a container there is usually no systemd; limit the
container itself there.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

MEMORY = 6 << 30  # bytes: of the server, its child and all that this one starts
TASKS = 192  # processes and threads
_NEEDED = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # to find a user's own systemd


@functools.cache
def why_not() -> str:
    """What keeps groups from working here; nothing where they work."""
    if not shutil.which("systemd-run"):
        return "systemd-run is not installed"
    try:
        tried = subprocess.run(
            [*_scope(), "true"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = tried.stderr.strip()[-200:] or f"systemd-run ended with {tried.returncode}"
    return "" if tried.returncode == 0 else said


def prefix() -> list[str]:
    """What a sandbox's command follows, to run in a group of its own; nothing without groups."""
    return [] if why_not() else _scope()


def environment() -> dict[str, str]:
    """What the prefix must find in the environment; the sandbox clears it."""
    if why_not():
        return {}
    return {name: os.environ[name] for name in _NEEDED if name in os.environ}


def _scope() -> list[str]:
    mine = [] if os.getuid() == 0 else ["--user"]
    limits = (f"MemoryMax={MEMORY}", "MemorySwapMax=0", f"TasksMax={TASKS}")
    properties = [part for limit in limits for part in ("--property", limit)]
    return [str(shutil.which("systemd-run")), *mine, "--scope", "--quiet", "--collect", *properties]
