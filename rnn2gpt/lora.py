"""Low-rank adaptation: train a narrow detour beside a frozen matrix (chapter 13).

Hu et al. 2022, section 4.1: W stays, and the layer adds (alpha / rank) · B·A to it, where A has few
rows and B as few columns. B starts at 0, so the model starts as it was; what was learned can be
added into W, and taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class LoRALinear(nn.Module):
    """The linear map `base`, frozen, plus (alpha / rank) · B·A, which is trained.

    `A: (rank, in)` starts at random, `B: (out, rank)` at 0; both have the type and the device of
    the base's weight. Raises `ValueError` when `rank` is less than 1.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: it must be at least 1")
        self.base, self.scale, self.merged = base.requires_grad_(False), alpha / rank, False
        weight = base.weight
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as `nn.Linear` starts its weight

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """The base's output and the detour's; once merged, the base does both."""
        if self.merged:
            return self.base(x)
        narrow = functional.linear(x, self.A)  # (..., rank)
        return self.base(x) + self.scale * functional.linear(narrow, self.B)

    def merge(self) -> None:
        """Add the detour into the base's weight, once: then the layer costs what it did before."""
        if not self.merged:
            self._add(self.scale)
            self.merged = True

    def unmerge(self) -> None:
        """Take the detour out of the base's weight again, if it is in there."""
        if self.merged:
            self._add(-self.scale)
            self.merged = False

    @torch.no_grad()
    def _add(self, scale: float) -> None:
        self.base.weight += scale * (self.B @ self.A)  # (O, rank) @ (rank, I)


ATTENTION = ("W_q", "W_v")  # which layers get a detour: Hu et al. 2022, section 7.1


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16.0, names: Iterable[str] = ATTENTION
) -> list[LoRALinear]:
    """Put a `LoRALinear` in the place of every `nn.Linear` of one of these names; return them.

    The rest of the model is left as it is: freeze it first. Raises `ValueError` when there is none.
    """
    names = tuple(names)
    made = []
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if name in names and isinstance(layer, nn.Linear):
                made.append(LoRALinear(layer, rank, alpha))
                setattr(parent, name, made[-1])
    if not made:
        raise ValueError(f"The model has no linear layer called {' or '.join(names)}")
    return made


def fold_lora(model: nn.Module) -> None:
    """Merge every `LoRALinear` and put its base back: what is left is a model without detours."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                layer.merge()
                setattr(parent, name, layer.base)
