"""The typed protocol: what crosses, what is refused, and that nothing hostile gets further."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.child.protocol import (
    DTYPES,
    ConnectionClosed,
    Items,
    Parameter,
    ProtocolError,
    Ref,
    Seed,
    decode,
    encode,
    read_message,
    write_message,
)
from autograder.engine.expect import same


def crossed(value):
    tree, blobs = encode(value)
    return decode(json.loads(json.dumps(tree)), blobs)


def reader(data: bytes):
    stream = io.BytesIO(data)

    def read(size: int) -> bytes:
        part = stream.read(size)
        if len(part) < size:
            raise ConnectionClosed("end")
        return part

    return read


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(nested)
@settings(max_examples=150, deadline=None)
def test_plain_structures_survive(value):
    assert repr(crossed(value)) == repr(value)  # repr: NaN equals itself, tuples stay tuples


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 5)])
def test_tensors_survive_in_every_dtype_and_shape(dtype, shape):
    tensor = (torch.randn(shape) * 5).to(dtype)
    back = crossed(tensor)
    assert back.dtype is dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_strides_arrive_where_they_are_wanted_and_never_come_back():
    tensor = torch.arange(12.0).reshape(3, 4).T  # (4, 3), not contiguous
    tree, blobs = encode(tensor)
    arrived = decode(tree, blobs, lambda marker: marker)
    assert arrived.stride() == tensor.stride() and torch.equal(arrived, tensor)
    assert decode(tree, blobs).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_named_tensors_survive_each_with_memory_of_its_own(dtype):
    weights = {"w": torch.arange(6).view(2, 3), "none": torch.empty(0, 2), "one": torch.tensor(7)}
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    back = crossed(weights)
    assert same(back, weights) and list(back) == list(weights)
    back["w"].zero_()
    assert back["one"] == 7 and back["w"].untyped_storage().nbytes() == 6 * dtype.itemsize
    mixed = {"w": torch.ones(2), "ids": torch.ones(2, dtype=torch.int64), "t": torch.ones(2, 3).T}
    assert same(crossed(mixed), mixed)


def test_infinities_and_nan_survive():
    back = crossed([float("inf"), float("-inf"), float("nan")])
    assert back[:2] == [float("inf"), float("-inf")] and back[2] != back[2]


def test_markers_survive():
    marker = (Seed(3), Ref(7), Items([1, 2]), Parameter(torch.ones(2), torch.zeros(2)))
    assert same(crossed(marker)[:3], marker[:3])


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "object"), ({1, 2}, "set"), (lambda: 0, "function"), (1j, "complex")],
)
def test_other_types_are_refused_by_name(value, named):
    with pytest.raises(ProtocolError, match=named):
        encode(value)


def test_endless_nesting_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(ProtocolError, match="nested"):
        encode(value)


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "tensor", "dtype": "float32", "shape": [3], "blob": 0},  # bytes do not fit
        {"$": "tensor", "dtype": "float32", "shape": [-1, -1], "blob": 0},
        {"$": "tensor", "dtype": "object", "shape": [1], "blob": 0},
        {"$": "tensor", "dtype": "float32", "shape": [1], "blob": 9},
        {"$": "tensor", "dtype": "float32", "shape": ["1"], "blob": None},
        {"$": "tensors", "dtype": "float32", "names": ["w"], "shapes": [[2]], "blob": 0},
        {"$": "tensors", "dtype": "float32", "names": ["w"], "shapes": [[-1]], "blob": 0},
        {"$": "tensors", "dtype": "float32", "names": ["w"], "shapes": [[0]], "blob": 0},
        {"$": "tensors", "dtype": "float32", "names": ["w"], "shapes": [[0.5, 2]], "blob": 0},
        {"$": "tensors", "dtype": "float32", "names": [["w"]], "shapes": [[1]], "blob": 0},
        {"$": "tensors", "dtype": "float32", "names": ["w", "v"], "shapes": [[1]], "blob": 0},
        {"$": "tensors", "dtype": "int8", "names": ["w"], "shapes": [[4]], "blob": 0},
        {"$": "dict", "v": [[[], 1]]},  # a key that cannot be one
        {"$": "float", "v": "nonsense"},
        {"$": "import", "v": "os"},
        {"v": 1},
    ],
)
def test_malformed_values_are_refused(tree):
    with pytest.raises(ProtocolError):
        decode(tree, [b"\x00" * 4])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data):
    with pytest.raises(ProtocolError):
        read_message(reader(data))


def test_a_message_that_announces_too_much_is_refused_before_it_is_read():
    with pytest.raises(ProtocolError, match="MB"):
        read_message(reader(struct.pack(">II", 2**31, 2**31)))


def test_a_message_goes_through_a_stream():
    stream = io.BytesIO()
    value = {"op": "call", "args": (torch.randn(2, 3), [1, "two", None])}
    write_message(stream, value)
    assert same(read_message(reader(stream.getvalue())), value)
