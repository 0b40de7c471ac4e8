"""Right answers to chapter 01, each written another way."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def counts_by_bincount(ids: Tensor, vocab_size: int) -> Tensor:
    pairs = ids[:-1] * vocab_size + ids[1:]
    return torch.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)


def counts_by_loop(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size, vocab_size, device=ids.device)
    for i, j in itertools.pairwise(ids):
        counts[i, j] += 1
    return counts


def counts_by_one_hot(ids: Tensor, vocab_size: int) -> Tensor:
    one_hot = F.one_hot(ids, vocab_size).double()  # (N, V)
    return one_hot[:-1].T @ one_hot[1:]


ANSWERS = {
    "bigram_counts": [counts_by_bincount, counts_by_loop, counts_by_one_hot],
}
