"""How good a model is on a held-out text, how well it knows that, and what it does to pairs.

A full sweep predicts each token exactly once. Random batches would do as an estimate; a sweep has
no chance in it, so two models can be compared token for token. Calibration, intervals and paired
prompts are chapter 15's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.checkpoint import Architecture, Tokenizer
from rnn2gpt.translation import PairTokenizer


@torch.no_grad()
def evaluate(
    architecture: Architecture,
    model: nn.Module,
    ids: Int64[Tensor, " N"],
    block_size: int = 256,
    n_streams: int = 16,
) -> Float[Tensor, " N-1"]:
    """−ln p of every id but the first: a full sweep, each id predicted exactly once.

    The text is cut into `n_streams` runs that go side by side. A recurrent model carries its state
    along its run; each run starts from an empty state. Any other model reads windows of its own
    `block_size` that overlap by half. The mean is the loss in nats per token.
    """
    device = next(model.parameters()).device
    if not architecture.recurrent:
        return _evaluate_windows(architecture, model, ids, device)
    n_streams = max(1, min(n_streams, (len(ids) - 1) // block_size))
    length = -(-(len(ids) - 1) // n_streams)  # rounded up: the last run may be shorter
    at = torch.arange(n_streams * length).view(n_streams, length)  # (S, L)
    x, y = (ids[torch.minimum(at + k, torch.tensor(len(ids) - 1))] for k in (0, 1))
    was_training, state, losses = model.training, None, []
    model.eval()
    for start in range(0, length, block_size):
        block = slice(start, start + block_size)
        logits, state = architecture.run(model, x[:, block].to(device), state)
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), y[:, block].to(device), reduction="none"
        )  # (S, V, T) and (S, T) → (S, T)
        losses.append(nll.cpu())
    model.train(was_training)
    return torch.cat(losses, dim=1).flatten()[: len(ids) - 1].double()


def _evaluate_windows(
    architecture: Architecture, model: Any, ids: Int64[Tensor, " N"], device: torch.device
) -> Float[Tensor, " N-1"]:
    """Each id is predicted in the first window that holds it, half a window or more from its start.

    Only the ids of the very first window have less to read, as they have at the start of any text.
    """
    n = len(ids) - 1
    window = min(model.block_size, n)
    starts = [*range(0, n - window, max(1, window // 2)), n - window]
    at = torch.tensor(starts)[:, None] + torch.arange(window)  # (W, T)
    was_training, losses = model.training, []
    model.eval()
    for rows in at.split(64):
        logits, _ = architecture.run(model, ids[rows].to(device), None)
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[rows + 1].to(device), reduction="none"
        )  # (W, V, T) and (W, T) → (W, T)
        losses.append(nll.cpu())
    model.train(was_training)
    result, done = torch.empty(n, dtype=torch.float64), 0
    for start, nll in zip(starts, torch.cat(losses), strict=True):
        result[done : start + window] = nll[done - start :]
        done = start + window
    return result


def count_characters(tokenizer: Tokenizer, ids: Int64[Tensor, " N"]) -> int:
    """How many characters the ids stand for: what bits per character are counted in.

    Pairs have no text of their own; there a token stands for one.
    """
    if isinstance(tokenizer, PairTokenizer):
        return len(ids)
    return len(tokenizer.decode(ids.tolist()))


@torch.no_grad()
def nll_with_stride(
    model: Any, ids: Int64[Tensor, " N"], stride: int, window: int | None = None
) -> Float[Tensor, " N-1"]:
    """−ln p of every id but the first, with windows of a GPT that move on by `stride` ids.

    In each window only the ids that no earlier window predicted count, so every one has at least
    window − stride ids before it (those of the first window apart). `stride=window` cuts the text
    into pieces that know nothing of each other; `stride=1` gives each id all that the window holds
    and takes a pass for each.
    """
    n = len(ids) - 1
    window = min(window or model.block_size, n)
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} must lie between 1 and the window of {window}")
    starts = [*range(0, n - window, stride), n - window]
    losses = torch.empty(n, dtype=torch.float64)
    done = 0
    for some in torch.tensor(starts).split(64):
        rows = some[:, None] + torch.arange(window)  # (W, T)
        logits = model(ids[rows])[0]
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[rows + 1], reduction="none"
        )  # (W, V, T) and (W, T) → (W, T)
        for start, row in zip(some.tolist(), nll, strict=True):
            losses[done : start + window] = row[done - start :]
            done = start + window
    return losses


def reliability(
    probabilities: Float[Tensor, "N C"], labels: Int64[Tensor, " N"], n_bins: int
) -> tuple[Float[Tensor, " n_bins"], Float[Tensor, " n_bins"], Int64[Tensor, " n_bins"]]:
    """For bins of the top probability: mean confidence, share of right answers, how many.

    The bins (lo, hi] are equally wide. An empty one has NaN for a mean.
    """
    confidence, guess = probabilities.max(dim=-1)  # (N,)
    which = (confidence * n_bins).ceil().long().clamp(1, n_bins) - 1  # (lo, hi] is lo < p ≤ hi
    counts = torch.bincount(which, minlength=n_bins)

    def mean(values: Tensor) -> Tensor:
        return confidence.new_zeros(n_bins).index_add(0, which, values) / counts

    return mean(confidence), mean((guess == labels).to(confidence.dtype)), counts


def expected_calibration_error(
    probabilities: Float[Tensor, "N C"], labels: Int64[Tensor, " N"], n_bins: int
) -> Float[Tensor, ""]:
    """Σ over bins of (count / N) · |share of right answers − mean confidence| (Guo et al. 2017).

    >>> p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]])
    >>> expected_calibration_error(p, torch.tensor([0, 1, 0]), n_bins=2)
    tensor(0.3333)
    """
    confidence, accuracy, counts = reliability(probabilities, labels, n_bins)
    return ((accuracy - confidence).abs() * counts).nansum() / len(labels)


def bootstrap_interval(
    values: Float[Tensor, " n"],
    level: float = 0.95,
    generator: torch.Generator | None = None,
    n_resamples: int = 2000,
) -> tuple[float, float]:
    """Between which two numbers the mean of `values` lies in the middle `level` of resamples.

    Each resample draws n of the n values with replacement: the percentile interval of Efron (1979).
    """
    n = len(values)
    drawn = torch.randint(n, (n_resamples, n), generator=generator)  # (R, n)
    means = values.cpu().double()[drawn].mean(dim=1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def paired_prompt_bias(
    score: Callable[[str], float],
    pairs: Sequence[tuple[str, str]],
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[float, tuple[float, float]]:
    """The mean of score(a) − score(b) over pairs of prompts that differ in one word, and its
    interval: the percentile bootstrap over 2,000 resamples of the pairs.
    """
    differences = torch.tensor([score(a) - score(b) for a, b in pairs], dtype=torch.float64)
    return differences.mean().item(), bootstrap_interval(differences, level, generator)
