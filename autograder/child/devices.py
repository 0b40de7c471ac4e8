"""A device that is not there: run code on fake tensors and see whether it would work on a GPU.

PyTorch's fake tensors carry shape, dtype and device but no data. On a made-up device they raise
when an operation mixes devices, which is exactly what a mask made on the CPU does on a real GPU.
The registration call is private to PyTorch, so it stands here and nowhere else. Autograd counts
the devices when it first runs, so the device is registered when this module is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

NAME = "otherdevice"


@functools.cache
def fake_device() -> str:
    """The name of the fake device; `meta` where this version of PyTorch cannot make one."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _setup_privateuseone_for_python_backend(NAME)
    except (ImportError, RuntimeError, AttributeError):
        return "meta"
    return NAME


def _move_module(module: torch.nn.Module, device: str) -> None:
    """What `module.to(device)` does, for fake tensors: parameters and registered buffers only."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = torch.nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def run_on_fake_device(
    make: Callable[[], Callable[..., Any]], args: Any, kwargs: Any, differentiate: bool
) -> str | None:
    """Run `make()(*args, **kwargs)`, and its backward pass, on the fake device.

    Returns None when it ran, or one of the reasons `"mixed"` (tensors of two devices met),
    `"moved"` (the result is on another device), `"numpy"` (it left PyTorch). Reading a value with
    `.item()` or branching on one cannot be followed without data and counts as having run; so does
    an operation that fake tensors lack.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    device = fake_device()
    with _quietly(), FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def move(value: Any) -> Any:
            if isinstance(value, torch.nn.Module):  # a peer: it stays there, good for no other call
                _move_module(value, device)
            if not isinstance(value, torch.Tensor):
                return value
            fake = mode.from_tensor(value.detach()).to(device)
            return fake.requires_grad_() if differentiate and fake.is_floating_point() else fake

        try:
            function = make()
            if isinstance(function, torch.nn.Module):
                _move_module(function, device)
            result = function(*tree_map(move, args), **tree_map(move, kwargs))
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if any(tensor.device.type != device for tensor in tensors):
                return "moved"
            losses = [tensor.sum() for tensor in tensors if tensor.requires_grad]
            if differentiate and losses:
                torch.autograd.backward(losses)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
        except (RuntimeError, TypeError) as error:
            return _reason(error)
    return None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep PyTorch from logging, traceback and all, an error that is caught and reported here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reason(error: Exception) -> str | None:
    """What the error says about devices; other errors are limits of fake tensors."""
    text = str(error).lower()
    if "internal assert" in text:  # autograd's threads started before the device was known
        return None
    if "numpy" in text:
        return "numpy"
    return "mixed" if "device" in text else None


fake_device()
