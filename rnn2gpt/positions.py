"""Telling a model where a token stands (chapter 06): sinusoids, rotation, a penalty on distance."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def sinusoidal_positions(max_len: int, d_model: int) -> Float[Tensor, "max_len D"]:
    """Sines in the even channels, cosines in the odd ones, from fast waves to slow ones.

    Channel 2i of position p is sin(p / 10000^(2i/D)), channel 2i + 1 its cosine (Vaswani et al.
    2017, section 3.5). With an odd D the last sine has no cosine.

    >>> sinusoidal_positions(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    angles = _angles(torch.arange(max_len), d_model, 10000.0)  # (max_len, ⌈D/2⌉)
    pairs = torch.stack([angles.sin(), angles.cos()], dim=-1)  # (max_len, ⌈D/2⌉, 2)
    return pairs.flatten(1)[:, :d_model].float()  # interleaved: (max_len, 2·⌈D/2⌉) → (max_len, D)


def apply_rotary(
    x: Float[Tensor, "... T D"], positions: Int64[Tensor, " T"], base: float = 10000.0
) -> Float[Tensor, "... T D"]:
    """Rotate each pair of channels (2i, 2i + 1) by its position's angle, p / base^(2i/D).

    The product of a rotated query and a rotated key then depends on their distance alone (Su et al.
    2021, section 3.2.2). Pairs are neighbors, as in GPT-J; Llama pairs channel i with i + D/2.
    Raises `ValueError` when D is odd.

    >>> apply_rotary(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    tensor([[0.5403, 0.8415]])
    """
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"A width of {d} cannot be cut into pairs: it must be even")
    angles = _angles(positions.to(x.device), d, base)  # (T, D/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]  # (..., T, D/2) each
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _angles(positions: Int64[Tensor, " T"], d: int, base: float) -> Float[Tensor, "T d/2"]:
    """p / base^(2i/d) in double precision where there is one: far positions need the digits."""
    dtype = torch.float32 if positions.device.type == "mps" else torch.float64
    exponents = torch.arange(0, d, 2, device=positions.device, dtype=dtype) / d  # (⌈d/2⌉,)
    return positions.to(dtype)[:, None] / base**exponents


def alibi_bias(
    n_heads: int, t: int, s: int | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "H t s"]:
    """What ALiBi adds to the scores: −slope · distance, with one slope for each head.

    Slopes are 2^(−8/H), 2^(−16/H), …, 2^(−8) (Press et al. 2022, section 3), where the number of
    heads is a power of two; the formula serves any other number as well. The t queries are the last
    of s positions, as in `causal_mask`; later keys, which a causal mask hides, get 0.

    >>> alibi_bias(1, 1, 3)
    tensor([[[-0.0078, -0.0039, -0.0000]]])
    """
    s = t if s is None else s
    slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, device=device) / n_heads)  # (H,)
    queries = torch.arange(s - t, s, device=device)  # (t,)
    distance = (queries[:, None] - torch.arange(s, device=device)).clamp(min=0)  # (t, s)
    return -slopes[:, None, None] * distance
