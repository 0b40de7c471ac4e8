"""Keys and values kept from one token to the next, so that each is computed once (chapter 11)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class KVCache:
    """Room for `max_len` keys and values in each of `n_layers`, filled from the left.

    The layers of one forward pass are updated in order; `length` grows with the last.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        max_len: int,
        d_head: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (n_layers, batch_size, n_heads, max_len, d_head)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.n_layers, self.max_len, self.length = n_layers, max_len, 0

    def update(
        self, layer: int, k: Float[Tensor, "B H T d_head"], v: Float[Tensor, "B H T d_head"]
    ) -> tuple[Float[Tensor, "B H S d_head"], Float[Tensor, "B H S d_head"]]:
        """Put the new keys and values behind the old ones and return all of them.

        Raises `ValueError` when they do not fit.
        """
        t = k.shape[2]
        end = self.length + t
        if end > self.max_len:
            raise ValueError(f"{end} tokens do not fit into a cache of max_len={self.max_len}")
        keys, values = self.keys[layer], self.values[layer]  # (B, H, max_len, d_head)
        keys.narrow(2, self.length, t).copy_(k)
        values.narrow(2, self.length, t).copy_(v)
        if layer == self.n_layers - 1:
            self.length = end
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    @classmethod
    def for_model(cls, model: Any, batch_size: int) -> KVCache:
        """An empty cache for a whole window of a GPT, in its dtype and on its device.

        A model that keeps more than keys and values says so in `cache_layers`.
        """
        c, weight = model.config, next(model.parameters())
        n_layers = getattr(model, "cache_layers", c.n_layers)
        sizes = n_layers, batch_size, c.n_heads, c.block_size, c.d_model // c.n_heads
        return cls(*sizes, dtype=weight.dtype, device=weight.device)

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, in this order and as often as they are named: beams that live."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    @property
    def nbytes(self) -> int:
        """What the room takes, filled or not: 2 · n_layers · B · H · max_len · d_head numbers."""
        return self.keys.nbytes + self.values.nbytes
