"""Right answers to chapter 10, each written another way."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]

# --- AdamW --------------------------------------------------------------------------------------


class InPlace(torch.optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(p.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))


class ByData(torch.optim.Optimizer):
    """New tensors for the moments at every step, and the parameter written through `.data`."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "beta1": betas[0],
                "beta2": betas[1],
                "eps": eps,
                "weight_decay": weight_decay,
            },
        )

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, b1, b2 = group["lr"], group["beta1"], group["beta2"]
            for p in filter(lambda p: p.grad is not None, group["params"]):
                g = p.grad.detach()
                t, m, v = self.state[p].get("all", (0, 0.0 * g, 0.0 * g))
                t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.square()
                self.state[p]["all"] = (t, m, v)
                m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
                update = m_hat / (torch.sqrt(v_hat) + group["eps"]) + group["weight_decay"] * p.data
                p.data = p.data - lr * update


class ByKingmaAndBa(torch.optim.Optimizer):
    """The order of operations at the end of section 2: both corrections go into the rate."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (b1, b2), eps = group["betas"], group["eps"]
            for p in group["params"]:
                if p.grad is not None:
                    now = self.state[p]
                    now["t"] = now.get("t", torch.zeros((), dtype=torch.float64)) + 1
                    now["m"] = torch.lerp(p.grad, now.get("m", torch.zeros_like(p)), b1)
                    now["v"] = torch.lerp(p.grad**2, now.get("v", torch.zeros_like(p)), b2)
                    t = int(now["t"])
                    p -= group["lr"] * group["weight_decay"] * p
                    rate = group["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t)
                    p -= rate * now["m"] / (now["v"].sqrt() + eps)


# --- cosine_schedule ----------------------------------------------------------------------------


def by_branches(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: int
) -> float:
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    if step > total_steps:
        return min_lr
    ratio = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (max_lr - min_lr)


def by_clamping(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: int
) -> Tensor:
    """The smaller of a rising line and a clamped cosine, as a 0-dim tensor."""
    done = torch.tensor(
        (step - warmup_steps) / (total_steps - warmup_steps), dtype=torch.float64
    ).clamp(0, 1)
    falling = min_lr + (max_lr - min_lr) * torch.cos(done * math.pi / 2) ** 2
    rising = torch.tensor(max_lr * (step + 1) / (warmup_steps + 1), dtype=torch.float64)
    return torch.where(torch.tensor(step < warmup_steps), rising, falling)


def by_middle_and_swing(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: int
) -> float:
    if warmup_steps and step < warmup_steps:
        return (1 + step) * (max_lr / (1 + warmup_steps))
    middle, swing = (max_lr + min_lr) / 2, (max_lr - min_lr) / 2
    left = max(0, total_steps - step) / (total_steps - warmup_steps)  # 1 at the peak, 0 at the end
    return middle - swing * math.cos(math.pi * left)


# --- parameter_groups ---------------------------------------------------------------------------


def by_two_lists(model: nn.Module, weight_decay: float) -> Groups:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_one_group_each(model: nn.Module, weight_decay: float) -> Groups:
    groups = []
    for _, p in model.named_parameters():
        if p.requires_grad:
            groups.append({"params": [p], "weight_decay": weight_decay if p.ndim > 1 else 0.0})
    return groups


def by_modules(model: nn.Module, weight_decay: float) -> Groups:
    """Module by module, with the tensors seen so far kept by identity; the plain ones first."""
    seen: set[int] = set()
    sides: dict[bool, list[Tensor]] = {False: [], True: []}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None and p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                sides[len(p.shape) > 1].append(p)
    return [
        {"params": sides[False], "weight_decay": 0.0},
        {"params": sides[True], "weight_decay": weight_decay},
    ]


# --- accumulate_gradients -----------------------------------------------------------------------

Batches = list[tuple[Tensor, Tensor]]


def by_shares(model: Any, micro_batches: Batches) -> Tensor:
    counts = [(targets != -100).sum().item() for _, targets in micro_batches]
    total = sum(counts)
    if total == 0:
        raise ValueError("nothing to learn from")
    model.zero_grad()
    mean = torch.zeros(())
    for (ids, targets), count in zip(micro_batches, counts, strict=True):
        if count > 0:
            _, loss = model(ids, targets)
            loss = loss * (count / total)
            loss.backward()
            mean = mean + loss.detach()
    return mean


def by_dividing_afterwards(model: Any, micro_batches: Batches) -> float:
    """Gradients of the sums first; all are divided at the end."""
    for p in model.parameters():
        p.grad = None
    targets_seen, loss_sum = 0, 0.0
    for ids, targets in micro_batches:
        here = int(torch.count_nonzero(targets.ne(-100)))
        if here == 0:
            continue
        loss = model(ids, targets)[1] * here
        loss.backward()
        targets_seen, loss_sum = targets_seen + here, loss_sum + loss.item()
    if not targets_seen:
        raise ValueError
    for p in model.parameters():
        if p.grad is not None:
            p.grad /= targets_seen
    return loss_sum / targets_seen


def by_own_cross_entropy(model: Any, micro_batches: Batches) -> Tensor:
    """From the logits, with the sum of cross-entropies; an empty sum is 0 and not NaN."""
    wanted = torch.cat([targets.flatten() for _, targets in micro_batches]) >= 0
    if not wanted.any():
        raise ValueError("every target is −100")
    model.zero_grad(set_to_none=False)
    parts = []
    for ids, targets in micro_batches:
        logits, _ = model(ids)
        part = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        ) / int(wanted.sum())
        part.backward()
        parts.append(part.detach())
    return torch.stack(parts).sum()


# --- compute_optimal ----------------------------------------------------------------------------


def by_root(flops: float, tokens_per_parameter: float = 20) -> tuple[float, float]:
    n = (flops / (6 * tokens_per_parameter)) ** 0.5
    return n, n * tokens_per_parameter


def by_tokens_first(flops: float, tokens_per_parameter: float = 20) -> tuple[float, float]:
    n_tokens = math.sqrt(flops * tokens_per_parameter / 6)
    return flops / 6 / n_tokens, n_tokens


def by_logarithms(flops: float, tokens_per_parameter: float = 20) -> tuple[int, int]:
    """Whole numbers of both: at these sizes nobody counts half a parameter."""
    n = math.exp((math.log(flops) - math.log(6) - math.log(tokens_per_parameter)) / 2)
    return round(n), round(tokens_per_parameter * n)


ANSWERS = {
    "AdamW": [InPlace, ByData, ByKingmaAndBa],
    "cosine_schedule": [by_branches, by_clamping, by_middle_and_swing],
    "parameter_groups": [by_two_lists, by_one_group_each, by_modules],
    "accumulate_gradients": [by_shares, by_dividing_afterwards, by_own_cross_entropy],
    "compute_optimal": [by_root, by_tokens_first, by_logarithms],
}
