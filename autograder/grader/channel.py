"""Requests to a child and its replies, each with a deadline."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import psutil

from autograder.child.protocol import (
    ConnectionClosed,
    ProtocolError,
    as_message,
    read_message,
    write_message,
)
from autograder.engine.handle import Ended
from autograder.grader.sandbox import Child


class Hung(Ended):
    """The student's code did not return in time."""


PATIENCE = 6  # a busy machine may make a request take so many times as long
AT_ONCE = 0.05  # seconds; what takes no longer than this is not timed


class Channel:
    """Speaks with one child. After an `Ended` the child is dead and the channel useless."""

    def __init__(self, child: Child):
        self.child = child
        self._process: psutil.Process | None = None  # known once it has answered
        self.alive = True
        self._line: _Line = _Polled(child) if hasattr(select, "poll") else _Threaded(child)

    def ask(
        self,
        request: dict[str, Any] | list[dict[str, Any]],
        seconds: float,
        callbacks: Mapping[int, Callable[..., Any]] | None = None,
    ) -> Any:
        """The reply to a request, or those to several, callbacks answered on the way.

        Raises `Ended`. The child gets `seconds`. While it waits for a processor, not for anything
        else, and has not used that much time of one, it gets up to `PATIENCE` times as long.
        """
        watch = Stopwatch(self._process, seconds)
        message: Any = request
        while True:
            reply = self._line.exchange(message, watch)
            if reply is None:
                self.close()
                raise Hung(f"did not return within {seconds:g} s")
            if isinstance(reply, (ConnectionClosed, OSError)):
                raise self._end("ended the Python process")
            asked_back = isinstance(reply, dict) and "callback" in reply
            if not asked_back and type(reply) is not type(request):
                raise self._end("answered outside the grader's protocol")
            if not asked_back:
                self._process = self._process or self.child.find()
                return reply
            message = self._call_back(reply, callbacks or {})

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
        self._line.close()
        self.child.kill()

    def _end(self, what: str) -> Ended:
        self.close()
        return Ended(what)


class Stopwatch:
    """Whether a child has had its time; waiting for a busy processor does not count."""

    def __init__(self, process: psutil.Process | None, seconds: float):
        self.process, self.seconds = process, seconds
        self.start = time.monotonic()

    @functools.cached_property
    def used(self) -> float:
        """What the child had used of a processor when this was first asked."""
        return _processor_time(self.process)

    def next_look(self) -> float:
        """How long to wait before `expired` may say something else."""
        left = self.start + self.seconds - time.monotonic()
        return left if left > 0 else min(1.0, self.seconds / 4)

    def expired(self) -> bool:
        used, passed = self.used, time.monotonic() - self.start
        if passed < self.seconds:
            return False
        if passed > PATIENCE * self.seconds or not _wants_processor(self.process):
            return True
        return _processor_time(self.process) - used > 0.9 * self.seconds


class _Line(Protocol):
    """Carries a message to a child and its answer back: None where the time is up, an error where
    the child has gone or does not speak the protocol. Never blocks for longer than it may."""

    def exchange(self, message: Any, watch: Stopwatch) -> Any: ...

    def close(self) -> None: ...


class _TimeUp(Exception):
    """The stopwatch has expired."""


class _Polled:
    """Waits for both pipes by `poll`, where there is one."""

    def __init__(self, child: Child):
        self.child, self.got = child, bytearray()
        self.to, self.back = child.requests.fileno(), child.replies.fileno()
        os.set_blocking(self.to, False)
        os.set_blocking(self.back, False)
        self._may_write, self._may_read = select.poll(), select.poll()
        self._may_write.register(self.to, select.POLLOUT)
        self._may_read.register(self.back, select.POLLIN)

    def exchange(self, message: Any, watch: Stopwatch) -> Any:
        try:
            self._write(memoryview(as_message(message)), watch)
            return read_message(functools.partial(self._exactly, watch=watch))
        except _TimeUp:
            return None
        except Exception as error:
            known = isinstance(error, (ProtocolError, OSError))
            return error if known else ProtocolError(str(error))

    def _write(self, left: memoryview, watch: Stopwatch) -> None:
        while left:
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self.to, left) :]
                continue
            self._wait(self._may_write, watch)

    def _exactly(self, size: int, watch: Stopwatch) -> bytes:
        while len(self.got) < size:
            self._wait(self._may_read, watch)
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise ConnectionClosed("the child closed its end")
            self.got += piece
        taken = bytes(self.got[:size])
        del self.got[:size]
        return taken

    def _wait(self, ready: select.poll, watch: Stopwatch) -> None:
        if ready.poll(1000 * AT_ONCE):
            return
        while not watch.expired():
            if ready.poll(1000 * watch.next_look()):
                return
        raise _TimeUp

    def close(self) -> None:
        self.got.clear()


class _Threaded:
    """A thread of its own, which may block in a pipe for ever; waiting for it never does."""

    def __init__(self, child: Child):
        self.child = child
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._carry, daemon=True).start()

    def exchange(self, message: Any, watch: Stopwatch) -> Any:
        self._outbox.put(message)
        while not watch.expired():
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=watch.next_look())
        return None

    def close(self) -> None:
        self._outbox.put(None)

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
