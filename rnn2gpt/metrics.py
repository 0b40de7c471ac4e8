"""How good a language model is: cross-entropy and the two numbers read from it (chapter 01).

Cross-entropy in nats per token is what training minimizes. Perplexity and bits per character are
the same number on other scales; only bits per character compares models whose tokens differ.

>>> round(perplexity(math.log(65)), 6)                      # as unsure as 65 equal choices
65.0
>>> bits_per_character(math.log(2), n_tokens=10, n_characters=10)
1.0
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def cross_entropy(logits: Float[Tensor, "N V"], targets: Int64[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean negative log-probability of the targets, in nats.

    Shannon 1948, section 7, with the model's distribution in place of the true one. Computed from
    log-softmax, so that large logits neither overflow nor lose the small probabilities.

    >>> import torch
    >>> round(cross_entropy(torch.zeros(3, 65), torch.tensor([0, 7, 64])).item(), 4)   # ln 65
    4.1744
    """
    return F.cross_entropy(logits, targets)


def perplexity(nll_nats_per_token: float) -> float:
    """How many equally likely tokens the model is choosing among, on (geometric) average."""
    return math.exp(nll_nats_per_token)


def bits_per_character(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    """Bits the model spends on a character: nats in all, in bits, over the characters covered."""
    return nll_nats_per_token * n_tokens / (n_characters * math.log(2))
