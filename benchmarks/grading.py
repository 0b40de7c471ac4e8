"""One class, three graders: ours, nbgrader's own, and otter-grader; and a grader killed at work.

    python benchmarks/grading.py [--students 8] [--rounds 3] [--chapters rnn,lstm]
                                 [--otter PYTHON] [--crash 200] [--json FILE]

In each round the same class, half of it solved, goes through `rnn2gpt grade` at one worker
(hardened, with gradebook, feedback and report), stock `nbgrader autograde`, and `otter run`, one
after another. Ours is measured on a class and on one with 64 more: the difference is what a
submission costs once worker and sandbox stand. Times are seconds on the wall, which compare on a
quiet machine, and seconds of a processor; of ours the latter miss what died with its sandbox.
`--otter` names a Python that has otter-grader, where its pins do not go together with ours. What
cannot run here is left out and named.

`--crash N` grades N submissions, kills the grader with SIGKILL in the middle, and grades again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402

from autograder.checks import CHAPTERS, load  # noqa: E402
from autograder.engine.exercise import Assignment, Exercise  # noqa: E402
from autograder.grader.grade import Plan, grade  # noqa: E402
from autograder.grader.run import Work, run  # noqa: E402
from autograder.grader.sandbox import best_level  # noqa: E402
from course.release import build_source, exercise_of  # noqa: E402
from course.sample_class import Member, mistaken, notebook_of  # noqa: E402

CHAPTER = "language_models"  # on which graders are compared
SECRET = b"of the benchmark"
MORE = 64  # submissions whose cost stands out of the noise of a start
STATES = ("solved", "half right", "unsolved")
TABLE = ROOT / "book" / "_data" / "grading_benchmark.json"

Cost = dict[str, float]


def notebook(chapter: str, name: str, state: str) -> bytes:
    """A submission of its own: solved, half right (one named mistake in every other answer), or not
    begun."""
    assignment = load(chapter)
    mistakes = {}
    if state == "half right":
        for exercise in assignment.exercises[::2]:
            mistakes |= _first_mistake(assignment, exercise)
    solved = 0 if state == "unsolved" else None
    member = Member(name, chapter, solved=solved, mistakes=mistakes, extra=f"# {name}")
    return json.dumps(notebook_of(ROOT, assignment, member)).encode()


def _first_mistake(assignment: Assignment, exercise: Exercise) -> dict[str, str]:
    """The first misconception that can be written down as a student would write it."""
    for misconception in exercise.misconceptions:
        with contextlib.suppress(ValueError):
            mistaken(assignment, exercise.name, misconception.name)
            return {exercise.name: misconception.name}
    return {}


def a_class(chapter: str, students: int, mark: str) -> dict[str, bytes]:
    """Submissions by student, every other one half right."""
    names = [f"{mark}-{number:03}" for number in range(students)]
    return {name: notebook(chapter, name, STATES[i % 2]) for i, name in enumerate(names)}


def measured(work: Callable[[], Any]) -> Cost:
    """Seconds on the wall and of all processors, children that have ended included."""

    def used() -> float:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(sum(process.cpu_times()[:4]) for process in family)  # own, and of ended children

    wall, processor = time.monotonic(), used()
    work()
    return {"wall": time.monotonic() - wall, "processor": used() - processor}


class Memory:
    """The most memory that a family of processes takes, what they share counted once, in bytes."""

    def __init__(self, of_workers: bool = False) -> None:
        self.of_workers, self.most, self._stop = of_workers, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            self.most = max(self.most, sum(map(_share, psutil.Process().children(recursive=True))))


def _share(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


# --- graders -------------------------------------------------------------------------------------


def hand_in(files: dict[str, bytes], folder: Path, chapter: str) -> Path:
    """Write a class in nbgrader's tree; returns `submitted`."""
    for name, data in files.items():
        place = folder / "submitted" / name / load(chapter).name
        place.mkdir(parents=True)
        (place / f"{chapter}.ipynb").write_bytes(data)
    return folder / "submitted"


def ours(chapter: str, files: dict[str, bytes], jobs: int = 1) -> None:
    """`rnn2gpt grade`, from a folder to feedback, with nothing known before."""
    with tempfile.TemporaryDirectory() as folder:
        submitted = hand_in(files, Path(folder), chapter)
        rows = grade(submitted, Plan(ROOT / "exercises", Path(folder), SECRET, jobs=jobs))
        if any(row["status"] != "graded" for row in rows):
            raise RuntimeError(next(row["message"] for row in rows if row["status"] != "graded"))


def ours_warm(chapter: str, students: int) -> dict[str, Cost]:
    """What a submission costs with the start of everything in it, and without."""
    few, many = a_class(chapter, students, "a"), a_class(chapter, students + MORE, "b")
    small, large = measured(lambda: ours(chapter, few)), measured(lambda: ours(chapter, many))
    return {
        "cold": {key: value / students for key, value in small.items()},
        "warm": {key: (large[key] - small[key]) / MORE for key in small},
    }


def nbgraders(chapter: str, files: dict[str, bytes]) -> Cost:
    """Stock `nbgrader autograde` on a course folder of its own, for all of `files`."""
    import nbformat

    assignment = load(chapter)
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        shutil.copy(ROOT / "nbgrader_config.py", course)
        source = course / "build" / "source" / assignment.name / f"{chapter}.ipynb"
        source.parent.mkdir(parents=True)
        nbformat.write(build_source(ROOT, assignment), source)
        hand_in(files, course, chapter)
        _command(course, "-m", "nbgrader", "generate_assignment", assignment.name, "--create")
        return measured(lambda: _command(course, "-m", "nbgrader", "autograde", assignment.name))


def otters(chapter: str, files: dict[str, bytes], python: str) -> Cost:
    """`otter run` with our checks as its tests, without a container, for all of `files`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "tests").mkdir()
        for exercise in load(chapter).exercises:
            (place / "tests" / f"{exercise.name}.py").write_text(_otter_test(chapter, exercise))
        pack = ("generate", "-t", "tests", "-o", "autograder.zip", "--no-environment")
        _command(place, "-m", "otter", *pack, python=python)
        for name, data in files.items():
            (place / f"{name}.ipynb").write_bytes(data)

        def all_of_them() -> None:
            for name in files:
                run = ("run", f"{name}.ipynb", "-a", "autograder.zip", "-o", ".")
                _command(place, "-m", "otter", *run, python=python)

        return measured(all_of_them)


def _otter_test(chapter: str, exercise: Any) -> str:
    code = (
        f">>> from autograder.checks import {chapter} as checks\n"
        f">>> float(checks.{exercise.name}.check({exercise.name})) == {exercise.points}\n"
        "True\n"
    )
    case = {"code": code, "hidden": False, "locked": False}
    suite = {"cases": [case], "scored": True, "setup": "", "teardown": "", "type": "doctest"}
    test = {"name": exercise.name, "points": exercise.points, "suites": [suite]}
    return f"OK_FORMAT = True\n\ntest = {test!r}\n"


def _command(folder: Path, *arguments: str, python: str = sys.executable) -> None:
    tools = str(Path(python).parent)
    done = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-600:]}")


# --- what is measured ----------------------------------------------------------------------------


def by_chapter(chapters: list[str], count: int = 2) -> dict[str, dict[str, float]]:
    """Processor seconds of one warm submission, by chapter and by what is in it.

    One submission of each kind is graded beforehand: a worker meets the same mistakes again.
    """
    table: dict[str, dict[str, float]] = {}
    for chapter in chapters:
        table[chapter] = {}
        for state in STATES:
            first, *rest = [notebook(chapter, f"{state}-{n}", state) for n in range(count + 1)]
            grade_one(chapter, first)
            start = used_here_and_inside()
            for data in rest:
                grade_one(chapter, data)
            table[chapter][state] = round((used_here_and_inside() - start) / count, 3)
        print(chapter, table[chapter], flush=True)
    return table


def grade_one(chapter: str, data: bytes) -> None:
    """Grade a submission in this process, as a worker does."""
    release = exercise_of(ROOT, load(chapter)).read_bytes()
    run(Work(chapter, data, ".ipynb", release, best_level(), secret=SECRET))


def used_here_and_inside() -> float:
    """Processor seconds of this process, and of the sandboxed children that have ended."""
    time.sleep(0.5)  # the last child is then gone, and counted
    times = [
        process.cpu_times()
        for process in psutil.Process().children(recursive=True)
        if process.name() == "bwrap"
    ]
    return time.process_time() + sum(t.children_user + t.children_system for t in times)


def compare(students: int, rounds: int, otter: str) -> dict[str, Any]:
    """Rounds of the same class through each grader, and the ratios with their spread."""
    found: dict[str, Any] = {"ours": [], "nbgrader": [], "otter": []}
    for number in range(rounds):
        found["ours"].append(ours_warm(CHAPTER, students))
        files = a_class(CHAPTER, students, f"n{number}")
        graders: tuple[tuple[str, Callable[[], Cost]], ...] = (
            ("nbgrader", lambda files=files: nbgraders(CHAPTER, files)),
            ("otter", lambda files=files: otters(CHAPTER, files, otter)),
        )
        for name, grader in graders:
            if isinstance(found[name], str):
                continue
            try:
                cost = grader()
                found[name].append({key: value / students for key, value in cost.items()})
            except (RuntimeError, OSError) as error:
                found[name] = f"left out: {error}"
        print(json.dumps({name: found[name][-1:] for name in found}), flush=True)
    return {"students": students, "rounds": found, "ratio": _ratios(found)}


def _ratios(found: dict[str, Any]) -> dict[str, Any]:
    """How many times our warm time on the wall another grader takes: median, least, most."""
    mine = [round_["warm"]["wall"] for round_ in found["ours"]]
    ratios = {}
    for name in ("nbgrader", "otter"):
        if isinstance(found[name], list):
            each = [cost["wall"] / own for cost, own in zip(found[name], mine, strict=True)]
            ratios[name] = [round(f(each), 1) for f in (statistics.median, min, max)]
    return ratios


def scaling(students: int) -> dict[str, Any]:
    """The same class at one worker and at two, and what memory the workers take."""
    found: dict[str, Any] = {"students": students, "load_before": os.getloadavg()[0]}
    ours(CHAPTER, a_class(CHAPTER, 1, "first"))  # starts the server that workers are forked from
    for jobs in (1, 2):
        files = a_class(CHAPTER, students, f"j{jobs}")
        with Memory() as memory:
            cost = measured(lambda files=files, jobs=jobs: ours(CHAPTER, files, jobs))
        found[f"{jobs} worker{'s' * (jobs > 1)}"] = cost | {"megabytes": memory.most >> 20}
    return found


_GRADE = """
import sys
from pathlib import Path
from autograder.grader.grade import Plan, grade
folder, exercises, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
grade(folder / "submitted", Plan(exercises, folder, b"x", jobs=jobs, cache=folder / "cache"))
"""


def crash(students: int, jobs: int = 2) -> dict[str, Any]:
    """Kill the grader in the middle of a class, grade again, and count what was lost and redone.

    Every tenth submission is solved and the rest not begun: what is tried is the grader's memory.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), Path(scratch) / "cache"
        states = ["solved" if number % 10 == 0 else "unsolved" for number in range(students)]
        files = {f"s-{i:03}": notebook(CHAPTER, f"s-{i:03}", s) for i, s in enumerate(states)}
        hand_in(files, folder, CHAPTER)
        command = [sys.executable, "-c", _GRADE, scratch, str(ROOT / "exercises"), str(jobs)]
        grader = subprocess.Popen(command, cwd=ROOT)
        while len(list(cache.glob("*.json"))) < students // 2:
            if grader.poll() is not None:
                raise RuntimeError("the grader ended by itself before it was killed")
            time.sleep(0.05)
        family = psutil.Process(grader.pid).children(recursive=True)
        grader.kill()
        grader.wait()
        _, left = psutil.wait_procs(family, timeout=60)
        kept = {path: path.read_bytes() for path in cache.glob("*.json")}
        whole = sum(_is_whole(data) for data in kept.values())
        plan = Plan(ROOT / "exercises", folder, b"x", jobs=jobs, cache=cache)
        rows = grade(folder / "submitted", plan)
        pages = list((folder / "feedback").rglob("*.html"))
        expected = [state == "solved" for state in states]
        right = [row["score"] == row["max_score"] for row in rows]
        return {
            "students": students,
            "killed_after": len(kept),
            "results_whole": whole,
            "results_unchanged": sum(path.read_bytes() == data for path, data in kept.items()),
            "processes_left": len(left),
            "rows": len(rows),
            "feedback_pages": len(pages),
            "taken_up": sum(row["reused"] for row in rows),
            "graded_again": sum(not row["reused"] for row in rows),
            "scores_as_expected": sum(map(operator.eq, right, expected)),
        }


def _is_whole(data: bytes) -> bool:
    try:
        return json.loads(data)["status"] == "graded"
    except (ValueError, KeyError):
        return False


def main() -> None:
    """Measure what was asked for, print it, and merge it into the stored results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", action="store_true", help="the three graders")
    parser.add_argument("--scaling", action="store_true", help="one worker and two")
    parser.add_argument("--chapters", help="seconds by chapter: all, or names with commas")
    parser.add_argument(
        "--crash", type=int, metavar="N", help="kill the grader among N submissions"
    )
    parser.add_argument("--otter", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path, default=TABLE)
    options = parser.parse_args()
    result = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    result |= {
        "chapter": CHAPTER,
        "isolation": best_level(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),  # of all that runs here, before we begin
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    if options.chapters:
        names = list(CHAPTERS) if options.chapters == "all" else options.chapters.split(",")
        result["chapters"] = result.get("chapters", {}) | by_chapter(names)
    if options.compare:
        result["compare"] = compare(options.students, options.rounds, options.otter)
    if options.scaling:
        result["scaling"] = scaling(2 * options.students)
    if options.crash:
        result["crash"] = crash(options.crash)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
