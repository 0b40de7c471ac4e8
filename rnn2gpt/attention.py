"""Self-attention: every position reads every other in one step (chapter 05).

Scaled dot-product attention: Vaswani et al. 2017, section 3.2.1. Masks are boolean, True = may
attend. The exercise writes the scores out; here `need_weights=False` runs PyTorch's fused kernel,
which gives the same output without ever holding the (T, S) weights, wherever it is the faster way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Mask = Bool[Tensor, "*mask"] | Literal["causal"] | None


def scaled_dot_product_attention(
    q: Float[Tensor, "... T d_k"],
    k: Float[Tensor, "... S d_k"],
    v: Float[Tensor, "... S d_v"],
    mask: Mask = None,
    need_weights: bool = True,
) -> tuple[Float[Tensor, "... T d_v"], Float[Tensor, "... T S"] | None]:
    """softmax(q kᵀ / √d_k) v, and the weights, whose rows sum to one (equation 1).

    `mask` broadcasts to the scores (..., T, S); "causal" stands for `causal_mask(T, S)`, which the
    fused kernel need not be given: it works out only what is seen. A row that may attend nowhere
    has no meaning: its output is NaN, or whatever the fused kernel makes of it.

    >>> output, weights = scaled_dot_product_attention(
    ...     torch.zeros(1, 2), torch.zeros(2, 2), torch.tensor([[1.0], [3.0]])
    ... )
    >>> output, weights
    (tensor([[2.]]), tensor([[0.5000, 0.5000]]))
    """
    t, s = q.shape[-2], k.shape[-2]
    fused = not need_weights and not _slow_when_fused(q)
    alone = isinstance(mask, str) and t == s and fused  # the kernel can do it alone
    if isinstance(mask, str):
        mask = None if alone or t == 1 else causal_mask(t, s, device=q.device)
    if fused:
        kernel = nn.functional.scaled_dot_product_attention
        return kernel(q, k, v, mask, is_causal=alone), None
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)  # (..., T, S)
    if mask is not None:  # what is added costs nothing on the way back
        scores = scores + scores.new_zeros(mask.shape).masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v, weights if need_weights else None


def _slow_when_fused(q: Tensor) -> bool:
    """Whether PyTorch's kernel loses to the lines written out: bfloat16 in training on a CPU.

    Its backward pass then takes several times as long, up to windows where the size of the weights
    costs more (`benchmarks/speedrun.py` measures it).
    """
    training = torch.is_grad_enabled() and q.requires_grad
    if q.device.type != "cpu" or not training or q.shape[-2] > 512:
        return False
    cast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if cast else q.dtype) == torch.bfloat16


def causal_mask(
    t: int, s: int | None = None, device: torch.device | str | None = None
) -> Bool[Tensor, "t s"]:
    """True where a query may read: its own position and those before it.

    The t queries are the last of s positions (s = t if None), as when earlier keys are kept.
    Raises `ValueError` when s < t: there would be queries before the first position.

    >>> causal_mask(2, 4).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    s = t if s is None else s
    if s < t:
        raise ValueError(f"s={s} positions cannot hold t={t} queries: s must be at least t")
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(diagonal=s - t)


def padding_mask(lengths: Int64[Tensor, " B"], max_len: int) -> Bool[Tensor, "B 1 1 S"]:
    """True at the `lengths[b]` real positions of each row, False at the padding after them.

    >>> padding_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[[[1, 0, 0]]], [[[1, 1, 1]]]]
    """
    real = torch.arange(max_len, device=lengths.device) < lengths[:, None]  # (B, S)
    return real[:, None, None]  # → (B, 1, 1, S)


class SelfAttention(nn.Module):
    """One head: queries, keys and values are three linear maps of the same x."""

    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_model, d_k, bias=False)  # (B, T, D) → (B, T, d_k)
        self.W_k = nn.Linear(d_model, d_k, bias=False)  # (B, T, D) → (B, T, d_k)
        self.W_v = nn.Linear(d_model, d_v, bias=False)  # (B, T, D) → (B, T, d_v)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "*mask"] | None = None,
        need_weights: bool = True,
    ) -> tuple[Float[Tensor, "B T d_v"], Float[Tensor, "B T T"] | None]:
        """Mixed values, and the weights (None without `need_weights`)."""
        q, k, v = self.W_q(x), self.W_k(x), self.W_v(x)
        return scaled_dot_product_attention(q, k, v, mask, need_weights)


def online_softmax_attention(
    q: Float[Tensor, "... T d_k"],
    k: Float[Tensor, "... S d_k"],
    v: Float[Tensor, "... S d_v"],
    block_size: int,
) -> Float[Tensor, "... T d_v"]:
    """Attention that reads keys and values in blocks and never holds more than T × `block_size`.

    It keeps the largest score so far, m, the sum of exp(score − m), and the weighted sum of the
    values; when a block raises m, what was summed before is scaled by exp(old m − new m) (Milakov &
    Gimelshein 2018, algorithm 3; Dao et al. 2022, algorithm 1).
    """
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: it must be at least 1")
    m = q.new_full((*q.shape[:-1], 1), -math.inf)  # (..., T, 1)
    total = torch.zeros_like(m)
    output = q.new_zeros(())
    for keys, values in zip(k.split(block_size, -2), v.split(block_size, -2), strict=True):
        scores = q @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, block)
        new_m = torch.maximum(m, scores.amax(dim=-1, keepdim=True))
        rescale, p = (m - new_m).exp(), (scores - new_m).exp()
        total = rescale * total + p.sum(dim=-1, keepdim=True)
        output = rescale * output + p @ values  # (..., T, d_v)
        m = new_m
    return output / total


@dataclass(frozen=True, kw_only=True)
class CharAttentionConfig:
    """Sizes of a `CharAttention`; the default width is the ladder's on its text."""

    vocab_size: int
    d_model: int = 142
    n_layers: int = 2
    block_size: int = 64


class CharAttention(nn.Module):
    """A language model of nothing but causal self-attention: the bare layers, one added to another.

    Token and position embeddings, then `n_layers` times x + attention(norm(x)), then a linear head.
    It has no state: a character sees the `block_size` characters of its window and no others.
    """

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(block_size, d_model)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(n_layers))
        self.layers = nn.ModuleList(
            SelfAttention(d_model, d_model, d_model) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(
        self, ids: Int64[Tensor, "B T"], need_weights: bool = False
    ) -> tuple[Float[Tensor, "B T V"], list[Float[Tensor, "B T T"] | None]]:
        """Logits of the token after each of `ids`, and each layer's weights if asked for.

        Raises `ValueError` when T is longer than the window.
        """
        t = ids.shape[1]
        if t > self.block_size:
            raise ValueError(f"{t} tokens do not fit into a window of {self.block_size}")
        positions = torch.arange(t, device=ids.device)  # (T,)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, D)
        mask, seen = causal_mask(t, device=ids.device), []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            mixed, weights = layer(norm(x), mask, need_weights)
            x = x + mixed
            seen.append(weights)
        return self.head(self.norm(x)), seen
