"""Right answers to chapter 15, each written another way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- logit_lens ---------------------------------------------------------------------------------


def by_hand(model: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[0], device=ids.device)
    x = (model.token_embedding(ids) + model.position_embedding(places)).unsqueeze(0)
    layers = []
    for block in model.blocks:
        x = block(x, "causal")
        layers.append(model.head(model.norm(x)).squeeze(0))
    return torch.stack(layers)


def by_hooks(model: Any, ids: Tensor) -> Tensor:
    """The model runs by itself; a hook on each block takes down what it leaves."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, args, out: seen.append(out)) for b in model.blocks]
    try:
        model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        return model.head(model.norm(torch.cat(seen)))


def by_shorter_models(model: Any, ids: Tensor) -> Tensor:
    """For each layer, a run of the model that skips the blocks after it."""
    rows = []
    for depth in range(1, len(model.blocks) + 1):
        x = F.embedding(ids[None], model.token_embedding.weight)
        x = x + model.position_embedding.weight[None, : len(ids)]
        t = len(ids)
        mask = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
        for block in list(model.blocks)[:depth]:
            x = block(x, mask)
        norm = model.norm
        x = F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
        rows.append((x @ model.head.weight.T)[0])
    return torch.stack(rows).detach()


# --- induction_score ----------------------------------------------------------------------------


def by_diagonal(weights: Tensor, period: int) -> Tensor:
    return weights.diagonal(1 - period, -2, -1)[..., 1:].mean(-1)


def by_loop(weights: Tensor, period: int) -> Tensor:
    scores = []
    for head in weights:
        line = [head[i, i - period + 1] for i in range(period, head.shape[0])]
        scores.append(sum(line) / len(line))
    return torch.stack(scores)  # type: ignore[arg-type]


def by_mask(weights: Tensor, period: int) -> Tensor:
    t = weights.shape[-1]
    at = torch.arange(t, device=weights.device)
    looked = (at[:, None] - at[None] == period - 1) & (at[:, None] >= period)
    return torch.einsum("hts,ts->h", weights, looked.to(weights.dtype)) / (t - period)


# --- ablate_heads -------------------------------------------------------------------------------


class ByClass:
    """Hooks that are put in on the way in and taken out on the way out."""

    def __init__(self, model: Any, heads: Iterable[tuple[int, int]]) -> None:
        self.model, self.heads = model, set(heads)
        for layer, head in self.heads:
            if layer not in range(len(model.blocks)) or head not in range(model.config.n_heads):
                raise ValueError(f"{layer}, {head}")

    def _silence(self, layer: int, x: Tensor) -> tuple[Tensor]:
        n = self.model.config.n_heads
        keep = x.new_tensor([(layer, head) not in self.heads for head in range(n)])
        return ((x.unflatten(-1, (n, -1)) * keep[:, None]).flatten(-2),)

    def __enter__(self) -> ByClass:
        self._stack = ExitStack()
        for at, block in enumerate(self.model.blocks):
            hook = block.attention.W_o.register_forward_pre_hook(
                lambda _, args, at=at: self._silence(at, args[0])
            )
            self._stack.callback(hook.remove)
        return self

    def __exit__(self, *ended: Any) -> None:
        self._stack.close()


@contextmanager
def by_columns(model: Any, heads: Iterable[tuple[int, int]]) -> Iterator[Any]:
    """The projection's own columns set to zero, and put back from a copy."""
    width = model.config.d_model // model.config.n_heads
    kept = []
    try:
        for layer, head in heads:
            if layer >= len(model.blocks) or head >= model.config.n_heads:
                raise ValueError("no such head")
            columns = model.blocks[layer].attention.W_o.weight.data[
                :, head * width : (head + 1) * width
            ]
            kept.append((columns, columns.clone()))
            columns.zero_()
        yield model
    finally:
        for columns, copy in reversed(kept):
            columns.copy_(copy)


@contextmanager
def by_values(model: Any, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """A head whose values are all zero has zeros for an output."""
    n_heads = model.config.n_heads
    width = model.config.d_model // n_heads
    hooks = []

    def silence(channels: slice) -> Callable[..., Tensor]:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., channels] = 0
            return output

        return hook

    try:
        for layer, head in heads:
            if head >= n_heads or layer >= model.config.n_layers:
                raise ValueError(f"The model has no head {head} in layer {layer}")
            values = model.blocks[layer].attention.W_v
            channels = slice(head * width, (head + 1) * width)
            hooks.append(values.register_forward_hook(silence(channels)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- expected_calibration_error -----------------------------------------------------------------


def by_bins(probabilities: Tensor, labels: Tensor, n_bins: int) -> Tensor:
    confidence, predicted = probabilities.max(dim=1)
    error = confidence.new_zeros(())
    edges = torch.arange(n_bins + 1, dtype=torch.float64) / n_bins
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            right = (predicted[inside] == labels[inside]).double().mean()
            error = error + inside.double().mean() * (right - confidence[inside].mean()).abs()
    return error


def by_bucketize(probabilities: Tensor, labels: Tensor, n_bins: int) -> float:
    sure = probabilities.amax(dim=-1)
    hit = probabilities.argmax(dim=-1).eq(labels)
    inner = torch.arange(1, n_bins, device=sure.device, dtype=sure.dtype) / n_bins
    which = torch.bucketize(sure, inner)  # inner[i − 1] < sure ≤ inner[i]
    gaps = torch.zeros(n_bins, dtype=sure.dtype).index_add_(0, which, hit.to(sure.dtype) - sure)
    return (gaps.abs().sum() / len(sure)).item()


def by_dictionary(probabilities: Tensor, labels: Tensor, n_bins: int) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        top = max(row)
        bins.setdefault(math.ceil(top * n_bins), []).append((top, row.index(top) == label))
    n = len(labels)
    return sum(abs(sum(hit for _, hit in b) - sum(p for p, _ in b)) / n for b in bins.values())


# --- paired_prompt_bias -------------------------------------------------------------------------

Result = tuple[float, tuple[float, float]]
Score = Callable[[str], float]
Pairs = Sequence[tuple[str, str]]


def by_quantile(
    score: Score, pairs: Pairs, level: float = 0.95, generator: torch.Generator | None = None
) -> Result:
    d = torch.tensor([score(a) - score(b) for a, b in pairs], dtype=torch.float64)
    draws = torch.randint(len(d), (2000, len(d)), generator=generator)
    means = d[draws].mean(dim=1)
    low, high = (torch.quantile(means, (1 + side * level) / 2).item() for side in (-1, 1))
    return d.mean().item(), (low, high)


def by_counts(
    score: Score, pairs: Pairs, level: float = 0.95, generator: torch.Generator | None = None
) -> tuple[Tensor, list[float]]:
    """How often each pair is drawn is all that a resample's mean depends on."""
    first = torch.tensor([float(score(a)) for a, _ in pairs])
    second = torch.tensor([float(score(b)) for _, b in pairs])
    d = (first - second).double()
    n = len(d)
    drawn = torch.multinomial(torch.ones(2000, n), n, replacement=True, generator=generator)
    counts = torch.zeros(2000, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(2000, n, dtype=torch.float64))
    means = (counts @ d / n).sort().values
    cut = int(2000 * (1 - level) / 2)
    return d.mean(), [means[cut].item(), means[1999 - cut].item()]


def by_lists(
    score: Score, pairs: Pairs, level: float = 0.95, generator: torch.Generator | None = None
) -> Result:
    """Python's own generator, seeded from PyTorch's."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    chance = random.Random(seed)
    differences = [score(one) - score(other) for one, other in pairs]
    n = len(differences)
    means = sorted(sum(chance.choices(differences, k=n)) / n for _ in range(2000))
    at = round(1999 * (1 - level) / 2)
    return sum(differences) / n, (means[at], means[-1 - at])


ANSWERS = {
    "logit_lens": [by_hand, by_hooks, by_shorter_models],
    "induction_score": [by_diagonal, by_loop, by_mask],
    "ablate_heads": [ByClass, by_columns, by_values],
    "expected_calibration_error": [by_bins, by_bucketize, by_dictionary],
    "paired_prompt_bias": [by_quantile, by_counts, by_lists],
}
