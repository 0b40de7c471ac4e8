"""Recurrent networks: one cell, unrolled, and the language model made of it (chapter 02).

The exercise writes the loop and its backward pass by hand; here PyTorch's fused kernel runs the
loop and autograd goes back through it. Elman 1990; backpropagation through time: Werbos 1990.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def rnn_cell(
    x: Float[Tensor, "B I"],
    h: Float[Tensor, "B H"],
    W_xh: Float[Tensor, "I H"],
    W_hh: Float[Tensor, "H H"],
    b: Float[Tensor, " H"],
) -> Float[Tensor, "B H"]:
    """One step: the next state from the input and the last state, tanh(x W_xh + h W_hh + b).

    >>> x, h = torch.ones(1, 2), torch.zeros(1, 3)
    >>> rnn_cell(x, h, W_xh=torch.zeros(2, 3), W_hh=torch.eye(3), b=torch.zeros(3))
    tensor([[0., 0., 0.]])
    """
    return torch.rnn_tanh_cell(x, h, W_xh.T, W_hh.T, b, torch.zeros_like(b))


def rnn_forward(
    x: Float[Tensor, "B T I"],
    h0: Float[Tensor, "B H"],
    W_xh: Float[Tensor, "I H"],
    W_hh: Float[Tensor, "H H"],
    b: Float[Tensor, " H"],
) -> Float[Tensor, "B T H"]:
    """The cell along time: the states after each of the T inputs, from the state h0 before them."""
    parameters = [W_xh.T.contiguous(), W_hh.T.contiguous(), b, torch.zeros_like(b)]
    # Last arguments: biases, one layer, no dropout, not training, one direction, batch first.
    hs, _ = torch.rnn_tanh(x, h0[None], parameters, True, 1, 0.0, False, False, True)
    return hs


def rnn_backward(
    dhs: Float[Tensor, "B T H"],
    x: Float[Tensor, "B T I"],
    hs: Float[Tensor, "B T H"],
    h0: Float[Tensor, "B H"],
    W_xh: Float[Tensor, "I H"],
    W_hh: Float[Tensor, "H H"],
) -> tuple[
    Float[Tensor, "B T I"],
    Float[Tensor, "B H"],
    Float[Tensor, "I H"],
    Float[Tensor, "H H"],
    Float[Tensor, " H"],
]:
    """Gradients of a loss with respect to x, h0, W_xh, W_hh and b, given its gradient dhs.

    `dhs` is what the loss sends to each state directly; what arrives through later states is added
    here. `hs` are the states that `rnn_forward` returned: with them the network is linear in small
    changes, h = hs + (1 − hs²) · (change of the affine map), and autograd goes back through that.
    """
    with torch.enable_grad():
        x, h0, W_xh, W_hh = (t.detach().requires_grad_() for t in (x, h0, W_xh, W_hh))
        b = torch.zeros_like(hs[0, 0]).requires_grad_()
        hs, slopes, state, states = hs.detach(), 1 - hs.detach() ** 2, h0, []
        for t in range(x.shape[1]):
            affine = x[:, t] @ W_xh + state @ W_hh + b  # (B, H)
            state = hs[:, t] + slopes[:, t] * (affine - affine.detach())
            states.append(state)
        dx, dh0, dW_xh, dW_hh, db = torch.autograd.grad(
            torch.stack(states, dim=1), (x, h0, W_xh, W_hh, b), dhs
        )
    return dx, dh0, dW_xh, dW_hh, db


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Scale all gradients in place so that their joint L2 norm is at most `max_norm`.

    Returns the norm before clipping (Pascanu et al. 2013, algorithm 1). Parameters without a
    gradient are passed over.

    >>> p = nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
    >>> float(clip_grad_norm_([p], max_norm=1.0))
    5.0
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)


@dataclass(frozen=True, kw_only=True)
class CharRNNConfig:
    """Sizes of a `CharRNN`; the default width is the ladder's (148,652 parameters on its text)."""

    vocab_size: int
    d_model: int = 242


class CharRNN(nn.Module):
    """A language model with one tanh recurrence between an embedding and a linear head.

    Embedding and state have the same width, D = `d_model`.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.rnn = nn.RNN(d_model, d_model, batch_first=True)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(
        self, ids: Int64[Tensor, "B T"], h: Float[Tensor, "B D"] | None = None
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B D"]]:
        """Logits of the token after each of `ids`, and the state to go on from (zeros if None)."""
        layers = None if h is None else h[None]  # (B, D) → (1 layer, B, D)
        states, last = self.rnn(self.embedding(ids), layers)
        return self.head(states), last[0]
