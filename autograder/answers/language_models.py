"""Right answers to chapter 01, each written another way."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- bigram_counts ------------------------------------------------------------------------------


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


def counts_by_index_put(ids: Tensor, vocab_size: int) -> Tensor:
    counts = ids.new_zeros(vocab_size, vocab_size)
    return counts.index_put_((ids[:-1], ids[1:]), ids.new_ones(()), accumulate=True)


# --- bigram_probabilities -----------------------------------------------------------------------


def shares_by_where(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    totals = smoothed.sum(dim=1, keepdim=True)
    return torch.where(totals == 0, 1 / counts.shape[1], smoothed / totals)


def shares_by_nan_to_num(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts if counts.is_floating_point() else counts.double()
    smoothed = smoothed.clone().add_(alpha)
    return (smoothed / smoothed.sum(-1)[:, None]).nan_to_num(nan=1 / len(counts))


def shares_by_rows(counts: Tensor, alpha: float = 1.0) -> Tensor:
    rows = []
    for row in counts:
        row = row + torch.ones_like(row) if row.sum() + alpha == 0 else row + alpha
        rows.append(row / row.sum())
    return torch.stack(rows)


def shares_by_normalize(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + float(alpha)
    unseen = smoothed.sum(dim=1, keepdim=True) == 0
    return F.normalize(smoothed + unseen, p=1, dim=1)


# --- cross_entropy ------------------------------------------------------------------------------


def loss_by_logsumexp(logits: Tensor, targets: Tensor) -> Tensor:
    picked = logits[torch.arange(len(targets), device=logits.device), targets]
    return (logits.logsumexp(dim=1) - picked).mean()


def loss_by_gather(logits: Tensor, targets: Tensor) -> Tensor:
    shifted = logits - logits.max(dim=1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(dim=1, keepdim=True).log()
    return -log_p.gather(1, targets[:, None]).mean()


def loss_by_one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    one_hot = F.one_hot(targets, logits.shape[1]).to(logits)
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -torch.einsum("nv,nv->", one_hot, log_p) / logits.shape[0]


def loss_by_rows(logits: Tensor, targets: Tensor) -> Tensor:
    losses = []
    for row, target in zip(logits, targets, strict=True):
        gap = row - row.index_select(0, target.reshape(1))  # how far the others are ahead
        losses.append(torch.logsumexp(gap, dim=0))
    return torch.stack(losses).mean()


# --- bits_per_character -------------------------------------------------------------------------


def bits_by_total(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    bits = nll_nats_per_token * n_tokens / math.log(2)
    return bits / n_characters


def bits_by_log2_e(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return math.log2(math.e) * nll_nats_per_token / (n_characters / n_tokens)


def bits_as_a_tensor(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> Tensor:
    nats = torch.tensor(nll_nats_per_token, dtype=torch.float64) * n_tokens / n_characters
    return nats.exp().log2()


# --- get_batch ----------------------------------------------------------------------------------


def batch_by_stack(
    ids: Tensor,
    block_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: Any = "cpu",
) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(ids) - block_size, (batch_size,), generator=generator)
    x = torch.stack([ids[i : i + block_size] for i in starts])
    y = torch.stack([ids[i + 1 : i + block_size + 1] for i in starts])
    return x.long().to(device), y.long().to(device)


def batch_by_index(
    ids: Tensor,
    block_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: Any = "cpu",
) -> tuple[Tensor, Tensor]:
    starts = torch.randint(0, ids.shape[0] - block_size, (batch_size, 1), generator=generator)
    at = starts + torch.arange(block_size)  # (B, T)
    ids = ids.to(device=device, dtype=torch.int64)
    return ids[at.to(device)], ids[at.to(device) + 1]


def batch_by_unfold(
    ids: Tensor,
    block_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: Any = "cpu",
) -> tuple[Tensor, Tensor]:
    rows = ids.unfold(0, block_size + 1, 1)  # (N − T, T + 1)
    draws = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    rows = rows[(draws * len(rows)).long()].to(device, torch.int64)
    return rows[:, :block_size], rows[:, 1:]


def batch_by_loop(
    ids: Tensor,
    block_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: Any = "cpu",
) -> list[Tensor]:
    text, x, y = ids.tolist(), [], []
    for _ in range(batch_size):
        i = int(torch.randint(len(text) - block_size, (), generator=generator))
        x.append(text[i : i + block_size])
        y.append(text[i + 1 : i + 1 + block_size])
    return [torch.tensor(part, dtype=torch.long, device=device) for part in (x, y)]


ANSWERS = {
    "bigram_counts": [
        counts_by_one_hot,
        counts_by_bincount,
        counts_by_loop,
        counts_by_index_put,
    ],
    "bigram_probabilities": [
        shares_by_where,
        shares_by_nan_to_num,
        shares_by_rows,
        shares_by_normalize,
    ],
    "cross_entropy": [loss_by_logsumexp, loss_by_gather, loss_by_one_hot, loss_by_rows],
    "bits_per_character": [bits_by_total, bits_by_log2_e, bits_as_a_tensor],
    "get_batch": [batch_by_stack, batch_by_index, batch_by_unfold, batch_by_loop],
}
