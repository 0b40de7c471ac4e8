"""The process in which a submission's code runs: `python -m autograder.child SETTINGS`.

SETTINGS is a JSON object: `requests` and `replies` (file descriptors), `uid` (or null) and
`limits` (names of `resource.RLIMIT_*` without the prefix, and their values). The process lowers
its own limits and gives up its user before it reads the first request. Then it answers requests
until its input closes. Besides the worker's operations there is one more, `cell`, which executes
the source of one notebook cell in the submission's namespace.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import types
from typing import Any, BinaryIO

from autograder.child.protocol import ConnectionClosed, ProtocolError, read_message, write_message
from autograder.child.worker import Worker, describe


class _Inert(types.ModuleType):
    """Stands for `autograder.checks`, which is not here: any use of it does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __bool__(self) -> bool:
        return False


def _lower_rights(uid: int | None, limits: dict[str, int]) -> None:
    """Limits first, then the user: what follows cannot take either back."""
    try:
        import resource
    except ImportError:  # Windows has neither limits nor users of this kind
        return
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


class Session(Worker):
    """A worker whose namespace is filled by executing cells."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO):
        self.requests, self.replies = requests, replies
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main
        super().__init__(self.main.__dict__, self._ask_parent)

    def _op_cell(self, name: str, source: str) -> dict[str, Any]:
        filename = f"<cell {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        exec(compile(source, filename, "exec"), self.main.__dict__)
        return {"value": None}

    def _ask_parent(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        write_message(self.replies, {"callback": number, "args": args, "kwargs": kwargs})
        return self.read()["value"]

    def read(self) -> Any:
        return read_message(self._exactly, self.resolve)

    def _exactly(self, size: int) -> bytes:
        data = self.requests.read(size)
        if len(data) < size:
            raise ConnectionClosed("the grader closed the connection")
        return data

    def serve(self) -> None:
        while True:
            try:
                reply = self.answer(self.read())
            except ConnectionClosed:
                return
            except ProtocolError as error:
                reply = {"error": describe(error)}
            try:
                write_message(self.replies, reply)
            except ProtocolError as error:
                write_message(self.replies, {"error": describe(error)})


def main() -> None:
    settings = json.loads(sys.argv[1])
    requests = os.fdopen(settings["requests"], "rb")
    replies = os.fdopen(settings["replies"], "wb")
    _lower_rights(settings["uid"], settings["limits"])
    checks = _Inert("autograder.checks")
    sys.modules["autograder.checks"] = checks
    import torch

    torch.set_num_threads(1)
    Session(requests, replies).serve()


if __name__ == "__main__":
    main()
