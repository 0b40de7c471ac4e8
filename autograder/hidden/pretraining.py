"""Hidden cases of chapter 10."""

from __future__ import annotations

import torch

from autograder.checks.pretraining import (
    AdamW,
    accumulate_gradients,
    accumulated,
    compute_optimal,
    cosine_schedule,
    expect_decay,
    expect_optimal,
    expect_rates,
    expect_walk,
    micro_batch,
    parameter_groups,
    small_gpt,
    some,
)
from autograder.engine.exercise import Rng
from autograder.engine.handle import Handle

# The other three take most of a grader's time; theirs are drawn anew in a few cases below.
for exercise in (cosine_schedule, compute_optimal):
    exercise.redraw()


@AdamW.hidden("seven steps", hint="Many steps, with gradients and settings of any size.")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 7, *(10 ** rng.normal(7)).tolist())
    betas = 0.5 + 0.4 * float(rng.uniform()), 0.9 + 0.09 * float(rng.uniform())
    expect_walk(student, values, gradients, lr=0.2, betas=betas, weight_decay=0.4)


@AdamW.hidden("float32", hint="Parameters may be float32, and may hold a single number.")
def _(student: Handle, rng: Rng) -> None:
    values = [rng.normal(3, 2, dtype=torch.float32), rng.normal(dtype=torch.float32)]
    gradients = [[torch.sin(9 * value + step) for value in values] for step in range(3)]
    expect_walk(student, values, gradients, lr=0.05, weight_decay=0.2)


@AdamW.hidden("small gradients", hint="A weight whose gradients are tiny moves as far as any.")
def _(student: Handle, rng: Rng) -> None:
    values = [rng.normal(7)]
    gradients = [[1e-3 * rng.normal(7).sign()] for _ in range(2)]
    expect_walk(student, values, gradients, lr=0.01, betas=(0.9, 0.0), weight_decay=0.0)


@cosine_schedule.hidden("other sizes", hint="Any warm-up and any length must give the same curve.")
def _(student: Handle, rng: Rng) -> None:
    warmup = rng.integer(1, 90)
    total = warmup + rng.integer(2, 900)
    steps = (0, warmup - 1, warmup, (warmup + total) // 2, total - 1, total, 3 * total)
    expect_rates(student, steps, 6e-4, 6e-5, warmup, total)


@parameter_groups.hidden("no decay", hint="With weight_decay 0 every tensor must still be there.")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    expect_decay(student, model, weights, 0.0)


@accumulate_gradients.hidden(
    "other micro-batches", hint="Any number of targets, in micro-batches of any shape."
)
def _(student: Handle, rng: Rng) -> None:
    shapes = [(1 + rng.integer(0, 3), 2 + rng.integer(0, 4)) for _ in range(3)]
    accumulated(student, rng, [micro_batch(rng, *shape, rng.integer(0, 2)) for shape in shapes])


@compute_optimal.hidden("other budgets", hint="C = 6·N·D and D = r·N must hold for any C and r.")
def _(student: Handle, rng: Rng) -> None:
    expect_optimal(student, rng.integer(1, 10**6) * 1e15, 1 + 100 * float(rng.uniform()))
