"""Counting: bigram tables and the interpolated Kneser–Ney model (chapter 01).

The Kneser–Ney model is the modified, interpolated form of Chen & Goodman (1999), after Kneser &
Ney (1995): each order subtracts a discount from its counts and hands what it took to
the order below, where a token counts by the number of different contexts it has followed.

>>> ids = torch.tensor([0, 1, 0, 1, 0, 2])
>>> model = KneserNey.fit(ids, KneserNeyConfig(vocab_size=3, order=2))
>>> round(float(model.next_probabilities(ids).sum()), 6)
1.0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


def bigram_counts(ids: Int64[Tensor, " N"], vocab_size: int) -> Int64[Tensor, "V V"]:
    """How often each token follows each other: entry [i, j] counts the pairs (i, j).

    >>> bigram_counts(torch.tensor([0, 1, 0, 1]), vocab_size=2).tolist()
    [[0, 2], [1, 0]]
    """
    pairs = ids[:-1] * vocab_size + ids[1:]  # (N − 1,), one code for each pair
    counts = torch.bincount(pairs, minlength=vocab_size**2)  # (V²,)
    return counts.view(vocab_size, vocab_size)  # (V², ) → (V, V)


def bigram_probabilities(counts: Int64[Tensor, "V V"], alpha: float = 1.0) -> Float[Tensor, "V V"]:
    """Each row of counts as a distribution, with `alpha` added to every count.

    A row without any count (alpha = 0, token never seen) is uniform.

    >>> bigram_probabilities(torch.tensor([[1, 3], [0, 0]]), alpha=0.0).tolist()
    [[0.25, 0.75], [0.5, 0.5]]
    """
    smoothed = counts + alpha
    smoothed = smoothed if smoothed.is_floating_point() else smoothed.to(torch.get_default_dtype())
    totals = smoothed.sum(dim=1, keepdim=True)  # (V, 1)
    return torch.where(totals > 0, smoothed / totals.clamp(min=1e-30), 1 / counts.shape[1])


@dataclass(frozen=True, kw_only=True)
class KneserNeyConfig:
    """`order` is the longest gram counted: order 1 sees no context, order 6 sees five tokens."""

    vocab_size: int
    order: int = 6

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"order={self.order}: an n-gram model has order 1 or more")
        if self.vocab_size**self.order >= 2**63:
            raise ValueError(
                f"{self.vocab_size} tokens to the power {self.order} do not fit in 64 bits: "
                f"choose a lower order"
            )


class KneserNey:
    """A smoothed n-gram model over token ids. Counting is all its training: `fit`, not steps."""

    def __init__(self, config: KneserNeyConfig, tables: list[_Table]) -> None:
        self.config = config
        self._tables = tables  # tables[k - 1] holds the k-grams

    @classmethod
    def fit(cls, ids: Int64[Tensor, " N"], config: KneserNeyConfig) -> KneserNey:
        """Count the grams of every order in `ids`; `ValueError` on fewer ids than `order`."""
        if len(ids) < config.order:
            raise ValueError(f"{len(ids)} ids are too few to count grams of order {config.order}")
        numbers = ids.cpu().numpy()
        types, counts = np.unique(_codes(numbers, config.order, config), return_counts=True)
        tables = [_Table.make(types, counts, config.vocab_size)]
        for k in range(config.order - 1, 0, -1):
            # A (k+1)-gram's last k tokens, once for each token seen before them.
            suffixes = types % config.vocab_size**k
            grams, contexts_before = np.unique(suffixes, return_counts=True)
            tables.append(_Table.make(grams, contexts_before, config.vocab_size))
            types = np.unique(_codes(numbers, k, config))
        return cls(config, tables[::-1])

    def nll(self, ids: Int64[Tensor, " N"]) -> Float[Tensor, " N-1"]:
        """−ln p of every id but the first, each given (up to) the order − 1 ids before it."""
        numbers = ids.cpu().numpy()
        p = np.full(len(numbers), 1 / self.config.vocab_size)
        for k, table in enumerate(self._tables[: len(numbers)], start=1):
            # The first k − 1 places have too little before them: they keep the lower order's p.
            p[k - 1 :] = table.refine(_codes(numbers, k, self.config), p[k - 1 :])
        return torch.from_numpy(-np.log(p[1:]))

    def next_probabilities(self, context: Int64[Tensor, " T"]) -> Float[Tensor, " V"]:
        """The distribution of the token after `context`, of which order − 1 ids count."""
        v = self.config.vocab_size
        history = [int(i) for i in context[max(0, len(context) - self.config.order + 1) :]]
        p, code = np.full(v, 1 / v), 0
        p = self._tables[0].refine(np.arange(v), p)
        for k in range(1, len(history) + 1):
            code += history[-k] * v ** (k - 1)  # the last k ids as one number in base V
            p = self._tables[k].refine(code * v + np.arange(v), p)
        return torch.from_numpy(p)

    def __call__(
        self, ids: Int64[Tensor, "B T"], state: Int64[Tensor, "B S"] | None = None
    ) -> tuple[Float[Tensor, "B T V"], Int64[Tensor, "B S"]]:
        """Log-probabilities after each id, and the ids to remember, as `generate` asks."""
        seen = ids if state is None else torch.cat([state, ids], dim=1)  # (B, S + T)
        start = seen.shape[1] - ids.shape[1]
        rows = [
            torch.stack(
                [self.next_probabilities(row[: start + t + 1]) for t in range(ids.shape[1])]
            )
            for row in seen
        ]
        logits = torch.stack(rows).log().to(torch.get_default_dtype())  # (B, T, V)
        return logits, seen[:, max(0, seen.shape[1] - self.config.order + 1) :]

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, as tensors to save."""
        tensors = {}
        for k, table in enumerate(self._tables, start=1):
            tensors[f"{k}.grams"] = torch.from_numpy(table.grams)
            tensors[f"{k}.counts"] = torch.from_numpy(table.counts)
        return tensors

    @classmethod
    def from_state_dict(cls, config: KneserNeyConfig, tensors: dict[str, Tensor]) -> KneserNey:
        """The model whose `state_dict` this is."""
        tables = [
            _Table.make(
                tensors[f"{k}.grams"].numpy(), tensors[f"{k}.counts"].numpy(), config.vocab_size
            )
            for k in range(1, config.order + 1)
        ]
        return cls(config, tables)


@dataclass(frozen=True)
class _Table:
    """The grams of one order: sorted codes with counts, and what each context gives away."""

    grams: Codes  # (G,) sorted; a gram's code is its ids as digits in base V
    counts: Codes  # (G,)
    discounts: Floats  # (4,): taken from counts of 0, 1, 2, and 3 or more
    contexts: Codes  # (C,) sorted: the grams without their last token
    totals: Codes  # (C,): Σ of a context's counts
    backoff: Floats  # (C,): the share of a context's mass that goes to the order below
    vocab_size: int

    @classmethod
    def make(cls, grams: Codes, counts: Codes, vocab_size: int) -> _Table:
        discounts = _discounts(counts)
        contexts, first = np.unique(grams // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, first)
        taken = np.add.reduceat(discounts[np.minimum(counts, 3)], first)
        return cls(grams, counts, discounts, contexts, totals, taken / totals, vocab_size)

    def refine(self, grams: Codes, lower: Floats) -> Floats:
        """p of each gram's last token given the others, from p one order below (both (N,))."""
        at, seen = _find(self.contexts, grams // self.vocab_size)
        gram_at, gram_seen = _find(self.grams, grams)
        counts = np.where(gram_seen, self.counts[gram_at], 0)
        kept = counts - self.discounts[np.minimum(counts, 3)]
        return np.where(seen, kept / self.totals[at] + self.backoff[at] * lower, lower)


def _codes(numbers: Codes, k: int, config: KneserNeyConfig) -> Codes:
    """Every k-gram of (N,) ids as one number: (N − k + 1,)."""
    codes = np.zeros(max(0, len(numbers) - k + 1), dtype=np.int64)
    for offset in range(k):
        codes = codes * config.vocab_size + numbers[offset : offset + len(codes)]
    return codes


def _find(table: Codes, wanted: Codes) -> tuple[Codes, NDArray[np.bool_]]:
    """Where each wanted code stands in a sorted table, and whether it is there at all."""
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return at, table[at] == wanted


def _discounts(counts: Codes) -> Floats:
    """What to take from a count of 0, 1, 2 and 3+, from how many grams have counts 1 to 4.

    Chen & Goodman 1999: Y = n₁ / (n₁ + 2 n₂), D₁ = 1 − 2Y n₂/n₁ and so on. Where too few grams are
    rare (single letters, tiny texts) the estimate does not exist; KenLM's fallback of 0.5, 1 and
    1.5 then stands in.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        d = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (d[1:] > 0).all():
            return d
    return np.array([0, 0.5, 1.0, 1.5])
