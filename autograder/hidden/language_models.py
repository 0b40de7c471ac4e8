"""Hidden cases of chapter 01."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from autograder.checks.language_models import (
    ASSIGNMENT,
    bigram_counts,
    bigram_probabilities,
    bits_per_character,
    cross_entropy,
    expect_counts,
    expect_shares,
    get_batch,
    starts_of,
)
from autograder.child.protocol import Seed
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@bigram_counts.hidden(
    "a text of one character", hint="A text of a single character has no pair at all."
)
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, 5, 1)
    expect_counts(student(ids, 5), ids, 5)


@bigram_counts.hidden(
    "a vocabulary of one symbol", hint="A text over a single symbol has a table of one entry."
)
def _(student: Handle, rng: Rng) -> None:
    ids = torch.zeros(rng.integer(5, 50), dtype=torch.int64)
    expect_counts(student(ids, 1), ids, 1)


@bigram_probabilities.hidden(
    "counts in the millions", hint="Large counts and a small alpha must not lose their ratio."
)
def _(student: Handle, rng: Rng) -> None:
    counts = rng.integers(1_000_000, 9_000_000, 4, 4)
    counts[1, 2] = 0
    expect_shares(student(counts.double(), 0.01), counts, 0.01)


@bigram_probabilities.hidden(
    "no count at all", hint="A table of zeros is uniform, with smoothing and without."
)
def _(student: Handle, rng: Rng) -> None:
    counts = torch.zeros(6, 6, dtype=torch.int64)
    expect_shares(student(counts, 0.0), counts, 0.0)
    expect_shares(student(counts, 0.7), counts, 0.7)


@cross_entropy.hidden("one row", hint="A batch of a single row is a batch.")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(1, 13), rng.integers(0, 13, 1)
    expect(student(logits, targets)).close_to(F.cross_entropy(logits, targets))


@cross_entropy.hidden("a vocabulary of one", hint="Where there is no choice, the loss is 0.")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(4, 1)
    expect(student(logits, torch.zeros(4, dtype=torch.int64))).close_to(
        torch.tensor(0.0, dtype=torch.float64)
    )


@cross_entropy.hidden(
    "the gradient for huge logits", hint="The gradient must be exact for logits in the thousands."
)
def _(student: Handle, rng: Rng) -> None:
    logits, targets = 3000 * rng.normal(5, 3), rng.integers(0, 3, 5)
    one = torch.tensor(1.0, dtype=torch.float64)
    pulled = student.vjp(logits, targets, cotangent=one, wrt=(0,))
    right = (torch.softmax(logits, dim=1) - F.one_hot(targets, 3)) / 5
    expect(pulled.inputs[0]).close_to(right, 1e-2, 1e-4)


@bits_per_character.hidden("a perfect model", hint="A model that is always certain pays 0 bits.")
def _(student: Handle, rng: Rng) -> None:
    expect(student(0.0, 7, rng.integer(8, 30))).close_to(0.0)


@get_batch.hidden("windows of one character", hint="A window may be a single character long.")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(31)
    starts_of(student(ids, 1, 3, Seed(rng.integer(0, 999))), ids, 1, 3)


@get_batch.hidden("a batch of one row", hint="A batch may hold a single row.")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(31)
    starts_of(student(ids, 11, 1, Seed(rng.integer(0, 999))), ids, 11, 1)
