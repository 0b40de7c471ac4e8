#!/usr/bin/env python3
"""Set the course up and run it. Needs Python 3.11 to 3.13 and nothing else.

    python run.py               install, build the site, grade the sample class, say what to open
    python run.py test [...]    run the tests (--fast: the quick ones; the rest goes to pytest)

Everything is installed into `.venv` beside this file. What is already done is not done again.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
COMMANDS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = COMMANDS / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "installed-for"
VERSIONS = ((3, 11), (3, 13))


def main() -> int:
    if not VERSIONS[0] <= sys.version_info[:2] <= VERSIONS[1]:
        found = ".".join(map(str, sys.version_info[:2]))
        print(f"This is Python {found}; the course needs 3.11, 3.12 or 3.13.", file=sys.stderr)
        print("Run it with one of them, for example: python3.12 run.py", file=sys.stderr)
        return 2
    try:
        install()
    except subprocess.CalledProcessError as error:
        print(f"\nSetting up failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        print("The lines above say why. Mend that and run the same command again;", file=sys.stderr)
        print("what is already installed is kept.", file=sys.stderr)
        return 1
    arguments = sys.argv[1:]
    if arguments[:1] == ["test"]:
        rest = [a for a in arguments[1:] if a != "--fast"]
        fast = ["-m", "not slow"] if "--fast" in arguments else []
        side_by_side = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadgroup"]
        return start([PYTHON, "-m", "pytest", *side_by_side, *fast, *rest])
    if arguments:
        print(__doc__, file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    return start([PYTHON, "-m", "course.cli", "tour"])


def install() -> None:
    """Make `.venv` and install the project, unless that was done for these very requirements."""
    wanted = requirements_hash()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted and PYTHON.is_file():
        return
    print(f"Setting up {VENV} (minutes the first time) ...", flush=True)
    if not PYTHON.is_file():
        venv.create(VENV, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    pins = ["--constraint", ROOT / "constraints.txt"]
    # torch first and by itself: nothing else may choose its version
    subprocess.run([*pip, "--quiet", *pins, "torch"], check=True, cwd=ROOT)
    ours = ".[course,cluster,postgres,test]"
    subprocess.run([*pip, "--quiet", *pins, "--editable", ours], check=True, cwd=ROOT)
    STAMP.write_text(wanted, encoding="utf-8")


def requirements_hash() -> str:
    """Changes whenever something else would have to be installed."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def start(command: list) -> int:
    """Run a command of the new environment and hand on its exit status."""
    path = os.pathsep.join([str(COMMANDS), os.environ.get("PATH", "")])
    try:
        return subprocess.call(list(map(str, command)), cwd=ROOT, env={**os.environ, "PATH": path})
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
