"""Sequence to sequence, and attention to what a recurrent network has read (chapter 04)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
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
