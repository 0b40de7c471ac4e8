"""What a large class costs beside the grading itself: bytes, database rows, and the one writer.

    python benchmarks/large_classes.py [--chapters rnn,lstm] [--students 200] [--json FILE]
                                       [--db postgresql://user@host/empty] [--scheduler ADDRESS]

A solved submission of each chapter is graded twice: its size and its result's size are what
travels, and the second time is what it costs. One of them then stands for a class of
`--students`, whose rows are recorded, written as feedback and exported, as `rnn2gpt grade` does
at the end: seconds of this process and bytes left behind, per student. `--db` does the same with
an empty PostgreSQL database. With `--scheduler`, files that are cut off, which cost a worker next
to nothing, go through a Dask cluster: what remains is handing work out. Times are seconds of a
processor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from sqlalchemy import MetaData, func, select, text  # noqa: E402

from autograder.checks import CHAPTERS, load  # noqa: E402
from autograder.grader.cluster import Cluster  # noqa: E402
from autograder.grader.database import gradebook_url  # noqa: E402
from autograder.grader.export import export  # noqa: E402
from autograder.grader.feedback import write_feedback  # noqa: E402
from autograder.grader.late import NO_LATENESS  # noqa: E402
from autograder.grader.record import Recorder, Releases  # noqa: E402
from autograder.grader.run import Work, run  # noqa: E402
from autograder.grader.sandbox import best_level  # noqa: E402
from course.release import exercise_of  # noqa: E402
from course.sample_class import Member, notebook_of  # noqa: E402

CHAPTER = "language_models"  # whose rows stand for a class
HANDED_OUT = 200  # works that a cluster is given
SECRET = b"of the benchmark"
TABLE = ROOT / "book" / "_data" / "large_classes.json"


def solved(chapter: str) -> bytes:
    member = Member("ada", chapter)
    return json.dumps(notebook_of(ROOT, load(chapter), member), ensure_ascii=False).encode()


def work_on(chapter: str, data: bytes, level: str) -> Work:
    release = exercise_of(ROOT, load(chapter)).read_bytes()
    return Work(chapter, data, ".ipynb", release, level, secret=SECRET)


def submission(chapter: str) -> dict[str, float]:
    """Of a solved submission to a chapter: bytes there and back, and seconds with all in place.

    Seconds of a processor, of this process and of all that it started.
    """
    first, second = (
        work_on(chapter, solved(chapter) + b" " * extra, best_level()) for extra in (0, 1)
    )
    result = run(first)  # loads what the next one finds
    if result["score"] != result["max_score"]:
        raise RuntimeError(f"{chapter}: {result['message']}")
    start = used()
    run(second)
    return {
        "there": len(first.data) + len(first.release or b""),
        "back": len(json.dumps(result)),
        "processor": round(used() - start, 3),
    }


def memory() -> float:
    """Bytes that this process and its sandbox take, what they share counted once."""
    return over_family(lambda process: process.memory_full_info().pss)


def used() -> float:
    """Seconds of all processors so far, by this process and its children, ended ones included."""
    return over_family(lambda process: sum(process.cpu_times()[:4]))  # own, and of ended children


def over_family(measure: Callable[[psutil.Process], float]) -> float:
    """The sum over this process and what it started, without what ends this very moment."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += measure(process)
    return total


def a_class(students: int) -> tuple[list[dict[str, Any]], Releases]:
    """Rows of as many students, all with the same work, and the release they worked on."""
    task = load(CHAPTER)
    work = work_on(CHAPTER, solved(CHAPTER), best_level())
    result = run(work)
    about = {"assignment": task.name, "notebook": CHAPTER, "path": "", "submitted": ""}
    about |= {"person": {}, "key": work.key(), "reused": False, "waiting": False, "remarks": []}
    about |= NO_LATENESS | {"total": result["score"], "max_total": result["max_score"]}
    rows = [result | about | {"student": f"student-{number:06}"} for number in range(students)]
    return rows, {(task.name, CHAPTER): work.release or b""}


def seconds(action: Callable[[], Any]) -> dict[str, float]:
    wall, own = time.monotonic(), time.process_time()
    action()
    return {"wall": time.monotonic() - wall, "processor": time.process_time() - own}


def writer(students: int, db: str | None) -> dict[str, Any]:
    """What the one writer costs for each student, once the tables are there."""
    from nbgrader.api import Gradebook

    rows, releases = a_class(students + 1)
    first, rest = rows[:1], rows[1:]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def keep(some: list[dict[str, Any]]) -> None:
            with Recorder(releases, out, db) as recorder:
                for row in some:
                    recorder.write(row)
                recorder.finish(some)

        keep(first)
        url = gradebook_url(db, out)
        with Gradebook(url) as book:
            before, empty = _rows(book), _bytes(book, db, out)
        found: dict[str, Any] = {"record": seconds(lambda: keep(rest))}
        with Gradebook(url) as book:
            found["rows"] = (_rows(book) - before) / students
            found["database_bytes"] = (_bytes(book, db, out) - empty) / students
        task = load(CHAPTER)
        found["feedback"] = seconds(lambda: [write_feedback(row, task, out) for row in rest])
        found["export"] = seconds(lambda: export(rest, out))
        for name in ("record", "feedback", "export"):
            found[name] = {key: value / students for key, value in found[name].items()}
        for name in ("autograded", "feedback"):
            sizes = [path.stat().st_size for path in (out / name).rglob("*") if path.is_file()]
            found[f"{name}_bytes"] = sum(sizes) / students
        for name in ("results.json", "results.csv"):
            found[f"{name}_bytes"] = (out / name).stat().st_size / students
    print(json.dumps(found), flush=True)
    return found


def _rows(book: Any) -> int:
    """Rows of all tables."""
    tables = MetaData()
    tables.reflect(book.engine)
    with book.engine.connect() as connection:
        count = (select(func.count()).select_from(table) for table in tables.sorted_tables)
        return sum(connection.execute(one).scalar_one() for one in count)


def _bytes(book: Any, db: str | None, out: Path) -> int:
    if db is None:
        return (out / "gradebook.db").stat().st_size
    with book.engine.connect() as connection:
        return connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()


def handing_out(scheduler: str, works: int) -> dict[str, Any]:
    """What this process pays to send a work to a cluster and take its result, many in flight."""
    cluster = Cluster(scheduler)
    cut = solved(CHAPTER)[:-40]  # no notebook any more: refused as soon as it is read
    some = (work_on(CHAPTER, cut + b" " * number, cluster.level) for number in range(works))
    by_key = {work.key(): work for work in some}

    def all_of_them() -> None:
        statuses = {outcome["status"] for _, outcome in cluster.run(by_key)}  # type: ignore[index]
        if statuses != {"refused"}:
            raise RuntimeError(f"expected refusals, got {statuses}")

    try:
        cost = seconds(all_of_them)
    finally:
        cluster.close()
    return {key: value / works for key, value in cost.items()} | {"workers": len(cluster.levels)}


def main() -> None:
    """Measure, print, and merge into the stored results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chapters", help="only these, with commas between; the others stay")
    parser.add_argument("--students", type=int, default=200, help="0 leaves the class out")
    parser.add_argument("--db", help="an empty PostgreSQL database")
    parser.add_argument("--scheduler", help="a Dask cluster of this machine")
    parser.add_argument("--json", type=Path, default=TABLE)
    options = parser.parse_args()
    chapters = options.chapters.split(",") if options.chapters else CHAPTERS
    result = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    result |= {
        "chapter": CHAPTER,
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "isolation": best_level(),
    }

    def keep(**found: Any) -> None:
        result.update(found)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for chapter in chapters:
        keep(submissions=result.get("submissions", {}) | {chapter: submission(chapter)})
        print(chapter, result["submissions"][chapter], flush=True)
    keep(worker_bytes=max(memory(), result.get("worker_bytes", 0)))
    if options.students:
        keep(students=options.students, sqlite=writer(options.students, None))
    if options.students and options.db:
        keep(postgresql=writer(options.students, options.db))
    if options.scheduler:
        keep(handing_out=handing_out(options.scheduler, HANDED_OUT))


if __name__ == "__main__":
    main()
