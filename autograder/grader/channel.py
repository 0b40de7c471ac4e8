"""Requests to a child and its replies, each with a deadline."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from autograder.child.protocol import ConnectionClosed, ProtocolError, read_message, write_message
from autograder.engine.handle import Ended
from autograder.grader.sandbox import Child


class Hung(Ended):
    """The student's code did not return in time."""


PATIENCE = 6  # a busy machine may make a request take so many times as long


class Channel:
    """Speaks with one child. After an `Ended` the child is dead and the channel useless."""

    def __init__(self, child: Child):
        self.child = child
        self._process: psutil.Process | None = None  # known once it has answered
        self.alive = True
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A thread of its own may block in a pipe for ever; waiting for it never does.
        threading.Thread(target=self._carry, daemon=True).start()

    def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        callbacks: Mapping[int, Callable[..., Any]] | None = None,
    ) -> dict[str, Any]:
        """The reply to a request, callbacks answered on the way; raises `Ended`.

        The child gets `seconds`. While it waits for a processor, not for anything else, and has
        not used that much time of one, it gets up to `PATIENCE` times as long.
        """
        watch = Stopwatch(self._process, seconds)
        message: Any = request
        while True:
            self._outbox.put(message)
            reply = self._receive(watch)
            if reply is None:
                self.close()
                raise Hung(f"did not return within {seconds:g} s")
            if isinstance(reply, (ConnectionClosed, OSError)):
                raise self._end("ended the Python process")
            if not isinstance(reply, dict):
                raise self._end("answered outside the grader's protocol")
            if "callback" not in reply:
                self._process = self._process or self.child.find()
                return reply
            message = self._call_back(reply, callbacks or {})

    def _receive(self, watch: Stopwatch) -> Any:
        """The next message, or None when the time is up."""
        while not watch.expired():
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=watch.next_look())
        return None

    def _call_back(
        self, wish: dict[str, Any], callbacks: Mapping[int, Callable[..., Any]]
    ) -> dict[str, Any]:
        number, args, kwargs = (wish.get(key) for key in ("callback", "args", "kwargs"))
        function = callbacks.get(number) if isinstance(number, int) else None
        if function is None or not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise self._end("answered outside the grader's protocol")
        try:
            return {"value": function(*args, **kwargs)}
        except Exception as error:  # goes back into the student's call, as in the notebook
            return {"error": [type(error).__name__, str(error)]}

    def close(self) -> None:
        """End the child."""
        self.alive = False
        self._outbox.put(None)
        self.child.kill()

    def _end(self, what: str) -> Ended:
        self.close()
        return Ended(what)

    def _carry(self) -> None:
        def exactly(size: int) -> bytes:
            data = self.child.replies.read(size)
            if len(data) < size:
                raise ConnectionClosed("the child closed its end")
            return data

        while (message := self._outbox.get()) is not None:
            try:
                write_message(self.child.requests, message)
                self._inbox.put(read_message(exactly))
            except Exception as error:
                known = isinstance(error, (ProtocolError, OSError))
                self._inbox.put(error if known else ProtocolError(str(error)))
        with contextlib.suppress(OSError, ValueError):
            self.child.requests.close()  # a child that still listens ends by itself


class Stopwatch:
    """Whether a child has had its time; waiting for a busy processor does not count."""

    def __init__(self, process: psutil.Process | None, seconds: float):
        self.process, self.seconds = process, seconds
        self.start, self.used = time.monotonic(), _processor_time(process)

    def next_look(self) -> float:
        """How long to wait before `expired` may say something else."""
        left = self.start + self.seconds - time.monotonic()
        return left if left > 0 else min(1.0, self.seconds / 4)

    def expired(self) -> bool:
        passed = time.monotonic() - self.start
        if passed < self.seconds:
            return False
        if passed > PATIENCE * self.seconds or not _wants_processor(self.process):
            return True
        return _processor_time(self.process) - self.used > 0.9 * self.seconds


def _processor_time(process: psutil.Process | None) -> float:
    """Seconds of a processor that a process has used so far."""
    if process is None:
        return 0.0
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _wants_processor(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.status() in (
            psutil.STATUS_RUNNING,
            psutil.STATUS_DISK_SLEEP,
        )
    except psutil.Error:
        return False
