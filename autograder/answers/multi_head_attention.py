"""Right answers to chapter 06, each written another way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Result = tuple[Tensor, Tensor]

# --- split_heads --------------------------------------------------------------------------------


def split_by_reshape(x: Tensor, n_heads: int) -> Tensor:
    batch, t, d = x.shape
    if d % n_heads:
        raise ValueError(f"{n_heads} heads do not divide a width of {d}")
    return x.reshape(batch, t, n_heads, d // n_heads).transpose(1, 2)


def split_by_stacking(x: Tensor, n_heads: int) -> Tensor:
    width, rest = divmod(x.size(-1), n_heads)
    if rest != 0:
        raise ValueError("The width is no multiple of the number of heads.")
    return torch.stack([x[:, :, h * width : (h + 1) * width] for h in range(n_heads)], dim=1)


def split_by_unflatten(x: Tensor, n_heads: int) -> Tensor:
    if x.shape[2] % n_heads != 0:
        raise ValueError
    return x.unflatten(-1, (n_heads, -1)).permute(0, 2, 1, 3).contiguous()


# --- merge_heads --------------------------------------------------------------------------------


def merge_by_reshape(x: Tensor) -> Tensor:
    batch, n_heads, t, d = x.shape
    return x.transpose(1, 2).reshape(batch, t, n_heads * d)


def merge_by_view(x: Tensor) -> Tensor:
    x = x.permute(0, 2, 1, 3).contiguous()
    return x.view(x.size(0), x.size(1), -1)


def merge_by_concatenation(x: Tensor) -> Tensor:
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


# --- MultiHeadAttention -------------------------------------------------------------------------


class OneReshape(nn.Module):
    """All heads at once on a fourth axis."""

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError("d_model must be a multiple of n_heads")
        self.n_heads = n_heads
        self.W_q = nn.Linear(d_model, d_model, bias=bias)
        self.W_k = nn.Linear(d_model, d_model, bias=bias)
        self.W_v = nn.Linear(d_model, d_model, bias=bias)
        self.W_o = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Result:
        q = split_by_reshape(self.W_q(query), self.n_heads)
        k = split_by_reshape(self.W_k(key), self.n_heads)
        v = split_by_reshape(self.W_v(value), self.n_heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        return self.W_o(merge_by_reshape(weights @ v)), weights


class HeadByHead(nn.Module):
    """A loop over heads, each with its own rows of the projections and columns of W_o."""

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"{d_model} % {n_heads} != 0")
        self.width, self.n_heads = d_model // n_heads, n_heads
        self.W_o = nn.Linear(d_model, d_model, bias)  # the order of parameters is free
        self.W_v = nn.Linear(d_model, d_model, bias)
        self.W_k = nn.Linear(d_model, d_model, bias)
        self.W_q = nn.Linear(d_model, d_model, bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Result:
        q, k, v = self.W_q(query), self.W_k(key), self.W_v(value)
        if mask is not None:
            shape = (query.shape[0], self.n_heads, query.shape[1], key.shape[1])
            mask = mask.broadcast_to(shape)
        output, weights = torch.zeros_like(q), []
        for h in range(self.n_heads):
            part = slice(h * self.width, (h + 1) * self.width)
            scores = torch.bmm(q[..., part], k[..., part].mT) * self.width**-0.5
            if mask is not None:
                scores = torch.where(mask[:, h], scores, torch.finfo(scores.dtype).min)
            weights.append(F.softmax(scores, dim=-1))
            read = torch.bmm(weights[-1], v[..., part]) @ self.W_o.weight[:, part].T
            output = output + read
        if self.W_o.bias is not None:
            output = output + self.W_o.bias
        return output, torch.stack(weights, dim=1)


class ByEinsum(nn.Module):
    """Heads as an index of an einsum, never as an axis that is moved."""

    W_q: nn.Linear
    W_k: nn.Linear
    W_v: nn.Linear
    W_o: nn.Linear

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.h, rest = n_heads, d_model % n_heads
        if rest:
            raise ValueError(f"{rest} channels are left over")
        for name in ("W_q", "W_k", "W_v", "W_o"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=bias))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Result:
        q = self.W_q(query).unflatten(2, (self.h, -1))  # (B, T, H, D/H)
        k = self.W_k(key).unflatten(2, (self.h, -1))
        v = self.W_v(value).unflatten(2, (self.h, -1))
        scores = torch.einsum("bthd,bshd->bhts", q / q.shape[-1] ** 0.5, k)
        if mask is not None:
            hidden = torch.zeros_like(scores).masked_fill(mask.logical_not(), -math.inf)
            scores = scores + hidden
        weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        read = torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)
        return self.W_o(read), weights


# --- sinusoidal_positions -----------------------------------------------------------------------


def waves_by_slices(max_len: int, d_model: int) -> Tensor:
    positions = torch.arange(max_len).unsqueeze(1)
    angles = positions / 10000 ** (torch.arange(0, d_model, 2) / d_model)
    table = torch.zeros(max_len, d_model)
    table[:, 0::2] = torch.sin(angles)
    table[:, 1::2] = torch.cos(angles[:, : d_model // 2])
    return table


def waves_by_stacking(max_len: int, d_model: int) -> Tensor:
    steps = torch.arange(0, d_model, 2, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000.0) * steps / d_model)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    both = torch.stack((angles.sin(), angles.cos()), dim=2)
    return both.reshape(max_len, -1)[:, :d_model]


def waves_by_phase(max_len: int, d_model: int) -> Tensor:
    """A cosine is a sine a quarter of a turn ahead."""
    channel = torch.arange(d_model, dtype=torch.float64)
    phase = (channel % 2) * math.pi / 2
    wavelength = 10000.0 ** ((channel - channel % 2) / d_model)
    positions = torch.arange(max_len, dtype=torch.float64)
    return torch.sin(positions[:, None] / wavelength + phase).float()


# --- apply_rotary -------------------------------------------------------------------------------


def rotary_by_stacking(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"D = {d} is odd")
    frequencies = base ** (-torch.arange(0, d, 2, device=x.device) / d)
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def rotary_by_complex_numbers(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    if x.size(-1) % 2 == 1:
        raise ValueError("pairs need an even width")
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    exponents = torch.arange(pairs.size(-1), device=x.device, dtype=x.dtype) / pairs.size(-1)
    angles = torch.outer(positions.to(x.dtype), 1 / base**exponents)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def rotary_as_gptj(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """x·cos + turned(x)·sin, where turned maps (a, b) to (−b, a)."""
    if x.shape[-1] % 2 != 0:
        raise ValueError("odd")
    exponent = torch.arange(0, x.shape[-1], 2, dtype=torch.float64, device=x.device) / x.shape[-1]
    angles = positions.to(torch.float64).unsqueeze(-1) / base**exponent
    angles = angles.repeat_interleave(2, dim=-1)  # (T, D/2) → (T, D): θ₀, θ₀, θ₁, θ₁, …
    turned = torch.empty_like(x)
    turned[..., ::2], turned[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


ANSWERS = {
    "split_heads": [split_by_reshape, split_by_stacking, split_by_unflatten],
    "merge_heads": [merge_by_reshape, merge_by_view, merge_by_concatenation],
    "MultiHeadAttention": [OneReshape, HeadByHead, ByEinsum],
    "sinusoidal_positions": [waves_by_slices, waves_by_stacking, waves_by_phase],
    "apply_rotary": [rotary_by_stacking, rotary_by_complex_numbers, rotary_as_gptj],
}
