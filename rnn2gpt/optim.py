"""Turning gradients into updates: which weights decay, accumulation, compute (chapter 10).

The exercise writes AdamW out; the package uses PyTorch's, which is the same step fused, and adds
Muon to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.devices import pick_precision


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


def cosine_schedule(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: float
) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to `min_lr`.

    Loshchilov & Hutter 2017, equation 5, without restarts. `max_lr` is reached at
    step = warmup_steps, `min_lr` at step = total_steps and after.

    >>> [cosine_schedule(step, 1.0, 0.0, 1, 5) for step in (0, 1, 3, 5, 6)]
    [0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return min_lr
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def trapezoid_schedule(
    step: int,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: float,
    cooldown: float = 0.4,
) -> float:
    """The learning rate of a step: a linear rise, a plateau, a linear fall over the last part.

    Hägele et al. 2024: what was learned on the plateau serves runs of any length, since only the
    fall, here the last `cooldown` of the steps, depends on where a run ends.

    >>> [round(trapezoid_schedule(step, 1.0, 0.0, 1, 10), 2) for step in (0, 1, 6, 8, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    falls = max(warmup_steps, (1 - cooldown) * total_steps)
    if step <= falls:
        return max_lr
    left = max(0.0, total_steps - step) / max(total_steps - falls, 1e-9)
    return min_lr + (max_lr - min_lr) * left


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Iterable[tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]],
    backward: Callable[[Tensor], None] = Tensor.backward,
    counts: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """Leave in `.grad` what one batch of all micro-batches would; returns the mean loss.

    `model(ids, targets) -> logits, loss`, a mean over the targets that are not −100; each
    micro-batch counts as much as it has of them. Earlier gradients are cleared. Raises `ValueError`
    when there is no target at all.

    `backward` may do more than go back, such as scale first. Give `counts` where they are known:
    counting waits for the device.
    """
    if counts is None:
        micro_batches = list(micro_batches)
        counts = [int((targets != -100).sum()) for _, targets in micro_batches]
    if not sum(counts):
        raise ValueError("There is no target to learn from: every one is −100")
    model.zero_grad()
    parts = []
    for (ids, targets), count in zip(micro_batches, counts, strict=True):
        if count:  # the mean of nothing is NaN
            loss = model(ids, targets)[1] * (count / sum(counts))
            backward(loss)
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


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `muon=True` take orthogonal steps: Muon (Jordan et al. 2024).

    Their matrices move by the momentum with all its singular values made about one, scaled to
    entries of 0.2, which is about what AdamW's steps have (Liu et al. 2025): one learning rate
    serves all groups. PyTorch's own Muon takes these steps in bfloat16, one matrix after another;
    here all of one shape go together, in float32 where bfloat16 is imitated. The gradients
    of these matrices are spent by a step: they are None after it.
    """

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.95, **adamw: Any) -> None:
        super().__init__(params, lr, **adamw)
        self.momentum = momentum
        for group in self.param_groups:
            group.setdefault("muon", False)
            if group["muon"] and any(p.dim() != 2 for p in group["params"]):
                raise ValueError("Muon's groups hold matrices only: every other tensor takes AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every group; `closure`, if given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._orthogonal_step(group)
        super().step()  # passes over parameters without a gradient
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault(p.shape, []).append(p)
        for shape, matrices in by_shape.items():
            steps = orthogonalize(torch.stack([self._momentum(p) for p in matrices]))  # (N, R, C)
            size = 0.2 * math.sqrt(max(shape))  # an orthogonal (R, C) has entries of 1/√max(R, C)
            for p, step in zip(matrices, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step.to(p.dtype), alpha=-group["lr"] * size)
                p.grad = None

    def _momentum(self, p: Tensor) -> Tensor:
        """The gradient, carried on by the mean of those before it (Nesterov's form)."""
        assert p.grad is not None
        state = self.state[p]
        if not state:  # by the names that AdamW keeps its own under
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(p)
        state["step"] += 1
        state["exp_avg"].lerp_(p.grad, 1 - self.momentum)
        return p.grad.lerp(state["exp_avg"], self.momentum)


def orthogonalize(matrices: Float[Tensor, "N R C"], steps: int = 5) -> Float[Tensor, "N R C"]:
    """Each matrix with its singular values brought near one, its singular vectors kept.

    The Newton–Schulz iteration of Jordan et al. 2024: X ← a X + (b A + c A²) X with A = X Xᵀ. Five
    steps bring what is not tiny to between 0.7 and 1.2. In bfloat16 where the device has it.
    """
    x = matrices.to(pick_precision("auto", matrices.device))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products are (min(R, C), min(R, C))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above one
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """`parameter_groups` with the matrices between embedding and head in a group for `Muon`.

    These are the weights of `nn.Linear`, except `model.head`'s and those tied to an embedding.
    """
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    outside = {id(m.weight) for m in (*tables, getattr(model, "head", None)) if m is not None}
    hidden = [
        m.weight
        for m in model.modules()
        if isinstance(m, nn.Linear) and m.weight.requires_grad and id(m.weight) not in outside
    ]
    taken = {id(p) for p in hidden}
    others = [
        group | {"params": [p for p in group["params"] if id(p) not in taken], "muon": False}
        for group in parameter_groups(model, weight_decay)
    ]
    return [{"params": hidden, "weight_decay": weight_decay, "muon": True}, *others]
