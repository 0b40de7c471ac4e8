"""Turning gradients into updates: which weights decay, accumulation, compute (chapter 10).

The exercise writes AdamW out; the package uses PyTorch's, which is the same step fused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: tensors of two dimensions and more decay, the others do not.

    Matrices and embeddings shrink; biases and norms' weights, which set a scale, stay. Frozen
    parameters are left out, and a tied one stands once.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def accumulate_gradients(
    model: nn.Module, micro_batches: Sequence[tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]]
) -> Float[Tensor, ""]:
    """Leave in `.grad` what one batch of all micro-batches would; returns the mean loss.

    `model(ids, targets) -> logits, loss`, a mean over the targets that are not −100; each
    micro-batch counts as much as it has of them. Earlier gradients are cleared. Raises `ValueError`
    when there is no target at all.
    """
    counts = [int((targets != -100).sum()) for _, targets in micro_batches]
    if not sum(counts):
        raise ValueError("There is no target to learn from: every one is −100")
    model.zero_grad()
    parts = []
    for (ids, targets), count in zip(micro_batches, counts, strict=True):
        if count:  # the mean of nothing is NaN
            loss = model(ids, targets)[1] * (count / sum(counts))
            loss.backward()
            parts.append(loss.detach())
    return sum(parts[1:], parts[0])


def compute_optimal(flops: float, tokens_per_parameter: float = 20) -> tuple[float, float]:
    """Parameters N and tokens D that spend C = 6 · N · D with D = 20 · N (Hoffmann et al. 2022).

    >>> n, d = compute_optimal(5.76e23)
    >>> f"{n:.2g} parameters, {d:.2g} tokens"
    '6.9e+10 parameters, 1.4e+12 tokens'
    """
    n_parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    return n_parameters, tokens_per_parameter * n_parameters
