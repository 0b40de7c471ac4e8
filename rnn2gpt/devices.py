"""What a machine offers: a device, its precision, its speed, and what to lower when it is full.

Nothing else in the package asks what kind of device it runs on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial

import torch

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Peak FLOP/s of dense matrix products with 16-bit inputs, from NVIDIA's data sheets. The first
# name that a device's name contains counts, so the narrower ones stand first.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "T4": 65e12,
}


class OutOfMemory(Exception):
    """The device has no room for a step. The message says what to lower."""


def pick_device(name: str = "auto") -> torch.device:
    """The named device; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises `ValueError` when the machine lacks the device that is asked for.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, here in available.items() if here))
    kind = name.split(":")[0]
    if not available.get(kind, False):
        here = ", ".join(kind for kind, ready in available.items() if ready)
        raise ValueError(f"device={name!r} is not available here. Choose auto or one of: {here}")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself; where it is imitated, it only costs time.

    On CPUs these are the instructions AVX512_BF16 and AMX of x86 and BF16 of Arm.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
    return False


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The named precision; "auto" takes bfloat16 where the device has it, else float32.

    Raises `ValueError` for another name.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r}: choose auto or one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def autocast(device: torch.device, dtype: torch.dtype) -> Callable[[], AbstractContextManager]:
    """Makes the context in which matrix products run in `dtype`; float32 leaves all as it is.

    The weights and what is delicate (softmax, norms, losses) stay in float32: Micikevicius et al.
    2018, section 3.
    """
    return partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was told: GPUs lag behind the program."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device reaches at most: from its data sheet, else measured.

    What is measured is the best of up to ten products of matrices of 1024 × 1024 (CPU: 512 × 512)
    here and now, in about a second. It stands in for CPUs, for float32, and for GPUs that the table
    does not know.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, flops in PEAK_FLOPS.items():
            if known in name:
                return flops
    n = 512 if device.type == "cpu" else 1024
    a = torch.ones(n, n, dtype=dtype, device=device)
    times = []
    for _ in range(11):  # the first one warms up
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
        if len(times) > 1 and sum(times) > 1.0:
            break  # an imitated float16 would keep a run waiting
    return 2 * n**3 / min(times[1:])


@contextmanager
def explain_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error of any device into an `OutOfMemory` that names the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = re.search(r"out of memory|allocate memory|enough memory", str(error), re.IGNORECASE)
        if not said and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        raise OutOfMemory(f"The memory of {device} is full. {remedy}") from error
