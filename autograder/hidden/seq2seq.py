"""Hidden cases of chapter 04."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from autograder.checks.seq2seq import (
    ASSIGNMENT,
    SIZES,
    AdditiveAttention,
    Seq2Seq,
    built,
    expect_alike,
    expect_greedy,
    expect_shifted,
    loaded,
    logits_of,
    masked_softmax,
    one_row_masked,
    pair_by_pair,
    real,
    sentences,
    sequence_cross_entropy,
    shift_right,
    softmax_of_the_allowed,
    some_mask,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@masked_softmax.hidden(
    "masks of four axes",
    hint="Scores of (B, H, T, S) take masks of (T, S), (B, 1, 1, S), (B, 1, T, S), (B, H, T, S).",
)
def _(student: Handle, rng: Rng) -> None:
    scores = rng.strided(2, 3, 4, 5)
    for shape in ((4, 5), (2, 1, 1, 5), (2, 1, 4, 5), (2, 3, 4, 5)):
        mask = one_row_masked(some_mask(rng, *shape))
        right = softmax_of_the_allowed(scores, mask)
        expect(student(scores, mask), f"the weights with a mask of {shape}").close_to(right)


@masked_softmax.hidden("one place", hint="One place alone gets 1 if it is allowed, 0 if it is not.")
def _(student: Handle, rng: Rng) -> None:
    mask = torch.tensor([[True], [False]])
    right = mask.double()
    expect(student(rng.normal(2, 1), mask), "the weights").close_to(right)


@AdditiveAttention.hidden("one query, many keys", hint="A decoder asks one query at a time: T = 1.")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    query, keys = rng.normal(3, 1, 3), rng.normal(3, 11, 5)
    mask = real(torch.tensor([1, 11, 6]), 11)
    right = pair_by_pair(weights, query, keys, mask)
    expect(module(query, keys, mask), "context, weights").close_to(right)


@AdditiveAttention.hidden(
    "as many queries as keys, and equal widths",
    hint="T = S and d_query = d_key = d_hidden must give no other result than unequal sizes.",
)
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, (4, 4, 4))
    query, keys = rng.normal(2, 5, 4), rng.normal(2, 5, 4)
    right = pair_by_pair(weights, query, keys)
    expect(module(query, keys), "context, weights").close_to(right)


@shift_right.hidden("a target of int32", hint="The decoder's input has the targets' integer type.")
def _(student: Handle, rng: Rng) -> None:
    expect_shifted(student, rng.integers(3, 50, 3, 4).to(torch.int32), 1)


@sequence_cross_entropy.hidden("one token", hint="One sentence of one token has a loss too.")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(1, 1, 3), rng.integers(1, 3, 1, 1)
    right = F.cross_entropy(logits[0], targets[0])
    expect(student(logits, targets, 0), "the loss").close_to(right)


@sequence_cross_entropy.hidden(
    "more padding", hint="Columns of padding at the end must not change the loss."
)
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(3, 4, 5), rng.integers(1, 5, 3, 4)
    wider = torch.cat([logits, 50 * rng.normal(3, 6, 5)], dim=1)
    right = F.cross_entropy(logits.mT, targets)
    expect(student(wider, F.pad(targets, (0, 6)), 0), "the loss").close_to(right)


@Seq2Seq.hidden(
    "greedy decoding without attention",
    hint="`greedy_decode` must stop each row at its EOS with attention=False too.",
)
def _(student: Handle, rng: Rng) -> None:
    expect_greedy(student, rng, attention=False)


@Seq2Seq.hidden(
    "greedy decoding of one sentence",
    hint="The answers to a batch must be the answers to its sentences one by one.",
)
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, _ = sentences(rng)
    decode = module.method("greedy_decode")
    together = decode(source, lengths, 6, 1, 2)
    alone = [
        decode(source[b : b + 1, :n], lengths[b : b + 1], 6, 1, 2)[0]
        for b, n in enumerate(lengths.tolist())
    ]
    expect(together, "the answers").equals(alone)


@Seq2Seq.hidden(
    "a long source and a long target", hint="Sentences of a hundred tokens must work as well."
)
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths = rng.integers(0, SIZES[0], 2, 101), torch.tensor([101, 1])
    target_in = rng.integers(0, SIZES[1], 2, 53)
    logits = logits_of(module, source, lengths, target_in)
    expect(logits, "the logits").holds(bool(logits.isfinite().all()), "some are not finite.")
    short = logits_of(module, source[1:, :1], lengths[1:], target_in[1:])
    expect_alike(logits[1:], short, "one real token and a hundred of padding differ from one.")
