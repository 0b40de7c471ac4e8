"""Gated recurrent networks, and sampling text from any model that carries a state (chapter 03).

LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000. GRU: Cho et al. 2014,
in the form that PyTorch computes. The exercise writes the gates out; here the fused kernels do
the same arithmetic in the same order of gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

LSTMState = tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]
State = TypeVar("State", Tensor, tuple[Tensor, ...], None)


def lstm_cell(
    x: Float[Tensor, "B I"],
    state: tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]],
    W_ih: Float[Tensor, "4H I"],
    W_hh: Float[Tensor, "4H H"],
    b_ih: Float[Tensor, " 4H"],
    b_hh: Float[Tensor, " 4H"],
) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
    """One LSTM step: (h, c) → (h, c). The rows of the weights are the gates i, f, g, o in turn.

    c = f ⊙ c + i ⊙ g and h = o ⊙ tanh(c), with i, f, o = σ(·) and g = tanh(·) of
    W_ih x + b_ih + W_hh h + b_hh.
    """
    h, c = torch.lstm_cell(x, state, W_ih, W_hh, b_ih, b_hh)
    return h, c


def gru_cell(
    x: Float[Tensor, "B I"],
    h: Float[Tensor, "B H"],
    W_ih: Float[Tensor, "3H I"],
    W_hh: Float[Tensor, "3H H"],
    b_ih: Float[Tensor, " 3H"],
    b_hh: Float[Tensor, " 3H"],
) -> Float[Tensor, "B H"]:
    """One GRU step. The rows of the weights are the gates r, z, n in turn.

    h = (1 − z) ⊙ n + z ⊙ h, with n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn)).
    """
    return torch.gru_cell(x, h, W_ih, W_hh, b_ih, b_hh)


class LSTM(nn.LSTM):
    """Stacked LSTM layers, batch first, with dropout between layers (not after the last).

    `forward(x: (B, T, I), state=None) -> output: (B, T, H), (h, c)`, each (layers, B, H). This is
    PyTorch's layer with the arguments the course uses, so its weights fit any `nn.LSTM`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)


def detach_state(state: State) -> State:
    """The same numbers, cut from the graph that made them: where truncated BPTT stops.

    Takes a tensor, a tuple of tensors such as (h, c), or None.
    """
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()


@torch.no_grad()
def generate(
    model: Callable[[Tensor, Any], tuple[Tensor, Any]],
    ids: Int64[Tensor, "B T"],
    n_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    on_token: Callable[[Int64[Tensor, "B 1"]], None] = lambda token: None,
) -> Int64[Tensor, "B T+n_tokens"]:
    """Continue each row of `ids` by sampling; the prompt is part of what is returned.

    `model(ids, state) -> logits, state` sees the prompt once, then one new token at a time. Logits
    are divided by `temperature`; 0 takes the likeliest token. `on_token` is called with each new
    token as it comes. Put a module in `eval()` first, or its dropout stays on.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: it must be 0 (greedy) or more")
    if ids.shape[1] == 0:
        raise ValueError("The prompt is empty: give at least one token to start from")
    seen, token, state = [ids], ids, None
    for _ in range(n_tokens):
        logits, state = model(token, state)
        last = logits[:, -1]  # (B, V)
        if temperature == 0:
            token = last.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            # Drawn on the CPU, where the generator lives, so that a seed means one text anywhere.
            p = torch.softmax(last.float().cpu() / temperature, dim=-1)
            token = torch.multinomial(p, 1, generator=generator).to(ids.device)  # (B, 1)
        on_token(token)
        seen.append(token)
    return torch.cat(seen, dim=1)


@dataclass(frozen=True, kw_only=True)
class CharLSTMConfig:
    """Sizes of a `CharLSTM`; the default width is the ladder's (148,544 parameters on its text)."""

    vocab_size: int
    d_model: int = 128
    n_layers: int = 1
    dropout: float = 0.0


class CharLSTM(nn.Module):
    """A language model with LSTM layers between an embedding and a linear head.

    The forget gates start open: their bias b_ih is 1 (Jozefowicz et al. 2015), so that
    the cell keeps what it holds until training teaches it to forget.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.lstm = LSTM(d_model, d_model, n_layers, dropout)
        self.head = nn.Linear(d_model, vocab_size)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.ones_(parameter.detach()[d_model : 2 * d_model])  # rows of gate f

    def forward(
        self, ids: Int64[Tensor, "B T"], state: LSTMState | None = None
    ) -> tuple[Float[Tensor, "B T V"], LSTMState]:
        """Logits of the token after each of `ids`, and the state to go on from (zeros if None)."""
        states, state = self.lstm(self.embedding(ids), state)
        return self.head(states), state
