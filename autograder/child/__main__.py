"""The process in which a submission's code runs: `main(settings)`.

`settings` holds `uid` (or None), `limits` (names of `resource.RLIMIT_*` without the prefix, and
their values) and `seccomp` (a filter of system calls in base64, or nothing). Requests come in on
standard input and replies leave on standard output; both move to descriptors of their own at once,
so that what a submission prints or reads goes nowhere. The process lowers its own limits and gives
up its user before it reads the first request. Then it answers requests until its input closes.
Besides the worker's operations there is one more, `cell`, which executes the source of one notebook
cell in the submission's namespace.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import ctypes
import gc
import importlib
import linecache
import os
import sys
import types
from collections.abc import Iterable
from typing import Any, BinaryIO

from autograder.child.devices import run_on_fake_device
from autograder.child.protocol import ConnectionClosed, ProtocolError, read_message, write_message
from autograder.child.worker import Worker, describe

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38  # linux/prctl.h

# The halves of the package that a set-up cell imports and that are not here.
ABSENT = ("autograder.checks", "autograder.engine", "autograder.engine.notebook")


class _Inert(types.ModuleType):
    """Stands for a module that is not here: any use of it does nothing."""

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


class _Program(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h: instructions of eight bytes each."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _refuse_calls(program: str) -> None:
    """Take on a filter of system calls, for good; without one, or a kernel for it, do nothing."""
    if not program:
        return
    code = base64.b64decode(program)
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    held = _Program(len(code) // 8, code)
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(held), 0, 0)


def _exception(name: str) -> type[Exception]:
    """The built-in exception of that name, or a general one."""
    found = getattr(builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError


class Session(Worker):
    """A worker whose namespace is filled by executing cells."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO):
        self.requests, self.replies, self.pid = requests, replies, os.getpid()
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main
        super().__init__(self.main.__dict__, self._ask_parent)

    def _op_cell(self, name: str, source: str) -> dict[str, Any]:
        filename = f"<cell {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        code = compile(source, filename, "exec", dont_inherit=True)
        exec(code, self.main.__dict__)
        return {"value": None}

    def _ask_parent(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        write_message(self.replies, {"callback": number, "args": args, "kwargs": kwargs})
        answer = self.read()
        if "error" in answer:  # what the check's function raised, by name
            kind, message = answer["error"]
            raise _exception(kind)(message)
        return answer["value"]

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
            if os.getpid() != self.pid:
                os._exit(0)  # a copy that a submission forked does not answer too
            try:
                write_message(self.replies, reply)
            except Exception as error:  # a value that may not cross, or cannot be read
                write_message(self.replies, {"error": describe(error)})


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The requests and the replies; standard input, output and errors lead nowhere after this."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return requests, replies


def prepare(libraries: Iterable[str] = ()) -> None:
    """What takes long and is the same for every submission, `libraries` to import among it."""
    import torch

    torch.set_num_threads(1)
    run_on_fake_device(lambda: torch.square, (torch.ones(2),), {}, differentiate=False)
    for name in libraries:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for name in ABSENT:
        sys.modules[name] = _Inert(name)
    gc.collect()
    gc.freeze()  # what is here stays: no later collection looks at it, in no child


def serve(settings: dict[str, Any]) -> None:
    """Give up rights, then answer requests until the grader closes the connection."""
    _lower_rights(settings["uid"], settings["limits"])
    _refuse_calls(settings["seccomp"])
    requests, replies = _take_over_pipes()
    Session(requests, replies).serve()


def main(settings: dict[str, Any]) -> None:
    """Serve one submission."""
    prepare()
    serve(settings)
