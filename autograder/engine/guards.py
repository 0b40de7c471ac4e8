"""Guards that every exercise wants: gradients flow, inputs stay, dtype and device are kept.

One call, `guard(exercise, inputs)`, declares them. Each failure has a sentence of its own, which
is the message of the generic mistake that the kill table plants in a right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from autograder.engine.exercise import Exercise, Rng
from autograder.engine.expect import fail, same
from autograder.engine.handle import Handle, StudentError

GRADIENT_TITLE = "gradients reach the inputs"
MUTATION_TITLE = "inputs are left as they were"
DTYPE_TITLE = "float32 in, float32 out; float64 in, float64 out"
DEVICE_TITLE = "works on any device"

DETACHED = "No gradient flows from the result back to the inputs: something detaches it."
MUTATES = (
    "The call changed a tensor that was passed in. Work on a copy, or avoid in-place operations."
)
DTYPE = "The result is not of the inputs' dtype: something is fixed to one floating-point type."
DEVICE = {
    "mixed": "A tensor is made on the CPU while the inputs are on another device."
    " Make it with `device=x.device`, or from an input with `new_zeros` and its like.",
    "moved": "The result is not on the inputs' device. Make new tensors with `device=x.device`.",
    "numpy": "The computation leaves PyTorch for NumPy, which works on the CPU alone"
    " and cuts the gradient.",
}

Inputs = Callable[[Rng, torch.dtype], tuple[Any, ...]]
Build = tuple[Any, ...] | Callable[[Handle], tuple[Any, ...]] | None


def guard(
    exercise: Exercise,
    inputs: Inputs,
    *,
    build: Build = None,
    gradient: bool = True,
    mutation: bool = True,
    dtype: bool = True,
    device: bool = True,
) -> None:
    """Declare the standard guards of an exercise.

    `inputs(rng, dtype)` makes the arguments of one call. For a class, `build` holds the
    constructor's arguments, or makes them from the handle where one of them is an object that
    lives beside the student's code. The four flags leave a guard out where it has no meaning.
    """

    def subject(student: Handle, rng: Rng, kind: torch.dtype) -> Handle:
        """The function, or a module with random weights of the wanted dtype."""
        if build is None:
            return student
        module = student.hold(*_arguments(build, student))
        weights = rng.like(module.shapes())
        return module.load({name: w.to(kind) for name, w in weights.items()}).eval()

    if gradient:
        _guard_gradient(exercise, inputs, subject)
    if mutation:
        _guard_mutation(exercise, inputs, subject)
    if dtype:
        _guard_dtype(exercise, inputs, subject)
    if device:
        _guard_device(exercise, inputs, build)


def _arguments(build: Build, student: Handle) -> tuple[Any, ...]:
    return build(student) if callable(build) else build or ()


def _floating(value: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(value)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def _guard_gradient(exercise: Exercise, inputs: Inputs, subject: Callable[..., Handle]) -> None:
    @exercise.case(GRADIENT_TITLE, guard=True)
    def _(student: Handle, rng: Rng) -> None:
        function = subject(student, rng, torch.float64)
        args = inputs(rng, torch.float64)
        value = function(*args)
        cotangent = tree_map(lambda leaf: _cotangent(leaf, rng), value)
        wrt = tuple(i for i, arg in enumerate(args) if _floating(arg))
        try:
            pulled = function.vjp(*args, cotangent=cotangent, wrt=wrt)
        except StudentError as error:
            if error.kind == "NoGradient":
                fail(DETACHED)
            raise
        found = [g for g in tree_leaves([pulled.inputs, pulled.parameters]) if g is not None]
        if not any(bool(gradient.abs().sum() > 0) for gradient in found):
            fail(DETACHED)


def _cotangent(leaf: Any, rng: Rng) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        return rng.normal(*leaf.shape, dtype=leaf.dtype)
    return None


def _guard_mutation(exercise: Exercise, inputs: Inputs, subject: Callable[..., Handle]) -> None:
    @exercise.case(MUTATION_TITLE, guard=True)
    def _(student: Handle, rng: Rng) -> None:
        function = subject(student, rng, torch.float64)
        args = inputs(rng, torch.float64)
        if not same(function.after(*args).args, tuple(args)):
            fail(MUTATES)


def _guard_dtype(exercise: Exercise, inputs: Inputs, subject: Callable[..., Handle]) -> None:
    @exercise.case(DTYPE_TITLE, guard=True)
    def _(student: Handle, rng: Rng) -> None:
        for kind in (torch.float32, torch.float64):
            value = subject(student, rng, kind)(*inputs(rng, kind))
            if any(leaf.dtype is not kind for leaf in _floating(value)):
                fail(DTYPE)


def _guard_device(exercise: Exercise, inputs: Inputs, build: Build) -> None:
    @exercise.case(DEVICE_TITLE, guard=True)
    def _(student: Handle, rng: Rng) -> None:
        made = None if build is None else _arguments(build, student)
        reason = student.on_fake_device(*inputs(rng, torch.float32), build=made)
        if reason is not None:
            fail(DEVICE.get(reason, DEVICE["mixed"]))
