"""Grade many submissions: in worker processes, each result kept under its key."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from autograder.grader.pool import context
from autograder.grader.run import GraderError, Work, run

Rounds = Callable[[dict[str, Work]], Iterable[tuple[str, dict[str, Any] | Exception]]]


def run_all(
    works: list[Work],
    jobs: int,
    cache: Path | None,
    again: Collection[str] = (),
    elsewhere: Rounds | None = None,
) -> Iterator[tuple[Work, Any, bool]]:
    """(work, its result, whether an earlier run found it), in the order of completion.

    The result is an exception where the run failed. Works whose keys stand in `again` are run
    whatever is known of them. `elsewhere` runs works on other machines, in place of `jobs` here.

    A worker that dies takes nobody else's result along: what it left is tried again, one by one.
    """
    waiting: dict[str, Work] = {}
    for work in works:
        key = work.key()
        known = None if key in again else read_result(cache, key)
        if known is not None:
            yield work, known, True
        else:
            waiting[key] = work
    here = (functools.partial(_round, jobs=jobs), functools.partial(_round, jobs=1, alone=True))
    rounds: tuple[Rounds, ...] = (elsewhere,) if elsewhere else here
    for number, one_round in enumerate(rounds, start=1):
        for key, outcome in one_round(waiting):
            if isinstance(outcome, BrokenProcessPool) and number < len(rounds):
                continue
            if isinstance(outcome, dict):
                _store(cache, key, outcome)
            yield waiting.pop(key), outcome, False


def _round(
    works: dict[str, Work], jobs: int, alone: bool = False
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """One try at every work: in one pool, or each in a pool of its own."""
    groups = [{key: work} for key, work in works.items()] if alone else [dict(works)]
    for group in groups:
        if not group:
            continue
        with _pool(min(jobs, len(group))) as pool:
            futures: dict[Future[dict[str, Any]], str] = {}
            with contextlib.suppress(BrokenProcessPool):
                futures = {pool.submit(run, work): key for key, work in group.items()}
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error or future.result()


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(jobs, context(), initializer=_prepare)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare() -> None:
    importlib.import_module("autograder.grader.loaded")  # where no server has
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the grader that started this worker is gone, however it went."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def default_jobs() -> int:
    """One worker for each core that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def failure(error: Exception) -> str:
    """What a row says when the grader, not the student, is at fault."""
    if isinstance(error, GraderError):
        return f"The grader could not run this: {error}"
    if isinstance(error, BrokenProcessPool):
        return "The grader's own process died over this submission. It was not graded."
    return f"The grader failed over this submission ({type(error).__name__}: {error})."


def read_result(cache: Path | None, key: str) -> dict[str, Any] | None:
    """What an earlier run found, if it is known."""
    if cache is None:
        return None
    try:
        return json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _store(cache: Path | None, key: str, result: dict[str, Any]) -> None:
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f"{key}.{os.getpid()}.draft"
    draft.write_text(json.dumps(result, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    draft.replace(cache / f"{key}.json")  # whole or not at all
