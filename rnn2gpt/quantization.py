"""Weights in eight bits: one scale for each output row (chapter 11)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor


def quantize_int8(
    weight: Float[Tensor, "O I"],
) -> tuple[Int8[Tensor, "O I"], Float[Tensor, "O 1"]]:
    """Round each row to whole steps from −127 to 127 of its own scale, max |weight| / 127.

    Symmetric, per output row (Dettmers et al. 2022, section 2.1, calls it row-wise absmax). A row
    of zeros gets the scale 1.

    >>> quantize_int8(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))[0].tolist()
    [[127, -64], [0, 0]]
    """
    largest = weight.abs().amax(dim=1, keepdim=True)  # (O, 1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def dequantize(q: Int8[Tensor, "O I"], scale: Float[Tensor, "O 1"]) -> Float[Tensor, "O I"]:
    """The weights that `quantize_int8` meant; each is within half a step of the original."""
    return q.to(scale.dtype) * scale
