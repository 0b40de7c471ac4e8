"""Weights in eight bits: one scale for each output row (chapter 11)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn


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


class Int8Weight(nn.Module):
    """A matrix in eight bits, for a linear map or an embedding of the same (V, D)."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        super().__init__()
        self.q: Tensor
        self.scale: Tensor
        for name, tensor in zip(("q", "scale"), quantize_int8(weight.detach()), strict=True):
            self.register_buffer(name, tensor)


class Int8Linear(nn.Module):
    """A linear map whose weights are eight bits wide where they lie and floats where they work.

    A row's scale multiplies all its products, so it can wait until they are summed.
    """

    def __init__(self, weight: Int8Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """(x qᵀ) ⊙ scale + bias."""
        y = nn.functional.linear(x, self.weight.q.to(x.dtype)) * self.weight.scale[:, 0]
        return y if self.bias is None else y + self.bias


class Int8Embedding(nn.Module):
    """A table whose rows are eight bits wide; those asked for are turned back into floats."""

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Int64[Tensor, "*ids"]) -> Float[Tensor, "*ids D"]:
        """The rows of `ids`."""
        q, scale = self.weight.q[ids], self.weight.scale[ids]  # (*ids, D), (*ids, 1)
        return dequantize(q, scale)


def quantize_model(model: nn.Module) -> nn.Module:
    """A copy of `model` with all its linear maps and embeddings in eight bits, for inference.

    Norms and biases stay as they are. A matrix that two layers share is quantized once, shared.
    """
    model = copy.deepcopy(model)
    done: dict[int, Int8Weight] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, (nn.Linear, nn.Embedding)):
                continue
            weight = done.setdefault(id(layer.weight), Int8Weight(layer.weight))
            linear = isinstance(layer, nn.Linear)
            new = Int8Linear(weight, layer.bias) if linear else Int8Embedding(weight)  # type: ignore[arg-type]
            setattr(parent, name, new)
    return model


def size_in_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a shared one counted once."""
    return sum(t.nbytes for t in {*model.parameters(), *model.buffers()})
