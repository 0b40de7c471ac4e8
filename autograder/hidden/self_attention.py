"""Hidden cases of chapter 05."""

from __future__ import annotations

import torch

from autograder.checks.self_attention import (
    ASSIGNMENT,
    SelfAttention,
    attention_inputs,
    causal_mask,
    expect_attention,
    expect_mask,
    expect_tiled,
    loaded,
    online_softmax_attention,
    padding_mask,
    random_mask,
    reference_causal,
    reference_padding,
    reference_self,
    scaled_dot_product_attention,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@scaled_dot_product_attention.hidden(
    "three leading axes", hint="Any number of axes may stand before the last two."
)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 1, 3)
    expect_attention(student, q, k, v, random_mask(rng, 4, 7))


@scaled_dot_product_attention.hidden(
    "one key allowed", hint="Where a row of the mask allows a single key, its weight must be 1."
)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 3)
    _, weights = student(q, k, v, torch.eye(4, 7, dtype=torch.bool))
    expect(weights, "the weights").close_to(torch.eye(4, 7, dtype=q.dtype).expand(3, 4, 7))


@scaled_dot_product_attention.hidden(
    "extra padding", hint="Keys that the mask forbids must not change the output, however many."
)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 3)
    alone, _ = student(q, k, v, torch.ones(7, dtype=torch.bool).expand(2, 1, 1, 7).clone())
    k = torch.cat([k, 1000 * rng.normal(2, 3, 4, 5)], dim=-2)
    v = torch.cat([v, rng.normal(2, 3, 4, 11)], dim=-2)
    mask = (torch.arange(11) < 7).repeat(2, 1, 1, 1)  # (11,) → (2, 1, 1, 11)
    padded, _ = student(q, k, v, mask)
    expect(padded, "the output with four keys of padding").close_to(alone)


@causal_mask.hidden("other sizes", hint="causal_mask(t, s) must hold for any t ≤ s.")
def _(student: Handle, rng: Rng) -> None:
    t = rng.integer(2, 9)
    for s in (t, t + rng.integer(1, 9)):
        expect_mask(student(t, s), reference_causal(t, s), f"causal_mask({t}, {s})")


@padding_mask.hidden("lengths of another integer type", hint="lengths may be int32 as well.")
def _(student: Handle, rng: Rng) -> None:
    lengths = rng.integers(1, 7, 5).to(torch.int32)
    expect_mask(student(lengths, 6), reference_padding(lengths, 6))


@SelfAttention.hidden("huge inputs", hint="Tokens in the thousands must give finite outputs.")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    x = 3000 * rng.normal(2, 4, 7)
    expect(module(x), "output, weights").close_to(reference_self(weights, x))


@online_softmax_attention.hidden(
    "many keys", hint="Hundreds of keys in blocks of any size must give what attention gives."
)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = rng.normal(3, 5), rng.normal(307, 5), rng.normal(307, 2)
    expect_tiled(student, 4 * q, k, v, 1 + rng.integer(1, 50))
