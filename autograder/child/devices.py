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
        # Autocast and checkpointing ask each backend this, also when they run on the CPU.
        getattr(torch, NAME).get_amp_supported_dtype = lambda: []
    except (ImportError, RuntimeError, AttributeError):
        return "meta"
    return NAME


def _describe_gru() -> torch.library.Library:
    """Tell fake tensors the shapes of a GRU's fused step; PyTorch does so for the LSTM's alone.

    What it registers lives as long as the library that is returned.
    """
    library = torch.library.Library("aten", "IMPL", "Meta")

    def step(from_x: Any, from_h: Any, h: Any, *biases: Any) -> Any:
        return torch.empty_like(h), h.new_empty(len(h), 5 * h.shape[1])  # state, workspace

    def back(gradient: Any, workspace: Any, has_bias: bool) -> Any:
        rows, width = gradient.shape
        gates = [gradient.new_empty(rows, 3 * width) for _ in range(2)]
        biases = [gradient.new_empty(3 * width) if has_bias else None for _ in range(2)]
        return *gates, torch.empty_like(gradient), *biases

    library.impl("_thnn_fused_gru_cell", step)
    library.impl("_thnn_fused_gru_cell_backward", back)
    return library


def _move_module(module: torch.nn.Module, device: str) -> None:
    """What `module.to(device)` does, for fake tensors: parameters and registered buffers only."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = torch.nn.Parameter(_like(parameter, device), parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _like(buffer, device)


def _like(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor of that form on the device; under a fake mode it holds no data, and costs little."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


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
    with _quietly(), FakeTensorMode(allow_non_fake_inputs=True):

        def move(value: Any) -> Any:
            if isinstance(value, torch.nn.Module):  # a peer: it stays there, good for no other call
                _move_module(value, device)
            if not isinstance(value, torch.Tensor):
                return value
            fake = _like(value, device)
            return fake.requires_grad_() if differentiate and fake.is_floating_point() else fake

        try:
            function = make()
            owner = getattr(function, "__self__", function)  # of a method: the module it belongs to
            if isinstance(owner, torch.nn.Module):
                _move_module(owner, device)
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
    # Autograd's threads started before the device was known, or an operation does not know it.
    if "internal assert" in text or "could not run" in text:
        return None
    if "numpy" in text:
        return "numpy"
    return "mixed" if "device" in text else None


fake_device()
_GRU_SHAPES = _describe_gru()
