"""Grade on other machines: the workers of a Dask cluster take the same unit of work.

A worker gets what `Work` holds and gives back its result. Before it gets anything, it must show
that it grades as this machine does: the same checks, the same Python and PyTorch, a sandbox, and
the level of isolation at which the whole class is graded. The seed goes straight from here to the
workers; the scheduler, which only hands out work, never holds it. Nothing is written over there.

The module is light: the scheduler imports it, too, and needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autograder.grader.run import Work

AHEAD = 2  # works that lie ready for each worker, so that none waits for the network
TRIES = 3  # for a work whose worker, or whose copy of the seed, was lost
LOOK_SECONDS = 1.0  # between two looks at who is there, while nothing ends
EXAMINE_SECONDS = 300.0  # to load torch and try a sandbox, on a machine however busy
CONNECT_SECONDS = 20.0
LONELY_SECONDS = 60.0  # without any worker, before the rest is given up

Notice = Callable[[str], None]
Outcome = dict[str, Any] | Exception


class ClusterError(Exception):
    """The cluster cannot grade, or did not; the text says why and what to do."""


# --- what runs on a worker ------------------------------


def examine(sandbox: str | None) -> dict[str, Any]:
    """What a worker's results depend on, found out on that worker."""
    import torch

    from autograder.checks import CHAPTERS
    from autograder.grader.run import fingerprint
    from autograder.grader.sandbox import best_level, why_not

    torch.set_num_threads(1)
    level = sandbox or best_level()
    return {
        "level": level,
        "no_sandbox": why_not("bubblewrap" if level == "process" else level),
        "checks": {notebook: fingerprint(notebook) for notebook in CHAPTERS},
    }


def serve(fields: dict[str, Any], secret: bytes, key: str) -> dict[str, str]:
    """Run a work whose secret came apart from it.

    Never raises: Dask writes what raised, with its arguments, to a worker's log.
    """
    from autograder.grader.run import Work, run

    try:
        work = Work(**fields, secret=secret)
        if work.key() != key:
            return {"error": "the course changed there while it graded"}
        return {"result": json.dumps(run(work), allow_nan=False)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


# --- what runs here ------------------------------


def unfit(facts: dict[str, Any], threads: int, checks: dict[str, str], trust: bool) -> str:
    """Why a worker that says `facts` of itself may not grade; nothing where it may."""
    if "error" in facts:
        return f"the course is not installed there, or does not start ({facts['error']})"
    if threads != 1:
        return f"it has {threads} threads, and one grades at a time; start it with --nthreads 1"
    for notebook, ours in checks.items():
        theirs = facts["checks"].get(notebook, "")
        (here, version), (there, other) = (text.rpartition(" ")[::2] for text in (ours, theirs))
        if theirs and here != there:
            return f"it runs on {_called(there)}, and this machine on {_called(here)}"
        if version != other:
            return f"its checks of {notebook} are another version than those here"
    if facts["no_sandbox"] and not (facts["level"] == "process" and trust):
        return f"no sandbox works there ({facts['no_sandbox']}); see `rnn2gpt doctor`"
    return ""


def _called(environment: str) -> str:
    """`3.11.7 2.13.0 Linux x86_64` in words."""
    python, torch, *system = environment.split(" ")
    return f"Python {python} and PyTorch {torch} on {' '.join(system)}"


class Cluster:
    """The workers behind a scheduler that may grade; close it when done.

    `level` is the isolation that was asked for, else what most of them offer; the others are not
    used: one class is graded at one level. Raises `ClusterError` where nobody can grade.
    """

    def __init__(
        self,
        scheduler: str,
        sandbox: str | None = None,
        trust: bool = False,
        notice: Notice = lambda text: None,
    ):
        from autograder.checks import CHAPTERS
        from autograder.grader.run import fingerprint

        try:
            import distributed
        except ModuleNotFoundError:
            raise ClusterError(
                "--scheduler needs the package distributed: pip install 'rnn2gpt[cluster]'."
            ) from None
        try:
            self.client = distributed.Client(
                scheduler, timeout=CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at {scheduler} ({error}). Start one with"
                " `dask scheduler`; it prints its address."
            ) from None
        self.sandbox, self.trust, self.notice = sandbox, trust, notice
        self.checks = {notebook: fingerprint(notebook) for notebook in CHAPTERS}
        self.levels: dict[str, str] = {}  # of each worker that may grade, by address
        self.unused: dict[str, str] = {}  # why each of the others may not
        self.level = ""
        self._seeds: dict[bytes, Any] = {}  # secret -> where the workers keep it
        try:
            self._elect(scheduler)
        except BaseException:
            self.close()
            raise

    def _elect(self, scheduler: str) -> None:
        """Find the workers, and the level of isolation that most of them share."""
        from autograder.grader.sandbox import LEVELS

        self._meet()
        if not self.levels:
            why = "".join(f"\n{place}: {reason}." for place, reason in self.unused.items())
            raise ClusterError(
                f"No worker of {scheduler} can grade."
                + (why or " None is there. Start one with `dask worker ADDRESS --nthreads 1`.")
            )
        for place, reason in self.unused.items():
            self._say(place, reason)
        votes = Counter(self.levels.values())
        strongest_first = [level for level in LEVELS if level in votes] or list(votes)
        self.level = max(strongest_first, key=votes.__getitem__)
        self._keep_one_level()

    def close(self) -> None:
        """Leave the cluster as it was."""
        self.client.close()

    # -- who is there

    def _meet(self) -> None:
        """Examine workers that are new, and forget those that are gone."""
        here = self.client.nthreads()
        self.levels = {place: level for place, level in self.levels.items() if place in here}
        new = here.keys() - self.levels.keys() - self.unused.keys()
        if not new:
            return
        for place, facts in self._examine(new).items():
            reason = unfit(facts, here[place], self.checks, self.trust)
            if reason:
                self._turn_down(place, reason)
            else:
                self.levels[place] = facts["level"]
        self._keep_one_level()

    def _examine(self, places: Iterable[str]) -> dict[str, dict[str, Any]]:
        asked = {self._submit(examine, [place], self.sandbox): [place] for place in places}
        deadline = time.monotonic() + EXAMINE_SECONDS
        facts = dict[str, dict[str, Any]]()
        while asked:
            ended, lost = self._watch(asked)
            for future in ended:
                (place,) = asked.pop(future)
                error = None if future.status == "finished" else future.exception()
                facts[place] = {"error": str(error)} if error else future.result()
            if time.monotonic() > deadline:
                lost = list(asked)
                facts |= {asked[future][0]: {"error": "it does not answer"} for future in lost}
            for future in lost:
                del asked[future]
                future.cancel()
        return facts

    def _keep_one_level(self) -> None:
        for place, level in list(self.levels.items()):
            if self.level and level != self.level:
                del self.levels[place]
                self._turn_down(place, f"it isolates by {level}, and the class by {self.level}")

    def _turn_down(self, place: str, reason: str) -> None:
        self.unused[place] = reason
        if self.level:  # else `_elect` tells of all
            self._say(place, reason)

    def _say(self, place: str, reason: str) -> None:
        self.notice(f"Not used: {place}: {reason}.")

    # -- what they do

    def run(self, works: dict[str, Work]) -> Iterator[tuple[str, Outcome]]:
        """(key, result or error) of every work, in the order of completion.

        Work that a dead worker left goes to another one.
        """
        left, waiting, tries = dict(works), deque(works), Counter[str]()
        running = dict[Any, list[str]]()  # future -> the workers that may take it
        keys = dict[Any, str]()
        met = time.monotonic()  # when there was a worker last
        try:
            while left:
                self._meet()
                with contextlib.suppress(OSError):  # a worker that went this very moment
                    while waiting and len(running) < AHEAD * len(self.levels):
                        places = list(self.levels)
                        future = self._send(waiting[0], left[waiting[0]], places)
                        running[future], keys[future] = places, waiting.popleft()
                if self.levels:
                    met = time.monotonic()
                elif time.monotonic() - met > LONELY_SECONDS:
                    raise ClusterError("no worker is left")
                for future in itertools.chain(*self._watch(running)):
                    del running[future]
                    key, outcome = keys.pop(future), self._outcome(future)
                    tries[key] += 1
                    if outcome is None and tries[key] < TRIES:
                        waiting.appendleft(key)
                    else:
                        del left[key]
                        yield key, outcome or _failed(f"{TRIES} workers were lost over it")
        except (OSError, ClusterError) as error:
            alone = isinstance(error, ClusterError)
            reason = str(error) if alone else "its scheduler does not answer"
            for key in left:
                yield key, _failed(f"the cluster was lost ({reason}). Run the command again")

    def _send(self, key: str, work: Work, places: Collection[str]) -> Any:
        fields = {field.name: getattr(work, field.name) for field in dataclasses.fields(work)}
        seed = self._seed(fields.pop("secret"))
        return self._submit(serve, places, fields, seed, key)

    def _submit(self, function: Callable[..., Any], places: Collection[str], *args: Any) -> Any:
        where = {"workers": list(places), "allow_other_workers": False}
        return self.client.submit(function, *args, pure=False, **where)

    def _seed(self, secret: bytes) -> Any:
        """The secret as the workers hold it; `direct` keeps it away from the scheduler.

        Without `hash`: a key made of the secret's own hash would tell the scheduler that.
        """
        held = self._seeds.get(secret)
        if held is None or held.status != "finished":
            places = list(self.levels)
            held = self.client.scatter(
                secret, workers=places, broadcast=True, direct=True, hash=False
            )
            self._seeds[secret] = held
        return held

    def _watch(self, running: dict[Any, list[str]]) -> tuple[list[Any], list[Any]]:
        """Futures that ended before the next look, and those none of whose workers is left."""
        from concurrent.futures import CancelledError

        from distributed import wait

        if running:
            with self.client.as_current(), contextlib.suppress(TimeoutError, CancelledError):
                wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        else:
            time.sleep(LOOK_SECONDS)
        ended = [future for future in running if future.done()]
        here = self.client.nthreads().keys()
        rest = [future for future in running if future not in ended]
        return ended, [future for future in rest if here.isdisjoint(running[future])]

    def _outcome(self, future: Any) -> Outcome | None:
        """A result, an error of the grader's own, or None where the work was lost."""
        if future.status != "finished":  # its worker died, or with it the last copy of the seed
            future.cancel()
            return None
        said = future.result()
        return json.loads(said["result"]) if "result" in said else _failed(said["error"])


def _failed(why: str) -> Exception:
    from autograder.grader.run import GraderError

    return GraderError(why)


@contextlib.contextmanager
def cluster_at(
    scheduler: str | None, sandbox: str | None, trust: bool, notice: Notice
) -> Iterator[Cluster | None]:
    """The cluster of a scheduler for a while; None where this machine grades by itself."""
    if scheduler is None:
        yield None
        return
    with contextlib.closing(Cluster(scheduler, sandbox, trust, notice)) as cluster:
        yield cluster
