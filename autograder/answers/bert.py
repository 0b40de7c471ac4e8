"""Right answers to chapter 12, each written another way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn2gpt.multi_head import MultiHeadAttention
from rnn2gpt.transformer import FeedForward, TransformerBlock

Masked = tuple[Tensor, Tensor]

# --- mask_tokens --------------------------------------------------------------------------------


def by_where(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    special_ids: Iterable[int],
    p: float = 0.15,
    generator: torch.Generator | None = None,
) -> Masked:
    device, forbidden = ids.device, sorted(special_ids)
    table = torch.tensor([i for i in range(vocab_size) if i not in forbidden])
    u, w = (torch.rand(ids.shape, generator=generator).to(device) for _ in range(2))
    candidates = table[torch.randint(0, len(table), ids.shape, generator=generator)].to(device)
    chosen = u < p
    for special in forbidden:
        chosen = chosen & (ids != special)
    swapped = torch.where(w < 0.9, candidates, ids)
    hidden = torch.where(w < 0.8, mask_id, swapped)
    return torch.where(chosen, hidden, ids), torch.where(chosen, ids, -100)


def by_loop(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    special_ids: Iterable[int],
    p: float = 0.15,
    generator: torch.Generator | None = None,
) -> Masked:
    """One token after the other; a special candidate is drawn again."""
    special = set(special_ids)
    inputs, labels = ids.reshape(-1).tolist(), [-100] * ids.numel()
    draws = torch.rand(ids.numel(), 2, generator=generator).tolist()
    spare: list[int] = []
    for place, (u, w) in enumerate(draws):
        if u >= p or inputs[place] in special:
            continue
        labels[place] = inputs[place]
        if w < 0.8:
            inputs[place] = mask_id
        elif w < 0.9:
            while not spare or spare[-1] in special:
                if spare:
                    spare.pop()
                else:
                    spare = torch.randint(vocab_size, (64,), generator=generator).tolist()
            inputs[place] = spare.pop()
    made = (torch.tensor(part, device=ids.device).view(ids.shape) for part in (inputs, labels))
    return tuple(made)  # type: ignore[return-value]


def by_bernoulli(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    special_ids: Iterable[int],
    p: float = 0.15,
    generator: torch.Generator | None = None,
) -> Masked:
    """Indexed assignment; a fifth of the chosen is spared the mask, and half of it replaced."""
    inputs, labels = ids.clone(), ids.clone()
    special = torch.isin(ids, torch.tensor(list(special_ids), device=ids.device))

    def coin(share: Tensor | float) -> Tensor:
        if not isinstance(share, Tensor):
            share = torch.full(ids.shape, share)
        return torch.bernoulli(share, generator=generator).bool().to(ids.device)

    chosen = coin(torch.full(ids.shape, p).masked_fill(special.cpu(), 0.0))
    labels[~chosen] = -100
    masked = coin(0.8) & chosen
    inputs[masked] = mask_id
    swapped = coin(0.5) & chosen & ~masked
    weights = torch.ones(vocab_size)
    weights[list(special_ids)] = 0
    n = int(swapped.sum())
    if n:
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
        inputs[swapped] = drawn.to(ids.device)
    return inputs, labels


# --- BertForMaskedLM ----------------------------------------------------------------------------


class ByBlocks(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        d, self.longest = config.d_model, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Embedding(config.block_size, d)
        self.type_embedding = nn.Embedding(config.n_token_types, d)
        self.embedding_norm = nn.LayerNorm(d)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(d, config.n_heads, 4 * d, config.dropout, False, "gelu")
                for _ in range(config.n_layers)
            ]
        )
        self.dense = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.decoder = nn.Linear(d, config.vocab_size)
        self.decoder.weight = self.token_embedding.weight
        self.sigma = 0.02 * (768 / d) ** 0.5
        self.apply(self._init)

    def _init(self, part: nn.Module) -> None:
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, 0.0, self.sigma)

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        length = ids.size(1)
        if length > self.longest:
            raise ValueError(f"{length} > {self.longest}")
        if token_types is None:
            token_types = torch.zeros_like(ids)
        places = torch.arange(length, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(places)
        x = self.drop(self.embedding_norm(x + self.type_embedding(token_types)))
        mask = attention_mask.unsqueeze(1).unsqueeze(1) if attention_mask is not None else None
        for block in self.blocks:
            x = block(x, mask)
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class Layer(nn.Module):
    """A post-norm block with parts of its own, in another order."""

    def __init__(self, d: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_2, self.norm_1 = nn.LayerNorm(d, eps=1e-12), nn.LayerNorm(d, eps=1e-12)
        self.feed_forward = FeedForward(d, 4 * d, "gelu", dropout)
        self.attention = MultiHeadAttention(d, n_heads)
        self.p = dropout

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        read = self.attention(x, x, x, mask)[0]
        x = self.norm_1(x + F.dropout(read, self.p, self.training))
        return self.norm_2(x + F.dropout(self.feed_forward(x), self.p, self.training))


class ByOwnLayers(nn.Module):
    """BERT's own eps; no bias in the decoder layer, but one beside it under its name."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, d = config, config.d_model
        self.decoder = nn.Linear(d, config.vocab_size)
        self.norm, self.dense = nn.LayerNorm(d, eps=1e-12), nn.Linear(d, d)
        self.blocks = nn.ModuleList()
        for _ in range(config.n_layers):
            self.blocks.append(Layer(d, config.n_heads, config.dropout))
        self.embedding_norm = nn.LayerNorm(d, eps=1e-12)
        self.type_embedding = nn.Embedding(config.n_token_types, d)
        self.position_embedding = nn.Embedding(config.block_size, d)
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.token_embedding.weight = self.decoder.weight
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_().mul_(0.02 * math.sqrt(768 / d))

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        if ids.shape[-1] > self.config.block_size:
            raise ValueError("too many tokens")
        x = F.embedding(ids, self.decoder.weight) + self.position_embedding.weight[: ids.shape[1]]
        x = x + (
            self.type_embedding.weight[0]
            if token_types is None
            else self.type_embedding(token_types)
        )
        x = F.dropout(self.embedding_norm(x), self.config.dropout, self.training)
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, None, None, :].bool()
        for block in self.blocks:
            x = block(x, mask)
        return F.linear(
            self.norm(F.gelu(self.dense(x))), self.token_embedding.weight, self.decoder.bias
        )


class ByOneHot(nn.Module):
    """Embeddings as products with one-hot rows, and the mask written out for every query."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.sizes = config.vocab_size, config.block_size, config.n_token_types
        d = config.d_model
        names = ("token_embedding", "position_embedding", "type_embedding")
        for name, rows in zip(names, self.sizes, strict=True):
            self.add_module(name, nn.Embedding(rows, d))
        self.embedding_norm, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                d,
                config.n_heads,
                4 * d,
                dropout=config.dropout,
                norm_first=False,
                activation="gelu",
            )
            for _ in range(config.n_layers)
        )
        self.dense = nn.Linear(d, d)
        self.decoder = nn.Linear(d, config.vocab_size)
        self.decoder.weight = self.get_parameter("token_embedding.weight")
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=math.sqrt(0.3072 / d))

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        batch, t = ids.shape
        n_tokens, n_places, n_types = self.sizes
        if t > n_places:
            raise ValueError(t)
        types = ids * 0 if token_types is None else token_types
        table = self.decoder.weight
        x = F.one_hot(ids, n_tokens).to(table.dtype) @ table
        x = x + F.one_hot(types, n_types).to(table.dtype) @ self.get_parameter(
            "type_embedding.weight"
        )
        x = x + self.get_parameter("position_embedding.weight").narrow(0, 0, t)
        x = self.dropout(self.embedding_norm(x))
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, None, None].expand(batch, 1, t, t)
        for block in self.blocks:
            x = block(x, mask)
        return self.decoder(self.norm(F.gelu(self.dense(x))))


# --- pseudo_log_likelihood ----------------------------------------------------------------------

Model = Callable[[Tensor], Tensor]


def by_one_batch(model: Model, ids: Tensor, mask_id: int) -> float:
    t = len(ids)
    rows = ids.repeat(t, 1)
    rows.fill_diagonal_(mask_id)
    log_p = F.log_softmax(model(rows), dim=-1)  # (T, T, V)
    return float(sum(log_p[i, i, ids[i]] for i in range(t)))


def by_one_row_at_a_time(model: Model, ids: Tensor, mask_id: int) -> Tensor:
    total = torch.tensor(0.0, dtype=torch.float64)
    for t in range(ids.shape[0]):
        copy = ids.clone()
        copy[t] = mask_id
        logits = model(copy.unsqueeze(0))[0, t]
        total = total + logits[ids[t]] - torch.logsumexp(logits, 0)
    return total


def by_halves(model: Model, ids: Tensor, mask_id: int) -> float:
    """Two batches at most, and what is asked for gathered."""
    eye = torch.eye(len(ids), dtype=torch.bool)
    scores = []
    for places in eye.chunk(2):
        logits = model(torch.where(places, mask_id, ids))  # (n, T, V)
        asked = logits[places].log_softmax(-1)  # (n, V)
        scores.append(asked.gather(1, ids[places.nonzero()[:, 1]][:, None]))
    return torch.cat(scores).sum().item()


ANSWERS = {
    "mask_tokens": [by_where, by_loop, by_bernoulli],
    "BertForMaskedLM": [ByBlocks, ByOwnLayers, ByOneHot],
    "pseudo_log_likelihood": [by_one_batch, by_one_row_at_a_time, by_halves],
}
