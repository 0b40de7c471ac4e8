"""Right answers of our own, worked out once for a class.

The inputs of a case come from a seed that is the same for a whole class, so the same right answer
is wanted again with every submission.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.utils._pytree import tree_map

from autograder.child.protocol import as_message

P = ParamSpec("P")
T = TypeVar("T")
MOST = 500  # answers of one reference that are kept


def remembered(reference: Callable[P, T]) -> Callable[P, T]:
    """The reference, asked only once for the same arguments.

    It may depend on nothing but them. Two calls are the same where every byte of theirs is, types,
    shapes and strides included; so nothing that a submission sends can change what another one is
    compared with. Arguments are what may cross to a child, tensors come back as copies.
    """
    known = dict[bytes, T]()

    @functools.wraps(reference)
    def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        key = as_message((args, kwargs))
        if key not in known:
            if len(known) == MOST:
                known.clear()
            known[key] = _copy(reference(*args, **kwargs))
        return _copy(known[key])

    return answer


def _copy(value: T) -> T:
    return tree_map(  # type: ignore[no-any-return]
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value
    )
