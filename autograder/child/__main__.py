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

import torch

from autograder.child.devices import run_on_fake_device
from autograder.child.protocol import (
    ConnectionClosed,
    decode,
    read_encoded,
    write_message,
)
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
        answer = decode(*read_encoded(self._exactly), self.resolve)
        if "error" in answer:  # what the check's function raised, by name
            kind, message = answer["error"]
            raise _exception(kind)(message)
        return answer["value"]

    def _exactly(self, size: int) -> bytes:
        data = self.requests.read(size)
        if len(data) < size:
            raise ConnectionClosed("the grader closed the connection")
        return data

    def serve(self) -> None:
        while True:
            try:
                asked, blobs = read_encoded(self._exactly)
            except ConnectionClosed:
                return
            replies = self.answer_all(asked if isinstance(asked, list) else [asked], blobs)
            if os.getpid() != self.pid:
                os._exit(0)  # a copy that a submission forked does not answer too
            try:
                self._reply(asked, replies)
            except Exception as error:  # the last holds what may not cross, or cannot be read
                self._reply(asked, [*replies[:-1], {"error": describe(error)}])

    def _reply(self, asked: Any, replies: list[dict[str, Any]]) -> None:
        write_message(self.replies, replies if isinstance(asked, list) else replies[0])


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The requests and the replies; standard input, output and errors lead nowhere after this."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return requests, replies


def _try_out(x: torch.Tensor) -> None:
    """Use the common operations once on x (B, T, C): the first use of each takes a while."""
    functional, size = torch.nn.functional, x.shape[-1]
    layer, norm = torch.nn.Linear(size, size), torch.nn.LayerNorm(size)
    hidden = norm.to(x.dtype)(layer.to(x.dtype)(x)).relu() + x.tanh() * x.sigmoid()
    hidden = torch.softmax(hidden @ hidden.mT, -1) @ functional.gelu(hidden)
    hidden = torch.cat([hidden, torch.stack([x[0], x[0]])[:1]], 1).masked_fill(x[:, :1] > 1, 0)
    functional.scaled_dot_product_attention(hidden, hidden, hidden)
    ids = torch.arange(len(hidden[0])) % size
    functional.cross_entropy(functional.embedding(ids, hidden[0]), ids)
    torch.einsum("btc,bsc->bts", hidden, hidden).sum().item()


def prepare(libraries: Iterable[str] = ()) -> None:
    """What takes long and is the same for every submission, `libraries` to import among it."""
    torch.set_num_threads(1)
    run_on_fake_device(lambda: torch.square, (torch.ones(2),), {}, differentiate=False)
    with torch.no_grad():  # a first gradient starts threads, which no fork takes along
        for dtype in (torch.float32, torch.float64):
            _try_out(torch.linspace(0, 1, 12, dtype=dtype).view(1, 3, 4))
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
