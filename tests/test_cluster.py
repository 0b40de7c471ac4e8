"""Grading on a real Dask cluster of this machine: a scheduler and two workers on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submissions as s
from click.testing import CliRunner

from autograder.checks import CHAPTERS
from autograder.grader import cluster as cluster_module
from autograder.grader.batch import failure
from autograder.grader.cluster import Cluster, ClusterError, unfit
from autograder.grader.export import public
from autograder.grader.grade import GradingError, Plan, grade
from autograder.grader.run import Work, fingerprint
from autograder.grader.sandbox import best_level
from course.cli import main

HERE = s.assignment().name
FULL = sum(exercise.points for exercise in s.assignment().exercises)
FIT = {
    "level": "bubblewrap",
    "no_sandbox": "",
    "checks": {"rnn": "3.11.7 2.13.0 Linux x86_64 abc"},
}


# --- who may grade ------------------------------


def test_a_worker_like_this_machine_may_grade():
    assert unfit(FIT, 1, FIT["checks"], trust=False) == ""


@pytest.mark.parametrize(
    ("facts", "threads", "said"),
    [
        ({"error": "No module named 'autograder'"}, 1, "not installed there"),
        (FIT, 4, "--nthreads 1"),
        (FIT | {"checks": {"rnn": "3.12.1 2.13.0 Linux x86_64 abc"}}, 1, "Python 3.12.1"),
        (FIT | {"checks": {"rnn": "3.11.7 2.13.0 Linux x86_64 abd"}}, 1, "checks of rnn"),
        (FIT | {"checks": {}}, 1, "checks of rnn"),
        (FIT | {"level": "process", "no_sandbox": "no bwrap"}, 1, "no sandbox works there"),
        (FIT | {"level": "docker", "no_sandbox": "no engine"}, 1, "no engine"),
    ],
)
def test_a_worker_that_differs_is_told_why_it_may_not(facts, threads, said):
    assert said in unfit(facts, threads, FIT["checks"], trust=False)


def test_a_worker_without_a_sandbox_grades_what_is_trusted():
    facts = FIT | {"level": "process", "no_sandbox": "no bwrap"}
    assert unfit(facts, 1, FIT["checks"], trust=True) == ""


def test_a_worker_never_raises_and_never_shows_the_seed():
    """Dask logs what raises together with its arguments."""
    said = cluster_module.serve({"nonsense": 1}, b"the seed", "key")
    assert list(said) == ["error"] and "the seed" not in said["error"]
    fields = vars(Work(s.NOTEBOOK, b"", ".ipynb", None, "process")).copy()
    del fields["secret"]
    assert "changed" in cluster_module.serve(fields, b"another seed", "key")["error"]


def test_without_a_scheduler_there_it_says_so_at_once(tmp_path):
    plan = Plan(s.ROOT / "exercises", tmp_path, s.SECRET, scheduler="tcp://127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "CONNECT_SECONDS", 1.0)
        with pytest.raises(GradingError, match="dask scheduler"):
            grade(tmp_path, plan)


def without_workers(**more: Any) -> Cluster:
    """A cluster object that reached nobody."""
    made = Cluster.__new__(Cluster)
    vars(made).update({"levels": {}, "unused": {}, "level": "", "notice": lambda text: None} | more)
    return made


def test_a_scheduler_that_is_lost_leaves_an_error_for_every_work_still_open():
    def nthreads() -> dict[str, int]:
        raise OSError("connection reset")

    lost = without_workers(client=SimpleNamespace(nthreads=nthreads))
    works = {key: Work(s.NOTEBOOK, b"", ".ipynb", None, "process") for key in "ab"}
    outcomes = dict(lost.run(works))
    assert set(outcomes) == {"a", "b"}
    assert all("scheduler does not answer" in failure(error) for error in outcomes.values())


@pytest.mark.parametrize(
    ("levels", "chosen"),
    [
        (["bubblewrap", "bubblewrap", "bubblewrap-root"], "bubblewrap"),
        (["bubblewrap", "bubblewrap-root"], "bubblewrap-root"),
        (["process", "process", "bubblewrap"], "process"),  # trusted, or it were not among them
        (["docker"], "docker"),
    ],
)
def test_a_class_is_graded_at_the_level_that_most_workers_have(levels, chosen):
    told = list[str]()
    cluster = without_workers(
        levels=dict(enumerate(levels)), notice=told.append, _meet=lambda: None
    )
    cluster._elect("tcp://here")
    assert cluster.level == chosen and set(cluster.levels.values()) == {chosen}
    assert len(told) == len(levels) - levels.count(chosen)


# --- a cluster ------------------------------


@contextlib.contextmanager
def dask(folder: Path, name: str, *arguments: str, **environment: str) -> Iterator[Any]:
    """`dask scheduler` or `dask worker` as its own command; dead afterwards."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--scheduler-file", "scheduler.json"],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def worker(folder: Path, name: str, *more: str, **environment: str) -> Any:
    quiet = ("--no-dashboard", "--no-nanny", "--memory-limit", "0", "--host", "127.0.0.1")
    return dask(folder, name, "worker", *quiet, "--name", name, *more, **environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder in which a scheduler runs; `scheduler.json` tells its address."""
    folder = tmp_path_factory.mktemp("dask")
    where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
    with dask(folder, "scheduler", "scheduler", *where) as process:
        deadline = time.monotonic() + 120
        while not (folder / "scheduler.json").exists():
            assert process.poll() is None, (folder / "scheduler.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield folder


def address(folder: Path) -> str:
    return json.loads((folder / "scheduler.json").read_text())["address"]


def handed_in(folder: Path) -> Path:
    """Four students solved it, each in a file of their own; a fifth file is cut off."""
    for number in range(5):
        place = folder / "submitted" / f"student-{number}" / HERE
        place.mkdir(parents=True)
        data = s.as_bytes(s.with_cell(s.solved(), f"number = {number}"))
        (place / f"{s.NOTEBOOK}.ipynb").write_bytes(data[:3000] if number == 4 else data)
    return folder / "submitted"


@pytest.mark.slow
@pytest.mark.xdist_group("dask")
@pytest.mark.skipif(os.name == "nt", reason="the signals of POSIX systems")
def test_one_of_two_workers_dies_and_every_submission_gets_its_row(folder, tmp_path):
    submitted = handed_in(tmp_path)
    plan = Plan(
        s.ROOT / "exercises", tmp_path / "out", b"a secret of forty-two", scheduler=address(folder),
        trust=best_level() == "process", cache=tmp_path / "cache",
    )  # fmt: skip
    finished = list[int]()
    with worker(folder, "a", "--nthreads", "1") as first, worker(folder, "b", "--nthreads", "1"):
        wait_for(folder, 2)

        def progress(done: int, total: int) -> None:
            finished.append(done)
            if done == 1:  # both are at work, and more lies ready for each
                first.kill()

        rows = grade(submitted, plan, progress)
        assert first.poll() is not None and max(finished) == 5
    assert [(row["student"], row["status"]) for row in rows] == [
        *((f"student-{number}", "graded") for number in range(4)),
        ("student-4", "refused"),
    ]
    assert [row["score"] for row in rows] == [FULL] * 4 + [0]
    assert (tmp_path / "out" / "gradebook.db").exists()
    assert len(list((tmp_path / "out" / "feedback").rglob("*.html"))) == 5
    # the same here, from the very same submission
    here = s.result_of(
        (submitted / "student-0" / HERE / f"{s.NOTEBOOK}.ipynb").read_bytes(), secret=plan.secret
    )
    kept = ("score", "status", "message", "isolation", "checks", "exercises", "notes")
    there = next(row for row in rows if row["student"] == "student-0")
    assert {key: public(there)[key] for key in kept} == {
        key: public(there | here)[key] for key in kept
    }
    logs = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    assert "forty-two" not in logs and "forty-two" not in json.dumps(rows)


def wait_for(folder: Path, workers: int) -> None:
    """Until so many workers have come; the grader would take the first by itself."""
    from distributed import Client

    with Client(address(folder), set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=120)


@pytest.mark.slow
@pytest.mark.xdist_group("dask")
@pytest.mark.skipif(best_level() == "process", reason="no machine here has a sandbox")
def test_workers_that_may_not_grade_are_refused_by_name(folder, tmp_path):
    """One has two threads, one no sandbox: the command says both, and grades nothing."""
    one = tmp_path / f"ada_{s.NOTEBOOK}.ipynb"
    one.write_bytes(s.as_bytes(s.unsolved()))
    seed = tmp_path / "seed"
    seed.write_text("x")
    arguments = ["grade", str(one), "--out", str(tmp_path / "out"), "--seed-file", str(seed)]
    with (
        worker(folder, "threads", "--nthreads", "2"),
        worker(folder, "open", "--nthreads", "1", PATH="/nowhere"),
    ):
        wait_for(folder, 2)
        said = CliRunner().invoke(main, [*arguments, "--scheduler", address(folder)])
    assert said.exit_code == 1 and not (tmp_path / "out").exists()
    assert "it has 2 threads" in said.output and "bubblewrap is not installed" in said.output
    with pytest.raises(ClusterError, match="None is there"):
        until_gone(folder)
        Cluster(address(folder))


def until_gone(folder: Path) -> None:
    from distributed import Client

    with Client(address(folder), set_as_default=False) as client:
        deadline = time.monotonic() + 60
        while client.nthreads() and time.monotonic() < deadline:
            time.sleep(0.2)


def test_every_chapter_has_checks_to_compare():
    assert all(len(fingerprint(notebook).split()) == 5 for notebook in CHAPTERS)
