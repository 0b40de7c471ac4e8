"""Right answers to chapter 07, each written another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- LayerNorm ----------------------------------------------------------------------------------


class NormByVar(nn.Module):
    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.weight * (x - mean) / torch.sqrt(variance + self.eps) + self.bias


class NormByDots(nn.Module):
    """Sums as products with a vector of ones; bias declared first."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(self.weight) / self.weight.numel()
        centered = x - (x @ ones).unsqueeze(-1)
        square = torch.einsum("...d,...d,d->...", centered, centered, ones)
        return torch.addcmul(
            self.bias, centered * self.weight, (square + self.eps)[..., None] ** -0.5
        )


class NormByVarMean(nn.Module):
    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.full((d_model,), v)) for v in (1.0, 0.0))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return torch.rsqrt(variance + self.eps) * (x - mean) * self.weight + self.bias


# --- RMSNorm ------------------------------------------------------------------------------------


class RootByRsqrt(nn.Module):
    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class RootByLength(nn.Module):
    """√D · x over the length of x with one more entry, √(D · eps)."""

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.root, self.extra = math.sqrt(d_model), math.sqrt(d_model * eps)

    def forward(self, x: Tensor) -> Tensor:
        longer = torch.cat([x, torch.full_like(x[..., :1], self.extra)], dim=-1)
        return self.weight * (self.root * x / longer.norm(dim=-1, keepdim=True))


class RootByEinsum(nn.Module):
    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x: Tensor) -> Tensor:
        square = torch.einsum("...d,...d->...", x, x) / x.size(-1)
        return torch.einsum("...d,...,d->...d", x, (square + self.eps).pow(-0.5), self.weight)


# --- FeedForward --------------------------------------------------------------------------------


class FeedByTable(nn.Module):
    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.W_1 = nn.Linear(d_model, d_ff, bias=bias)
        self.W_2 = nn.Linear(d_ff, d_model, bias=bias)
        self.drop = nn.Dropout(dropout)
        table: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": F.relu,
            "gelu": F.gelu,
            "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
        }
        self.act = table[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.W_2(self.drop(self.act(self.W_1(x))))


class FeedByModules(nn.Module):
    """Activations as modules, W_2 declared first, dropout by the functional form."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.W_2 = nn.Linear(d_ff, d_model, bias)
        self.W_1 = nn.Linear(d_model, d_ff, bias)
        if activation == "relu":
            self.activation: nn.Module = nn.ReLU()
        else:
            self.activation = nn.GELU(approximate="tanh" if activation == "gelu_tanh" else "none")
        self.p = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.W_1(x))
        return self.W_2(F.dropout(hidden, p=self.p, training=self.training))


class FeedByHand(nn.Module):
    """GELU from the error function and tanh, dropout from random numbers."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.W_1, self.W_2 = nn.Linear(d_model, d_ff, bias), nn.Linear(d_ff, d_model, bias)
        self.activation, self.p = activation, dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.W_1(x)
        if self.activation == "relu":
            h = h.clamp(min=0)
        elif self.activation == "gelu":
            h = h * (1 + torch.erf(h / 2**0.5)) / 2
        else:
            h = h * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (h + 0.044715 * h.pow(3)))
        if self.training and self.p > 0:
            h = h * (torch.rand_like(h) >= self.p) / (1 - self.p)
        return self.W_2(h)


# --- attention, three ways ----------------------------------------------------------------------


class HeadsByView(nn.Module):
    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_q, self.W_k = nn.Linear(d_model, d_model, bias), nn.Linear(d_model, d_model, bias)
        self.W_v, self.W_o = nn.Linear(d_model, d_model, bias), nn.Linear(d_model, d_model, bias)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, T, D) → (B, H, T, D/H)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(-1) @ v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = self.mix(
            self.split(self.W_q(q)), self.split(self.W_k(k)), self.split(self.W_v(v)), mask
        )
        return self.W_o(mixed.transpose(1, 2).flatten(2))  # (B, H, T, D/H) → (B, T, D)


class HeadsFused(HeadsByView):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class HeadsByEinsum(HeadsByView):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdim=True), v)


# --- TransformerBlock ---------------------------------------------------------------------------


class BlockByBranches(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention = HeadsByView(d_model, n_heads, bias)
        self.feed_forward = FeedByTable(d_model, d_ff, activation, dropout, bias)
        self.norm_1, self.norm_2 = NormByVar(d_model), NormByVar(d_model)
        self.dropout, self.norm_first = nn.Dropout(dropout), norm_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm_first:
            y = self.norm_1(x)
            x = x + self.dropout(self.attention(y, y, y, mask))
            return x + self.dropout(self.feed_forward(self.norm_2(x)))
        x = self.norm_1(x + self.dropout(self.attention(x, x, x, mask)))
        return self.norm_2(x + self.dropout(self.feed_forward(x)))


class BlockByLoop(nn.Module):
    """PyTorch's norms, the fused kernel, one loop over the two halves."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_2 = nn.LayerNorm(d_model, bias=bias)
        self.norm_1 = nn.LayerNorm(d_model, bias=bias)
        self.feed_forward = FeedByModules(d_model, d_ff, activation, dropout, bias)
        self.attention = HeadsFused(d_model, n_heads, bias)
        self.p, self.pre = dropout, norm_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            return self.attention(y, y, y, mask)

        for norm, layer in ((self.norm_1, attend), (self.norm_2, self.feed_forward)):
            added = layer(norm(x)) if self.pre else layer(x)
            x = x + F.dropout(added, self.p, self.training)
            x = x if self.pre else norm(x)
        return x


class BlockByEinsum(nn.Module):
    """Two dropouts of its own, and norms that run always: one of the two sees the identity."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention = HeadsByEinsum(d_model, n_heads, bias)
        self.feed_forward = FeedByHand(d_model, d_ff, activation, dropout, bias)
        self.norm_1, self.norm_2 = NormByVarMean(d_model), NormByDots(d_model)
        self.drops = nn.ModuleList([nn.Dropout(dropout), nn.Dropout(dropout)])
        self.norm_first = norm_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        same: Callable[[Tensor], Tensor] = nn.Identity()
        before, after = (self.norm_1, self.norm_2), (same, same)
        if not self.norm_first:
            before, after = after, before  # type: ignore[assignment]
        y = before[0](x)
        x = after[0](x + self.drops[0](self.attention(y, y, y, mask=mask)))
        return after[1](x + self.drops[1](self.feed_forward(before[1](x))))


# --- DecoderBlock -------------------------------------------------------------------------------


class DecoderByBranches(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.self_attention = HeadsByView(d_model, n_heads, bias)
        self.cross_attention = HeadsByView(d_model, n_heads, bias)
        self.feed_forward = FeedByTable(d_model, d_ff, activation, dropout, bias)
        self.norm_1, self.norm_2, self.norm_3 = (NormByVar(d_model) for _ in range(3))
        self.dropout, self.norm_first = nn.Dropout(dropout), norm_first

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        if self.norm_first:
            y = self.norm_1(x)
            x = x + self.dropout(self.self_attention(y, y, y, self_mask))
            y = self.norm_2(x)
            x = x + self.dropout(self.cross_attention(y, memory, memory, memory_mask))
            return x + self.dropout(self.feed_forward(self.norm_3(x)))
        x = self.norm_1(x + self.dropout(self.self_attention(x, x, x, self_mask)))
        x = self.norm_2(x + self.dropout(self.cross_attention(x, memory, memory, memory_mask)))
        return self.norm_3(x + self.dropout(self.feed_forward(x)))


class DecoderByLoop(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        for k in (3, 2, 1):
            setattr(self, f"norm_{k}", nn.LayerNorm(d_model, bias=bias))
        self.feed_forward = FeedByHand(d_model, d_ff, activation, dropout, bias)
        self.cross_attention = HeadsFused(d_model, n_heads, bias)
        self.self_attention = HeadsByEinsum(d_model, n_heads, bias)
        self.p, self.pre = dropout, norm_first

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda y: self.self_attention(y, y, y, self_mask),
            lambda y: self.cross_attention(y, memory, memory, memory_mask),
            self.feed_forward,
        )
        for k, layer in enumerate(layers, start=1):
            norm = getattr(self, f"norm_{k}")
            added = layer(norm(x)) if self.pre else layer(x)
            x = x + F.dropout(added, self.p, self.training)
            x = x if self.pre else norm(x)
        return x


class DecoderOnABlock(BlockByBranches):
    """An encoder block's halves with the cross-attention between them, renamed."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, n_heads, d_ff, dropout, norm_first, activation, bias)
        self.self_attention = self.attention
        del self.attention
        self.cross_attention = HeadsByEinsum(d_model, n_heads, bias)
        self.norm_3 = NormByVarMean(d_model)

    def add(self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(layer(norm(x)))
        return norm(x + self.dropout(layer(x)))

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.add(x, self.norm_1, lambda y: self.self_attention(y, y, y, self_mask))
        x = self.add(x, self.norm_2, lambda y: self.cross_attention(y, memory, memory, memory_mask))
        return self.add(x, self.norm_3, self.feed_forward)


# --- Transformer --------------------------------------------------------------------------------


def sinusoids(length: int, width: int) -> Tensor:
    table = torch.zeros(length, width)
    for i in range(0, width, 2):
        angles = torch.arange(length) / 10000 ** (i / width)
        table[:, i] = angles.sin()
        if i + 1 < width:
            table[:, i + 1] = angles.cos()
    return table


class PreNormWithSinusoids(nn.Module):
    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        max_len: int,
        pad_id: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_id, self.scale = pad_id, d_model**0.5
        self.of_source = nn.Embedding(source_vocab, d_model)
        self.of_target = nn.Embedding(target_vocab, d_model)
        self.waves: Tensor
        self.register_buffer("waves", sinusoids(max_len, d_model))
        sizes = d_model, n_heads, d_ff, dropout
        self.encoder = nn.ModuleList([BlockByBranches(*sizes) for _ in range(n_layers)])
        self.decoder = nn.ModuleList([DecoderByBranches(*sizes) for _ in range(n_layers)])
        self.end_of_encoder, self.end_of_decoder = NormByVar(d_model), NormByVar(d_model)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(d_model, target_vocab)

    def embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        return self.dropout(self.scale * table(ids) + self.waves[: ids.shape[1]])

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        mask = (source != self.pad_id)[:, None, None, :]  # (B, 1, 1, S)
        x = self.embed(self.of_source, source)
        for block in self.encoder:
            x = block(x, mask)
        return self.end_of_encoder(x), mask

    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        t = target_in.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool, device=target_in.device).tril()
        x = self.embed(self.of_target, target_in)
        for block in self.decoder:
            x = block(x, memory, causal, memory_mask)
        return self.head(self.end_of_decoder(x))

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        return self.decode(target_in, *self.encode(source))


class PostNormWithLearnedPositions(nn.Module):
    """The order of the paper, learned positions, padding hidden in the target too."""

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        max_len: int,
        pad_id: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad, self.p = pad_id, dropout
        self.words = nn.ModuleList(
            [nn.Embedding(v, d_model, padding_idx=pad_id) for v in (source_vocab, target_vocab)]
        )
        self.places = nn.ModuleList([nn.Embedding(max_len, d_model) for _ in range(2)])
        sizes: Any = (d_model, n_heads, d_ff, dropout, False, "gelu")
        self.left = nn.ModuleList(BlockByLoop(*sizes) for _ in range(n_layers))
        self.right = nn.ModuleList(DecoderByLoop(*sizes) for _ in range(n_layers))
        self.out = nn.Linear(d_model, target_vocab, bias=False)

    def embed(self, side: int, ids: Tensor) -> Tensor:
        places = self.places[side](torch.arange(ids.size(1), device=ids.device))
        return F.dropout(self.words[side](ids) + places, self.p, self.training)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        mask = source.ne(self.pad).unsqueeze(1).unsqueeze(2)
        x = self.embed(0, source)
        for block in self.left:
            x = block(x, mask)
        return x, mask

    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        where = torch.arange(target_in.size(1), device=target_in.device)
        causal = where[None, :] <= where[:, None]  # (T, T)
        mask = causal & target_in.ne(self.pad)[:, None, None]  # (B, 1, T, T)
        x = self.embed(1, target_in)
        for block in self.right:
            x = block(x, memory, mask, memory_mask)
        return self.out(x)

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        memory, memory_mask = self.encode(source)
        return self.decode(target_in, memory, memory_mask)


class TwoTowers(nn.Module):
    """Each side a module of its own; positions multiplied into nothing but added after dropout."""

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        max_len: int,
        pad_id: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.positions = nn.Parameter(torch.randn(max_len, d_model) * 0.02)
        self.inputs = nn.ModuleDict(
            {
                "source": nn.Embedding(source_vocab, d_model),
                "target": nn.Embedding(target_vocab, d_model),
            }
        )
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for _ in range(n_layers):
            self.encoder.append(BlockByEinsum(d_model, n_heads, d_ff, dropout))
            self.decoder.append(DecoderOnABlock(d_model, n_heads, d_ff, dropout))
        self.head = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, target_vocab))

    def start(self, side: str, ids: Tensor) -> Tensor:
        return self.inputs[side](ids) + self.positions[None, : ids.shape[1]]

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        memory_mask = torch.where(source == self.pad_id, 0, 1).bool()[:, None, None]
        x = self.start("source", source)
        for block in self.encoder:
            x = block(x, memory_mask)
        return x, memory_mask

    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        future = torch.full((target_in.shape[1],) * 2, True, device=target_in.device).triu(1)
        x = self.start("target", target_in)
        for block in self.decoder:
            x = block(x, memory, future.logical_not(), memory_mask)
        return self.head(x)

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        return self.decode(target_in, *self.encode(source))


# --- label_smoothed_cross_entropy ---------------------------------------------------------------


def smoothed_by_gather(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    log_p = F.log_softmax(logits, dim=-1)  # (B, T, V)
    real = targets != pad_id
    own = log_p.gather(-1, targets.masked_fill(~real, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * own - smoothing * log_p.mean(-1)
    return losses.masked_fill(~real, 0).sum() / real.sum()


def smoothed_by_distribution(
    logits: Tensor, targets: Tensor, smoothing: float, pad_id: int
) -> Tensor:
    """The product of the target distribution with the log-probabilities, real rows alone."""
    keep = (targets != pad_id).flatten()
    rows, classes = logits.reshape(-1, logits.shape[-1])[keep], targets.flatten()[keep]
    q = torch.full_like(rows, smoothing / rows.shape[-1])
    q[torch.arange(len(rows), device=rows.device), classes] += 1 - smoothing
    return -(q * torch.log_softmax(rows, -1)).sum() / len(rows)


def smoothed_by_logsumexp(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    """logsumexp less the logits' mean under q; the mask multiplies."""
    real = torch.ne(targets, pad_id).to(logits.dtype)
    classes = torch.arange(logits.size(-1), device=logits.device)
    hit = (targets.unsqueeze(-1) == classes).to(logits.dtype)  # (B, T, V), no row for −100
    mean = (1 - smoothing) * (logits * hit).sum(-1) + smoothing * logits.mean(-1)
    return ((logits.logsumexp(-1) - mean) * real).sum() / real.sum()


ANSWERS = {
    "LayerNorm": [NormByVar, NormByDots, NormByVarMean],
    "RMSNorm": [RootByRsqrt, RootByLength, RootByEinsum],
    "FeedForward": [FeedByTable, FeedByModules, FeedByHand],
    "TransformerBlock": [BlockByBranches, BlockByLoop, BlockByEinsum],
    "DecoderBlock": [DecoderByBranches, DecoderByLoop, DecoderOnABlock],
    "Transformer": [PreNormWithSinusoids, PostNormWithLearnedPositions, TwoTowers],
    "label_smoothed_cross_entropy": [
        smoothed_by_gather,
        smoothed_by_distribution,
        smoothed_by_logsumexp,
    ],
}
