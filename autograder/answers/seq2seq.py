"""Right answers to chapter 04, each written another way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- masked_softmax -----------------------------------------------------------------------------


def by_fill_and_where(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    filled = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.where(mask, torch.softmax(filled, dim), 0.0)


def by_exp_and_sum(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    hidden = scores.masked_fill(~mask, float("-inf"))
    top = hidden.amax(dim, keepdim=True).detach()
    top = top.masked_fill(top == float("-inf"), 0.0)
    weights = torch.exp(hidden - top)
    total = weights.sum(dim, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)


def by_logsumexp(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Fully masked rows are computed without a mask, then set to 0."""
    some = mask.expand_as(scores).any(dim, keepdim=True)
    hidden = scores.masked_fill(~mask & some, float("-inf"))
    return (hidden - hidden.logsumexp(dim, keepdim=True)).exp() * some


def by_nan_to_num(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    return F.softmax(scores.masked_fill(~mask, -torch.inf), dim=dim).nan_to_num(0.0)


# --- AdditiveAttention --------------------------------------------------------------------------


class ByBroadcast(nn.Module):
    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_query, d_hidden, bias=False)
        self.W_k = nn.Linear(d_key, d_hidden, bias=False)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.W_q(query).unsqueeze(2) + self.W_k(keys).unsqueeze(1))
        scores = self.v(hidden).squeeze(-1)  # (B, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
        weights = scores.softmax(dim=-1)
        return weights @ keys, weights


class QueryByQuery(nn.Module):
    """One query at a time, as a decoder asks."""

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        self.v = nn.Linear(d_hidden, 1, bias=False)
        self.W_k = nn.Linear(d_key, d_hidden, bias=False)
        self.W_q = nn.Linear(d_query, d_hidden, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mapped, contexts, rows = self.W_k(keys), [], []
        for q in query.unbind(dim=1):
            scores = self.v(torch.tanh(mapped + self.W_q(q)[:, None, :]))[:, :, 0]  # (B, S)
            if mask is not None:
                scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=1)
            contexts.append((weights[:, :, None] * keys).sum(dim=1))
            rows.append(weights)
        return torch.stack(contexts, dim=1), torch.stack(rows, dim=1)


class ByEinsum(nn.Module):
    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        for name, size in (("W_q", (d_hidden, d_query)), ("W_k", (d_hidden, d_key))):
            layer = nn.Linear(size[1], size[0], bias=False)
            nn.init.normal_(layer.weight, std=size[1] ** -0.5)
            self.add_module(name, layer)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        q = torch.einsum("btq,hq->bth", query, self.get_submodule("W_q").weight)
        k = torch.einsum("bsk,hk->bsh", keys, self.get_submodule("W_k").weight)
        scores = torch.einsum("btsh,oh->bts", torch.tanh(q[:, :, None] + k[:, None]), self.v.weight)
        if mask is not None:
            scores = scores + torch.zeros_like(scores).masked_fill(~mask[:, None], -torch.inf)
        weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
        return torch.einsum("bts,bsk->btk", weights, keys), weights


# --- shift_right --------------------------------------------------------------------------------


def shift_by_cat(targets: Tensor, bos_id: int) -> Tensor:
    bos = targets.new_full((len(targets), 1), bos_id)
    return torch.cat([bos, targets[:, :-1]], dim=1)


def shift_by_pad(targets: Tensor, bos_id: int) -> Tensor:
    return F.pad(targets, (1, -1), value=bos_id)


def shift_by_roll(targets: Tensor, bos_id: int) -> Tensor:
    shifted = targets.roll(1, dims=1)
    shifted[:, 0] = bos_id
    return shifted


def shift_by_copy(targets: Tensor, bos_id: int) -> Tensor:
    shifted = torch.empty_like(targets).fill_(bos_id)
    shifted[:, 1:] = targets[:, :-1]
    return shifted


# --- sequence_cross_entropy ---------------------------------------------------------------------


def loss_by_ignore_index(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    total = F.cross_entropy(logits.mT, targets, ignore_index=pad_id, reduction="sum")
    return total / (targets != pad_id).sum().clamp(min=1)


def loss_by_selection(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    kept = targets != pad_id
    if not kept.any():
        return logits.sum() * 0.0
    chosen, ids = logits[kept], targets[kept]  # (N, V), (N,)
    return (chosen.logsumexp(-1) - chosen.gather(1, ids[:, None])[:, 0]).mean()


def loss_by_one_hot(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    kept = targets.ne(pad_id)
    columns = torch.arange(logits.shape[-1], device=targets.device)
    chosen = targets.unsqueeze(-1).eq(columns) & kept.unsqueeze(-1)  # (B, T, V)
    total = -logits.log_softmax(dim=-1).masked_fill(~chosen, 0.0).sum()
    return total / max(int(kept.sum()), 1)


def loss_token_by_token(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    losses = [
        -F.log_softmax(logits[b, t], dim=0)[targets[b, t]]
        for b in range(targets.shape[0])
        for t in range(targets.shape[1])
        if targets[b, t] != pad_id
    ]
    return torch.stack(losses).mean() if losses else logits.new_zeros(())


# --- Seq2Seq ------------------------------------------------------------------------------------


class GruAdditive(nn.Module):
    """After Bahdanau et al. 2015: the state before the step asks, the cell reads the context."""

    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        self.encoder = nn.GRU(d_model, d_model, batch_first=True)
        self.attention = ByBroadcast(d_model, d_model, d_model) if attention else None
        self.cell = nn.GRUCell(2 * d_model if attention else d_model, d_model)
        self.head = nn.Linear(d_model, target_vocab)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        memory, _ = self.encoder(self.source_embedding(source))
        last = (lengths - 1)[:, None, None].expand(-1, 1, memory.shape[-1])
        return memory, memory.gather(1, last)[:, 0]

    def decode_step(
        self, ids: Tensor, state: Tensor, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weights = self.target_embedding(ids), None
        if self.attention is not None:
            context, weights = self.attention(state[:, None], memory, mask)
            x, weights = torch.cat([x, context[:, 0]], dim=1), weights[:, 0]
        state = self.cell(x, state)
        return self.head(state), state, weights

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        logits = []
        for t in range(target_in.shape[1]):
            step, state, _ = self.decode_step(target_in[:, t], state, memory, mask)
            logits.append(step)
        return torch.stack(logits, dim=1)

    @torch.no_grad()
    def greedy_decode(
        self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int, eos_id: int
    ) -> list[list[int]]:
        memory, state = self.encode(source, lengths)
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        ids = source.new_full((len(source),), bos_id)
        rows: list[list[int]] = [[] for _ in range(len(source))]
        open_rows = set(range(len(source)))
        for _ in range(max_len):
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            ids = logits.argmax(dim=-1)
            for b in sorted(open_rows):
                token = int(ids[b])
                if token == eos_id:
                    open_rows.discard(b)
                else:
                    rows[b].append(token)
            if not open_rows:
                break
        return rows


class LstmDotProduct(nn.Module):
    """After Luong et al. 2015, "general": packed LSTM, the state after the step asks."""

    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__()
        self.attention, d = attention, d_model
        self.embed = nn.ModuleDict(
            {"source": nn.Embedding(source_vocab, d), "target": nn.Embedding(target_vocab, d)}
        )
        self.encoder = nn.LSTM(d, d)
        self.decoder = nn.LSTM(d, d, batch_first=True)
        if attention:
            self.score = nn.Linear(d, d, bias=False)
            self.merge = nn.Linear(2 * d, d)
        self.out = nn.Linear(d, target_vocab)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        x = self.embed["source"](source).transpose(0, 1)  # (B, S, D) → (S, B, D)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        states, (h, c) = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(states, total_length=source.shape[1])
        return memory.transpose(0, 1), (h, c)

    def decode_step(
        self, ids: Tensor, state: Any, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Any, Tensor | None]:
        x = self.embed["target"](ids).unsqueeze(1)  # (B, 1, D)
        output, state = self.decoder(x, state)
        h = output.squeeze(1)
        if not self.attention:
            return self.out(h), state, None
        scores = torch.einsum("bd,bsd->bs", self.score(h), memory)
        weights = by_fill_and_where(scores, mask)
        context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        return self.out(torch.tanh(self.merge(torch.cat([context, h], dim=-1)))), state, weights

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        """All steps of the decoder at once: the state does not depend on the context here."""
        memory, state = self.encode(source, lengths)
        h, _ = self.decoder(self.embed["target"](target_in), state)  # (B, T, D)
        if not self.attention:
            return self.out(h)
        mask = torch.arange(source.shape[1], device=lengths.device) < lengths.unsqueeze(1)
        scores = self.score(h) @ memory.mT  # (B, T, S)
        context = by_fill_and_where(scores, mask.unsqueeze(1)) @ memory
        return self.out(torch.tanh(self.merge(torch.cat([context, h], dim=-1))))

    def greedy_decode(
        self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int, eos_id: int
    ) -> list[list[int]]:
        with torch.no_grad():
            memory, state = self.encode(source, lengths)
            mask = torch.arange(source.shape[1], device=lengths.device) < lengths.unsqueeze(1)
            ids, columns = torch.full_like(lengths, bos_id), []
            for _ in range(max_len):
                logits, state, _ = self.decode_step(ids, state, memory, mask)
                ids = logits.argmax(1)
                columns.append(ids)
        answers = []
        for row in torch.stack(columns, dim=1).tolist():
            answers.append(row[: row.index(eos_id)] if eos_id in row else row)
        return answers


class BothWays(nn.Module):
    """A bidirectional encoder written out, a plain RNN as decoder, a dict as state."""

    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__()
        self.width, self.looks = d_model, attention
        self.words = nn.Parameter(torch.randn(source_vocab, d_model))
        self.names = nn.Parameter(torch.randn(target_vocab, d_model))
        self.forth, self.back = (nn.GRUCell(d_model, d_model) for _ in range(2))
        self.join = nn.Linear(2 * d_model, d_model)
        self.step = nn.RNNCell((2 if attention else 1) * d_model, d_model)
        self.head = nn.Linear((2 if attention else 1) * d_model, target_vocab)

    def _one_way(self, cell: nn.GRUCell, x: Tensor, mask: Tensor, order: Any) -> Any:
        h = x.new_zeros(len(x), self.width)
        states = [h] * x.shape[1]
        for s in order:
            h = torch.where(mask[:, s : s + 1], cell(x[:, s], h), h)  # stands still on padding
            states[s] = h
        return torch.stack(states, dim=1), h

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        steps = range(source.shape[1])
        mask = torch.tensor([list(steps)], device=source.device) < lengths[:, None]
        x = self.words[source]
        forth, last = self._one_way(self.forth, x, mask, steps)
        back, first = self._one_way(self.back, x, mask, reversed(steps))
        memory = self.join(torch.cat([forth, back], dim=2))
        return memory, {"h": self.join(torch.cat([last, first], dim=1)).tanh()}

    def decode_step(
        self, ids: Tensor, state: dict[str, Tensor], memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        h, x = state["h"], self.names[ids]
        weights = memory.new_zeros(mask.shape)
        if self.looks:
            weights = by_exp_and_sum((memory * h[:, None]).sum(-1), mask)
            context = (weights[..., None] * memory).sum(1)
            h = self.step(torch.cat([x, context], dim=1), h)
            return self.head(torch.cat([h, context], dim=1)), {"h": h}, weights
        h = self.step(x, h)
        return self.head(h), {"h": h}, weights

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask = torch.arange(memory.shape[1], device=memory.device)[None] < lengths[:, None]
        steps = []
        for ids in target_in.T:
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            steps.append(logits[:, None])
        return torch.cat(steps, dim=1)

    @torch.inference_mode()
    def greedy_decode(
        self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int, eos_id: int
    ) -> list[list[int]]:
        """Row by row."""
        answers = []
        for row, length in zip(source, lengths.tolist(), strict=True):
            memory, state = self.encode(row[None, :length], lengths.new_tensor([length]))
            mask = torch.ones(1, length, dtype=torch.bool, device=source.device)
            answer: list[int] = []
            last = bos_id
            while len(answer) < max_len:
                logits, state, _ = self.decode_step(row.new_tensor([last]), state, memory, mask)
                last = int(logits.argmax())
                if last == eos_id:
                    break
                answer.append(last)
            answers.append(answer)
        return answers


ANSWERS = {
    "masked_softmax": [by_fill_and_where, by_exp_and_sum, by_logsumexp, by_nan_to_num],
    "AdditiveAttention": [ByBroadcast, QueryByQuery, ByEinsum],
    "shift_right": [shift_by_cat, shift_by_pad, shift_by_roll, shift_by_copy],
    "sequence_cross_entropy": [
        loss_by_ignore_index,
        loss_by_selection,
        loss_by_one_hot,
        loss_token_by_token,
    ],
    "Seq2Seq": [GruAdditive, LstmDotProduct, BothWays],
}
