"""Hidden cases of chapter 11."""

from __future__ import annotations

import math

import torch

from autograder.checks.generation import (
    ASSIGNMENT,
    KVCache,
    Seed,
    beam_search,
    dequantize,
    expect_draws,
    expect_filtered,
    expect_found,
    expect_kept,
    expect_quantized,
    expect_same_logits,
    expect_weights,
    filter_logits,
    quantize_int8,
    quantized,
    sample,
    share_of_first,
    some_table,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@filter_logits.hidden(
    "tokens ruled out before", hint="A logit that is minus infinity already must stay so."
)
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(2, 11)
    logits[:, [1, 4]] = -math.inf
    expect_filtered(student, logits, top_k=6, top_p=share_of_first(logits[0], 3.5, top_k=6))
    expect_filtered(student, logits, top_p=1.0)


@filter_logits.hidden("one row, one token", hint="A vocabulary of one token must survive.")
def _(student: Handle, rng: Rng) -> None:
    expect_filtered(student, rng.normal(1, 1), top_k=1, top_p=0.5)


@sample.hidden("both filters", hint="top_k and top_p may be given together, with a temperature.")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([1.0, 0.9, 0.6, 0.2, 0.0, -0.4]).double()[rng.permutation(6)]
    top_p = share_of_first(logits / 1.7, 2.5, top_k=4)
    expect_draws(student, rng, logits, 1.7, top_k=4, top_p=top_p)


@sample.hidden("huge logits", hint="Logits in the thousands must still be drawn from.")
def _(student: Handle, rng: Rng) -> None:
    logits = 9000 * rng.normal(3, 7)
    drawn = student(logits, 1.0, generator=Seed(rng.integer(0, 1000)))
    expect(drawn, "the drawn tokens").equals(logits.argmax(-1))


@KVCache.hidden("many pieces", hint="A cache may be filled in pieces of any size, many of them.")
def _(student: Handle, rng: Rng) -> None:
    expect_kept(student, rng, (3, 1, 2, 17, 2), (5, 1, 1, 3, 7))


@KVCache.hidden(
    "to the last place", hint="With a full window the logits must still be those without a cache."
)
def _(student: Handle, rng: Rng) -> None:
    expect_same_logits(student, rng, (2, 1, 6))


@beam_search.hidden(
    "impossible tokens", hint="Log-probabilities may be minus infinity for most tokens."
)
def _(student: Handle, rng: Rng) -> None:
    table = some_table(rng, 5, end=0.0)
    table.log_p[..., 3:] = -math.inf
    table.log_p = table.log_p.log_softmax(-1)
    expect_found(student, table, table.best(3, 0.8), 64, 3, 0.8)


@beam_search.hidden(
    "an end at once", hint="Where EOS is all but certain at the start, the answer is EOS alone."
)
def _(student: Handle, rng: Rng) -> None:
    table = some_table(rng, 5, end=50.0)
    expect_found(student, table, table.best(3, 0.0), 2, 3)


@quantize_int8.hidden("several rows of zeros", hint="Any number of rows may be zeros.")
def _(student: Handle, rng: Rng) -> None:
    weight = rng.normal(5, 3)
    weight[[0, 2, 4]] = 0.0
    expect_quantized(student, weight)


@quantize_int8.hidden("float32", hint="A float32 matrix must be quantized as finely.")
def _(student: Handle, rng: Rng) -> None:
    weight = rng.normal(3, 11, dtype=torch.float32)
    q, scale = student(weight)
    expect(scale, "scale").has_dtype(torch.float32)
    expect(q, "q").has_dtype(torch.int8)
    worst = ((q * scale - weight).abs() / scale).max().item()
    expect(q, "q").holds(worst <= 0.5 + 1e-3, f"a weight is {worst:.3f} steps off.")


@dequantize.hidden("one row", hint="A matrix of one row or one column is a matrix.")
def _(student: Handle, rng: Rng) -> None:
    expect_weights(student, *quantized(rng, 1, 7))
    expect_weights(student, *quantized(rng, 7, 1))
