"""What submissions do to graders: each attack earns what its work earned, beside an honest one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
import time
import tomllib
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
import submissions as s
import torch
from click.testing import CliRunner

from autograder.engine.handle import Ended
from autograder.grader import cgroups, containers, doctor, seccomp
from autograder.grader import channel as channel_module
from autograder.grader import run as run_module
from autograder.grader import sandbox as sandbox_module
from autograder.grader.channel import Channel
from autograder.grader.ingest import ingest
from autograder.grader.run import GraderError
from autograder.grader.sandbox import LEVELS, best_level
from course import threats
from course.cli import main

LEVEL = best_level()
FIRST = s.assignment().exercises[0]
EXERCISES = s.assignment().exercises
FULL = sum(exercise.points for exercise in s.assignment().exercises)

pytestmark = pytest.mark.skipif(  # in CI these tests fail instead
    LEVEL == "process" and not os.environ.get("CI"),
    reason="no sandbox on this machine: bubblewrap is missing or not allowed",
)


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch):
    """Endless loops are cut after a second or two, not ten."""
    monkeypatch.setattr(run_module, "CELL_SECONDS", 1.0)
    for exercise in s.assignment().exercises:
        monkeypatch.setattr(exercise, "seconds", 2.0)


def inside(code: str, chapter: str = s.NOTEBOOK, call: str = "probe") -> Any:
    """What a function defined by `code` returns when it runs where submissions run."""
    with (
        run_module.sandbox(LEVEL).child(chapter) as child,
        contextlib.closing(Channel(child)) as channel,
    ):
        reply = channel.ask({"op": "cell", "name": "x", "source": code}, 60)
        assert "error" not in reply, reply
        request = {"op": "call", "target": call, "method": None, "args": (), "kwargs": {}}
        reply = channel.ask(request, 60)
        assert "error" not in reply, reply
        return reply["value"]


# --- the control ------------------------------


@pytest.mark.parametrize("notebook", ["language_models", "rnn", "lstm"])
def test_honest_work_gets_full_marks(notebook):
    result = s.result_of(s.solved(notebook), notebook)
    assert (result["status"], result["score"]) == ("graded", result["max_score"]), result["message"]
    assert result["isolation"] == LEVEL and LEVEL in LEVELS[:2]


def test_the_released_notebook_gets_nothing_and_a_helpful_row():
    result = s.result_of(s.unsolved())
    assert result["score"] == 0
    assert "not written yet" in result["message"]
    assert {exercise["status"] for exercise in result["exercises"]} == {"missing"}


# --- forging the verdict, ending, exhausting: a cell that attacks ------------------------------

ATTACKS = {does: code for cells in threats.CELLS.values() for does, code in cells.items()}


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return s.result_of(s.solved())


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "work")}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_no_score(name, honest):
    attack = textwrap.dedent(ATTACKS[name])
    nothing = s.result_of(s.with_cell(s.unsolved(), attack))
    everything = s.result_of(s.with_cell(s.solved(), attack))
    assert (nothing["status"], nothing["score"]) == ("graded", 0)
    assert everything["score"] == FULL, (everything["message"], everything["notes"])
    assert without_time(s.result_of(s.solved())) == without_time(honest)  # the neighbor
    assert_nothing_survives()


def assert_nothing_survives() -> None:
    """No process is left over but the servers' own."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [p for p in psutil.Process().children(recursive=True) if is_students(p)]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"left over: {left}")


def is_students(process: psutil.Process) -> bool:
    try:
        if LEVEL == "bubblewrap-root":
            return process.uids().real >= 61184
        return "python" in process.name()
    except psutil.Error:
        return False


# --- answers that attack when they are called ------------------------------

CALLS = {does: call for calls in threats.CALLS.values() for does, call in calls.items()}


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_that_attacks_costs_its_own_points_alone(name):
    body, said = CALLS[name]
    result = s.result_of(s.solved(**{FIRST.name: threats.answer_that(FIRST.name, body)}))
    expected = {e.name: e.points for e in s.assignment().exercises} | {FIRST.name: 0.0}
    assert s.points(result) == expected
    first = result["exercises"][0]
    assert first["status"] == "wrong" and said in first["message"], first["message"]
    assert_nothing_survives()


def test_many_cells_that_end_the_process_cost_a_bounded_time():
    made = s.solved()
    for number in range(60):
        made = s.with_cell(made, f"import os\n{'os._exit(0)' if number % 2 else '1 / 0'}", at=-1)
    start = time.monotonic()
    result = s.result_of(made)
    assert result["score"] == FULL, result["notes"]
    assert time.monotonic() - start < 120


def test_an_object_that_hangs_is_tried_once_and_says_so():
    loop = f"def {FIRST.name}(*args):\n    while True: pass\n"
    start = time.monotonic()
    first = s.result_of(s.solved(**{FIRST.name: loop}))["exercises"][0]
    assert time.monotonic() - start < 3 * 2.0 + 10  # the deadline once, not once for each case
    said = [case["message"] for case in first["cases"] if case["visible"]]
    assert len(said) > 2 and said[0] == f"`{FIRST.name}` did not return within 2 s."
    again = f"`{FIRST.name}` was not tried again, since it did not return within 2 s."
    assert set(said[1:]) == {again}


def test_a_notebook_that_hangs_everywhere_has_a_budget(monkeypatch):
    monkeypatch.setattr(run_module, "SUBMISSION_SECONDS", 3.0)
    loops = {e.name: f"def {e.name}(*a, **k):\n    while True: pass\n" for e in EXERCISES}
    start = time.monotonic()
    result = s.result_of(s.solved(**loops))
    assert time.monotonic() - start < 20
    assert result["score"] == 0
    assert "took over 3 s" in result["exercises"][-1]["message"]


def test_an_answer_that_hangs_on_one_input_keeps_its_other_points():
    right = s.answers()[FIRST.name]
    slow = f"{right}\nright = {FIRST.name}\n" + (
        f"def {FIRST.name}(ids, vocab_size):\n"
        "    while len(ids) == 1: pass\n"
        "    return right(ids, vocab_size)\n"
    )
    first = s.result_of(s.solved(**{FIRST.name: slow}))["exercises"][0]
    assert 0 < first["points"] < first["max_points"]
    assert (
        first["message"] == s.result_of(s.solved(**{FIRST.name: slow}))["exercises"][0]["message"]
    )


def test_a_forbidden_shortcut_in_a_helper_is_found_and_costs_its_exercise_alone():
    exercise = next(e for e in s.assignment().exercises if e.name == "cross_entropy")
    helper = "import torch.nn.functional as F\ndef help_me(a, b): return F.cross_entropy(a, b)\n"
    lazy = "def cross_entropy(logits, targets):\n    return help_me(logits, targets)\n"
    result = s.result_of(s.with_cell(s.solved(cross_entropy=lazy), helper))
    assert s.points(result)[exercise.name] == 0
    assert result["score"] == FULL - exercise.points
    # the same helper, unused, is nobody's shortcut
    assert s.result_of(s.with_cell(s.solved(), helper))["score"] == FULL


# --- what is not there ------------------------------


@pytest.mark.parametrize("does", threats.SOURCES)
def test_importing_the_answer_earns_nothing(does):
    code = f"ROOT = {str(s.ROOT)!r}\n{threats.SOURCES[does]}\n"
    result = s.result_of(s.solved(bigram_counts=code))
    assert s.points(result)["bigram_counts"] == 0
    assert result["score"] == FULL - FIRST.points


def test_later_chapters_see_earlier_modules_and_no_others():
    code = """
import importlib
def probe():
    found = []
    for name in ("data", "metrics", "ngram", "rnn", "lstm", "training"):
        try: importlib.import_module("rnn2gpt." + name); found.append(name)
        except ImportError: pass
    return found
"""
    for chapter in ("language_models", "rnn", "lstm"):
        assert inside(code, chapter) == list(s.assignment(chapter).modules)


def test_nothing_of_the_course_or_the_host_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_SECRET", "42")
    private = [s.ROOT, tmp_path, Path.home() / ".ssh", "/etc/shadow", "/etc/passwd", "/home"]
    code = f"""
import glob, os, sys
def probe():
    seen = {{}}
    for path in {list(map(str, private))}:
        seen[path] = os.path.exists(path) and sorted(os.listdir(path)) if os.path.isdir(path) \\
            else os.path.exists(path)
    environments = []
    for path in glob.glob("/proc/*/environ"):
        try: environments.append(open(path).read())
        except OSError: pass
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return {{"seen": seen, "env": dict(os.environ), "environments": environments,
            "course": os.listdir("/course"), "pids": pids, "uid": os.getuid()}}
"""
    found = inside(code)
    listing = found["seen"].pop(str(s.ROOT))
    assert listing in (False, [".venv"])  # the environment may lie in the course's folder
    assert not any(found["seen"].values())
    assert "COURSE_SECRET" not in found["env"]
    assert not any("COURSE_SECRET" in text for text in found["environments"])
    assert found["course"] in ([], ["common"])
    assert len(found["pids"]) <= 3
    if LEVEL == "bubblewrap-root":
        assert found["uid"] not in (0, os.getuid())


def test_there_is_no_network():
    code = """
import socket
def probe():
    try: socket.create_connection(("127.0.0.1", PORT), 1)
    except OSError as error: return type(error).__name__
    return "connected"
"""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()  # the control
        assert inside(code.replace("PORT", str(port))) != "connected"


def test_nothing_can_be_written_but_a_small_private_tmp():
    code = f"""
import os, sys
def probe():
    wrote = []
    folders = ["/", "/usr", "/etc", "/dev", "/dev/shm", "/course", "/chapter", "/tmp", sys.prefix]
    for folder in folders + sys.path[:3] + [{os.path.dirname(torch.__file__)!r}]:
        try:
            with open(os.path.join(folder, "mine"), "w") as file: file.write("x")
            wrote.append(folder)
        except OSError: pass
    return wrote
"""
    assert set(inside(code)) <= {"/tmp", "/dev/shm"}
    seen = inside("import os\ndef probe(): return os.listdir('/tmp')")
    mounted = {Path(path).parts[2] for path in (sys.prefix, torch.__file__) if under_tmp(path)}
    assert set(seen) <= mounted  # this Python may stand there; nobody else's files do


def under_tmp(path: str) -> bool:
    return Path(path).is_relative_to("/tmp")


def test_user_and_rights_are_given_up():
    code = """
import os
def probe():
    tried = {}
    for name, call in {"setuid": lambda: os.setuid(0), "chroot": lambda: os.chroot("/tmp"),
                       "nice": lambda: os.nice(-5)}.items():
        try: call(); tried[name] = True
        except OSError: tried[name] = False
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return {"tried": tried, "caps": status["CapEff"].strip(), "new": status["NoNewPrivs"].strip()}
"""
    found = inside(code)
    assert not any(found["tried"].values())
    assert int(found["caps"], 16) == 0 and found["new"] == "1"


def test_a_child_that_answers_nonsense_ends_its_own_connection():
    code = "import os\ndef probe():\n    os.write(REPLY, b'x' * 64)\n    return 1\n"
    find = "import os, stat\nREPLY = max(f for f in range(3, 64) if is_pipe(f))\n"
    pipe = (
        "def is_pipe(f):\n    import os, stat\n"
        "    try: return stat.S_ISFIFO(os.fstat(f).st_mode)\n    except OSError: return False\n"
    )
    with pytest.raises(Ended):
        inside(pipe + find + code)


# --- where there is no sandbox ------------------------------


@pytest.mark.slow
def test_where_pipes_cannot_be_polled_a_thread_carries_the_messages(monkeypatch):
    monkeypatch.setattr(channel_module, "select", types.SimpleNamespace())
    assert inside("def probe(): return 3") == 3
    with pytest.raises(Ended, match="ended the Python process"):
        inside("import os\ndef probe(): os._exit(0)")


def test_without_a_sandbox_limits_still_hold():
    made = s.with_cell(s.solved(), "while True: pass")
    result = s.result_of(made, level="process")
    assert (result["score"], result["isolation"]) == (FULL, "process")


def test_the_course_is_masked_where_it_is_installed_with_the_libraries(request, monkeypatch):
    """An ordinary install puts the packages beside torch; inside, they are not to be seen."""
    from autograder.grader import sandbox

    tmp_path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))
    libraries = tmp_path / "lib" / "site-packages"
    (libraries / "autograder" / "checks").mkdir(parents=True)
    (libraries / "autograder" / "checks" / "secret.py").touch()
    (libraries / "torch").mkdir()
    tmp_path.chmod(0o755)
    monkeypatch.setattr(sys, "path", [*sys.path, str(libraries)])
    monkeypatch.setattr(sandbox, "_own_root", lambda: libraries)
    fresh = sandbox.Sandbox(LEVEL, run_module.sandbox(LEVEL).folder)
    request.addfinalizer(fresh.close)
    with fresh.child(s.NOTEBOOK) as child, contextlib.closing(Channel(child)) as channel:
        code = f"import os\ndef probe(): return os.listdir({str(libraries)!r}), os.listdir(" + (
            f"{str(libraries / 'autograder')!r})"
        )
        channel.ask({"op": "cell", "name": "x", "source": code}, 120)
        request = {"op": "call", "target": "probe", "method": None, "args": (), "kwargs": {}}
        shown, masked = channel.ask(request, 60)["value"]
    assert "torch" in shown and masked == []


def test_scratch_moves_where_python_lies_in_tmp(request, monkeypatch):
    from autograder.grader import sandbox

    monkeypatch.setattr(sandbox, "_libraries", lambda: ["/tmp/venv/lib/site-packages"])
    assert sandbox._scratch() == "/scratch"
    monkeypatch.undo()
    assert sandbox._scratch() == ("/scratch" if sys.prefix.startswith("/tmp/") else "/tmp")
    monkeypatch.setattr(sandbox, "_scratch", lambda: "/scratch")
    fresh = sandbox.Sandbox(LEVEL, run_module.sandbox(LEVEL).folder)
    request.addfinalizer(fresh.close)
    with fresh.child(s.NOTEBOOK) as child, contextlib.closing(Channel(child)) as channel:
        code = "import os, tempfile\ndef probe(): return tempfile.mkdtemp(), os.getcwd()"
        channel.ask({"op": "cell", "name": "x", "source": code}, 120)
        request_ = {"op": "call", "target": "probe", "method": None, "args": (), "kwargs": {}}
        made, here = channel.ask(request_, 60)["value"]
    assert made.startswith("/scratch/") and here == "/scratch"


@pytest.mark.slow
def test_the_level_for_graders_without_root():
    """The same sandbox in a user namespace: honest work counts, attacks do not."""
    try:
        honest = s.result_of(s.solved(), level="bubblewrap")
    except GraderError:
        pytest.skip("user namespaces are not allowed on this machine")
    assert (honest["score"], honest["isolation"]) == (FULL, "bubblewrap")
    made = s.with_cell(s.unsolved(), "import os; os.kill(-1, 9); os._exit(0)")
    assert s.result_of(made, level="bubblewrap")["score"] == 0


# --- layers that not every machine has ------------------------------


def test_calls_into_rare_corners_of_the_kernel_are_refused():
    code = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    ctypes.set_errno(0)
    return call(*arguments) == -1 and ctypes.get_errno() == errno.EPERM
def probe():
    tried = {
        "user namespace": refused(libc.unshare, 0x10000000),
        "ptrace": refused(libc.ptrace, 0, 0, 0, 0),
        "personality": refused(libc.personality, 0x0040000),
        "keys": refused(libc.syscall, 250, 0, 0, 0, 0),
        "io_uring": refused(libc.syscall, 425, 8, 0),
        "clone3 is unknown": libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS,
    }
    try: socket.socket(socket.AF_INET); tried["internet socket"] = False
    except PermissionError: tried["internet socket"] = True
    socket.socketpair()  # processes of one's own may still talk
    import subprocess, sys, threading
    threading.Thread(target=print).start()
    tried["start a process"] = subprocess.run([sys.executable, "-c", ""]).returncode == 0
    return tried
"""
    if not seccomp.program():
        pytest.skip("libseccomp is not on this machine")
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of calls in this test are those of x86-64")
    found = inside(code)
    assert all(found.values()), found


def test_without_libseccomp_there_is_no_filter(monkeypatch):
    monkeypatch.setattr(seccomp, "_library", lambda: None)
    assert seccomp.program.__wrapped__() == ""


def test_a_group_of_systemds_stands_around_the_sandbox(tmp_path, monkeypatch, request):
    """A stand-in for systemd-run notes what it is asked and does what the real one does last."""
    tool = tmp_path / "systemd-run"
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys\nopen({str(tmp_path / 'said')!r}, 'a')"
        ".write(' '.join(sys.argv[1:]) + '\\n')\n"
        "words = sys.argv[1:]\n"
        "while words[0].startswith('--'): words = words[2 if words[0] == '--property' else 1:]\n"
        "os.execvp(words[0], words)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for cached in (cgroups.why_not,):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
    assert cgroups.why_not() == ""
    fresh = sandbox_module.Sandbox(LEVEL, run_module.sandbox(LEVEL).folder)
    request.addfinalizer(fresh.close)
    with fresh.child(s.NOTEBOOK) as child, contextlib.closing(Channel(child)) as channel:
        assert channel.ask({"op": "exists", "target": "x"}, 120) == {"value": False}
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0].endswith("true")  # the probe
    assert f"--property MemoryMax={cgroups.MEMORY}" in said[1] and "bwrap" in said[1]
    assert f"--property TasksMax={cgroups.TASKS}" in said[1] and "--scope" in said[1]
    assert ("--user" in said[1]) == (os.getuid() != 0)
    tool.write_text("#!/bin/sh\necho 'no systemd here' >&2; exit 1\n")
    cgroups.why_not.cache_clear()
    assert cgroups.why_not() == "no systemd here" and cgroups.prefix() == []


def test_the_command_of_a_container_gives_away_nothing(tmp_path):
    view = {tmp_path: "/chapter"}
    settings = sandbox_module._settings("docker")
    words = sandbox_module._container("docker", "rnn2gpt-1", view, "print(1)", settings)
    command = " ".join(words)
    assert words[:2] == ["docker", "run"] and words[-6:-3] == [containers.IMAGE, "python3", "-I"]
    for part in (
        "--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges",
        "--user 65534:65534", f"--pids-limit {cgroups.TASKS}", f"--memory {cgroups.MEMORY}",
        f"--mount type=bind,source={tmp_path},target=/chapter,readonly", "--rm", "--interactive",
        "--name rnn2gpt-1", "--tmpfs /tmp:rw,nosuid,nodev,size=67108864,mode=1777",
    ):  # fmt: skip
        assert part in command
    assert "--privileged" not in command and "--volume" not in command
    assert settings["libraries"] == [] and "NPROC" not in settings["limits"]
    assert sandbox_module._container("podman", "x", {}, "", settings)[0] == "podman"


def test_the_image_holds_what_notebooks_import():
    text = (s.ROOT / "autograder/grader/sandbox.dockerfile").read_text()
    project = tomllib.loads((s.ROOT / "pyproject.toml").read_text())["project"]
    for name in ("torch", "numpy", "jaxtyping", "safetensors", "regex", "platformdirs"):
        (requirement,) = (d for d in project["dependencies"] if re.match(rf"{name}\b", d))
        assert f'"{requirement}"' in text


@pytest.mark.parametrize("engine", containers.ENGINES)
def test_honest_work_gets_full_marks_in_a_container(engine):
    if reason := sandbox_module.why_not(engine):
        pytest.skip(reason)
    assert s.result_of(s.solved(), level=engine)["score"] == FULL


def test_a_sandbox_that_does_not_work_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: None)
    sandbox_module.why_not.cache_clear()
    (tmp_path / "ada.ipynb").write_bytes(s.as_bytes(s.unsolved()))
    arguments = ["grade", str(tmp_path), "--out", str(tmp_path), "--sandbox", "docker"]
    result = CliRunner().invoke(main, [*arguments, "--seed-file", str(tmp_path / "seed")])
    sandbox_module.why_not.cache_clear()
    assert result.exit_code == 1 and "docker is not installed" in result.output


# --- the catalogue of threats ------------------------------


def test_the_stored_table_is_of_this_catalogue_and_all_as_it_should_be():
    stored = json.loads((s.ROOT / threats.TABLE).read_text("utf-8"))
    known = [(threat.family, threat.does) for threat in threats.catalogue()]
    assert [(row["family"], row["does"]) for row in stored["threats"]] == known
    assert {family for family, _ in known} == set(threats.FAMILIES)
    assert all(row["ok"] for row in stored["threats"])
    assert stored["neighbors"]["right"] == stored["neighbors"]["of"] == threats.NEIGHBORS


IN_PROCESS = (threats.EDIT, threats.BROKEN, threats.READER)  # the others have tests above


@pytest.mark.slow
@pytest.mark.parametrize(
    "threat",
    [t for t in threats.catalogue() if t.family in IN_PROCESS or t.earns == "refused"],
    ids=lambda threat: threat.does,
)
def test_a_threat_earns_what_its_work_is_worth(threat, tmp_path):
    room = threats.Room(s.ROOT)
    place = tmp_path / "submitted" / "mallory" / room.assignment.name
    place.mkdir(parents=True)
    threat.write(place, room)
    (row,) = ingest(tmp_path / "submitted", release=lambda task: s.release())
    if threat.earns == "refused" and row.data is None:
        assert row.problem
        return
    result = s.result_of(row.data, suffix=row.suffix)
    assert result["status"] == ("refused" if threat.earns == "refused" else "graded")
    assert result["score"] == room.score(threat.earns), (result["message"], result["notes"])


def test_a_page_that_does_something_is_found_out():
    assert threats.is_plain("<p class='a'>&lt;script&gt;</p>")
    for page in ("<script>", "<p onclick=x>", "<a href='//x'>", "<IMG src=x>", "<svg onload=x>"):
        assert not threats.is_plain(page)


# --- what the doctor says ------------------------------

BY_CHANCE = ("group", *containers.ENGINES)  # what only some machines have


def test_the_doctor_tries_what_it_promises():
    findings = {finding.what: finding for finding in doctor.examine()}
    assert LEVEL in findings["isolation"].says
    assert set(doctor.PROMISES) <= set(findings)
    tried = [finding for name, finding in findings.items() if name not in BY_CHANCE]
    assert all(finding.ok for finding in tried), doctor.as_text(tried)
    assert findings["group"].ok or "each process" in findings["group"].says
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)[0]["ok"]


def test_the_doctor_finds_out_where_nothing_is_held(monkeypatch):
    """The control: the same probes, asked where there is no sandbox, answer otherwise."""
    monkeypatch.setattr(doctor, "best_level", lambda: "process")
    monkeypatch.setattr(doctor, "why_not", lambda level: "bubblewrap is not installed")
    findings = {finding.what: finding for finding in doctor.examine()}
    assert not findings["isolation"].ok
    assert "apt-get install bubblewrap" in findings["isolation"].remedy
    for promise in ("network", "files", "writing", "user"):
        assert not findings[promise].ok and findings[promise].says.startswith("not so")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1 and "No sandbox works here" in result.output
