"""Right answers to chapter 13, each written another way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn2gpt.attention import causal_mask

# --- pool_last_token ----------------------------------------------------------------------------


def by_largest_place(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = places.where(attention_mask, -1).amax(dim=-1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


def by_flip(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    from_behind = attention_mask.flip(1).to(torch.uint8).argmax(dim=1)  # the first True there
    last = hidden.shape[1] - 1 - from_behind
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def by_loop(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    picked = []
    for row, mask in zip(hidden, attention_mask, strict=True):
        picked.append(row[mask][-1])
    return torch.stack(picked)


def by_selection(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """A row of weights, 1 at the token behind which no real one follows."""
    left = attention_mask.long()
    follows = left.flip(1).cumsum(1).flip(1)  # how many real ones from here to the end
    chosen = (follows == 1) & attention_mask
    return torch.einsum("btd,bt->bd", hidden, chosen.to(hidden.dtype))


# --- SequenceClassifier -------------------------------------------------------------------------


class ByOrder(nn.Module):
    def __init__(self, gpt: Any, n_classes: int) -> None:
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, n_classes)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        order = torch.sort(~attention_mask, dim=1, stable=True).indices
        ids, mask = ids.gather(1, order), attention_mask.gather(1, order)
        t = ids.shape[1]
        gpt = self.gpt
        x = gpt.token_embedding(ids) + gpt.position_embedding(torch.arange(t, device=ids.device))
        x = gpt.dropout(x)
        for block in gpt.blocks:
            x = block(x, causal_mask(t, device=ids.device))
        return self.head(by_largest_place(gpt.norm(x), mask))


class ByPositions(nn.Module):
    """Padding stays where it is: positions are counted past it, and no one attends to it."""

    def __init__(self, gpt: Any, n_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(gpt.token_embedding.weight.shape[1], n_classes)
        self.gpt = gpt

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        batch, t = ids.shape
        places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        x = self.gpt.token_embedding(ids) + self.gpt.position_embedding(places)
        own = torch.eye(t, dtype=torch.bool, device=ids.device)  # so that padding has a softmax
        seen = causal_mask(t, device=ids.device) & attention_mask.view(batch, 1, t)
        for block in self.gpt.blocks:
            x = block(x, (seen | own).unsqueeze(1))
        return self.head(by_flip(self.gpt.norm(x), attention_mask))


class ByHook(nn.Module):
    """The GPT runs as it is, and what its head reads is caught."""

    def __init__(self, gpt: Any, n_classes: int) -> None:
        super().__init__()
        self.gpt, self.head = gpt, nn.Linear(gpt.config.d_model, n_classes)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(dim=1)
        rows = [row[real] for row, real in zip(ids, attention_mask, strict=True)]
        packed = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        caught: list[Tensor] = []
        hook = self.gpt.norm.register_forward_hook(lambda *call: caught.append(call[2]))
        try:
            self.gpt(packed)
        finally:
            hook.remove()
        last = caught[0][torch.arange(len(rows), device=ids.device), lengths - 1]
        return F.linear(last, self.head.weight, self.head.bias)


# --- freeze -------------------------------------------------------------------------------------


def by_startswith(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(except_for)


def by_two_passes(model: nn.Module, except_for: Sequence[str]) -> nn.Module:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        for prefix in except_for:
            if name[: len(prefix)] == prefix:
                parameter.requires_grad_()
    return model


def by_sets(model: nn.Module, except_for: Sequence[str]) -> int:
    every = dict(model.named_parameters())
    trained = {name for prefix in except_for for name in every if name.startswith(prefix)}
    for name in every.keys() - trained:
        every[name].requires_grad_(False)
    for name in trained:
        every[name].requires_grad_(True)
    return len(trained)


# --- LoRALinear ---------------------------------------------------------------------------------


class ByFlag(nn.Module):
    def __init__(self, base: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        for parameter in base.parameters():
            parameter.requires_grad = False
        out, width = base.weight.shape
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.A = nn.Parameter(torch.randn(rank, width, **like) / rank)
        self.B = nn.Parameter(torch.zeros(out, rank, **like))
        self.scale, self.merged = alpha / rank, False

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.merged:
            y = y + F.linear(F.linear(x, self.A), self.B) * self.scale
        return y

    def merge(self) -> None:
        if not self.merged:
            self.base.weight.data += self.scale * self.B.data @ self.A.data
        self.merged = True

    def unmerge(self) -> None:
        if self.merged:
            self.base.weight.data -= self.scale * self.B.data @ self.A.data
        self.merged = False


class ByCopy(nn.Module):
    """The base's own matrix is kept aside, so that unmerging loses no digit."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features).uniform_(-1, 1))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.rank, self.alpha = rank, alpha
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is not None:
            return self.base(x)
        weight = self.base.weight + self.alpha / self.rank * torch.mm(self.B, self.A)
        return F.linear(x, weight, self.base.bias)

    def merge(self) -> None:
        if self.kept is None:
            with torch.no_grad():
                self.kept = self.base.weight.clone()
                self.base.weight += torch.mm(self.B, self.A) * (self.alpha / self.rank)

    def unmerge(self) -> None:
        if self.kept is not None:
            with torch.no_grad():
                self.base.weight.copy_(self.kept)
            self.kept = None


class ByState(nn.Module):
    """Merging and unmerging are one step with two signs; the state says which is legal."""

    def __init__(self, base: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty_like(base.weight[:1]).repeat(rank, 1).normal_(std=0.2))
        self.B = nn.Parameter(torch.zeros_like(base.weight[:, :1]).repeat(1, rank))
        self.base, self.factor, self.inside = base, alpha * rank**-1, 0
        self.base.weight.requires_grad_(False)
        if self.base.bias is not None:
            self.base.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        detour = torch.einsum("...i,ri,or->...o", x, self.A, self.B)
        return self.base(x) + (1 - self.inside) * self.factor * detour

    @torch.no_grad()
    def _move(self, to: int) -> None:
        self.base.weight.add_(self.B @ self.A, alpha=(to - self.inside) * self.factor)
        self.inside = to

    def merge(self) -> None:
        self._move(1)

    def unmerge(self) -> None:
        self._move(0)


ANSWERS = {
    "pool_last_token": [by_largest_place, by_flip, by_loop, by_selection],
    "SequenceClassifier": [ByOrder, ByPositions, ByHook],
    "freeze": [by_startswith, by_two_passes, by_sets],
    "LoRALinear": [ByFlag, ByCopy, ByState],
}
