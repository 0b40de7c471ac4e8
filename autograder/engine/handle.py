"""A handle: what a check holds instead of the student's object.

A check never touches the object. It asks a handle to call it, build it, load weights into it,
differentiate it; the handle turns each wish into one request to a `Worker`. In a notebook the
worker sits in the same process (`Local`); in the grader it sits in a sandboxed child and the
requests travel over a pipe. The check cannot tell the difference, and neither can a verdict.

A trip over the pipe costs more than most requests. So what has nothing to tell (loading weights,
changing the mode, building one of ours) waits and travels with the next question, in order.
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
    """Carries requests to a worker and brings a reply to each, up to the first that fails."""

    def send(
        self, requests: list[dict[str, Any]], callbacks: Mapping[int, Callable[..., Any]]
    ) -> Any: ...


class Local:
    """A worker in this process; values still pass through the protocol, as in the grader."""

    def __init__(self, namespace: Mapping[str, Any]):
        self.callbacks: Mapping[int, Callable[..., Any]] = {}
        self.worker = Worker(namespace, self._call_back)

    def send(
        self, requests: list[dict[str, Any]], callbacks: Mapping[int, Callable[..., Any]]
    ) -> Any:
        self.callbacks = callbacks
        replies = self.worker.answer_all(*encode(requests))
        try:
            return decode(*encode(replies))
        except ProtocolError as error:  # of the last, since only questions have values to tell
            told = {"error": {"kinds": ["ProtocolError"], "message": str(error), "line": ""}}
            return [*replies[:-1], told]

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
        self.kept = 0  # objects that the worker was told to keep; it numbers them in order
        self.said = 0  # requests; where none was added, nothing can have changed over there
        self._waiting: list[tuple[str, bool, dict[str, Any]]] = []
        self.later("begin", quiet=True, watch=list(watch))

    def ask(self, verb: str, quiet: bool = False, **request: Any) -> dict[str, Any]:
        """Send a request, after those that wait; `quiet` requests leave no step behind."""
        self.later(verb, quiet, **request)
        return self._send()

    def later(self, verb: str, quiet: bool = False, **request: Any) -> None:
        """A request whose reply says nothing: it goes with the next question."""
        self.said += 1
        self._waiting.append((verb, quiet, request))

    def settle(self) -> None:
        """Send what still waits."""
        if self._waiting:
            self._send()

    def keep(self) -> Ref:
        """The name of the next object that the worker keeps."""
        self.kept += 1
        return Ref(self.kept - 1)

    def _send(self) -> dict[str, Any]:
        waiting, self._waiting = self._waiting, []
        requests = [{"op": verb, **request} for verb, _, request in waiting]
        replies = self.transport.send(requests, self.callbacks)
        replies = replies if isinstance(replies, list) else [replies]
        for (verb, quiet, _), reply in zip(waiting, replies, strict=False):
            self._note(verb, quiet, reply)
        if len(replies) != len(waiting):
            raise StudentError(["ProtocolError"], "the reply is not in the protocol's form")
        reply = replies[-1]
        assert isinstance(reply, dict)
        return reply

    def _note(self, verb: str, quiet: bool, reply: Any) -> None:
        """Keep what a reply told as a step, or raise what went wrong."""
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
        self._shapes: tuple[int, Any] = -1, None  # of a module just built, and when that was

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
            **how,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object and return its result as plain values and tensors."""
        return self._call(args, kwargs)["value"]

    def hold(self, *args: Any, **kwargs: Any) -> Handle:
        """Call the object, or build the class, and return a handle on the result."""
        reply = self._call(args, kwargs, keep=True)
        if reply["value"] != self._conversation.keep():
            raise StudentError(["ProtocolError"], "the reply is not in the protocol's form")
        made = Handle(self._conversation, reply["value"])
        made._shapes = self._conversation.said, reply.get("shapes")
        return made

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

        `cotangent` may be a function that makes it from the result: a loss's gradient, say.
        `wrt` names the arguments, by position or keyword, whose gradients are wanted. For a
        module the gradients of all its parameters come too.
        """
        reply = self._call(args, kwargs, wrt=list(wrt), cotangent=self._wire(cotangent))
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
        said, found = self._shapes
        if found is None or said != self._conversation.said:
            found = self._conversation.ask("shapes", target=self._target)["value"]
        else:
            self._conversation.steps.append(Step("shapes", {"value": found}))
        return {str(name): tuple(shape) for name, shape in found.items()}

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """The `.grad` of a module's parameters by name."""
        return self._conversation.ask("gradients", target=self._target)["value"]

    def trainable(self) -> dict[str, bool]:
        """Which of a module's parameters require a gradient."""
        return self._conversation.ask("trainable", target=self._target)["value"]

    def load(self, weights: Mapping[str, torch.Tensor]) -> Handle:
        """Copy weights into a module (and make it theirs in dtype); returns the handle."""
        copies = {name: weight.clone() for name, weight in weights.items()}
        self._conversation.later("load", target=self._target, weights=copies)
        return self

    def train(self, on: bool = True) -> Handle:
        """Put a module in training mode; returns the handle."""
        self._conversation.later("mode", target=self._target, train=on)
        return self

    def eval(self) -> Handle:
        """Put a module in evaluation mode; returns the handle."""
        return self.train(False)

    def keep(self, value: Any) -> Handle:
        """Send a value once and hold it there, a random generator for two calls, say."""
        self._conversation.later("keep", quiet=True, value=self._wire(value))
        return Handle(self._conversation, self._conversation.keep())

    def peer(self, name: str, *args: Any, **kwargs: Any) -> Handle:
        """Build one of the package's own classes beside the student's: `"rnn2gpt.rnn:CharRNN"`."""
        self._conversation.later(
            "peer", quiet=True, name=name, args=self._wire(args), kwargs=self._wire(kwargs)
        )
        return Handle(self._conversation, self._conversation.keep())

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
