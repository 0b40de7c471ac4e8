"""Right answers to chapter 02, each written another way."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- rnn_cell -----------------------------------------------------------------------------------


def cell_by_matmul(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + h @ W_hh + b)


def cell_by_one_product(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    both = torch.cat([x, h], dim=1)  # (B, I + H)
    return torch.addmm(b, both, torch.cat([W_xh, W_hh])).tanh()


def cell_by_einsum(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    a = torch.einsum("bi,ih->bh", x, W_xh) + torch.einsum("bg,gh->bh", h, W_hh) + b
    return 2 * torch.sigmoid(2 * a) - 1  # tanh a


def cell_by_linear(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, W_xh.T, b) + F.linear(h, W_hh.T))


# --- rnn_forward --------------------------------------------------------------------------------


def loop_with_list(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    h, states = h0, []
    for t in range(x.shape[1]):
        h = cell_by_matmul(x[:, t], h, W_xh, W_hh, b)
        states.append(h)
    return torch.stack(states, dim=1)


def loop_after_projection(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    projected = x @ W_xh + b  # (B, T, H), all inputs at once
    states = [h0]
    for a in projected.unbind(dim=1):
        states.append((a + states[-1] @ W_hh).tanh())
    return torch.stack(states[1:], dim=1)


def loop_into_buffer(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    hs = x.new_empty(x.shape[0], x.shape[1], h0.shape[1])  # (B, T, H)
    for t, step in enumerate(x.transpose(0, 1)):
        h0 = cell_by_one_product(step, h0, W_xh, W_hh, b)
        hs[:, t] = h0
    return hs


def loop_by_recursion(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    h = cell_by_einsum(x[:, 0], h0, W_xh, W_hh, b)
    if x.shape[1] == 1:
        return h[:, None]
    return torch.cat([h[:, None], loop_by_recursion(x[:, 1:], h, W_xh, W_hh, b)], dim=1)


# --- rnn_backward -------------------------------------------------------------------------------

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def back_step_by_step(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    dx, dh = torch.zeros_like(x), torch.zeros_like(h0)
    dW_xh, dW_hh, db = torch.zeros_like(W_xh), torch.zeros_like(W_hh), torch.zeros_like(W_hh[0])
    for t in range(x.shape[1] - 1, -1, -1):
        before = hs[:, t - 1] if t > 0 else h0
        da = (dh + dhs[:, t]) * (1 - hs[:, t] ** 2)  # (B, H)
        dx[:, t] = da @ W_xh.T
        dW_xh += x[:, t].T @ da
        dW_hh += before.T @ da
        db += da.sum(dim=0)
        dh = da @ W_hh.T
    return dx, dh, dW_xh, dW_hh, db


def back_then_products(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    das, dh = [], torch.zeros_like(h0)
    for d, h in zip(reversed(dhs.unbind(1)), reversed(hs.unbind(1)), strict=True):
        das.append(torch.addcmul(d + dh, d + dh, h * h, value=-1))
        dh = F.linear(das[-1], W_hh)
    da = torch.stack(das[::-1], dim=1)  # (B, T, H)
    before = torch.cat([h0.unsqueeze(1), hs[:, :-1]], dim=1)  # (B, T, H)
    rows = da.reshape(-1, da.shape[-1])  # (B, T, H) → (B T, H)
    dW_xh = x.reshape(-1, x.shape[-1]).T @ rows
    dW_hh = before.reshape(-1, before.shape[-1]).T @ rows
    return da @ W_xh.T, dh, dW_xh, dW_hh, rows.sum(0)


def back_by_jacobians(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    """No running gradient: for every pair s ≤ t, the product of Jacobians from h_t back to s."""
    n_steps = x.shape[1]
    slopes = 1 - hs**2
    da = torch.zeros_like(hs)
    dh0 = torch.zeros_like(h0)
    for t in range(n_steps):
        d = dhs[:, t]
        for s in range(t, -1, -1):
            d = d * slopes[:, s]
            da[:, s] += d
            d = torch.einsum("bh,gh->bg", d, W_hh)
        dh0 = dh0 + d
    before = torch.cat([h0[:, None], hs], dim=1)[:, :n_steps]
    return (
        torch.einsum("bth,ih->bti", da, W_xh),
        dh0,
        torch.einsum("bti,bth->ih", x, da),
        torch.einsum("btg,bth->gh", before, da),
        da.sum(dim=(0, 1)),
    )


# --- clip_grad_norm_ ----------------------------------------------------------------------------


def clip_as_pytorch(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(g) for g in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
    for g in gradients:
        g.mul_((max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


def clip_by_squares(parameters: Iterable[Tensor], max_norm: float) -> float:
    gradients = [p.grad for p in list(parameters) if p.grad is not None]
    total = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    if total > max_norm:
        for g in gradients:
            g *= max_norm / total
    return total


@torch.no_grad()
def clip_by_one_vector(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    kept = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in kept] or [torch.zeros(0)])  # type: ignore[union-attr]
    total = flat.dot(flat).sqrt()
    if total <= max_norm:
        return total
    for p in kept:
        p.grad.copy_(p.grad / total * max_norm)  # type: ignore[arg-type, operator, union-attr]
    return total


# --- CharRNN ------------------------------------------------------------------------------------


class WithOwnWeights(nn.Module):
    """The chapter's own loop and weights."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.W_xh = nn.Parameter(torch.randn(d_model, d_model) / d_model**0.5)
        self.W_hh = nn.Parameter(torch.randn(d_model, d_model) / d_model**0.5)
        self.b = nn.Parameter(torch.zeros(d_model))
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.embedding(ids)  # (B, T, D)
        if h is None:
            h = torch.zeros_like(x[:, 0])
        hs = loop_with_list(x, h, self.W_xh, self.W_hh, self.b)
        return self.head(hs), hs[:, -1]


class WithFusedLayer(nn.Module):
    """PyTorch's layer between the embedding and a head without a bias."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self.layer = nn.RNN(d_model, d_model, batch_first=True)
        self.embed = nn.Embedding(vocab_size, d_model)

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, last = self.layer(self.embed(ids), None if h is None else h.unsqueeze(0))
        return self.head(out), last.squeeze(0)


class WithTiedCell(nn.Module):
    """One product for input and state, a registered zero, and one matrix at both ends."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.mix = nn.Linear(2 * d_model, d_model)
        self.out = nn.Linear(d_model, vocab_size)
        self.out.weight = self.tokens.weight
        self.register_buffer("zero", torch.zeros(1, d_model))

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.zero.expand(len(ids), -1) if h is None else h  # type: ignore[operator]
        logits = []
        for t in range(ids.size(1)):
            both = torch.cat([self.tokens(ids[:, t]), state], dim=-1)  # (B, 2 D)
            state = self.mix(both).tanh()
            logits.append(self.out(state))
        return torch.stack(logits, dim=1), state


ANSWERS = {
    "rnn_cell": [cell_by_matmul, cell_by_one_product, cell_by_einsum, cell_by_linear],
    "rnn_forward": [loop_with_list, loop_after_projection, loop_into_buffer, loop_by_recursion],
    "rnn_backward": [back_step_by_step, back_then_products, back_by_jacobians],
    "clip_grad_norm_": [clip_as_pytorch, clip_by_squares, clip_by_one_vector],
    "CharRNN": [WithOwnWeights, WithFusedLayer, WithTiedCell],
}
