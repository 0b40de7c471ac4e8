"""Start children in milliseconds: a process that has torch loaded and forks one for each wish.

Only for a sandbox that root made. The server holds the right to unshare namespaces and to change
its user; each child it forks gets process, mount and IPC namespaces of its own, a /tmp of its own,
and has lost its rights before the first line of a submission runs. The server never reads anything
that a submission wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import socket
from typing import Any

from autograder.child.__main__ import prepare, serve

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND = 0x1, 0x2, 0x4, 0x1000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PATIENCE = 0.2  # seconds that a child has to end by itself


def main(settings: dict[str, Any]) -> None:
    """Fork a child for each message on standard input, until that closes.

    A message names a chapter and carries three descriptors: requests, replies, and a lifeline. The
    child sees that chapter's folder alone. It dies, with whatever it started, when the other end
    of its lifeline closes.
    """
    prepare(settings["warm"])
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # errors stay visible until a submission runs
        os.dup2(nowhere, standard)
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 100, 3)
        if not message:
            return
        middle = os.fork()
        if middle == 0:
            with contextlib.suppress(BaseException):
                control.close()
                _start(settings, message.decode(), *descriptors)
            os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(middle, 0)


def _start(
    settings: dict[str, Any], chapter: str, requests: int, replies: int, lifeline: int
) -> None:
    """Fork the first process of new namespaces, which outlives this one."""
    libc = ctypes.CDLL(None, use_errno=True)
    _demand(libc.unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC))
    if os.fork() > 0:
        os._exit(0)
    _mount(libc, None, "/", None, MS_REC | MS_PRIVATE, None)
    course = settings["course"]
    _mount(libc, f"{course}/{chapter}", settings["chapter"], None, MS_BIND, None)
    _mount(libc, "tmpfs", course, "tmpfs", MS_RDONLY, "size=0")  # hides the other chapters
    importlib.invalidate_caches()
    _mount(libc, "proc", "/proc", "proc", MS_NOSUID | MS_NODEV, None)
    scratch, size = settings["scratch"], settings["scratch_size"]
    _mount(libc, "tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=1777")
    os.chdir(scratch)
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        for standard, descriptor in ((0, requests), (1, replies)):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        serve(settings)
        os._exit(0)
    os.close(requests)
    os.close(replies)
    ended = os.pidfd_open(child)
    select.select([ended, lifeline], [], [])
    if select.select([ended], [], [], PATIENCE)[0]:
        os.waitpid(child, 0)  # so that the time it used is counted
    os._exit(0)  # the first process ends, and with it all others


def _mount(
    libc: Any, source: str | None, target: str, kind: str | None, flags: int, data: str | None
) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    _demand(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))


def _demand(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
