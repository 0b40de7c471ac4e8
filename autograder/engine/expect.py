"""Expectations: compare what came back with what is right, and say where they part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from autograder.child.protocol import Items, Parameter

# Relative and absolute tolerance by dtype: some hundred times the rounding of one operation.
TOLERANCES = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float16: (1e-2, 1e-2),
}


LESS_PRECISE = (
    "right to six digits and no further, where {dtype} has more. Some tensor on the way is of a"
    " shorter type, such as `torch.zeros(...)` without `dtype=x.dtype`."
)


class Mismatch(AssertionError):
    """An expectation that does not hold; its text is written for the student.

    `mistake` names a misconception of the exercise that this alone gives away.
    """

    def __init__(self, message: str, mistake: str | None = None):
        super().__init__(message)
        self.mistake = mistake


def fail(message: str, mistake: str | None = None) -> None:
    """Reject outright; `mistake` is the name of a misconception this shows beyond doubt."""
    raise Mismatch(message, mistake)


class expect:
    """`expect(value, "the weights")` opens a comparison; the name appears in messages."""

    def __init__(self, value: Any, name: str = "the result"):
        self.value, self.name = value, name

    def close_to(self, right: Any, rtol: float | None = None, atol: float | None = None) -> None:
        """Equal up to rounding, in structure, shape and every number."""
        actual, _ = tree_flatten(self.value)
        wanted, _ = tree_flatten(right)
        if len(wanted) == 1 and len(actual) == 1:
            _close(self.value, right, self.name, rtol, atol)
            return
        if len(actual) != len(wanted):
            raise Mismatch(
                f"{self.name}: expected {len(wanted)} values, got {_kind(self.value)}"
                f" holding {len(actual)}."
            )
        for position, (have, want) in enumerate(zip(actual, wanted, strict=True), start=1):
            _close(have, want, f"{self.name}, part {position} of {len(wanted)}", rtol, atol)

    def equals(self, right: Any) -> None:
        """Exactly equal: for integers, booleans, strings and structures of them."""
        if isinstance(right, torch.Tensor):
            _close(self.value, right, self.name, 0.0, 0.0)
        elif self.value != right or type(self.value) is not type(right):
            raise Mismatch(f"{self.name}: expected {_show(right)}, got {_show(self.value)}.")

    def has_shape(self, *shape: int) -> None:
        """A tensor of exactly this shape."""
        tensor = _tensor(self.value, self.name)
        if tuple(tensor.shape) != shape:
            raise Mismatch(f"{self.name}: expected shape {shape}, got {tuple(tensor.shape)}.")

    def has_dtype(self, dtype: torch.dtype) -> None:
        """A tensor of exactly this dtype."""
        tensor = _tensor(self.value, self.name)
        if tensor.dtype is not dtype:
            raise Mismatch(f"{self.name}: expected dtype {dtype}, got {tensor.dtype}.")

    def holds(self, condition: bool, message: str, mistake: str | None = None) -> None:
        """A property the author worded: `message` says what is wrong when it fails."""
        if not condition:
            raise Mismatch(f"{self.name}: {message}", mistake)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(value: float) -> str:
    return str(value) if isinstance(value, (bool, int)) else f"{value:.6g}"


def _tensor(value: Any, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise Mismatch(f"{name}: expected a tensor, got {_kind(value)}.")
    return value


def _close(value: Any, right: Any, name: str, rtol: float | None, atol: float | None) -> None:
    if right is None:
        if value is not None:
            raise Mismatch(f"{name}: expected None, got {_kind(value)}.")
        return
    if isinstance(right, (bool, str, bytes)):
        expect(value, name).equals(right)
        return
    if isinstance(right, (int, float)):
        right = torch.tensor(right, dtype=torch.float64)
        if isinstance(value, (int, float)):
            value = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, torch.Tensor) and value.numel() == 1:
            right = right.to(value.dtype) if value.is_floating_point() else right
            value = value.reshape(())
    elif isinstance(value, (int, float)) and right.ndim == 0:
        value = torch.tensor(value, dtype=right.dtype)  # "a scalar may be a float"
    value = _tensor(value, name)
    if value.shape != right.shape:
        raise Mismatch(f"{name}: expected shape {tuple(right.shape)}, got {tuple(value.shape)}.")
    coarse = value.dtype if value.dtype in TOLERANCES else right.dtype
    default = TOLERANCES.get(coarse, (0.0, 0.0)) if right.is_floating_point() else (0.0, 0.0)
    rtol, atol = default[0] if rtol is None else rtol, default[1] if atol is None else atol
    have, want = value.to(torch.float64), right.to(torch.float64)
    off = ~torch.isclose(have, want, rtol=rtol, atol=atol, equal_nan=True)
    if off.any():
        raise Mismatch(_first_difference(value, right, off, name))


def _first_difference(
    value: torch.Tensor, right: torch.Tensor, off: torch.Tensor, name: str
) -> str:
    """The first differing entry with both numbers, and how many differ."""
    count, total = int(off.sum()), off.numel()
    index = tuple(int(i) for i in off.nonzero()[0])
    want, have = _number(right[index].item()), _number(value[index].item())
    if want == have:
        return f"{name}: {LESS_PRECISE.format(dtype=right.dtype)}"
    where = f" at {list(index)}" if index else ""
    rest = f" ({count} of {total} entries differ)" if total > 1 else ""
    return f"{name}: expected {want}, got {have}{where}{rest}."


def same(one: Any, other: Any) -> bool:
    """Whether two results agree up to rounding; used to recognize a known mistake."""
    try:
        left, left_spec = tree_flatten(tree_map(_plain, _in_one_order(one)))
        right, right_spec = tree_flatten(tree_map(_plain, _in_one_order(other)))
        if len(left) != len(right) or left_spec != right_spec:
            return False
        for have, want in zip(left, right, strict=True):
            if isinstance(want, torch.Tensor) and isinstance(have, torch.Tensor):
                if have.dtype != want.dtype:
                    return False
                _close(have, want, "", 1e-4, 1e-6)
            elif isinstance(want, float) and isinstance(have, float):
                if not (
                    math.isclose(have, want, rel_tol=1e-4, abs_tol=1e-6)
                    or (math.isnan(have) and math.isnan(want))
                ):
                    return False
            elif have != want:
                return False
    except (Mismatch, RuntimeError, ValueError, TypeError):
        return False
    return True


def _in_one_order(value: Any) -> Any:
    """The value with the keys of its dictionaries sorted: the order of writing says nothing."""
    if isinstance(value, dict):
        return {key: _in_one_order(value[key]) for key in sorted(value, key=repr)}
    if type(value) in (list, tuple):
        return type(value)(map(_in_one_order, value))
    return value


def _plain(leaf: Any) -> Any:
    """A leaf in the form in which it compares: markers as tuples, a 0-dim tensor as its number."""
    if isinstance(leaf, Parameter):
        return tuple(_plain(part) for part in (leaf.data, leaf.grad, leaf.grad_before))
    if isinstance(leaf, Items):
        return tree_map(_plain, list(leaf.items))
    return leaf.item() if isinstance(leaf, torch.Tensor) and leaf.ndim == 0 else leaf


def pulled_by_autograd(
    function: Callable[..., Any], args: tuple[Any, ...], cotangent: Any
) -> tuple[Any, ...]:
    """Gradients of <cotangent, function(*args)> for every argument, by autograd."""
    args = tree_map(lambda leaf: leaf.detach().requires_grad_(), args)
    outputs = tree_leaves(function(*args))
    found = iter(torch.autograd.grad(outputs, tree_leaves(args), tree_leaves(cotangent)))
    return tuple(tree_map(lambda _: next(found), args))
