"""Right answers to chapter 11, each written another way."""

from __future__ import annotations

import heapq
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- filter_logits ------------------------------------------------------------------------------


def filter_by_scatter(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    result = logits.clone()
    if top_k is not None:
        least = torch.topk(result, min(top_k, result.size(-1)), dim=-1).values[..., -1, None]
        result[result < least] = float("-inf")
    if top_p is not None:
        ordered, indices = torch.sort(result, descending=True, dim=-1)
        sums = torch.cumsum(F.softmax(ordered, dim=-1), dim=-1)
        remove = sums >= top_p
        remove[..., 1:] = remove[..., :-1].clone()  # the token that crosses stays
        remove[..., 0] = False
        result = result.masked_fill(remove.scatter(-1, indices, remove), float("-inf"))
    return result


def filter_by_ranks(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Ranks by sorting twice; both filters say up to which rank a row goes."""
    order = logits.argsort(dim=-1, descending=True)
    rank = order.argsort(dim=-1)  # (B, V), 0 for the likeliest
    if top_k is not None:
        logits = torch.where(rank < top_k, logits, -torch.inf)
    if top_p is not None:
        shares = logits.softmax(dim=-1).gather(-1, order)
        before = F.pad(shares.cumsum(dim=-1), (1, -1))  # 0 in front, the last sum left out
        kept = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1)
        logits = torch.where(rank < kept, logits, -torch.inf)
    return logits


def filter_row_by_row(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    rows = []
    for row in logits:
        values, ids = row.sort(descending=True)
        n = len(row) if top_k is None else min(top_k, len(row))
        if top_p is not None:
            total, kept = 0.0, 0
            for p in values[:n].softmax(0).tolist():
                kept, total = kept + 1, total + p
                if total >= top_p:
                    break
            n = kept
        new = torch.full_like(row, -math.inf)
        new[ids[:n]] = values[:n]
        rows.append(new)
    return torch.stack(rows)


# --- sample -------------------------------------------------------------------------------------


def sample_by_multinomial(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_by_scatter(logits / temperature, top_k, top_p).softmax(-1)
    return torch.multinomial(p.cpu(), 1, generator=generator).to(logits.device).squeeze(1)


def sample_by_gumbel(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The largest of the logits with Gumbel noise added is a draw from their softmax."""
    if temperature == 0:
        return logits.max(dim=-1).indices
    kept = filter_by_ranks(logits / temperature, top_k, top_p)
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    noise = -(-uniform.clamp(min=1e-300).log()).log()
    return (kept + noise.to(logits.device)).argmax(-1)


def sample_by_inverse(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One uniform number a row, looked up in the running sums."""
    if not temperature:
        return torch.argmax(logits, -1)
    sums = filter_row_by_row(logits / temperature, top_k, top_p).softmax(-1).double().cumsum(-1)
    point = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(sums / sums[:, -1:], point.to(sums.device), right=True)[:, 0]


# --- KVCache ------------------------------------------------------------------------------------


class TwoRooms:
    """Two buffers, made like the first key that comes."""

    def __init__(
        self, n_layers: int, batch_size: int, n_heads: int, max_len: int, d_head: int
    ) -> None:
        self.shape = (n_layers, batch_size, n_heads, max_len, d_head)
        self.keys: Any = None
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.keys, self.values = k.new_zeros(self.shape), v.new_zeros(self.shape)
        start, stop = self.length, self.length + k.size(2)
        if stop > self.shape[3]:
            raise ValueError(f"cache of {self.shape[3]} cannot hold {stop}")
        self.keys[layer][:, :, start:stop] = k
        self.values[layer][:, :, start:stop] = v
        if layer + 1 == self.shape[0]:
            self.length = stop
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]


class Joined:
    """A list of pairs that grow by concatenation; the length is read off the last layer."""

    def __init__(
        self, n_layers: int, batch_size: int, n_heads: int, max_len: int, d_head: int
    ) -> None:
        self.max_len, self.pairs = max_len, [None] * n_layers

    @property
    def length(self) -> int:
        last: Any = self.pairs[-1]
        return 0 if last is None else last[0].shape[2]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old: Any = self.pairs[layer]
        if (0 if old is None else old[0].shape[2]) + k.shape[2] > self.max_len:
            raise ValueError("the cache is full")
        if old is not None:
            k, v = torch.cat((old[0], k), dim=-2), torch.cat((old[1], v), dim=-2)
        self.pairs[layer] = (k, v)  # type: ignore[call-overload]
        return k, v


class Pieces:
    """Every piece kept as it came, joined when it is asked for."""

    def __init__(
        self, n_layers: int, batch_size: int, n_heads: int, max_len: int, d_head: int
    ) -> None:
        self.limit, self.length = max_len, 0
        self.pieces: dict[int, list[Tensor]] = {layer: [] for layer in range(n_layers)}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if self.length + k.shape[-2] > self.limit:
            raise ValueError(self.limit)
        self.pieces[layer].append(torch.stack([k, v]))  # (2, B, H, T, d)
        if layer == max(self.pieces):
            self.length += k.shape[-2]
        return torch.cat(self.pieces[layer], dim=3).unbind(0)


# --- beam_search --------------------------------------------------------------------------------


def beam_by_lists(
    score_next: Any,
    bos_id: int,
    eos_id: int,
    beam_size: int,
    max_len: int,
    length_penalty: float = 0.0,
) -> tuple[list[int], float]:
    """Finished sequences are set aside and leave their place to others."""
    beams: list[tuple[float, list[int]]] = [(0.0, [bos_id])]
    done: list[tuple[float, list[int]]] = []
    for _ in range(max_len):
        if not beams:
            break
        log_p = score_next([ids for _, ids in beams])
        candidates = []
        for (total, ids), row in zip(beams, log_p.tolist(), strict=True):
            for token, value in enumerate(row):
                candidates.append((total + value, [*ids, token]))
        candidates.sort(key=lambda one: one[0], reverse=True)
        beams = []
        for total, ids in candidates:
            if ids[-1] == eos_id:
                done.append((total, ids))
            elif len(beams) < beam_size:
                beams.append((total, ids))
    both = [(total / (len(ids) - 1) ** length_penalty, ids[1:]) for total, ids in done + beams]
    score, ids = max(both, key=lambda one: one[0])
    return ids, score


def beam_by_tensors(
    score_next: Any,
    bos_id: int,
    eos_id: int,
    beam_size: int,
    max_len: int,
    length_penalty: float = 0.0,
) -> tuple[list[int], float]:
    """Ids and sums as tensors; the best finished one is all that is remembered of those."""
    ids = torch.full((1, 1), bos_id)
    sums = torch.zeros(1, dtype=torch.float64)
    best, best_score = [bos_id], -math.inf
    for n in range(1, max_len + 1):
        log_p = score_next(ids.tolist())
        totals = (sums[:, None] + log_p).flatten()
        sums, flat = totals.topk(min(beam_size, len(totals)))
        ids = torch.cat([ids[flat // log_p.shape[1]], flat[:, None] % log_p.shape[1]], dim=1)
        over = ids[:, -1] == eos_id if n < max_len else torch.ones(len(ids), dtype=torch.bool)
        for row, total in zip(ids[over].tolist(), sums[over].tolist(), strict=True):
            if total / n**length_penalty > best_score:
                best, best_score = row[1:], total / n**length_penalty
        ids, sums = ids[~over], sums[~over]
        if len(ids) == 0:
            break
    return best, best_score


def beam_by_heap(
    score_next: Any,
    bos_id: int,
    eos_id: int,
    beam_size: int,
    max_len: int,
    length_penalty: float = 0.0,
) -> tuple[list[int], float]:
    """One question for each sequence, and the finished ones compete for places with the others."""
    beam: list[tuple[float, list[int]]] = [(0.0, [])]

    def ended(ids: list[int]) -> bool:
        return bool(ids) and ids[-1] == eos_id

    for _ in range(max_len):
        options = [one for one in beam if ended(one[1])]
        if len(options) == len(beam):
            break
        for total, ids in beam:
            if not ended(ids):
                row = score_next([[bos_id, *ids]])[0]
                options += [(total + row[i].item(), [*ids, i]) for i in range(len(row))]
        beam = heapq.nlargest(beam_size, options, key=lambda one: one[0])

    def score(one: tuple[float, list[int]]) -> float:
        return one[0] / float(len(one[1])) ** length_penalty

    winner = max(beam, key=score)
    return winner[1], score(winner)


# --- quantize_int8, dequantize ------------------------------------------------------------------


def quantize_by_where(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max(dim=1, keepdim=True).values / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(weight / scale).to(torch.int8), scale


def quantize_by_clamp(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (weight.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-8)
    q = (weight / scale).round().clamp(-128, 127)
    return q.char(), scale


def quantize_row_by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = weight.new_ones(len(weight), 1)
    for i, row in enumerate(weight):
        step = torch.maximum(row.max(), -row.min()) / 127
        scale[i] = torch.where(step > 0, step, 0.5)
        q[i] = torch.floor(row / scale[i] + 0.5).to(torch.int8)
    return q, scale


def dequantize_by_product(q: Tensor, scale: Tensor) -> Tensor:
    return q.to(scale.dtype) * scale


def dequantize_by_promotion(q: Tensor, scale: Tensor) -> Tensor:
    return scale * q


def dequantize_by_einsum(q: Tensor, scale: Tensor) -> Tensor:
    return torch.einsum("oi,o->oi", q.type_as(scale), scale.squeeze(1))


ANSWERS = {
    "filter_logits": [filter_by_scatter, filter_by_ranks, filter_row_by_row],
    "sample": [sample_by_multinomial, sample_by_gumbel, sample_by_inverse],
    "KVCache": [TwoRooms, Joined, Pieces],
    "beam_search": [beam_by_lists, beam_by_tensors, beam_by_heap],
    "quantize_int8": [quantize_by_where, quantize_by_clamp, quantize_row_by_row],
    "dequantize": [dequantize_by_product, dequantize_by_promotion, dequantize_by_einsum],
}
