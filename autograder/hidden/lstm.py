"""Hidden cases of chapter 03."""

from __future__ import annotations

import torch

from autograder.checks.lstm import (
    ASSIGNMENT,
    LSTM,
    detach_state,
    expect_detached,
    expect_same_state,
    generate,
    gru_cell,
    gru_inputs,
    hash_model,
    loaded,
    lstm_cell,
    lstm_inputs,
    lstm_state,
    reference_lstm_cell,
    twin_of,
)
from autograder.child.protocol import Seed
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect, fail
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@lstm_cell.hidden("huge inputs", hint="Inputs in the thousands must give 0, ±1 or c, never NaN.")
def _(student: Handle, rng: Rng) -> None:
    x, state, *weights = lstm_inputs(rng, 3, 2, 5, torch.float64)
    args = (5000 * x, state, *weights)
    expect(student(*args), "(h, c)").close_to(reference_lstm_cell(*args))


@lstm_cell.hidden("a cell far from zero", hint="The cell may hold numbers far larger than 1.")
def _(student: Handle, rng: Rng) -> None:
    x, (h, c), *weights = lstm_inputs(rng, 2, 3, 5, torch.float64)
    args = (x, (h, 100 * c), *weights)
    expect(student(*args), "(h, c)").close_to(reference_lstm_cell(*args))


@gru_cell.hidden("huge inputs", hint="Inputs in the thousands must give finite states.")
def _(student: Handle, rng: Rng) -> None:
    x, *rest = gru_inputs(rng, 3, 2, 5, torch.float64)
    expect(student(5000 * x, *rest), "the state").close_to(torch.gru_cell(5000 * x, *rest))


@LSTM.hidden("a long text", hint="The layer must work on texts of any length, hundreds included.")
def _(student: Handle, rng: Rng) -> None:
    sizes = 3, 4, 2
    module, weights = loaded(student, rng, sizes)
    x = rng.normal(1, 211, 3)
    expect(module.eval()(x), "output, (h, c)").close_to(twin_of(weights, *sizes)(x))


@LSTM.hidden("input and hidden widths alike", hint="I = H must give the same answer as PyTorch.")
def _(student: Handle, rng: Rng) -> None:
    sizes = 5, 5, 4
    module, weights = loaded(student, rng, sizes)
    x, state = rng.strided(3, 6, 5), lstm_state(rng, 4, 3, 5)
    expect(module.eval()(x, state), "output, (h, c)").close_to(twin_of(weights, *sizes)(x, state))


@detach_state.hidden("a tuple of one tensor", hint="A tuple may hold any number of tensors.")
def _(student: Handle, rng: Rng) -> None:
    state = (rng.normal(2, 3),)
    expect_same_state(student, state)
    expect_detached(student, rng, state)


@generate.hidden("no new token at all", hint="With `n_tokens=0` the result is the prompt.")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, 11, 2, 3)
    expect(student(hash_model(rng), ids, 0), "the text").equals(ids)


@generate.hidden(
    "one generator, two calls",
    hint="Two calls with the same generator object must go on drawing from it, not start over.",
)
def _(student: Handle, rng: Rng) -> None:
    model, ids = hash_model(rng), rng.integers(0, 11, 2, 3)
    generator = student.keep(Seed(rng.integer(0, 1000)))
    one = student(model, ids, 9, generator=generator)
    two = student(model, ids, 9, generator=generator)
    if torch.equal(one, two):
        fail("the generator is started over, or not used.")
