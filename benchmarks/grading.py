"""One class, three graders: ours, nbgrader's own, and otter-grader where it is installed.

    python benchmarks/grading.py [--students 4] [--chapter language_models] [--json FILE]

The same notebooks, half of them solved, go through `autograder.grader.batch` at one worker, stock
`nbgrader autograde`, and `otter run`, one after another in one run. Ours is measured twice: from
nothing, with the start of worker and sandbox, and warm, for as many submissions again. Every time
is wall time beside the processor time of all processes that were waited for; on a busy machine
compare the latter. Nothing is typed in: what cannot run here is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from autograder.checks import load  # noqa: E402
from autograder.grader.batch import run_all  # noqa: E402
from autograder.grader.run import Work  # noqa: E402
from autograder.grader.sandbox import best_level  # noqa: E402
from course.release import build_source, exercise_of  # noqa: E402
from course.sample_class import Member, notebook_of  # noqa: E402


def notebooks(chapter: str, students: int, mark: str) -> dict[str, bytes]:
    """Submissions by student, each different, every other one half done."""
    assignment = load(chapter)
    half = len(assignment.exercises) // 2
    made = {}
    for number in range(students):
        name = f"{mark}-{number:03}"
        member = Member(name, chapter, solved=None if number % 2 == 0 else half, extra=f"# {name}")
        made[name] = json.dumps(notebook_of(ROOT, assignment, member)).encode()
    return made


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Seconds on the wall and of all processors, children that have ended included."""

    def used() -> float:
        own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in own)

    wall, processor = time.monotonic(), used()
    work()
    return {"wall": time.monotonic() - wall, "processor": used() - processor}


def ours(chapter: str, students: int) -> dict[str, Any]:
    """Once and twice as many: the difference is what warm submissions cost."""
    release = exercise_of(ROOT, load(chapter)).read_bytes()

    def grade(files: dict[str, bytes]) -> None:
        works = [Work(chapter, data, ".ipynb", release, best_level()) for data in files.values()]
        for _, outcome, _ in run_all(works, 1, None):
            if isinstance(outcome, Exception):
                raise outcome

    few, many = notebooks(chapter, students, "a"), notebooks(chapter, 2 * students, "b")
    once, twice = measured(lambda: grade(few)), measured(lambda: grade(many))
    return {
        "isolation": best_level(),
        "cold": {key: value / students for key, value in once.items()},
        "warm": {key: max(0.0, twice[key] - once[key]) / students for key in once},
    }


def nbgraders(chapter: str, students: int) -> dict[str, Any]:
    """Stock `nbgrader autograde` on a course folder of its own."""
    import nbformat

    assignment = load(chapter)
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        shutil.copy(ROOT / "nbgrader_config.py", course)
        source = course / "build" / "source" / assignment.name / f"{chapter}.ipynb"
        source.parent.mkdir(parents=True)
        nbformat.write(build_source(ROOT, assignment), source)
        for name, data in notebooks(chapter, students, "n").items():
            place = course / "submitted" / name / assignment.name
            place.mkdir(parents=True)
            (place / f"{chapter}.ipynb").write_bytes(data)
        _command(course, "-m", "nbgrader", "generate_assignment", assignment.name, "--create")
        once = measured(lambda: _command(course, "-m", "nbgrader", "autograde", assignment.name))
    return {"cold": {key: value / students for key, value in once.items()}}


def otters(chapter: str, students: int) -> dict[str, Any]:
    """`otter run` with our checks as its tests, in this environment and without a container."""
    assignment = load(chapter)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tests = place / "tests"
        tests.mkdir()
        for exercise in assignment.exercises:
            code = (
                f">>> from autograder.checks import {chapter} as checks\n"
                f">>> float(checks.{exercise.name}.check({exercise.name})) == {exercise.points}\n"
                "True\n"
            )
            case = {"code": code, "hidden": False, "locked": False}
            suite = {
                "cases": [case],
                "scored": True,
                "setup": "",
                "teardown": "",
                "type": "doctest",
            }
            test = {"name": exercise.name, "points": exercise.points, "suites": [suite]}
            (tests / f"{exercise.name}.py").write_text(f"OK_FORMAT = True\n\ntest = {test!r}\n")
        _command(
            place,
            "-m",
            "otter",
            "generate",
            "-t",
            "tests",
            "-o",
            "autograder.zip",
            "--no-environment",
        )
        for name, data in notebooks(chapter, students, "o").items():
            (place / f"{name}.ipynb").write_bytes(data)

        def all_of_them() -> None:
            for path in sorted(place.glob("*.ipynb")):
                _command(place, "-m", "otter", "run", path.name, "-a", "autograder.zip", "-o", ".")

        once = measured(all_of_them)
    return {"cold": {key: value / students for key, value in once.items()}}


def _command(folder: Path, *arguments: str) -> None:
    tools = str(Path(sys.executable).parent)
    path = os.pathsep.join([tools, os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-600:]}")


def main() -> None:
    """Measure and print; ratios are of processor time for one submission."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--chapter", default="language_models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"students": options.students, "chapter": options.chapter}
    for name, grader in (("ours", ours), ("nbgrader", nbgraders), ("otter", otters)):
        try:
            result[name] = grader(options.chapter, options.students)
        except (RuntimeError, OSError) as error:
            result[name] = {"left_out": str(error)}
            print(f"{name}: left out ({error})")
            continue
        for state in ("cold", "warm"):
            if state in result[name]:
                cost = result[name][state]
                print(
                    f"{name}, {state}: {cost['processor']:.2f} s of a processor and"
                    f" {cost['wall']:.2f} s on the wall for each submission"
                )
    for name in ("nbgrader", "otter"):
        if "cold" in result[name] and result["ours"]["warm"]["processor"] > 0:
            ratio = result[name]["cold"]["processor"] / result["ours"]["warm"]["processor"]
            result[name]["times_ours"] = ratio
            print(f"{name} takes {ratio:.1f} times as much of a processor as ours, warm")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
