"""Checks of chapter 01: counting, smoothing, cross-entropy, bits per character, batches."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import Tensor

from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect
from autograder.engine.guards import guard
from autograder.engine.handle import Handle

ASSIGNMENT = Assignment(
    name="01-language-models",
    notebook="language_models",
    page="01_language_models",
    sections={"counting-pairs": "Counting pairs"},
)

# --- bigram_counts ------------------------------------------------------------------------------

bigram_counts = ASSIGNMENT.exercise(
    "bigram_counts",
    points=2,
    hints=(
        "Which two slices of `ids` line up each character with the one that follows it?",
        "A pair that occurs three times must be counted three times. What does `counts[i, j] += 1`"
        " do when the index `(i, j)` stands three times in one indexing operation?",
        "A pair (i, j) can be written as the single number `i * vocab_size + j`, and there is a"
        " PyTorch function that counts how often each number occurs.",
    ),
)


def pairs_by_hand(ids: Tensor, vocab_size: int) -> Tensor:
    counter = Counter(itertools.pairwise(ids.tolist()))
    rows = [[counter[i, j] for j in range(vocab_size)] for i in range(vocab_size)]
    return torch.tensor(rows)


@bigram_counts.case("counts each adjacent pair of a text")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, 5, 41)
    counts = student(ids, 7)  # more symbols than occur, on purpose
    expect(counts, "the counts").holds(
        isinstance(counts, Tensor) and tuple(counts.shape) == (7, 7),
        "expected one row and one column for each of the 7 symbols.",
    )
    expect(counts.to(torch.int64), "the counts").equals(pairs_by_hand(ids, 7))


@bigram_counts.case("counts a pair as often as it occurs")
def _(student: Handle, rng: Rng) -> None:
    ids = torch.tensor([0, 1] * rng.integer(4, 9))
    expect(student(ids, 2).to(torch.int64), "the counts").equals(pairs_by_hand(ids, 2))


guard(
    bigram_counts,
    lambda rng, dtype: (rng.integers(0, 6, 29), 6),
    gradient=False,
    dtype=False,
)


@bigram_counts.misconception(
    did="Your table is transposed: entry [i, j] counts how often i follows j.",
    causes="A model built on it predicts the character before, not the one after.",
    see="counting-pairs",
)
def transposed(ids: Tensor, vocab_size: int) -> Tensor:
    return pairs_by_hand(ids, vocab_size).T


@bigram_counts.misconception(
    did="You count the last character and the first one as a pair.",
    causes="The text is no circle: one count that was never observed enters the table.",
    see="counting-pairs",
)
def wraps_around(ids: Tensor, vocab_size: int) -> Tensor:
    return pairs_by_hand(torch.cat([ids, ids[:1]]), vocab_size)


@bigram_counts.misconception(
    did="A pair that occurs many times is counted once.",
    causes="`counts[i, j] += 1` with index tensors writes each place once, however often it is"
    " named, so frequent and rare pairs look alike.",
    see="counting-pairs",
)
def counts_once(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    counts[ids[:-1], ids[1:]] += 1
    return counts
