"""Cases of chapter 16 that only the grader runs: every bug again, and what a fix may break.

The new ones are guards, so that a bug found stays worth one point, and together they weigh what an
exercise's visible guards weigh.
"""

from __future__ import annotations

import math

import torch.nn.functional as F

from autograder.checks.reading_critically import (
    ASSIGNMENT,
    attention,
    bent,
    block,
    embed,
    embedded,
    expect_spoken,
    fed_forward,
    feed_forward,
    gained,
    greedy,
    lm_loss,
    loss_by_hand,
    norm,
    past_mean,
    through,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@embed.hidden(
    "a full window", hint="A text may be as long as there are positions.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    ids, tokens, positions = rng.integers(0, 5, 3, 7), rng.normal(5, 2), rng.normal(7, 2)
    expect(student(ids, tokens, positions)).close_to(embedded(ids, tokens, positions))


@attention.hidden(
    "large scores", hint="Scores in the hundreds must not overflow.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = 30 * rng.normal(3, 7, 2), 30 * rng.normal(3, 7, 2), rng.normal(3, 7, 5)
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expect(student(q, k, v)).close_to(right)


@feed_forward.hidden(
    "one position", hint="One position and one hidden unit are enough.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    x, W_1, W_2 = rng.normal(1, 1, 3), rng.normal(3, 1), rng.normal(1, 3)
    b_1, b_2 = rng.normal(1), rng.normal(3)
    expect(student(x, W_1, b_1, W_2, b_2)).close_to(fed_forward(x, W_1, b_1, W_2, b_2))


@block.hidden(
    "other layers", hint="Any two norms and any two layers may come.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    x, layers = 9 * rng.normal(3, 7, 5), (gained, past_mean, norm, bent)
    expect(student(x, *layers)).close_to(through(x, layers))


@lm_loss.hidden(
    "large logits", hint="Logits in the thousands must not overflow.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    hidden, W_embedding = 40 * rng.normal(2, 3, 5), 40 * rng.normal(7, 5)
    targets = rng.integers(0, 7, 2, 3)
    right = loss_by_hand(hidden, W_embedding, targets)
    expect(right, "the loss").holds(math.isfinite(right.item()), "it overflows.")
    expect(student(hidden, W_embedding, targets), "the loss").close_to(right)


@greedy.hidden(
    "one row, a long text", hint="A text alone, and many new tokens.", guard=True, weight=5.0
)
def _(student: Handle, rng: Rng) -> None:
    expect_spoken(student, rng, 1, 3, 9)
