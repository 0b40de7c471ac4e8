"""Values that cross between a check and a student's object, as JSON and raw bytes.

`encode` turns a Python value into a JSON tree and a list of byte strings; `decode` turns them
back. Whatever is not in the list below is refused by name. Nothing is ever pickled, so decoding
what a hostile process wrote yields data or a `ProtocolError`, never code.

Values: None, bool, int, float, str, bytes, list, tuple, dict, torch.Tensor, torch.dtype,
torch.device, and the five markers `Parameter`, `Items`, `Seed`, `Callback` and `Ref`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

MAX_DEPTH = 32
MAX_BYTES = 64 * 1024 * 1024
MAX_HEAD = 8 * 1024 * 1024  # of JSON, which takes many times its size once it is read
_HEADER = struct.Struct(">II")  # length of the JSON part, length of the binary part

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ProtocolError(ValueError):
    """A value that may not cross, or bytes that do not hold what they announce."""


class ConnectionClosed(ProtocolError):
    """The other side closed its end."""


@dataclass(frozen=True)
class Parameter:
    """A leaf tensor with a gradient: arrives as `nn.Parameter` with `.grad` set.

    On the way back `grad_before` is the tensor that `.grad` pointed at when the call began, so a
    check can tell a gradient changed in place from one that was replaced.
    """

    data: torch.Tensor
    grad: torch.Tensor | None = None
    grad_before: torch.Tensor | None = None


@dataclass(frozen=True)
class Items:
    """A sequence that arrives as a generator, to be read once."""

    items: Sequence[Any]


@dataclass(frozen=True)
class Seed:
    """Arrives as a fresh CPU `torch.Generator` with this seed."""

    seed: int


@dataclass(frozen=True)
class Callback:
    """Arrives as a function; calling it calls number `id` on the check's side."""

    id: int


@dataclass(frozen=True)
class Ref:
    """An object that lives beside the student's code and is only ever named."""

    id: int


def encode(value: Any) -> tuple[Any, list[bytes]]:
    """JSON tree and byte strings for `value`; raises `ProtocolError` for what may not cross."""
    blobs: list[bytes] = []
    return _encode(value, blobs, 0), blobs


_PLAIN = (type(None), bool, int)


def _encode(value: Any, blobs: list[bytes], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"a value nested deeper than {MAX_DEPTH} levels cannot be checked")
    if type(value) in _PLAIN:
        return value
    if type(value) is torch.Tensor:
        return _encode_tensor(value, blobs)
    if isinstance(value, str):
        if len(value) > MAX_HEAD:
            raise ProtocolError(f"a text of more than {MAX_HEAD >> 20} MB cannot be sent")
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$": "float", "v": repr(float(value))}

    def inner(item: Any) -> Any:
        return _encode(item, blobs, depth + 1)

    if isinstance(value, bytes):
        blobs.append(bytes(value))
        return {"$": "bytes", "blob": len(blobs) - 1}
    if isinstance(value, list):
        return [inner(item) for item in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [inner(item) for item in value]}
    if isinstance(value, dict):
        return {"$": "dict", "v": [[inner(k), inner(v)] for k, v in value.items()]}
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, blobs)
    if isinstance(value, torch.dtype):
        return {"$": "dtype", "v": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"$": "device", "v": str(value)}
    if isinstance(value, Parameter):
        parts = [inner(value.data), inner(value.grad), inner(value.grad_before)]
        return {"$": "parameter", "v": parts}
    if isinstance(value, Items):
        return {"$": "items", "v": [inner(item) for item in value.items]}
    if isinstance(value, Seed):
        return {"$": "seed", "v": int(value.seed)}
    if isinstance(value, Callback):
        return {"$": "callback", "v": int(value.id)}
    if isinstance(value, Ref):
        return {"$": "ref", "v": int(value.id)}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ProtocolError(
        f"a value of type {kind} cannot be checked; return tensors and plain values"
    )


def _encode_tensor(tensor: torch.Tensor, blobs: list[bytes]) -> dict[str, Any]:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        name = str(tensor.dtype).removeprefix("torch.")
        raise ProtocolError(f"a tensor of dtype {name} cannot be checked")
    if tensor.layout is not torch.strided:
        raise ProtocolError(f"a tensor of layout {tensor.layout} cannot be checked")
    data = tensor.detach().cpu()
    spec: dict[str, Any] = {"$": "tensor", "dtype": name, "shape": list(data.shape)}
    if not data.is_contiguous() and data.numel() > 0 and 0 not in data.stride():
        spec["strides"] = list(data.stride())
    if data.dtype is torch.bfloat16:  # NumPy has none; its bits are those of an integer
        data = data.view(torch.int16)
    blobs.append(data.numpy().tobytes())  # in the order of the indices, whatever the strides
    spec["blob"] = len(blobs) - 1
    return spec


def decode(tree: Any, blobs: Sequence[bytes], resolve: Callable[[Any], Any] | None = None) -> Any:
    """The value that `tree` and `blobs` describe.

    `resolve` turns the markers `Parameter`, `Items`, `Seed`, `Callback` and `Ref` into what they
    stand for; without it they come back as markers, and strides are ignored.
    """
    return _decode(tree, blobs, resolve, 0)


def _decode(tree: Any, blobs: Sequence[bytes], resolve: Any, depth: int) -> Any:
    if depth > 3 * MAX_DEPTH:
        raise ProtocolError("a reply is nested too deeply")
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree

    def inner(item: Any) -> Any:
        return _decode(item, blobs, resolve, depth + 1)

    if isinstance(tree, list):
        return [inner(item) for item in tree]
    try:
        kind = tree["$"]
        if kind == "tensor":
            return _decode_tensor(tree, blobs, keep_strides=resolve is not None)
        if kind == "bytes":
            return blobs[_index(tree["blob"], blobs)]
        value = tree["v"]
        if kind == "float":
            return float(value)
        if kind == "tuple":
            return tuple(inner(item) for item in value)
        if kind == "dict":
            return {inner(k): inner(v) for k, v in value}
        if kind == "dtype":
            return DTYPES[value]
        if kind == "device":
            return torch.device(value) if resolve else str(value)
        marker = _decode_marker(kind, value, inner)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a malformed value: {type(error).__name__}") from error
    return resolve(marker) if resolve else marker


def _decode_marker(kind: str, value: Any, inner: Callable[[Any], Any]) -> Any:
    if kind == "parameter":
        return Parameter(*(inner(part) for part in value))
    if kind == "items":
        return Items([inner(item) for item in value])
    simple = {"seed": Seed, "callback": Callback, "ref": Ref}
    if kind not in simple:
        raise ProtocolError(f"an unknown kind of value, {kind!r}")
    return simple[kind](int(value))


def _index(position: Any, blobs: Sequence[bytes]) -> int:
    if not isinstance(position, int) or not 0 <= position < len(blobs):
        raise ProtocolError("a value that points outside its message")
    return position


def _decode_tensor(
    spec: dict[str, Any], blobs: Sequence[bytes], keep_strides: bool
) -> torch.Tensor:
    dtype = DTYPES[spec["dtype"]]
    shape = [int(size) for size in spec["shape"]]
    blob = blobs[_index(spec["blob"], blobs)]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(blob):
        raise ProtocolError("a tensor whose bytes do not fit its shape")
    if not blob:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(bytearray(blob), dtype=dtype).reshape(shape)
    if keep_strides and "strides" in spec:
        strided = torch.empty_strided(shape, spec["strides"], dtype=dtype)
        return strided.copy_(tensor)
    return tensor


def as_message(value: Any) -> bytes:
    """One value as it travels."""
    tree, blobs = encode(value)
    head = json.dumps([tree, [len(blob) for blob in blobs]]).encode()
    body = b"".join(blobs)
    if len(head) > MAX_HEAD or len(head) + len(body) > MAX_BYTES:
        raise ProtocolError(f"a message of more than {MAX_BYTES >> 20} MB cannot be sent")
    return _HEADER.pack(len(head), len(body)) + head + body


def write_message(stream: IO[bytes], value: Any) -> None:
    """Send one value."""
    stream.write(as_message(value))
    stream.flush()


def read_message(read: Callable[[int], bytes], resolve: Callable[[Any], Any] | None = None) -> Any:
    """Receive one value; `read(n)` returns exactly n bytes or raises `ConnectionClosed`."""
    return decode(*read_encoded(read), resolve)


def read_encoded(read: Callable[[int], bytes]) -> tuple[Any, list[bytes]]:
    """Receive one value as `encode` gave it."""
    head_size, body_size = _HEADER.unpack(read(_HEADER.size))
    if head_size > MAX_HEAD or head_size + body_size > MAX_BYTES:
        raise ProtocolError(f"a message of more than {MAX_BYTES >> 20} MB is refused")
    head, body = read(head_size), read(body_size)
    try:
        tree, sizes = json.loads(head)
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise ValueError("negative size")
        if sum(sizes) != len(body):
            raise ValueError("sizes do not add up")
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("a message that is not in the protocol's form") from error
    blobs, start = [], 0
    for size in sizes:
        blobs.append(body[start : start + size])
        start += size
    return tree, blobs
