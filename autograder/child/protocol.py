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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
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
_PACKED = {torch.float64: np.float64, torch.float32: np.float32}  # what weights are made of


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


_PLAIN = frozenset({type(None), bool, int})  # they travel as they are
_Encoder = Callable[[Any, list[bytes], int], Any]  # value, blobs, depth


def _encode(value: Any, blobs: list[bytes], depth: int) -> Any:
    if type(value) in _PLAIN:
        return value
    if depth > MAX_DEPTH:
        raise ProtocolError(f"a value nested deeper than {MAX_DEPTH} levels cannot be checked")
    encoder = _ENCODERS.get(type(value)) or _encoder_of_base(value)
    return encoder(value, blobs, depth + 1)


def _encoder_of_base(value: Any) -> _Encoder:
    """The encoder of the class that the value's own class descends from."""
    for kind, encoder in _ENCODERS.items():
        if isinstance(value, kind):
            return encoder
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ProtocolError(
        f"a value of type {name} cannot be checked; return tensors and plain values"
    )


def _encode_items(value: Iterable[Any], blobs: list[bytes], depth: int) -> list[Any]:
    if _PLAIN.issuperset(map(type, value)):  # a shape, ids
        return list(value)
    return [_encode(item, blobs, depth) for item in value]


def _encode_tuple(value: Iterable[Any], blobs: list[bytes], depth: int) -> dict[str, Any]:
    return {"$": "tuple", "v": _encode_items(value, blobs, depth)}


def _encode_dict(value: dict[Any, Any], blobs: list[bytes], depth: int) -> dict[str, Any]:
    if _are_weights(value):
        return _encode_tensors(value, blobs)
    items = [[_encode(k, blobs, depth), _encode(v, blobs, depth)] for k, v in value.items()]
    return {"$": "dict", "v": items}


def _encode_text(value: str, blobs: list[bytes], depth: int) -> str:
    if len(value) > MAX_HEAD:
        raise ProtocolError(f"a text of more than {MAX_HEAD >> 20} MB cannot be sent")
    return str(value)


def _encode_float(value: float, blobs: list[bytes], depth: int) -> Any:
    number = float(value)
    return number if math.isfinite(number) else {"$": "float", "v": repr(number)}


def _encode_bytes(value: bytes, blobs: list[bytes], depth: int) -> dict[str, Any]:
    blobs.append(bytes(value))
    return {"$": "bytes", "blob": len(blobs) - 1}


def _encode_parameter(value: Parameter, blobs: list[bytes], depth: int) -> dict[str, Any]:
    parts = value.data, value.grad, value.grad_before
    return {"$": "parameter", "v": [_encode(part, blobs, depth) for part in parts]}


def _encode_tensor(tensor: torch.Tensor, blobs: list[bytes], depth: int) -> dict[str, Any]:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise ProtocolError(f"a tensor of dtype {_name_of(tensor.dtype)} cannot be checked")
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


def _are_weights(value: dict[Any, Any]) -> bool:
    """Whether these are contiguous tensors of one type, each with a name."""
    if {*map(type, value)} != {str} or {*map(type, value.values())} != {torch.Tensor}:
        return False
    dtypes = {tensor.dtype for tensor in value.values()}
    return (
        len(dtypes) == 1
        and dtypes.issubset(_PACKED)
        and all(x.layout is torch.strided and x.is_contiguous() for x in value.values())
    )


def _encode_tensors(value: dict[str, torch.Tensor], blobs: list[bytes]) -> dict[str, Any]:
    """Weights by name as one string of bytes: most of what travels is such."""
    arrays = [tensor.detach().cpu().numpy() for tensor in value.values()]
    blobs.append(b"".join(array.tobytes() for array in arrays))
    return {
        "$": "tensors",
        "dtype": arrays[0].dtype.name,
        "names": [_encode_text(name, blobs, 0) for name in value],
        "shapes": [array.shape for array in arrays],
        "blob": len(blobs) - 1,
    }


_ENCODERS: dict[type, _Encoder] = {
    torch.Tensor: _encode_tensor,
    str: _encode_text,
    list: _encode_items,
    tuple: _encode_tuple,
    dict: _encode_dict,
    float: _encode_float,
    int: lambda value, blobs, depth: int(value),  # of a class derived from int
    bytes: _encode_bytes,
    torch.dtype: lambda value, blobs, depth: {"$": "dtype", "v": _name_of(value)},
    torch.device: lambda value, blobs, depth: {"$": "device", "v": str(value)},
    Parameter: _encode_parameter,
    Items: lambda value, blobs, depth: {
        "$": "items",
        "v": _encode_items(value.items, blobs, depth),
    },
    Seed: lambda value, blobs, depth: {"$": "seed", "v": int(value.seed)},
    Callback: lambda value, blobs, depth: {"$": "callback", "v": int(value.id)},
    Ref: lambda value, blobs, depth: {"$": "ref", "v": int(value.id)},
}


def decode(tree: Any, blobs: Sequence[bytes], resolve: Callable[[Any], Any] | None = None) -> Any:
    """The value that `tree` and `blobs` describe.

    `resolve` turns the markers `Parameter`, `Items`, `Seed`, `Callback` and `Ref` into what they
    stand for; without it they come back as markers, and strides are ignored.
    """
    return _decode(tree, blobs, resolve, 0)


_Resolve = Callable[[Any], Any] | None
_AS_IT_IS = _PLAIN | {float, str}


def _decode(tree: Any, blobs: Sequence[bytes], resolve: _Resolve, depth: int) -> Any:
    if type(tree) in _AS_IT_IS:
        return tree
    if depth > 3 * MAX_DEPTH:
        raise ProtocolError("a reply is nested too deeply")
    depth += 1
    if isinstance(tree, list):
        return _decode_items(tree, blobs, resolve, depth)
    try:
        kind = tree["$"]
        if kind == "tensor":
            return _decode_tensor(tree, blobs, keep_strides=resolve is not None)
        if kind == "tensors":
            return _decode_tensors(tree, blobs)
        if kind == "bytes":
            return blobs[_index(tree["blob"], blobs)]
        value = tree["v"]
        if kind == "tuple":
            return tuple(_decode_items(value, blobs, resolve, depth))
        if kind == "dict":
            return {
                _decode(k, blobs, resolve, depth): _decode(v, blobs, resolve, depth)
                for k, v in value
            }
        if kind == "float":
            return float(value)
        if kind == "dtype":
            return DTYPES[value]
        if kind == "device":
            return torch.device(value) if resolve else str(value)
        marker = _decode_marker(kind, value, blobs, resolve, depth)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a malformed value: {type(error).__name__}") from error
    return resolve(marker) if resolve else marker


def _decode_items(
    items: Iterable[Any], blobs: Sequence[bytes], resolve: _Resolve, depth: int
) -> list[Any]:
    if _AS_IT_IS.issuperset(map(type, items)):
        return list(items)
    return [_decode(item, blobs, resolve, depth) for item in items]


def _decode_marker(
    kind: str, value: Any, blobs: Sequence[bytes], resolve: _Resolve, depth: int
) -> Any:
    if kind == "parameter":
        return Parameter(*_decode_items(value, blobs, resolve, depth))
    if kind == "items":
        return Items(_decode_items(value, blobs, resolve, depth))
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


def _decode_tensors(spec: dict[str, Any], blobs: Sequence[bytes]) -> dict[str, torch.Tensor]:
    """Tensors by name out of one blob; each has a storage of its own, beside the others'."""
    dtype = _PACKED[DTYPES[spec["dtype"]]]
    numbers = np.frombuffer(bytearray(blobs[_index(spec["blob"], blobs)]), dtype)
    found, start = dict[str, torch.Tensor](), 0
    for name, shape in zip(spec["names"], spec["shapes"], strict=True):
        end = start + math.prod(shape)
        if not isinstance(name, str) or min(shape, default=0) < 0 or end > len(numbers):
            raise ProtocolError("tensors whose bytes do not fit their shapes")
        found[name] = torch.from_numpy(numbers[start:end].reshape(shape))
        start = end
    if start != len(numbers):
        raise ProtocolError("tensors whose bytes do not fit their shapes")
    return found


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
