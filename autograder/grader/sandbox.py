"""Where a submission's code runs: the strongest isolation this machine offers, and what it sees.

Three levels, best first:

- `bubblewrap-root`  namespaces without a network, a read-only system, and another user; a server
  inside forks children that share nothing but what is loaded
- `bubblewrap`       the same in a user namespace, for graders without root
- `process`          limits and a bare environment only: no sandbox

By option, `docker` and `podman` put each child into a container; see `containers`. Around
bubblewrap stands a control group where systemd makes one, and inside it a filter of system calls
where libseccomp is there; see `cgroups` and `seccomp`.

In all but `process` the child sees the system's libraries, this Python, and one folder made for the
assignment: the child's half of the check engine and the modules that the assignment may use. The
course, the grader's files and other submissions are not there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from autograder.grader import cgroups, containers, seccomp

START_SECONDS = 300.0  # to load torch, on a machine however busy
LEVELS = ("bubblewrap-root", "bubblewrap", "process")  # those that are tried unasked
HOW_TO_GET_ONE = (
    "No sandbox works on this machine, so student code would run with your rights. Install"
    " bubblewrap (Debian, Ubuntu: `sudo apt-get install bubblewrap`; Fedora: `sudo dnf install"
    " bubblewrap`) and, inside a container, allow user namespaces. Where that cannot be done, use"
    " a Linux machine or virtual machine. `--trust` grades without a sandbox: use it only on code"
    " that you would run yourself."
)

MEGABYTE = 1 << 20
LIMITS = {
    "AS": 4096 * MEGABYTE,  # torch alone takes about 1500 MB of addresses
    "CPU": 300,
    "NPROC": 64,
    "FSIZE": 16 * MEGABYTE,
    "NOFILE": 256,
    "CORE": 0,
}
NOTHING: dict[str, str] = {}  # what a child learns of the grader's environment
SCRATCH = 64 * MEGABYTE  # of the one folder that can be written to
COMMON = "common"  # the folder of the child's half of the engine, beside those of the chapters
_COURSE, _CHAPTER = "/course", "/chapter"  # where they appear inside
_PACKAGES = ("autograder", "rnn2gpt", "course")

_BOOT = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = [*settings["ours"], *sys.path, *settings["libraries"]]
sys.prefix = settings["prefix"] or sys.prefix
from autograder.child.{module} import main
main(settings)
"""
_PROBE = """
import ctypes, json, os, sys
settings = json.loads(sys.argv[1])
if settings["uid"] is not None:
    if ctypes.CDLL(None).unshare(0x20000000 | 0x00020000 | 0x08000000):  # as the server does
        sys.exit("cannot unshare")
    os.setgroups([])
    os.setresgid(*[settings["uid"]] * 3)
    os.setresuid(*[settings["uid"]] * 3)
for library in settings["libraries"]:
    os.listdir(library)
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print("works" if not os.path.exists(settings["outside"]) else "leaks")
"""


@functools.cache
def best_level() -> str:
    """The strongest level that works here, tried out rather than guessed."""
    return next(level for level in LEVELS if not why_not(level))


@functools.cache
def why_not(level: str) -> str:
    """What keeps a level from working here; nothing where it works."""
    if level == "process":
        return ""
    settings = _settings(level) | {"outside": str(_own_root() / "autograder" / "checks")}
    if level in containers.ENGINES:
        if reason := containers.why_no_image(level):
            return reason
        command = _container(level, containers.new_name(), {}, _PROBE, settings)
    else:
        if not shutil.which("bwrap"):
            return "bubblewrap is not installed"
        if (level == "bubblewrap-root") != (_user() == 0):
            needs_root = level == "bubblewrap-root"
            return "needs root" if needs_root else "not for root, who has the other one"
        command = [*_bubblewrap(level, []), *_python(_PROBE, settings)]
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=_outer(level), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if tried.stdout.strip() == "works":
        return ""
    return tried.stderr.strip()[-300:] or "the course can be seen from inside"


def _user() -> int | None:
    return os.getuid() if hasattr(os, "getuid") else None


@dataclass(frozen=True)
class Child:
    """A process that serves one submission: write requests to it, read its replies."""

    requests: IO[bytes]
    replies: IO[bytes]
    kill: Callable[[], None]  # at once, with all that it started
    find: Callable[[], psutil.Process | None]  # the process that answers, seen from here
    errors: IO[bytes]  # what it wrote before a submission's first line


class Sandbox:
    """Starts children at one level.

    `folder` holds `common`, with the child's half of the engine, and a folder for each chapter
    with what that chapter's submissions may import. A child sees one of these. `warm` names
    libraries that submissions are likely to import; a server has them ready.
    """

    def __init__(self, level: str, folder: Path, warm: Iterable[str] = ()):
        self.level, self.folder, self.warm = level, folder, list(warm)
        self._server: _Server | None = None

    @contextlib.contextmanager
    def child(self, chapter: str) -> Iterator[Child]:
        """A child of a chapter; dead, with all it started, afterwards."""
        if self.level == "bubblewrap-root":
            if self._server is None or not self._server.alive():
                self._server = _Server(self.folder, self.warm)
            with self._server.child(chapter) as child:
                yield child
        elif self.level in containers.ENGINES:
            with self._contained(chapter) as child:
                yield child
        else:
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
                tempfile.TemporaryFile() as errors,
                _alive(self._single(chapter, scratch, errors), self.level == "process") as process,
            ):
                assert process.stdin is not None and process.stdout is not None
                find = functools.partial(_last_of_family, process.pid)
                yield Child(process.stdin, process.stdout, process.kill, find, errors)

    @contextlib.contextmanager
    def _contained(self, chapter: str) -> Iterator[Child]:
        name = containers.new_name()
        code = _BOOT.replace("{module}", "__main__")
        view = {self.folder / COMMON: f"{_COURSE}/{COMMON}", self.folder / chapter: _CHAPTER}
        command = _container(self.level, name, view, code, _settings(self.level))
        with (
            tempfile.TemporaryFile() as errors,
            containers.running(self.level, name, command, errors) as process,
        ):
            assert process.stdin is not None and process.stdout is not None
            kill = functools.partial(containers.end, self.level, name)
            yield Child(process.stdin, process.stdout, kill, lambda: None, errors)

    def close(self) -> None:
        """End what was kept for the next child."""
        if self._server is not None:
            self._server.close()

    def _single(self, chapter: str, scratch: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        common, folder = self.folder / COMMON, self.folder / chapter
        settings = _settings(self.level)
        if self.level == "process":
            settings["ours"] = [str(common), str(folder)]
        command = _python(_BOOT.replace("{module}", "__main__"), settings)
        if self.level != "process":
            view = ["--ro-bind", str(common), f"{_COURSE}/{COMMON}"]
            view += ["--ro-bind", str(folder), _CHAPTER]
            return _popen(
                [*_bubblewrap(self.level, view), *command], errors, env=_outer(self.level)
            )
        environment = _environment(scratch)
        if os.name == "nt":  # Python itself does not start without it
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        own_group = os.name != "nt"
        return _popen(command, errors, env=environment, cwd=scratch, start_new_session=own_group)


class _Server:
    """A sandbox that root made, with a process in it that forks children."""

    def __init__(self, folder: Path, warm: list[str]):
        self.settings = _settings("bubblewrap-root") | {"warm": warm}
        view = ["--ro-bind", str(folder), _COURSE, "--perms", "0755", "--dir", _CHAPTER]
        command = _python(_BOOT.replace("{module}", "server"), self.settings)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [*_bubblewrap("bubblewrap-root", view), *command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=_outer("bubblewrap-root"),
            )
        self.control.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            if self.control.recv(5):
                return
        self.close()
        self.errors.seek(0)
        raise SandboxError(self.errors.read(4000).decode(errors="replace").strip()[-1000:])

    def alive(self) -> bool:
        return self.process.poll() is None

    @contextlib.contextmanager
    def child(self, chapter: str) -> Iterator[Child]:
        pipes = [os.pipe() for _ in range(3)]
        (read_requests, requests), (replies, write_replies), (read_life, life) = pipes
        theirs = (read_requests, write_replies, read_life)
        socket.send_fds(self.control, [chapter.encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        lifeline = os.fdopen(life, "wb")
        with os.fdopen(requests, "wb") as to, os.fdopen(replies, "rb") as back, lifeline:
            yield Child(to, back, lifeline.close, self._find, self.errors)

    def _find(self) -> psutil.Process | None:
        return _last_of_family(self.process.pid)

    def close(self) -> None:
        self.control.close()  # the server ends by itself; what its children used is then counted
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.process.kill()
        self.process.wait()


class SandboxError(Exception):
    """A sandbox that worked when it was tried does not start; the text is what it wrote."""


def _last_of_family(pid: int) -> psutil.Process | None:
    """The youngest process that came from `pid`: what bubblewrap, or the server, started."""
    try:
        first = psutil.Process(pid)
        return max([first, *first.children(recursive=True)], key=psutil.Process.create_time)
    except psutil.Error:
        return None


def _popen(command: list[str], errors: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, **more)


@contextlib.contextmanager
def _alive(
    process: subprocess.Popen[bytes], group: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        if group and os.name != "nt":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)
        process.kill()
        process.wait()


def _outer(level: str) -> dict[str, str] | None:
    """The environment of what starts a sandbox; None for the grader's own."""
    return None if level in containers.ENGINES else NOTHING | cgroups.environment()


def _container(
    engine: str, name: str, view: dict[Path, str], code: str, settings: dict[str, Any]
) -> list[str]:
    """The whole command of a child in a container of that name."""
    mounts = {str(source): target for source, target in view.items()}
    how = {"memory": cgroups.MEMORY, "processes": cgroups.TASKS}
    started = containers.run_command(
        engine, name, mounts, _environment("/tmp"), scratch="/tmp", size=SCRATCH, **how
    )
    return [*started, "python3", "-I", "-c", code, json.dumps(settings)]


def _python(code: str, settings: dict[str, Any]) -> list[str]:
    # -I: no user's environment; -S: no .pth file leads back to the course's own folder
    return [sys.executable, "-I", "-S", "-c", code, json.dumps(settings)]


def _settings(level: str) -> dict[str, Any]:
    limits, contained = dict(LIMITS), level in containers.ENGINES
    if level == "process" or contained:  # would count what others run under the same user
        del limits["NPROC"]
    if level == "process" and sys.platform == "darwin":
        del limits["AS"]
    return {
        # One user per grading process, so that none can use up another's processes.
        "uid": 61184 + os.getpid() % 4096 if level == "bubblewrap-root" else None,
        "limits": limits,
        "seccomp": seccomp.program() if level.startswith("bubblewrap") else "",
        "scratch": _scratch(),
        "scratch_size": SCRATCH,
        "course": _COURSE,
        "chapter": _CHAPTER,
        "ours": [f"{_COURSE}/{COMMON}", _CHAPTER],
        "libraries": [] if contained else _libraries(),
        "prefix": None if contained else sys.prefix,
    }


def _libraries() -> list[str]:
    """The folders in which installed packages lie."""
    names = {"site-packages", "dist-packages"}
    return [path for path in sys.path if Path(path).name in names and Path(path).is_dir()]


def _environment(home: str) -> dict[str, str]:
    return {
        "HOME": home,
        "TMPDIR": home,
        "MPLCONFIGDIR": home,
        "USER": "student",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _own_root() -> Path:
    """The folder that holds this package: the course's, or the installed packages'."""
    spec = importlib.util.find_spec("autograder")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).resolve().parent.parent


def _bubblewrap(level: str, view: list[str]) -> list[str]:
    """The command that a child's own command line follows; `view` mounts the course's part."""
    command = [*cgroups.prefix(), str(shutil.which("bwrap")), "--die-with-parent", "--new-session"]
    command += ["--clearenv", "--hostname", "sandbox"]
    if level == "bubblewrap-root":  # as root a user namespace would bar the change of user
        command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        command += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
        for right in ("SETUID", "SETGID", "SYS_ADMIN"):  # given up before a submission runs
            command += ["--cap-add", f"CAP_{right}"]
    else:
        command += ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
        command += ["--cap-drop", "ALL"]
    scratch = _scratch()
    for name, value in _environment(scratch).items():
        command += ["--setenv", name, value]
    command += ["--perms", "1777", "--size", str(SCRATCH), "--tmpfs", scratch]
    command += _system()
    command += view
    command += ["--dev", "/dev", "--size", str(MEGABYTE), "--tmpfs", "/dev/shm"]
    command += ["--remount-ro", "/dev", "--proc", "/proc"]
    return [*command, "--chdir", scratch, "--remount-ro", "/", "--"]


def _scratch() -> str:
    """The one folder that a child may write to: /tmp, unless this Python lies there."""
    needed = (sys.prefix, sys.base_prefix, *_libraries())
    return "/scratch" if any(Path(path).is_relative_to("/tmp") for path in needed) else "/tmp"


def _system() -> list[str]:
    """Mounts of the system's libraries and of this Python, the course masked where it lies in."""
    command = list[str]()
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(link):
            command += ["--symlink", os.readlink(link), link]
        else:
            command += ["--ro-bind-try", link, link]
    for file in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "fonts", "localtime"):
        command += ["--ro-bind-try", f"/etc/{file}", f"/etc/{file}"]
    libraries = [Path(library) for library in _libraries()]
    shown = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), *libraries}
    masked = {library / package for library in libraries for package in _PACKAGES}
    masked |= {_own_root()} - shown
    mounted: dict[Path, bool] = {}  # path -> whether it shows what is there

    def is_shown(path: Path) -> bool | None:
        around = [other for other in mounted if path.is_relative_to(other)]
        return mounted[max(around, key=lambda p: len(p.parts))] if around else None

    for path in sorted(shown | masked, key=lambda p: len(p.parts)):  # outer before inner
        if path in masked and is_shown(path) and path.is_dir():
            command += ["--perms", "0755", "--tmpfs", str(path)]
            mounted[path] = False
        elif path in shown and not is_shown(path):
            for parent in reversed(path.parents[:-1]):
                if not is_shown(parent):
                    command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", str(path), str(path)]
            mounted[path] = True
    return command
