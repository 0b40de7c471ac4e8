"""What submissions do to graders, tried on this one: `rnn2gpt threats`.

A class is made in which every student attacks, or hands in honest work in a broken file, and among
them sit honest neighbors. The whole class is graded by one run. A submission passes when it has the
score that its work earned, its row says something, and the feedback on it is plain text; the run
passes when, besides, every neighbor has full marks.
"""

from __future__ import annotations

import codecs
import copy
import io
import json
import os
import pickle
import platform
import re
import shutil
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autograder.checks import load
from autograder.grader.grade import Plan, Progress, grade
from course.release import exercise_of
from course.sample_class import Member, answers_of, notebook_of

CHAPTER = "language_models"
TABLE = Path("book/_data/threats.json")
SECRET = b"the seed of the threats is no secret"
NEIGHBORS = 12

Notebook = dict[str, Any]
FORGE = "forging the verdict"
EDIT = "editing the notebook"
READ = "reading what is secret"
WRITE = "writing what is not theirs"
EXHAUST = "exhausting the machine"
KILL = "killing the grader"
READER = "attacking the reader"
PICKLE = "deserialization"
BROKEN = "honest and broken"
FAMILIES = (FORGE, EDIT, READ, WRITE, EXHAUST, KILL, READER, PICKLE, BROKEN)


@dataclass(frozen=True)
class Threat:
    """One submission: what it does, how it lies on the disk, and what its work earns."""

    family: str
    does: str
    write: Callable[[Path, Room], None]  # into the student's folder for the assignment
    earns: str  # "all", "none", "rest" (all but the first exercise), or "refused"


class Room:
    """What threats are made from: the notebook of one chapter, unsolved and solved."""

    def __init__(self, root: Path):
        self.root, self.assignment = root, load(CHAPTER)
        self.answers = answers_of(root, self.assignment)
        self.first = self.assignment.exercises[0]
        self.points = sum(exercise.points for exercise in self.assignment.exercises)
        self.file = f"{CHAPTER}.ipynb"

    def notebook(self, solved: bool = True, **replaced: str) -> Notebook:
        """The chapter's notebook, all exercises solved or none, some answers replaced."""
        member = Member("", CHAPTER, solved=None if solved else 0)
        made = notebook_of(self.root, self.assignment, member)
        for cell in made["cells"]:
            cell["source"] = replaced.get(grade_id(cell), cell["source"])
        return made

    def score(self, earns: str) -> float:
        """The points that what a threat earns comes to."""
        return {"all": self.points, "rest": self.points - self.first.points}.get(earns, 0.0)


def grade_id(cell: dict[str, Any]) -> str:
    """nbgrader's name of a cell; nothing where it has none."""
    return str(cell["metadata"].get("nbgrader", {}).get("grade_id", ""))


def with_cell(made: Notebook, source: str, at: int = 1) -> Notebook:
    """The notebook with a code cell of the student's added."""
    made = copy.deepcopy(made)
    new = {"cell_type": "code", "metadata": {}, "source": source, "outputs": []}
    made["cells"].insert(at, new | {"execution_count": None})
    return made


def as_bytes(made: Notebook) -> bytes:
    """The notebook's file."""
    return json.dumps(made, ensure_ascii=False, indent=1).encode()


# --- a cell that attacks, beside no work and beside whole work -----------------------------------

CELLS: dict[str, dict[str, str]] = {
    FORGE: {
        "patches torch": """
            import torch, numpy, math
            for name in ("allclose", "equal", "isclose", "eq"):
                setattr(torch, name, lambda *args, **kwargs: torch.tensor(True))
            torch.testing.assert_close = lambda *args, **kwargs: None
            numpy.testing.assert_allclose = lambda *args, **kwargs: None
            math.isclose = lambda *args, **kwargs: True
        """,
        "patches the engine": """
            import sys
            from autograder.child import protocol, worker
            worker.describe = lambda error: {}
            for module in list(sys.modules):
                if module.startswith("autograder"):
                    sys.modules[module].PASSED = True
        """,
        "prints results": """
            import sys
            for stream in (sys.stdout, sys.__stdout__, sys.stderr):
                print('{"score": 1000, "max_score": 11, "status": "graded"}', file=stream)
        """,
        "writes on every descriptor": """
            import os
            for descriptor in range(3, 64):
                try: os.write(descriptor, b"\\0\\0\\0\\x13\\0\\0\\0\\0[{\\"value\\": 1000}, []]")
                except OSError: pass
        """,
        "hooks into IPython": """
            from IPython import get_ipython
            shell = get_ipython()
            shell.ast_transformers.append(None)
            shell.input_transformers_cleanup.append(lambda lines: ["1000"])
            type(shell).run_cell = lambda *args, **kwargs: None
        """,
        "answers as the kernel": """
            import sys
            import ipykernel.kernelbase as base
            base.Kernel.execute_request = lambda *args, **kwargs: {"status": "ok"}
            print("\\x1b]0;1000\\x07", file=sys.__stdout__)
        """,
    },
    WRITE: {
        "writes a results file": """
            for name in ("results.json", "/tmp/results.json", "../results.json"):
                try: open(name, "w").write('[{"score": 1000}]')
                except OSError: pass
        """,
        "writes start-up files and libraries": """
            import os, site, sys, torch
            line = "import os; os._exit(0)\\n"
            folders = [os.path.expanduser("~"), "/etc", os.path.dirname(torch.__file__), *sys.path]
            for folder in folders:
                for name in ("sitecustomize.py", "x.pth", ".ipython/profile_default/startup/0.py"):
                    try: open(os.path.join(folder, name), "w").write(line)
                    except OSError: pass
        """,
        "writes to gradebook and neighbors": """
            import glob, os, sqlite3
            for path in (*glob.glob("/**/gradebook.db", recursive=True), "/srv/gradebook.db"):
                try: sqlite3.connect(path).execute("UPDATE grade SET manual_score = 1000")
                except Exception: pass
            for path in glob.glob("/proc/*/root/**/*.ipynb", recursive=True):
                try: open(path, "w").write("")
                except OSError: pass
        """,
    },
    EXHAUST: {
        "loops": "while True: pass",
        "ignores interrupts": """
            import signal
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGXCPU):
                signal.signal(number, signal.SIG_IGN)
            while True: pass
        """,
        "sleeps": "import time; time.sleep(100000)",
        "asks": "input('points? ')",
        "recurses": "def deep(n): return deep(n + 1)\ndeep(0)",
        "eats memory": "block = []\nwhile True: block.append(bytearray(1 << 28))",
        "asks for a huge tensor": "import torch\ntorch.ones(1 << 40)",
        "fills the disk": """
            number = 0
            while True:
                with open(f"/tmp/{number}", "wb") as file: file.write(bytes(1 << 23))
                number += 1
        """,
        "opens files without end": "import os\nwhile True: os.open('/dev/null', os.O_RDONLY)",
        "prints without end": "while True: print('x' * 1000000)",
        "forks without end": "import os\nwhile True: os.fork()",
        "starts threads": """
            import threading, time
            while True: threading.Thread(target=time.sleep, args=(1000,)).start()
        """,
        "leaves a process behind": """
            import subprocess, sys
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"],
                             start_new_session=True)
        """,
    },
    KILL: {
        "exits": "import sys; sys.exit(0)",
        "ends the process": "import os; os._exit(0)",
        "kills itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "kills everything": "import os, signal; os.kill(-1, signal.SIGKILL)",
        "kills its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "crashes": "import ctypes; ctypes.string_at(0)",
        "closes descriptors": "import os; os.closerange(0, 1000)",
    },
}

# --- an answer that attacks when it is called: it costs its own points alone ---------------------

HELPERS = """
class Yes:
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __float__(self): return 1000.0
    __hash__ = None
class Sly(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return True
class Bomb:
    def __reduce__(self): return print, ("unpickled",)
"""
CALLS: dict[str, dict[str, tuple[str, str]]] = {  # what it does: its body, what the row says of it
    FORGE: {
        "returns an object equal to everything": ("return Yes()", "cannot be checked"),
        "returns NaN": ("return float('nan')", ""),
        "returns infinity": ("return float('inf')", ""),
        "returns a tensor subclass": ("return Sly(torch.ones(7, 7))", ""),
        "raises something odd": ("raise type('Odd', (BaseException,), {})('no')", "Odd"),
        "looks for right answers in frames": (
            "import sys\n    frame = sys._getframe()\n    while frame:\n"
            "        for value in frame.f_locals.values():\n"
            "            if isinstance(value, torch.Tensor) and value.ndim == 2: return value\n"
            "        frame = frame.f_back\n    return None",
            "",
        ),
    },
    EXHAUST: {
        "loops when called": ("while True: pass", "did not return within"),
        "sleeps when called": ("import time; time.sleep(10000)", "did not return within"),
        "eats memory when called": ("x = bytearray(1 << 35)", "MemoryError"),
        "returns a million nested lists": (
            "x = []\n    for _ in range(10**5): x = [x]\n    return x",
            "",
        ),
        "returns a huge string": ("return 'x' * (1 << 28)", "cannot be sent"),
        "returns a huge number": ("return 10 ** 100000", ""),
        "returns a generator": ("return (i for i in range(3))", "cannot be checked"),
    },
    KILL: {
        "ends the process when called": ("import os; os._exit(0)", "ended the Python process"),
        "exits when called": ("raise SystemExit(0)", "SystemExit"),
        "crashes when called": ("import ctypes; ctypes.string_at(0)", "ended the Python process"),
    },
    READER: {
        "raises with markup": ("raise ValueError('<script>alert(1)</script> [red]')", "ValueError"),
        "returns a broken string": ("return '\\ud800'", ""),
    },
    PICKLE: {
        "returns a pickle": ("import pickle; return pickle.dumps(print)", ""),
        "returns an object that acts when it is read": ("return Bomb()", "cannot be checked"),
    },
}

# --- an answer taken from where answers lie ------------------------------------------------------

SOURCES = {
    "imports the model's own function": "from rnn2gpt.ngram import bigram_counts",
    "imports a right answer of the checks": (
        "from autograder.answers.language_models import counts_by_bincount as bigram_counts"
    ),
    "imports the reference of a check": (
        "from autograder.checks.language_models import pairs_by_hand as bigram_counts"
    ),
    "imports the hidden cases": "from autograder.hidden.language_models import bigram_counts",
    "loads the answers by path": (
        "import importlib.util as u; spec = u.spec_from_file_location('x', ROOT +"
        " '/autograder/answers/language_models.py'); m = u.module_from_spec(spec);"
        " spec.loader.exec_module(m); bigram_counts = m.counts_by_bincount"
    ),
    "runs the solutions": "exec(open(ROOT + '/solutions/01_language_models.py').read())",
    "takes a neighbor's answer": (
        "import glob, json\n"
        "for path in glob.glob(ROOT + '/**/*.ipynb', recursive=True) + glob.glob('/tmp/**/*.ipynb',"
        " recursive=True):\n"
        "    for cell in json.load(open(path))['cells']:\n"
        "        if 'def bigram_counts' in ''.join(cell['source']): exec(''.join(cell['source']))\n"
    ),
    "takes the answer from a link": "exec(open('answer.py').read())",
    "asks the environment": (
        "import glob, os\n"
        "found = dict(os.environ, **{p: open(p).read() for p in glob.glob('/proc/[0-9]*/environ')"
        " if os.access(p, os.R_OK)})\nbigram_counts = found['RNN2GPT_ANSWER']"
    ),
}

# --- notebooks edited ----------------------------------------------------------------------------


def _edit_checks(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Any:
    def edit(made: Notebook) -> Notebook:
        cells = list[dict[str, Any]]()
        for cell in made["cells"]:
            cells += change(cell) if grade_id(cell).startswith("check_") else [cell]
        return made | {"cells": cells}

    return edit


def _renamed(made: Notebook) -> Notebook:
    for number, cell in enumerate(made["cells"]):
        if grade_id(cell):
            cell["metadata"]["nbgrader"]["grade_id"] = f"cell-{number}"
            cell["id"] = f"other-{number}"
    return made


def _skipped(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {"metadata": cell["metadata"] | {"tags": ["skip-execution"]}}


def _richer(cell: dict[str, Any]) -> list[dict[str, Any]]:
    cell["metadata"]["nbgrader"]["points"] = 1000
    return [cell]


EDITS: dict[str, Callable[[Notebook], Notebook]] = {
    "tags that skip execution": lambda made: (
        made
        | {
            "cells": [
                cell
                | {"metadata": cell["metadata"] | {"tags": ["skip-execution", "nbgrader-skip"]}}
                for cell in made["cells"]
            ]
        }
    ),
    "checks that say 1000": _edit_checks(lambda cell: [cell | {"source": "1000"}]),
    "checks deleted": _edit_checks(lambda cell: []),
    "checks duplicated": _edit_checks(lambda cell: [cell, copy.deepcopy(cell)]),
    "checks turned into text": _edit_checks(lambda cell: [cell | {"cell_type": "markdown"}]),
    "checks worth more": _edit_checks(_richer),
    "cells renamed": _renamed,
    "an unknown kernel": lambda made: (
        made | {"metadata": {"kernelspec": {"name": "sh -c 'exit'", "display_name": "x"}}}
    ),
    "odd schema versions": lambda made: made | {"nbformat": 99, "nbformat_minor": -1},
}

# --- text meant for whoever reads the feedback ---------------------------------------------------

NAUGHTY = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>[x](javascript:alert(1))"
    "<svg onload=alert(1)></svg>" + "<div>" * 2000
)


def _loud(made: Notebook) -> Notebook:
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            shown = {"text/html": NAUGHTY, "image/svg+xml": NAUGHTY, "application/javascript": "1"}
            cell["outputs"] = [
                {"output_type": "display_data", "data": shown, "metadata": {}},
                {"output_type": "stream", "name": "stdout", "text": NAUGHTY},
            ]
        elif grade_id(cell):
            cell["source"] = NAUGHTY
    return made


# --- honest work in broken files -----------------------------------------------------------------


def _old_format(made: Notebook) -> bytes:
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            cell["input"] = cell.pop("source")
    return json.dumps({"nbformat": 3, "worksheets": [{"cells": made["cells"]}]}).encode()


def _bare(made: Notebook) -> bytes:
    cells = [{k: v for k, v in c.items() if k != "id"} | {"metadata": {}} for c in made["cells"]]
    return json.dumps({"cells": cells}).encode()


def _script(made: Notebook) -> bytes:
    code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    return "\n\n# In[3]:\n\n".join("".join(source) for source in code).encode()


def _heavy(made: Notebook) -> bytes:
    text = "0123456789abcde\n" * (50 << 16)  # 50 MB
    made["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
    return json.dumps(made).encode()


def _warns(made: Notebook) -> bytes:
    return as_bytes(
        with_cell(made, "import sys, warnings\nwarnings.warn('old')\nsys.stderr.write('x')")
    )


WEAR: dict[str, tuple[Callable[[Notebook], bytes], str]] = {  # how, and the name of the file
    "a byte order mark": (lambda made: codecs.BOM_UTF8 + as_bytes(made), ""),
    "UTF-16": (lambda made: as_bytes(made).decode().encode("utf-16"), ""),
    "Windows-1252": (
        lambda made: as_bytes(with_cell(made, "# caf\u00e9")).decode().encode("cp1252", "replace"),
        "",
    ),
    "line ends of Windows": (lambda made: as_bytes(made).replace(b"\n", b"\r\n"), ""),
    "an old format": (_old_format, ""),
    "no metadata": (_bare, ""),
    "a script": (_script, f"{CHAPTER}.py"),
    "another name": (as_bytes, "My final version (2).ipynb"),
    "nested folders": (as_bytes, f"homework/week 1/{CHAPTER}.ipynb"),
    "50 MB of stored output": (_heavy, ""),
    "warnings on stderr": (_warns, ""),
    "a cell left with a syntax error": (lambda m: as_bytes(with_cell(m, "def unfinished(:")), ""),
    "helper cells": (lambda m: as_bytes(with_cell(m, "def helper(x):\n    return x")), ""),
    "cells in another order": (lambda m: as_bytes(m | {"cells": m["cells"][::-1]}), ""),
    "slow but right": (lambda m: as_bytes(with_cell(m, "import time\ntime.sleep(2)")), ""),
}
REFUSED: dict[str, Callable[[Notebook], bytes]] = {
    "an empty file": lambda made: b"",
    "cut off in the middle": lambda made: as_bytes(made)[: len(as_bytes(made)) // 2],
    "not JSON": lambda made: b"PK\x03\x04 not a notebook",
    "JSON nested without end": lambda made: b"[" * 100_000,
}


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return buffer.getvalue()


# --- the catalogue -------------------------------------------------------------------------------


def catalogue() -> list[Threat]:
    """All threats, by family."""
    found = [
        Threat(family, f"a cell that {does}, {beside}", _cell(code, solved), earns)
        for family, cells in CELLS.items()
        for does, code in cells.items()
        for solved, beside, earns in (
            (False, "nothing solved", "none"),
            (True, "everything solved", "all"),
        )
    ]
    for family, calls in CALLS.items():
        found += [
            Threat(family, f"an answer that {d}", _call(c[0]), "rest") for d, c in calls.items()
        ]
    found += [Threat(READ, f"an answer that {d}", _source(c), "rest") for d, c in SOURCES.items()]
    found += [
        Threat(EDIT, f"{does}, {beside}", _edited(edit, solved), earns)
        for does, edit in EDITS.items()
        for solved, beside, earns in (
            (False, "nothing solved", "none"),
            (True, "everything solved", "all"),
        )
    ]
    found.append(
        Threat(READER, "markup in outputs and in the written answer", _edited(_loud), "all")
    )
    found.append(Threat(READER, "markup in a file's name", _named("<b onclick=x>rnn</b>"), "all"))
    found.append(Threat(PICKLE, "weights and caches beside the notebook", _pickles, "all"))
    found.append(Threat(PICKLE, "a pickle named like a notebook", _file(_pickled), "refused"))
    found += [Threat(BROKEN, does, _file(*how), "all") for does, how in WEAR.items()]
    found += [Threat(BROKEN, does, _file(how), "refused") for does, how in REFUSED.items()]
    found.append(Threat(BROKEN, "two notebooks, one of them untouched", _two, "all"))
    found.append(Threat(READ, "a link for a notebook", _link, "refused"))
    found.append(Threat(READ, "an archive whose paths lead out", _climbing, "refused"))
    if hasattr(os, "mkfifo"):
        found.append(Threat(EXHAUST, "a pipe for a notebook", _pipe, "refused"))
    found.append(Threat(EXHAUST, "an archive that unpacks to a gigabyte", _bomb, "refused"))
    return sorted(found, key=lambda threat: FAMILIES.index(threat.family))


Writer = Callable[[Path, Room], None]


def _cell(code: str, solved: bool) -> Writer:
    def write(place: Path, room: Room) -> None:
        made = with_cell(room.notebook(solved), textwrap.dedent(code))
        (place / room.file).write_bytes(as_bytes(made))

    return write


def answer_that(name: str, body: str) -> str:
    """The cell of an answer whose body attacks."""
    return f"{HELPERS}\ndef {name}(*args, **kwargs):\n    {body}\n"


def _call(body: str) -> Writer:
    def write(place: Path, room: Room) -> None:
        name = room.first.name
        made = room.notebook(True, **{name: answer_that(name, body)})
        (place / room.file).write_bytes(as_bytes(made))

    return write


def _source(code: str) -> Writer:
    def write(place: Path, room: Room) -> None:
        made = room.notebook(True, **{room.first.name: f"ROOT = {str(room.root)!r}\n{code}\n"})
        (place / room.file).write_bytes(as_bytes(made))
        (place / "answer.py").symlink_to(room.root / "autograder" / "answers" / f"{CHAPTER}.py")

    return write


def _edited(edit: Callable[[Notebook], Notebook], solved: bool = True) -> Writer:
    def write(place: Path, room: Room) -> None:
        (place / room.file).write_bytes(as_bytes(edit(room.notebook(solved))))

    return write


def _file(wear: Callable[[Notebook], bytes], name: str = "") -> Writer:
    def write(place: Path, room: Room) -> None:
        path = place / (name or room.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wear(room.notebook()))

    return write


def _named(stem: str) -> Writer:
    def write(place: Path, room: Room) -> None:
        name = stem.replace("/", "\u2215") + f" {CHAPTER}.ipynb"
        (place / name).write_bytes(as_bytes(room.notebook()))

    return write


def _pickled(made: Notebook) -> bytes:
    return pickle.dumps({"cells": made["cells"]})


def _pickles(place: Path, room: Room) -> None:
    (place / room.file).write_bytes(as_bytes(room.notebook()))
    for name in ("weights.pt", "cache.pkl", "results.pickle"):
        (place / name).write_bytes(b"cos\n_exit\n(I1\ntR.")  # ends whoever unpickles it


def _two(place: Path, room: Room) -> None:
    (place / room.file).write_bytes(as_bytes(room.notebook()))
    later = place / f"{CHAPTER} (1).ipynb"
    later.write_bytes(exercise_of(room.root, room.assignment).read_bytes())


def _link(place: Path, room: Room) -> None:
    (place / room.file).symlink_to(room.root / "solutions")


def _pipe(place: Path, room: Room) -> None:
    os.mkfifo(place / room.file)


def _climbing(place: Path, room: Room) -> None:
    data = as_bytes(room.notebook())
    (place / "work.zip").write_bytes(_zip({f"../../neighbor/{room.file}": data}))


def _bomb(place: Path, room: Room) -> None:
    (place / "work.zip").write_bytes(_zip({room.file: bytes(1 << 30)}))


# --- the run -------------------------------------------------------------------------------------


def make(root: Path, folder: Path) -> dict[str, Threat | None]:
    """Write the class to `folder/<student>/<assignment>/`; None stands for a neighbor."""
    room, threats = Room(root), catalogue()
    every = len(threats) // NEIGHBORS
    students: dict[str, Threat | None] = {}
    for number, threat in enumerate(threats):
        if number % every == 0 and number // every < NEIGHBORS:
            name = f"{number:03}-a-neighbor"
            students[name] = None
            made = with_cell(room.notebook(), f"name = {name!r}")
            (_place(folder, name, room) / room.file).write_bytes(as_bytes(made))
        name = f"{number:03}-{re.sub('[^a-z0-9]+', '-', threat.does.lower()).strip('-')[:50]}"
        students[name] = threat
        threat.write(_place(folder, name, room), room)
    return students


def _place(folder: Path, student: str, room: Room) -> Path:
    place = folder / student / room.assignment.name
    place.mkdir(parents=True)
    return place


def survey(root: Path, jobs: int, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Grade the class; what came of each threat, and of the neighbors, as JSON."""
    with tempfile.TemporaryDirectory(prefix="rnn2gpt-threats-") as scratch:
        folder = Path(scratch)
        students = make(root, folder / "submitted")
        shutil.copytree(root / "exercises", folder / "exercises")
        start = time.monotonic()
        plan = Plan(folder / "exercises", folder, SECRET, jobs=jobs)
        rows = grade(folder / "submitted", plan, progress)
        seconds = time.monotonic() - start
        room = Room(root)
        found = [_verdict(students[row["student"]], row, room, folder) for row in rows]
    neighbors = [row for row in found if row["family"] == ""]
    return {
        "isolation": rows[0]["isolation"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "jobs": jobs,
        "seconds": round(seconds),
        "neighbors": {"right": sum(row["ok"] for row in neighbors), "of": len(neighbors)},
        "threats": [row for row in found if row["family"]],
    }


def _verdict(
    threat: Threat | None, row: dict[str, Any], room: Room, folder: Path
) -> dict[str, Any]:
    """What came of one submission."""
    earns = threat.earns if threat else "all"
    page = folder / "feedback" / row["student"] / row["assignment"] / f"{row['notebook']}.html"
    status = "refused" if earns == "refused" else "graded"
    says = bool(row["message"]) and row["status"] == status
    return {
        "family": threat.family if threat else "",
        "does": threat.does if threat else "honest work",
        "expected": room.score(earns),
        "score": row["score"],
        "max_score": row["max_score"],
        "status": row["status"],
        "message": row["message"][:200],
        "notes": [note[:200] for note in row["notes"]][:2],
        "seconds": row["seconds"],
        "ok": row["score"] == room.score(earns) and says and is_plain(page.read_text("utf-8")),
    }


_TAG = re.compile(r"<\s*/?\s*([a-zA-Z][\w-]*)([^>]*)>")
_HARMLESS_TAGS = (
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "h1",
    "h2", "h3", "p", "div", "span", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td",
    "details", "summary", "code", "pre", "strong", "em", "b", "i", "small", "br",
)  # fmt: skip


def is_plain(page: str) -> bool:
    """Whether a page has no element or attribute that does anything, or loads anything."""
    return all(
        tag.lower() in _HARMLESS_TAGS and not re.search(r"\s(?:on\w+|src|href)\s*=", attributes)
        for tag, attributes in _TAG.findall(page)
    )


def write_table(root: Path, result: dict[str, Any]) -> Path:
    """Store the table where the instructor guide reads it."""
    path = root / TABLE
    text = json.dumps(result, indent=1, ensure_ascii=False)
    text = text.replace(str(root), "COURSE")  # some attacks name the folder that they look for
    path.write_text(text + "\n", encoding="utf-8")
    return path


def as_text(result: dict[str, Any]) -> str:
    """A line for each family, and every submission that went wrong in full."""
    lines = []
    for family in FAMILIES:
        rows = [row for row in result["threats"] if row["family"] == family]
        right = sum(row["ok"] for row in rows)
        lines.append(f"{'✓' if right == len(rows) else '✗'} {family}: {right} of {len(rows)}")
    lines += [f"  ✗ {row}" for row in result["threats"] if not row["ok"]]
    near = result["neighbors"]
    lines.append(f"Honest neighbors with full marks: {near['right']} of {near['of']}.")
    lines.append(f"Isolation: {result['isolation']}. {result['seconds']} s.")
    return "\n".join(lines)
