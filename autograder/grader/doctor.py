"""What this machine can do to hold student code, found by trying it, and how to get more."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autograder.grader import cgroups, containers
from autograder.grader.batch import default_jobs
from autograder.grader.channel import Channel
from autograder.grader.run import GraderError, sandbox
from autograder.grader.sandbox import LEVELS, LIMITS, Sandbox, best_level, why_not

CHAPTER = "language_models"  # whose sandbox is tried; they differ in modules alone
PROMISES = {
    "network": "no network, not even to this machine",
    "files": "the course, the grader's files and homes are not there",
    "writing": "nothing can be written but a small temporary folder",
    "user": "another user, without rights",
    "processes": "processes are limited",
    "memory": "memory is limited",
    "descriptors": "open files are limited",
    "output": "no file grows past its limit",
    "calls": "system calls that no notebook needs are refused",
}
_PROBE = """
import os, socket, sys
def network(port):
    try: socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError: return True
    return False
def files(paths):
    return not any(os.path.exists(path) for path in paths)
def writing(paths):
    wrote = []
    for path in paths:
        try:
            open(os.path.join(path, ".rnn2gpt-probe"), "x").close()
            os.remove(os.path.join(path, ".rnn2gpt-probe"))
            wrote.append(path)
        except OSError: pass
    return not wrote
def user(outside):
    try: os.setuid(0)
    except OSError: return os.getuid() not in (0, outside)
    return False
def processes(limit):
    import resource
    return 0 <= resource.getrlimit(resource.RLIMIT_NPROC)[0] <= limit
def memory(limit):
    try: bytearray(2 * limit)
    except MemoryError: return True
    return False
def descriptors(limit):
    import resource
    return 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= limit
def output(limit):
    import tempfile
    try:
        with tempfile.TemporaryFile() as file:
            for _ in range(limit // 65536 + 1): file.write(bytes(65536))
    except OSError: return True
    return False
def calls(nothing):
    with open("/proc/self/status") as file: return "Seccomp:\t2" in file.read()
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    what: str
    ok: bool
    says: str
    remedy: str = ""  # what to do about it


def examine() -> list[Finding]:
    """The findings, the first of which says whether there is a sandbox at all."""
    level = best_level()
    findings = [_level(level)]
    for other in LEVELS[: LEVELS.index(level)]:
        findings.append(Finding(other, False, why_not(other), _remedy(other)))
    try:
        findings += _promises(level)
    except GraderError as error:
        findings.append(Finding("a child", False, str(error)))
    return [*findings, _groups(), *_engines(), _machine()]


def _level(level: str) -> Finding:
    if level == "process":
        says = "No sandbox works here. Student code would run with your rights; grade refuses it."
        return Finding("isolation", False, says, _remedy("bubblewrap"))
    return Finding("isolation", True, f"The level is {level}: student code is held by bubblewrap.")


def _remedy(level: str) -> str:
    """How this machine may get to a level."""
    if sys.platform == "darwin":
        return "Grade in a Linux virtual machine."
    if os.name == "nt":
        return "Grade in a Linux virtual machine, or in WSL 2."
    if "not installed" in why_not(level):
        return "sudo apt-get install bubblewrap (Fedora: sudo dnf install bubblewrap)"
    if level == "bubblewrap-root":
        return "Run as root, on a machine of its own, to give student code a user of its own, too."
    for setting, value, remedy in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("user/max_user_namespaces", "0", "10000"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", setting).read_text("ascii").strip() == value:
                return f"sudo sysctl {setting.replace('/', '.')}={remedy}"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return (
            "This is a container that does not allow namespaces. Start it with --cap-add SYS_ADMIN"
            " --security-opt apparmor=unconfined --security-opt seccomp=unconfined"
            " --security-opt systempaths=unconfined, or grade outside of it."
        )
    return "Allow user namespaces for this account, or grade in a virtual machine."


def _promises(level: str) -> list[Finding]:
    """What the level holds, each tried from inside; and what a child costs."""
    held = sandbox(level)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        inputs: dict[str, Any] = {
            "network": server.getsockname()[1],
            "files": [str(Path(__file__).parent), str(Path.home() / ".ssh"), "/etc/shadow"],
            "writing": [str(Path.home()), "/usr", "/etc", "/var/tmp", sys.prefix],
            "user": os.getuid() if hasattr(os, "getuid") else 0,
            "processes": LIMITS["NPROC"],
            "memory": LIMITS["AS"],
            "descriptors": LIMITS["NOFILE"],
            "output": LIMITS["FSIZE"],
            "calls": None,
        }
        kept = _ask(held, inputs)
    findings = [
        Finding(name, kept[name], text if kept[name] else f"not so: {text}")
        for name, text in PROMISES.items()
    ]
    start = time.monotonic()
    _ask(held, {"files": []})
    cost = time.monotonic() - start
    says = f"A fresh child, started, asked and ended, takes {1000 * cost:.0f} ms."
    return [*findings, Finding("speed", True, says)]


def _groups() -> Finding:
    """Whether memory and processes are limited for a sandbox as a whole."""
    reason = cgroups.why_not()
    if not reason:
        says = f"A control group holds each sandbox to {cgroups.MEMORY >> 30} GB in all."
        return Finding("group", True, says)
    says = f"No control group: {reason}. Memory is limited for each process, not for all together."
    remedy = "Grade where systemd runs the machine, or limit the container: --memory, --pids-limit."
    return Finding("group", False, says, remedy)


def _engines() -> list[Finding]:
    """What `--sandbox docker` and `--sandbox podman` would meet, where the command is there."""
    found = []
    for engine in filter(shutil.which, containers.ENGINES):
        reason = why_not(engine)
        says = reason or f"`rnn2gpt grade --sandbox {engine}` works."
        found.append(Finding(engine, not reason, says))
    return found


def _ask(held: Sandbox, inputs: dict[str, Any]) -> dict[str, bool]:
    """What functions of the probe say, each of its input, in one child."""
    with held.child(CHAPTER) as child, contextlib.closing(Channel(child)) as channel:
        channel.ask({"op": "cell", "name": "probe", "source": _PROBE}, 300)
        said = {}
        for function, value in inputs.items():
            call: dict[str, Any] = {"op": "call", "target": function, "method": None}
            said[function] = channel.ask(call | {"args": (value,), "kwargs": {}}, 60).get("value")
    return {function: value is True for function, value in said.items()}


def _machine() -> Finding:
    memory = psutil.virtual_memory().total / 2**30
    used = psutil.Process().memory_info().rss / 2**20
    says = (
        f"{default_jobs()} cores and {memory:.0f} GB of memory: grade takes {default_jobs()}"
        f" workers (--jobs). This process, with torch loaded, uses {used:.0f} MB."
    )
    return Finding("machine", True, says)


def as_text(findings: list[Finding]) -> str:
    """The findings for a terminal."""
    lines = []
    for finding in findings:
        lines.append(f"{'✓' if finding.ok else '✗'} {finding.what}: {finding.says}")
        if finding.remedy:
            lines.append(f"    To get it: {finding.remedy}")
    return "\n".join(lines)
