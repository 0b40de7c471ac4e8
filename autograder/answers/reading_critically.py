"""Right answers to chapter 16, each written another way."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- embed --------------------------------------------------------------------------------------


def embed_by_slice(ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens[ids] + positions[: ids.size(1)]


def embed_by_lookups(ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1], device=ids.device)
    return F.embedding(ids, tokens) + F.embedding(places, positions).unsqueeze(0)


def embed_one_by_one(ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    columns = [tokens[ids[:, t]] + positions[t] for t in range(ids.shape[1])]
    return torch.stack(columns, dim=1)


# --- attention ----------------------------------------------------------------------------------


def attention_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t, d = q.shape[1:]
    scores = torch.einsum("bid,bjd->bij", q, k) * d**-0.5
    allowed = torch.tril(torch.ones(t, t, device=q.device)) > 0
    return torch.einsum("bij,bjd->bid", scores.where(allowed, -torch.inf).softmax(2), v)


def attention_by_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.full((q.size(1), q.size(1)), -math.inf, device=q.device, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(bias.expand(len(q), -1, -1), q, k.mT, alpha=1 / math.sqrt(k.size(2)))
    return torch.softmax(scores, dim=-1) @ v


def attention_query_by_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = []
    for t in range(q.shape[1]):
        scores = (k[:, : t + 1] * q[:, t : t + 1]).sum(-1) / q.shape[2] ** 0.5  # (B, t + 1)
        rows.append((scores.softmax(-1)[..., None] * v[:, : t + 1]).sum(1))
    return torch.stack(rows, 1)


# --- feed_forward -------------------------------------------------------------------------------


def feed_forward_by_gelu(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
    return F.gelu(x @ W_1 + b_1, approximate="tanh") @ W_2 + b_2


def feed_forward_by_linear(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
    hidden = torch.nn.GELU(approximate="tanh")(F.linear(x, W_1.mT, b_1))
    return F.linear(hidden, W_2.mT, b_2)


def feed_forward_by_formula(
    x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor
) -> Tensor:
    z = torch.einsum("btd,df->btf", x, W_1) + b_1
    z = z * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (z + 0.044715 * z.pow(3)))
    return torch.einsum("btf,fd->btd", z, W_2) + b_2


# --- block --------------------------------------------------------------------------------------


def block_in_two_lines(x: Tensor, norm_1: Any, attend: Any, norm_2: Any, feed: Any) -> Tensor:
    x = x + attend(norm_1(x))
    return x + feed(norm_2(x))


def block_by_branches(x: Tensor, norm_1: Any, attend: Any, norm_2: Any, feed: Any) -> Tensor:
    first = attend(norm_1(x))
    second = feed(norm_2(first + x))
    return first + second + x


def block_by_reduce(x: Tensor, norm_1: Any, attend: Any, norm_2: Any, feed: Any) -> Tensor:
    pairs = (norm_1, attend), (norm_2, feed)
    return functools.reduce(lambda stream, pair: stream + pair[1](pair[0](stream)), pairs, x)


# --- lm_loss ------------------------------------------------------------------------------------


def loss_by_cross_entropy(hidden: Tensor, W_embedding: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ W_embedding.T
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def loss_classes_second(hidden: Tensor, W_embedding: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy` takes (B, V, T), too."""
    return F.cross_entropy(torch.einsum("vd,btd->bvt", W_embedding, hidden), targets)


def loss_by_gather(hidden: Tensor, W_embedding: Tensor, targets: Tensor) -> Tensor:
    log_p = F.linear(hidden, W_embedding).log_softmax(dim=-1)
    return -log_p.gather(-1, targets.unsqueeze(-1)).mean()


# --- greedy -------------------------------------------------------------------------------------


def greedy_by_cat(next_logits: Any, ids: Tensor, n_tokens: int) -> Tensor:
    for _ in range(n_tokens):
        ids = torch.cat([ids, next_logits(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


def greedy_in_a_buffer(next_logits: Any, ids: Tensor, n_tokens: int) -> Tensor:
    b, t = ids.shape
    text = ids.new_zeros(b, t + n_tokens)
    text[:, :t] = ids
    for end in range(t, t + n_tokens):
        text[:, end] = next_logits(text[:, :end])[:, -1].max(dim=-1).indices
    return text


def greedy_by_recursion(next_logits: Any, ids: Tensor, n_tokens: int) -> Tensor:
    if n_tokens == 0:
        return ids
    new = torch.argmax(next_logits(ids), dim=2)[:, -1]
    return greedy_by_recursion(next_logits, torch.column_stack([ids, new]), n_tokens - 1)


ANSWERS = {
    "embed": [embed_by_slice, embed_by_lookups, embed_one_by_one],
    "attention": [attention_by_einsum, attention_by_bias, attention_query_by_query],
    "feed_forward": [feed_forward_by_gelu, feed_forward_by_linear, feed_forward_by_formula],
    "block": [block_in_two_lines, block_by_branches, block_by_reduce],
    "lm_loss": [loss_by_cross_entropy, loss_classes_second, loss_by_gather],
    "greedy": [greedy_by_cat, greedy_in_a_buffer, greedy_by_recursion],
}
