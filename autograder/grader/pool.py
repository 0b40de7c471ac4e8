"""How worker processes start: forked from a server that has PyTorch and the checks loaded.

Where there is no such server (Windows), each worker loads them by itself. The module is light, so
that the server loads while the grader itself still does.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext


def context() -> BaseContext:
    """What makes worker processes; the first call has the server start, and waits for nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(["autograder.grader.loaded"])
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")
