"""A device that is not there: run code on it and see whether it would work on a GPU.

A tensor `Elsewhere` says that it lies on a made-up device, while its numbers lie on the CPU. An
operation between it and a tensor of the CPU raises, as it would with a real GPU; that is exactly
what a mask made on the CPU does. All other operations run on the numbers. PyTorch's own fake
tensors find the same mistakes, but each of their operations takes a millisecond.

The registration call is private to PyTorch, so it stands here and nowhere else. Autograd counts
the devices when it first runs, so the device is registered when this module is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "otherdevice"
MIXED = "Expected all tensors to be on the same device, but found at least two devices"

aten = torch.ops.aten
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # by the CPU, too
_COPYING = (aten.copy_.default, aten._to_copy.default)
_PACK = aten._pack_padded_sequence.default  # wants lengths, and gives counts, on the CPU everywhere
_MEETING = (*_COPYING, _PACK, aten._pack_padded_sequence_backward.default)


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
    """Tell the shapes of a GRU's fused step, which no CPU has; PyTorch does so for the LSTM's.

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


class Elsewhere(torch.Tensor):
    """A tensor on the made-up device; its numbers are those of `held`, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(fake_device(), 0),  # autograd has a queue for each number
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _carry_out(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees to it that tensors can be made on the made-up device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carry_out(func, args, kwargs or {})


def _carry_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation, on the numbers; the result lies where it would on a machine with both."""
    tensors = [leaf for leaf in _leaves((args, *kwargs.values())) if _is_tensor(leaf)]
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if there and func not in _MEETING:
        _complain_about_strays(func, args, tensors)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == fake_device()
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = _run(func, _numbers(args), {name: _numbers(arg) for name, arg in kwargs.items()})
    if not there:
        return result
    if func is _PACK:
        return Elsewhere(result[0]), result[1]
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the numbers have a new form; so must the tensor that stands for them
            func(*args, **kwargs)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for tensor in tensors:
            if _numbers(tensor) is leaf:  # changed in place and returned
                return tensor
        return Elsewhere(leaf)

    return place(result) if _is_tensor(result) else tree_map(place, result)


def _complain_about_strays(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """Raise where an operation meets a tensor of the CPU; a single number may come from there."""
    free = tree_leaves(args[1]) if func in _INDEXING and isinstance(args[0], Elsewhere) else []
    for tensor in tensors:
        allowed = isinstance(tensor, Elsewhere) or any(tensor is index for index in free)
        if not allowed and tensor.ndim > 0:
            raise RuntimeError(f"{MIXED}, {NAME} and cpu! ({func})")


def _numbers(value: Any) -> Any:
    """The same arguments on the CPU; an operation takes tensors and lists of them."""
    if isinstance(value, (tuple, list)):
        return type(value)([_numbers(item) for item in value])
    return value.held if isinstance(value, Elsewhere) else value


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, (tuple, list)):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; zeros of the right form where only other devices have it."""
    try:
        return func(*args, **kwargs)
    except NotImplementedError:
        shapes = tree_map(_as_shape, (args, kwargs))
        return tree_map(
            lambda leaf: torch.zeros_like(leaf, device="cpu") if _is_tensor(leaf) else leaf,
            func(*shapes[0], **shapes[1]),
        )


def _as_shape(leaf: Any) -> Any:
    return leaf.to("meta") if _is_tensor(leaf) else leaf


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _move_module(module: torch.nn.Module) -> None:
    """What `module.to(device)` does: parameters and registered buffers, and nothing else."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = Elsewhere(parameter.detach())
                part._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)


def run_on_fake_device(
    make: Callable[[], Callable[..., Any]], args: Any, kwargs: Any, differentiate: bool
) -> str | None:
    """Run `make()(*args, **kwargs)`, and its backward pass, on the made-up device.

    Returns None when it ran, or one of the reasons `"mixed"` (tensors of two devices met),
    `"moved"` (the result is on another device), `"numpy"` (it left PyTorch).
    """

    def move(value: Any) -> Any:
        if isinstance(value, torch.nn.Module):  # a peer: it stays there, good for no other call
            _move_module(value)
        if not isinstance(value, torch.Tensor):
            return value
        there = Elsewhere(value.detach())
        return there.requires_grad_() if differentiate and there.is_floating_point() else there

    with _Everywhere():
        try:
            function = make()
            owner = getattr(function, "__self__", function)  # of a method: the module it belongs to
            if isinstance(owner, torch.nn.Module):
                _move_module(owner)
            result = function(*tree_map(move, args), **tree_map(move, kwargs))
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if any(tensor.device.type != fake_device() for tensor in tensors):
                return "moved"
            losses = [tensor.sum() for tensor in tensors if tensor.requires_grad]
            if differentiate and losses:
                torch.autograd.backward(losses)
        except (RuntimeError, TypeError) as error:
            return _reason(error)
    return None


def _reason(error: Exception) -> str | None:
    """What the error says about devices; other errors are limits of the made-up device."""
    text = str(error).lower()
    # Autograd's threads started before the device was known, or an operation does not know it.
    if "internal assert" in text or "could not run" in text:
        return None
    if "numpy" in text:
        return "numpy"
    return "mixed" if "device" in text else None


fake_device()
_GRU_SHAPES = _describe_gru()
