"""Sequence to sequence, and attention to what a recurrent network has read (chapter 04)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.lstm import LSTM

LSTMAttentionState = tuple[Float[Tensor, "1 B D"], Float[Tensor, "1 B D"], Float[Tensor, "B M D"]]


@dataclass(frozen=True, kw_only=True)
class CharLSTMAttentionConfig:
    """Sizes of a `CharLSTMAttention`; the default width is the ladder's on its text."""

    vocab_size: int
    d_model: int = 110
    window: int = 64


class CharLSTMAttention(nn.Module):
    """A language model with one LSTM layer that can look back at its own last `window` states.

    Multiplicative attention in its "general" form, and the attentional state tanh(W_c [context; h])
    that the head reads (Luong et al. 2015, equations 5 and 8). The state that is carried on holds
    the past states as well, so a block of text is read as one long text would be.
    """

    def __init__(self, vocab_size: int, d_model: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.lstm = LSTM(d_model, d_model)
        self.W_a = nn.Linear(d_model, d_model, bias=False)
        self.W_c = nn.Linear(2 * d_model, d_model, bias=False)
        self.head = nn.Linear(d_model, vocab_size)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.ones_(parameter.detach()[d_model : 2 * d_model])  # forget gates start open

    def forward(
        self, ids: Int64[Tensor, "B T"], state: LSTMAttentionState | None = None
    ) -> tuple[Float[Tensor, "B T V"], LSTMAttentionState]:
        """Logits of the token after each of `ids`, and the state to go on from (empty if None)."""
        carried = None if state is None else state[:2]
        states, (h, c) = self.lstm(self.embedding(ids), carried)  # (B, T, D)
        past = states[:, :0] if state is None else state[2]
        keys = torch.cat([past, states], dim=1)  # (B, M + T, D)
        context = nn.functional.scaled_dot_product_attention(
            self.W_a(states), keys, keys, self._mask(ids.shape[1], keys), scale=1.0
        )  # (B, T, D)
        read = torch.tanh(self.W_c(torch.cat([context, states], dim=-1)))  # (B, T, D)
        return self.head(read), (h, c, keys[:, -self.window :])

    def _mask(self, t: int, keys: Tensor) -> Tensor:
        """(T, M + T), True at the last `window` states up to a query's own."""
        s = keys.shape[1]
        ago = torch.arange(s - t, s, device=keys.device)[:, None] - torch.arange(
            s, device=keys.device
        )
        return (ago >= 0) & (ago < self.window)


# --- attention between two sequences --------------------------------------------------------------


def masked_softmax(
    scores: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None, dim: int = -1
) -> Float[Tensor, "*shape"]:
    """Softmax over the places where `mask` (broadcast) is True; the others get exactly 0.

    A row without any True place is all zeros, and so are its gradients.
    """
    if mask is None:
        return scores.softmax(dim)
    # A fully masked row would be 0/0: its scores are left as they are and its weights set to 0.
    hidden = ~mask & mask.any(dim, keepdim=True)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim).masked_fill(~mask, 0.0)


class AdditiveAttention(nn.Module):
    """Scores v·tanh(W_q q + W_k k), as in the first attention (Bahdanau et al. 2015, A.1.2)."""

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_query, d_hidden, bias=False)  # (B, T, Q) → (B, T, H)
        self.W_k = nn.Linear(d_key, d_hidden, bias=False)  # (B, S, K) → (B, S, H)
        self.v = nn.Linear(d_hidden, 1, bias=False)  # (B, T, S, H) → (B, T, S, 1)

    def forward(
        self,
        query: Float[Tensor, "B T Q"],
        keys: Float[Tensor, "B S K"],
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T S"]]:
        """The average of the keys that each query reads, and its weights. `mask`: True = real."""
        # (B, T, 1, H) + (B, 1, S, H) → (B, T, S, H)
        hidden = torch.tanh(self.W_q(query)[:, :, None] + self.W_k(keys)[:, None])
        return _read(self.v(hidden).squeeze(-1), keys, mask)


class MultiplicativeAttention(nn.Module):
    """Scores q·k ("dot"), or q·W_a k ("general"), Luong et al. 2015, section 3.1.

    One matrix product in place of a hidden layer for each pair of query and key. "dot" has no
    parameters and needs d_query = d_key (`ValueError` otherwise).
    """

    def __init__(self, d_query: int, d_key: int, form: str = "general") -> None:
        super().__init__()
        if form not in ("dot", "general"):
            raise ValueError(f"form={form!r}: choose dot or general")
        if form == "dot" and d_query != d_key:
            raise ValueError(f"d_query={d_query} and d_key={d_key} must be equal for form='dot'")
        self.W_a = nn.Linear(d_key, d_query, bias=False) if form == "general" else nn.Identity()

    def forward(
        self,
        query: Float[Tensor, "B T Q"],
        keys: Float[Tensor, "B S K"],
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T S"]]:
        """As `AdditiveAttention`."""
        return _read(query @ self.W_a(keys).transpose(1, 2), keys, mask)


def _read(
    scores: Float[Tensor, "B T S"], keys: Float[Tensor, "B S K"], mask: Bool[Tensor, "B S"] | None
) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T S"]]:
    weights = masked_softmax(scores, None if mask is None else mask[:, None])  # (B, 1, S)
    return weights @ keys, weights


# --- training on whole sequences ------------------------------------------------------------------


def shift_right(targets: Int64[Tensor, "B T"], bos_id: int) -> Int64[Tensor, "B T"]:
    """What the decoder reads while it learns `targets`: BOS, then all targets but the last.

    >>> shift_right(torch.tensor([[5, 6, 2]]), bos_id=1).tolist()
    [[1, 5, 6]]
    """
    return nn.functional.pad(targets[:, :-1], (1, 0), value=bos_id)


def sequence_cross_entropy(
    logits: Float[Tensor, "B T V"], targets: Int64[Tensor, "B T"], pad_id: int
) -> Float[Tensor, ""]:
    """Mean −ln p of the targets that are not `pad_id`, in nats; 0 if there is none."""
    flat = logits.flatten(0, 1), targets.flatten()  # (B·T, V) and (B·T,)
    total = nn.functional.cross_entropy(*flat, ignore_index=pad_id, reduction="sum")
    return total / (targets != pad_id).sum().clamp(min=1)


# --- encoder and decoder --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """Sizes of a `Seq2Seq`."""

    source_vocab: int
    target_vocab: int
    d_model: int = 64
    attention: bool | str = True


class Seq2Seq(nn.Module):
    """A GRU reads the source in both directions, a GRU writes the target (Cho et al. 2014).

    With `attention` (True is "additive"; "general" and "dot" are multiplicative) each state of the
    decoder reads the encoder's states, and the head sees tanh(W_c [context; state]) (Luong et al.
    2015, equation 5). That order, where no context enters the decoder's GRU, lets one call each of
    GRU and attention serve all steps of a target that is known. Without `attention` (Sutskever et
    al. 2014) all that the decoder has of the source is the state that it starts from. Both
    directions' states are added, so memory and state have D numbers.
    """

    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool | str = True
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        self.encoder = nn.GRU(d_model, d_model, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(d_model, d_model, batch_first=True)
        self.attention: nn.Module | None = None
        if attention:
            self.attention = (
                AdditiveAttention(d_model, d_model, d_model)
                if attention in (True, "additive")
                else MultiplicativeAttention(d_model, d_model, str(attention))
            )
            self.W_c = nn.Linear(2 * d_model, d_model, bias=False)
        self.head = nn.Linear(d_model, target_vocab)

    def encode(
        self, source: Int64[Tensor, "B S"], lengths: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B D"]]:
        """The encoder's states, zeros at the padding, and the decoder's first state.

        Every source has at least one token. Packed: what stands after a source's end is not read.
        """
        packed = nn.utils.rnn.pack_padded_sequence(
            self.source_embedding(source), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        both, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=source.shape[1]
        )  # (B, S, 2D)
        forward, backward = both.chunk(2, dim=-1)
        return forward + backward, last.sum(dim=0)  # (B, S, D); (2, B, D) → (B, D)

    def decode(
        self,
        target_in: Int64[Tensor, "B T"],
        state: Float[Tensor, "B D"],
        memory: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B D"], Float[Tensor, "B T S"] | None]:
        """Logits after each of `target_in`, the state to go on from, the weights (or None)."""
        states, last = self.decoder(self.target_embedding(target_in), state[None])  # (B, T, D)
        weights = None
        if self.attention is not None:
            context, weights = self.attention(states, memory, mask)
            states = torch.tanh(self.W_c(torch.cat([context, states], dim=-1)))  # (B, T, 2D) → D
        return self.head(states), last[0], weights

    def decode_step(
        self,
        ids: Int64[Tensor, " B"],
        state: Float[Tensor, "B D"],
        memory: Float[Tensor, "B S D"],
        mask: Bool[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B V"], Float[Tensor, "B D"], Float[Tensor, "B S"] | None]:
        """As `decode`, for one token of each row."""
        logits, state, weights = self.decode(ids[:, None], state, memory, mask)
        return logits[:, 0], state, None if weights is None else weights[:, 0]

    def forward(
        self,
        source: Int64[Tensor, "B S"],
        lengths: Int64[Tensor, " B"],
        target_in: Int64[Tensor, "B T"],
    ) -> Float[Tensor, "B T V"]:
        """Logits of every target token, given the source and the target tokens before it."""
        memory, state = self.encode(source, lengths)
        return self.decode(target_in, state, memory, source_mask(source, lengths))[0]

    @torch.no_grad()
    def greedy_decode(
        self,
        source: Int64[Tensor, "B S"],
        lengths: Int64[Tensor, " B"],
        max_len: int,
        bos_id: int,
        eos_id: int,
    ) -> list[list[int]]:
        """The likeliest next token again and again, up to EOS (left out) or `max_len` tokens."""
        memory, state = self.encode(source, lengths)
        mask = source_mask(source, lengths)
        ids = torch.full((len(source),), bos_id, device=source.device)
        steps: list[Tensor] = []
        ended = torch.zeros_like(ids, dtype=torch.bool)
        while len(steps) < max_len and not ended.all():
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            ids = logits.argmax(dim=-1)  # (B, V) → (B,)
            ended |= ids == eos_id
            steps.append(ids)
        rows = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in source]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def source_mask(source: Int64[Tensor, "B S"], lengths: Int64[Tensor, " B"]) -> Bool[Tensor, "B S"]:
    """True at the real tokens of each source.

    >>> source_mask(torch.zeros(2, 3), torch.tensor([3, 1])).tolist()
    [[True, True, True], [True, False, False]]
    """
    return torch.arange(source.shape[1], device=source.device) < lengths.to(source.device)[:, None]
