"""Executes requests on a student's objects. The same code serves the notebook and the grader.

A request is a dict with an `op`; a reply is a dict with the result, or with an `error` that says
what the student's code raised and in which line. Every value in a reply is data; whether it is
right is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from autograder.child import stand_ins  # in the sandbox, nothing of ours can be imported later
from autograder.child.devices import run_on_fake_device
from autograder.child.protocol import Callback, Items, Parameter, ProtocolError, Ref, Seed, decode

# Whose classes a check may build beside the student's: the package's, and stand-ins for some.
PEERS = ("rnn2gpt.", stand_ins.__name__)


class Watch(TorchFunctionMode):
    """Notes which of the named PyTorch functions are called while it is active and, if `sizes`
    matter, how many numbers the largest tensor in memory holds that any function returned."""

    def __init__(self, names: list[str], sizes: bool):
        super().__init__()
        self.names, self.used = set(names), set[str]()
        self.sizes, self.largest = sizes, 0

    def __enter__(self) -> Watch:
        if self.names or self.sizes:  # each call into PyTorch costs more under a mode
            super().__enter__()
        return self

    def __exit__(self, *ended: Any) -> None:
        if self.names or self.sizes:
            super().__exit__(*ended)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.names:
            self.used.add(name)
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not self.sizes:
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                held = (
                    leaf.untyped_storage().nbytes() // leaf.itemsize
                )  # an expanded view holds few
                self.largest = max(self.largest, held)
        return result


class Worker:
    """Holds a student's namespace and the objects that checks asked it to keep."""

    def __init__(
        self,
        namespace: Mapping[str, Any],
        call_back: Callable[[int, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ):
        self.namespace = namespace
        self.call_back = call_back
        self.kept: dict[int, Any] = {}
        self.watched: list[str] = []  # names of functions whose use is to be noted
        self.origins: list[tuple[Any, Any]] = []  # (marker, the live object made from it)

    def resolve(self, marker: Any) -> Any:
        """The live object that a marker in a request stands for."""
        if isinstance(marker, Ref):
            if marker.id not in self.kept:
                raise ProtocolError(f"no kept object has number {marker.id}")
            return self.kept[marker.id]
        if isinstance(marker, Seed):
            return torch.Generator().manual_seed(marker.seed)
        if isinstance(marker, Parameter):
            return self._remember(marker, _live_parameter(marker))
        if isinstance(marker, Items):
            return self._remember(marker, _once(list(marker.items)))
        assert isinstance(marker, Callback)
        return lambda *args, **kwargs: self.call_back(marker.id, args, kwargs)  # type: ignore[misc]

    def _remember(self, marker: Any, live: Any) -> Any:
        before = live.grad if isinstance(live, torch.nn.Parameter) else marker
        self.origins.append((before, live))
        return live

    def answer_all(self, requests: list[Any], blobs: list[bytes]) -> list[dict[str, Any]]:
        """The replies to encoded requests, in order, up to the first that fails.

        Each is decoded when its turn comes, since it may name what the one before it made.
        """
        replies = list[dict[str, Any]]()
        for request in requests:
            try:
                reply = self.answer(decode(request, blobs, self.resolve))
            except ProtocolError as error:
                reply = {"error": describe(error)}
            replies.append(reply)
            if "error" in reply:
                break
        return replies

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request. What the student's code raises becomes part of the reply."""
        operation = getattr(self, f"_op_{request['op']}")
        try:
            return operation(**{name: value for name, value in request.items() if name != "op"})
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # student code may raise anything, SystemExit included
            return {"error": describe(error)}
        finally:
            self.origins.clear()

    def _find(self, target: Any, method: str | None) -> Any:
        if isinstance(target, str):
            if target not in self.namespace:
                raise NotImplementedError(f"{target} is not defined")
            target = self.namespace[target]
        return getattr(target, method) if method else target

    def _keep(self, value: Any) -> Ref:
        self.kept[len(self.kept)] = value
        return Ref(len(self.kept) - 1)

    def _op_call(
        self,
        target: Any,
        method: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: bool = False,
        after: bool = False,
        sizes: bool = False,
        wrt: list[int | str] | None = None,
        cotangent: Any = None,
        inside: Any = None,
    ) -> dict[str, Any]:
        function = self._find(target, method)
        if wrt is not None:
            args, kwargs = _differentiable(args, kwargs, wrt)
        value, around = None, contextlib.nullcontext() if inside is None else inside
        names = [] if isinstance(function, type) else self.watched  # what is built computes later
        with around, Watch(names, sizes) as watching:  # `around` may swallow an error
            value = function(*args, **kwargs)
        reply: dict[str, Any] = {"used": sorted(watching.used), "largest": watching.largest}
        if wrt is not None:
            inputs = [args[key] if isinstance(key, int) else kwargs[key] for key in wrt]
            owner = target if isinstance(target, torch.nn.Module) else None
            reply |= _pull_back(value, cotangent, inputs, owner)
        reply["value"] = self._keep(value) if keep else _outgoing(value)
        if keep and isinstance(value, torch.nn.Module):
            reply["shapes"] = _shapes(value)
        if after:
            reply["after"] = self._view((tuple(args), kwargs))
        return reply

    def _view(self, value: Any) -> Any:
        """Arguments as they are now, live parameters turned back into markers."""
        for before, live in self.origins:
            if live is value and isinstance(live, torch.nn.Parameter):
                return Parameter(live.detach(), live.grad, before)
            if live is value:
                return Items([self._view(item) for item in before.items])
        if isinstance(value, (tuple, list)):
            return type(value)(self._view(item) for item in value)
        if isinstance(value, dict):
            return {key: self._view(item) for key, item in value.items()}
        return _outgoing(value)

    def _op_peer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        module, _, attribute = name.partition(":")
        if not module.startswith(PEERS):
            raise ProtocolError(f"{name} is not a class that a check may build")
        cls = getattr(importlib.import_module(module), attribute)
        return {"value": self._keep(cls(*args, **kwargs))}

    def _op_keep(self, value: Any) -> dict[str, Any]:
        return {"value": self._keep(value)}

    def _op_get(self, target: Any, name: str, keep: bool = False) -> dict[str, Any]:
        value = getattr(self._find(target, None), name)
        return {"value": self._keep(value) if keep else _outgoing(value)}

    def _op_exists(self, target: str) -> dict[str, Any]:
        return {"value": target in self.namespace}

    def _op_parameters(self, target: torch.nn.Module) -> dict[str, Any]:
        return {"value": {name: p.detach() for name, p in target.named_parameters()}}

    def _op_shapes(self, target: torch.nn.Module) -> dict[str, Any]:
        return {"value": _shapes(target)}

    def _op_gradients(self, target: torch.nn.Module) -> dict[str, Any]:
        return {"value": {name: p.grad for name, p in target.named_parameters()}}

    def _op_trainable(self, target: torch.nn.Module) -> dict[str, Any]:
        return {"value": {name: p.requires_grad for name, p in target.named_parameters()}}

    def _op_load(self, target: torch.nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
        dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
        named = dict(target.named_parameters())
        here = [*named.values(), *target.buffers()]
        if len(dtypes) == 1 and {x.dtype for x in here if x.is_floating_point()} != dtypes:
            target.to(dtypes.pop())
            named = dict(target.named_parameters())  # a model may make new ones
        if _fit(named, weights):
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(weights[name])
            return {"value": None}
        # Buffers keep their values, and tied weights go by one of their names.
        unknown = target.load_state_dict(weights, strict=False).unexpected_keys
        missing = {name for name, _ in target.named_parameters()} - weights.keys()
        if unknown or missing:
            raise KeyError(f"unknown parameters {unknown}, missing parameters {sorted(missing)}")
        return {"value": None}

    def _op_mode(self, target: torch.nn.Module, train: bool) -> dict[str, Any]:
        target.train(train)
        return {"value": None}

    def _op_fake(
        self,
        target: Any,
        method: str | None,
        build: tuple[Any, ...] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        differentiate: bool,
    ) -> dict[str, Any]:
        def make() -> Any:
            found = self._find(target, method if build is None else None)
            if build is None:
                return found
            made = found(*build)
            return getattr(made, method) if method else made

        return {"value": run_on_fake_device(make, args, kwargs, differentiate)}

    def _op_begin(self, watch: list[str]) -> dict[str, Any]:
        """A case begins: what earlier ones kept is forgotten."""
        self.kept.clear()
        self.watched = watch
        return {"value": None}


def _shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in module.named_parameters()}


def _fit(named: dict[str, torch.nn.Parameter], weights: dict[str, Any]) -> bool:
    """Whether there is a weight for each parameter, of its shape, and no other."""
    if named.keys() != weights.keys():
        return False
    return all(parameter.shape == weights[name].shape for name, parameter in named.items())


def _live_parameter(marker: Parameter) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(marker.data)
    parameter.grad = marker.grad
    return parameter


def _once(items: list[Any]) -> Iterator[Any]:
    yield from items


def _differentiable(args: Any, kwargs: Any, wrt: list[int | str]) -> tuple[Any, Any]:
    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().requires_grad_()
        return value

    args = tuple(tree_map(leaf, arg) if i in wrt else arg for i, arg in enumerate(args))
    kwargs = {name: tree_map(leaf, arg) if name in wrt else arg for name, arg in kwargs.items()}
    return args, kwargs


def _pull_back(
    value: Any, cotangent: Any, inputs: list[Any], owner: torch.nn.Module | None
) -> dict[str, Any]:
    """Gradients of <cotangent, value> for the inputs and the owner's parameters."""
    if callable(cotangent):  # the check makes it from the value
        cotangent = cotangent(_outgoing(value))
    outputs, vectors = [], []
    for output, vector in zip(tree_leaves(value), tree_leaves(cotangent), strict=True):
        if vector is not None:
            outputs.append(output)
            vectors.append(vector)
    if not any(isinstance(o, torch.Tensor) and o.requires_grad for o in outputs):
        raise NoGradient("the result is cut off from the inputs: no gradient flows back")
    named = dict(owner.named_parameters()) if owner is not None else {}
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    wanted = [leaf for leaf in [*leaves, *named.values()] if leaf.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, vectors, allow_unused=True))
    by_id = {id(leaf): gradient for leaf, gradient in zip(wanted, found, strict=True)}
    return {
        "input_gradients": tree_map(lambda leaf: by_id.get(id(leaf)), inputs),
        "parameter_gradients": {name: by_id.get(id(p)) for name, p in named.items()},
    }


class NoGradient(RuntimeError):
    """The student's result does not depend on its inputs, as autograd sees it."""


def _outgoing(value: Any) -> Any:
    """A copy of the structure with tensors detached, so that later changes do not show."""
    return tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value
    )


def describe(error: BaseException) -> dict[str, Any]:
    """Kind, text and place of an error, the place being the last line of the student's own."""
    library = (str(Path(__file__).parent.parent), sys.prefix, sys.base_prefix, "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(library)]
    kinds = [cls.__name__ for cls in type(error).__mro__]
    return {
        "kind": kinds[0],
        "kinds": kinds,
        "message": str(error)[:1000],
        "line": (own[-1].line or "")[:200] if own else "",
    }
