"""Right answers to chapter 05, each written another way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attended = tuple[Tensor, Tensor]

# --- scaled_dot_product_attention ---------------------------------------------------------------


def by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attended:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = F.softmax(scores, dim=-1)
    return torch.matmul(weights, v), weights


def by_einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attended:
    scores = torch.einsum("...td,...sd->...ts", q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    raised = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = raised / raised.sum(dim=-1, keepdim=True)
    return torch.einsum("...ts,...sv->...tv", weights, v), weights


def by_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attended:
    """One query at a time, through the logarithms of the weights."""
    rows = []
    for t in range(q.shape[-2]):
        scores = (k * q[..., t : t + 1, :]).sum(-1) / q.shape[-1] ** 0.5  # (…, S)
        if mask is not None:
            row = mask[..., t if mask.shape[-2] > 1 else 0, :]  # (…, S) or (…, 1, S) → (…, S)
            scores = scores + torch.zeros_like(scores).masked_fill(~row, -math.inf)
        rows.append(scores.log_softmax(-1).exp())
    weights = torch.stack(rows, dim=-2)
    return weights @ v, weights


def by_addition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attended:
    """The mask as numbers to add, a billion below zero where attending is forbidden."""
    scores = (q / q.shape[-1] ** 0.25) @ (k / k.shape[-1] ** 0.25).mT
    if mask is not None:
        scores = scores + (1.0 - mask.to(scores.dtype)) * -1e9
    weights = torch.softmax(scores, -1)
    return weights @ v, weights


# --- causal_mask --------------------------------------------------------------------------------


def by_triangle(t: int, s: int | None = None, device: torch.device | None = None) -> Tensor:
    s = t if s is None else s
    if s < t:
        raise ValueError(f"s={s} is less than t={t}")
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(diagonal=s - t)


def by_positions(t: int, s: int | None = None, device: torch.device | None = None) -> Tensor:
    s = s or t
    if t > s:
        raise ValueError("more queries than keys")
    keys = torch.arange(s, device=device)
    return keys[None, :] <= keys[s - t :, None]


def by_rows_of_the_square(
    t: int, s: int | None = None, device: torch.device | None = None
) -> Tensor:
    s = t if s is None else s
    if s - t < 0:
        raise ValueError
    future = torch.triu(torch.full((s, s), True, device=device), diagonal=1)
    return ~future[s - t :]


# --- padding_mask -------------------------------------------------------------------------------


def by_comparison(lengths: Tensor, max_len: int) -> Tensor:
    positions = torch.arange(max_len, device=lengths.device)
    return (positions < lengths[:, None])[:, None, None, :]


def by_countdown(lengths: Tensor, max_len: int) -> Tensor:
    """What is left of each length after j tokens, counted down."""
    ones = torch.ones(len(lengths), 1, 1, max_len, dtype=lengths.dtype, device=lengths.device)
    return lengths.view(-1, 1, 1, 1) - ones.cumsum(-1) >= 0


def by_writing(lengths: Tensor, max_len: int) -> Tensor:
    mask = torch.zeros(lengths.shape[0], 1, 1, max_len, dtype=torch.bool, device=lengths.device)
    for b in range(lengths.shape[0]):
        mask[b, :, :, : int(lengths[b])] = True
    return mask


# --- SelfAttention ------------------------------------------------------------------------------


class ThreeMaps(nn.Module):
    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_model, d_k, bias=False)
        self.W_k = nn.Linear(d_model, d_k, bias=False)
        self.W_v = nn.Linear(d_model, d_v, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Attended:
        return by_matmul(self.W_q(x), self.W_k(x), self.W_v(x), mask)


class OneProduct(nn.Module):
    """The three maps as one matrix, cut afterwards; the order of parameters is another."""

    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        for name, width in (("W_v", d_v), ("W_k", d_k), ("W_q", d_k)):
            self.add_module(name, nn.Linear(d_model, width, bias=False))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Attended:
        maps = [getattr(self, f"W_{name}").weight for name in "qkv"]
        q, k, v = F.linear(x, torch.cat(maps)).split([len(W) for W in maps], dim=-1)
        return by_einsum(q, k, v, mask)


class ByBilinearForm(nn.Module):
    """x W_qᵀ W_k xᵀ: queries and keys are never written down."""

    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.W_q, self.W_k, self.W_v = (
            nn.Linear(d_model, width, bias=False) for width in (d_k, d_k, d_v)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Attended:
        form = self.W_q.weight.T @ self.W_k.weight  # (d_model, d_model)
        scores = torch.einsum("bti,ij,bsj->bts", x, form, x) / self.W_q.out_features**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(2)
        return self.W_v(weights @ x), weights


# --- online_softmax_attention -------------------------------------------------------------------


def by_split(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    m = q.new_full((*q.shape[:-1], 1), -torch.inf)
    total, mixed = torch.zeros_like(m), q.new_zeros(*q.shape[:-1], v.shape[-1])
    for keys, values in zip(k.split(block_size, -2), v.split(block_size, -2), strict=True):
        scores = q @ keys.mT / q.shape[-1] ** 0.5  # (…, T, block)
        larger = torch.maximum(m, scores.amax(-1, keepdim=True))
        p, old = torch.exp(scores - larger), torch.exp(m - larger)
        total = total * old + p.sum(-1, keepdim=True)
        mixed = mixed * old + p @ values
        m = larger
    return mixed / total


def by_logarithms(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """Each block's own attention, mixed by the logarithm of the sum that stands behind it."""
    outputs, sizes = [], []
    for start in range(0, k.shape[-2], block_size):
        scores = q @ k[..., start : start + block_size, :].transpose(-2, -1) * q.shape[-1] ** -0.5
        outputs.append(scores.softmax(-1) @ v[..., start : start + block_size, :])
        sizes.append(scores.logsumexp(-1, keepdim=True))
    output, size = outputs[0], sizes[0]
    for here, more in zip(outputs[1:], sizes[1:], strict=True):
        output = output + torch.sigmoid(more - size) * (here - output)  # the new block's share
        size = torch.logaddexp(size, more)
    return output


def by_queries(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """Two passes over the blocks for one query at a time: the maximum, then the sums."""
    d_k, n_keys = k.shape[-1], k.shape[-2]
    blocks = [range(n, min(n + block_size, n_keys)) for n in range(0, n_keys, block_size)]
    rows = []
    for t in range(q.shape[-2]):
        query = q[..., t, :, None]  # (…, d_k, 1)
        scores = [(k[..., list(block), :] @ query)[..., 0] / d_k**0.5 for block in blocks]
        m = torch.stack([part.amax(-1) for part in scores]).amax(0)[..., None]
        raised = [(part - m).exp() for part in scores]
        total = sum(part.sum(-1, keepdim=True) for part in raised)
        parts = zip(raised, blocks, strict=True)
        rows.append(sum((p[..., None] * v[..., list(b), :]).sum(-2) for p, b in parts) / total)
    return torch.stack(rows, dim=-2)


ANSWERS = {
    "scaled_dot_product_attention": [by_matmul, by_einsum, by_rows, by_addition],
    "causal_mask": [by_triangle, by_positions, by_rows_of_the_square],
    "padding_mask": [by_comparison, by_countdown, by_writing],
    "SelfAttention": [ThreeMaps, OneProduct, ByBilinearForm],
    "online_softmax_attention": [by_split, by_logarithms, by_queries],
}
