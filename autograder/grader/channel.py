"""Requests to a child and its replies, each with a deadline."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from autograder.child.protocol import ConnectionClosed, ProtocolError, read_message, write_message
from autograder.engine.handle import Ended


class Channel:
    """Speaks with one child. After an `Ended` the child is dead and the channel useless."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.process = process
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
        """The reply to a request, callbacks answered on the way; raises `Ended`."""
        end = time.monotonic() + seconds
        message: Any = request
        while True:
            self._outbox.put(message)
            try:
                reply = self._inbox.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                raise self._end(f"did not return within {seconds:g} s") from None
            if isinstance(reply, (ConnectionClosed, OSError)):
                raise self._end("ended the Python process")
            if not isinstance(reply, dict):
                raise self._end("answered outside the grader's protocol")
            if "callback" not in reply:
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

    def _end(self, what: str) -> Ended:
        self.alive = False
        self._outbox.put(None)
        self.process.kill()
        return Ended(what)

    def _carry(self) -> None:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None

        def exactly(size: int) -> bytes:
            data = stdout.read(size)
            if len(data) < size:
                raise ConnectionClosed("the child closed its end")
            return data

        while (message := self._outbox.get()) is not None:
            try:
                write_message(stdin, message)  # type: ignore[arg-type]
                self._inbox.put(read_message(exactly))
            except Exception as error:
                known = isinstance(error, (ProtocolError, OSError))
                self._inbox.put(error if known else ProtocolError(str(error)))
