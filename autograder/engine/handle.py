"""A handle: what a check holds instead of the student's object.

A check never touches the object. It asks a handle to call it, build it, load weights into it,
differentiate it; the handle turns each wish into one request to a `Worker`. In a notebook the
worker sits in the same process (`Local`); in the grader it sits in a sandboxed child and the
requests travel over a pipe. The check cannot tell the difference, and neither can a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from autograder.child.protocol import Callback, Parameter, ProtocolError, Ref, decode, encode
from autograder.child.worker import Worker


class StudentError(Exception):
    """The student's code raised. `kinds` names the error's class and its bases."""

    def __init__(self, kinds: list[str], message: str, line: str = ""):
        super().__init__(message)
        self.kinds, self.message, self.line = kinds, message, line

    @property
    def kind(self) -> str:
        return self.kinds[0]


class Ended(Exception):
    """The student's code ended or hung its process. The text continues the object's name."""


class Missing(Exception):
    """The student has not written this yet."""


class Pullback(NamedTuple):
    """A result together with the gradients of <cotangent, result>."""

    value: Any
    inputs: tuple[Any, ...]  # one entry per name or position in `wrt`, None where none flows
    parameters: dict[str, torch.Tensor | None]  # of the module, empty for a function


class After(NamedTuple):
    """A result together with the arguments as the call left them."""

    value: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Transport(Protocol):
    """Carries one request to a worker and its reply back."""

    def send(self, request: dict[str, Any], callbacks: Mapping[int, Callable[..., Any]]) -> Any: ...


class Local:
    """A worker in this process; values still pass through the protocol, as in the grader."""

    def __init__(self, namespace: Mapping[str, Any]):
        self.callbacks: Mapping[int, Callable[..., Any]] = {}
        self.worker = Worker(namespace, self._call_back)

    def send(self, request: dict[str, Any], callbacks: Mapping[int, Callable[..., Any]]) -> Any:
        self.callbacks = callbacks
        reply = self.worker.answer(decode(*encode(request), self.worker.resolve))
        try:
            return decode(*encode(reply))
        except ProtocolError as error:
            return {"error": {"kinds": ["ProtocolError"], "message": str(error), "line": ""}}

    def _call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.callbacks[number](*args, **kwargs)


@dataclass(frozen=True)
class Step:
    """One thing a check learned about an object: the verb, and a value or the error's kind."""

    verb: str
    value: Any
    error: str | None = None


class Conversation:
    """All that one case asks of one object, with what came back, in order."""

    def __init__(self, transport: Transport, watch: tuple[str, ...] = ()):
        self.transport, self.watch = transport, watch
        self.steps: list[Step] = []
        self.used: set[str] = set()  # forbidden functions that were seen at work
        self.callbacks: dict[int, Callable[..., Any]] = {}

    def ask(self, verb: str, quiet: bool = False, **request: Any) -> dict[str, Any]:
        """Send a request; `quiet` requests leave no step behind."""
        reply = self.transport.send({"op": verb, **request}, self.callbacks)
        if not isinstance(reply, dict):
            raise StudentError(["ProtocolError"], "the reply is not in the protocol's form")
        if "error" in reply:
            error = _student_error(reply["error"])
            self.steps.append(Step(verb, None, f"{error.kind}: {error.message}"))
            if "NotImplementedError" in error.kinds:
                raise Missing(error.message)
            raise error
        self.used.update(name for name in reply.get("used", ()) if name in self.watch)
        if not quiet:
            known = ("value", "after", "input_gradients", "parameter_gradients")
            self.steps.append(Step(verb, {key: reply[key] for key in known if key in reply}))
        return reply


def _student_error(fields: Any) -> StudentError:
    """An error as the worker reported it, with every field forced to its type."""
    fields = fields if isinstance(fields, dict) else {}
    kinds = fields.get("kinds")
    kinds = [str(kind)[:80] for kind in kinds] if isinstance(kinds, list) and kinds else ["Error"]
    return StudentError(kinds, str(fields.get("message"))[:1000], str(fields.get("line", ""))[:200])


class Handle:
    """One object beside the student's code: a function, a class, a module, any kept value."""

    def __init__(self, conversation: Conversation, target: str | Ref, method: str | None = None):
        self._conversation, self._target, self._method = conversation, target, method

    def _wire(self, value: Any) -> Any:
        """Handles become references and functions become callbacks on their way out."""
        if isinstance(value, Handle):
            return value._target
        if isinstance(value, (list, tuple)) and not isinstance(value, Parameter):
            return type(value)(self._wire(item) for item in value)
        if isinstance(value, dict):
            return {key: self._wire(item) for key, item in value.items()}
        if callable(value) and not isinstance(value, (torch.Tensor, torch.dtype, torch.device)):
            number = len(self._conversation.callbacks)
            self._conversation.callbacks[number] = value
            return Callback(number)
        return value

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], **how: Any) -> dict[str, Any]:
        return self._conversation.ask(
            "call",
            target=self._target,
            method=self._method,
            args=self._wire(args),
            kwargs=self._wire(kwargs),
            watch=list(self._conversation.watch),
            **how,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object and return its result as plain values and tensors."""
        return self._call(args, kwargs)["value"]

    def hold(self, *args: Any, **kwargs: Any) -> Handle:
        """Call the object, or build the class, and return a handle on the result."""
        ref = self._call(args, kwargs, keep=True)["value"]
        if not isinstance(ref, Ref):
            raise StudentError(["ProtocolError"], "the reply is not in the protocol's form")
        return Handle(self._conversation, ref)

    def after(self, *args: Any, **kwargs: Any) -> After:
        """Call the object and look at its arguments afterwards."""
        reply = self._call(args, kwargs, after=True)
        after_args, after_kwargs = reply["after"]
        return After(reply["value"], after_args, after_kwargs)

    def inside(self, context: Handle, *args: Any, **kwargs: Any) -> Any:
        """Call the object within `with context:`, a context manager held beside it.

        What the call raises leaves through the context manager, as in a student's own code.
        """
        return self._call(args, kwargs, inside=context._target)["value"]

    def largest(self, *args: Any, **kwargs: Any) -> int:
        """Call the object; how many numbers the largest tensor holds that was made on the way.

        It is seen beside the student's code, so it can cost points and never earn them.
        """
        return int(self._call(args, kwargs, sizes=True)["largest"])

    def vjp(
        self, *args: Any, cotangent: Any, wrt: tuple[int | str, ...] = (), **kwargs: Any
    ) -> Pullback:
        """Call the object and pull `cotangent` (shaped like the result) back.

        `wrt` names the arguments, by position or keyword, whose gradients are wanted. For a
        module the gradients of all its parameters come too.
        """
        reply = self._call(args, kwargs, wrt=list(wrt), cotangent=cotangent)
        return Pullback(
            reply["value"], tuple(reply["input_gradients"]), reply["parameter_gradients"]
        )

    def method(self, name: str) -> Handle:
        """A handle on a method of this object."""
        return Handle(self._conversation, self._target, name)

    def get(self, name: str) -> Any:
        """The value of an attribute."""
        return self._conversation.ask("get", target=self._target, name=name)["value"]

    def parameters(self) -> dict[str, torch.Tensor]:
        """A module's parameters by name."""
        return self._conversation.ask("parameters", quiet=True, target=self._target)["value"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a module's parameters by name."""
        found = self._conversation.ask("shapes", target=self._target)["value"]
        return {str(name): tuple(shape) for name, shape in found.items()}

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """The `.grad` of a module's parameters by name."""
        return self._conversation.ask("gradients", target=self._target)["value"]

    def trainable(self) -> dict[str, bool]:
        """Which of a module's parameters require a gradient."""
        return self._conversation.ask("trainable", target=self._target)["value"]

    def load(self, weights: Mapping[str, torch.Tensor]) -> Handle:
        """Copy weights into a module (and make it theirs in dtype); returns the handle."""
        self._conversation.ask("load", target=self._target, weights=dict(weights))
        return self

    def train(self, on: bool = True) -> Handle:
        """Put a module in training mode; returns the handle."""
        self._conversation.ask("mode", target=self._target, train=on)
        return self

    def eval(self) -> Handle:
        """Put a module in evaluation mode; returns the handle."""
        return self.train(False)

    def keep(self, value: Any) -> Handle:
        """Send a value once and hold it there, a random generator for two calls, say."""
        reply = self._conversation.ask("keep", quiet=True, value=self._wire(value))
        return Handle(self._conversation, reply["value"])

    def peer(self, name: str, *args: Any, **kwargs: Any) -> Handle:
        """Build one of the package's own classes beside the student's: `"rnn2gpt.rnn:CharRNN"`."""
        reply = self._conversation.ask(
            "peer", quiet=True, name=name, args=self._wire(args), kwargs=self._wire(kwargs)
        )
        return Handle(self._conversation, reply["value"])

    def on_fake_device(
        self,
        *args: Any,
        build: tuple[Any, ...] | None = None,
        differentiate: bool = True,
        **kwargs: Any,
    ) -> str | None:
        """Run on a device that holds no data; see `child.devices.run_on_fake_device`.

        `build` holds the constructor's arguments where the object is a class; a handle on one of
        its methods then runs that method of the module made.
        """
        reply = self._conversation.ask(
            "fake",
            target=self._target,
            method=self._method,
            build=self._wire(build),
            args=self._wire(args),
            kwargs=self._wire(kwargs),
            differentiate=differentiate,
        )
        return reply["value"]
