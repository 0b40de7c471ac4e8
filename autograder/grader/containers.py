"""Docker or Podman around a submission's code, by the option `--sandbox`.

Each child is a container of its own, without a network, with a read-only system and the same view
of the course as in bubblewrap. There is no server inside, so every child loads torch anew, which
takes some seconds. The image holds Python and the packages that notebooks import, never the course:

    docker build -t rnn2gpt-sandbox -f autograder/grader/sandbox.dockerfile .
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import IO

ENGINES = ("docker", "podman")
IMAGE = "rnn2gpt-sandbox"
BUILD = "{engine} build -t rnn2gpt-sandbox -f autograder/grader/sandbox.dockerfile ."
NOBODY = "65534:65534"


def why_no_image(engine: str) -> str:
    """What keeps an engine from starting our image; nothing where it should."""
    if not shutil.which(engine):
        return f"{engine} is not installed"
    try:
        asked = subprocess.run(
            [engine, "image", "inspect", IMAGE],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if asked.returncode == 0:
        return ""
    how = BUILD.format(engine=engine)
    return f"{asked.stderr.strip()[-200:]} (the image is made by `{how}`)"


def run_command(
    engine: str,
    name: str,
    mounts: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    scratch: str,
    size: int,
    memory: int,
    processes: int,
) -> list[str]:
    """The command that a child's own command line follows.

    `mounts` gives for each folder of this machine where it appears inside, `scratch` the one folder
    that can be written to, of `size` bytes; `memory` is in bytes, too.
    """
    command = [engine, "run", "--rm", "--interactive", "--name", name, "--network", "none"]
    command += ["--read-only", "--user", NOBODY, "--cap-drop", "ALL", "--ipc", "private"]
    command += ["--security-opt", "no-new-privileges", "--pids-limit", str(processes)]
    command += ["--memory", str(memory), "--memory-swap", str(memory), "--workdir", scratch]
    command += ["--tmpfs", f"{scratch}:rw,nosuid,nodev,size={size},mode=1777"]
    for source, target in mounts.items():
        command += ["--mount", f"type=bind,source={source},target={target},readonly"]
    for variable, value in environment.items():
        command += ["--env", f"{variable}={value}"]
    return [*command, IMAGE]


@contextlib.contextmanager
def running(
    engine: str, name: str, command: list[str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """The engine's own process, its container ended afterwards."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors)
    try:
        yield process
    finally:
        end(engine, name)
        process.kill()
        process.wait()


def end(engine: str, name: str) -> None:
    """Kill a container; the engine removes it by itself."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([engine, "kill", name], capture_output=True, timeout=60, check=False)


def new_name() -> str:
    """A name by which the container can be killed."""
    return f"rnn2gpt-{secrets.token_hex(8)}"
