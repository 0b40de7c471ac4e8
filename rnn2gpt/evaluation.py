"""How good a model is on a held-out text: a full sweep, each token predicted exactly once.

Random batches would do as an estimate; a sweep has no chance in it, so two models can be compared
token for token.
"""

from __future__ import annotations

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
