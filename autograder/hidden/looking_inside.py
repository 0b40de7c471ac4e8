"""Hidden cases of chapter 15."""

from __future__ import annotations

import torch

from autograder.checks.looking_inside import (
    ASSIGNMENT,
    Scores,
    ablate_heads,
    bets,
    expect_ablated,
    expect_error,
    expect_lens,
    expect_measured,
    expected_calibration_error,
    induction_score,
    logit_lens,
    paired_prompt_bias,
    right_score,
    some_weights,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@logit_lens.hidden("a full window", hint="As many tokens as the window holds must work.")
def _(student: Handle, rng: Rng) -> None:
    expect_lens(student, rng, 8, n_layers=2)


@induction_score.hidden("many heads", hint="Any number of heads and any period must work.")
def _(student: Handle, rng: Rng) -> None:
    weights = some_weights(rng, 7, 19)
    for period in (3, 7, 18):
        expect(student(weights, period), "the scores").close_to(right_score(weights, period))


@ablate_heads.hidden("every head", hint="All heads of all layers may be switched off together.")
def _(student: Handle, rng: Rng) -> None:
    every = [(layer, head) for layer in range(2) for head in range(3)]
    expect_ablated(student, rng, every, n_layers=2, n_heads=3)


@expected_calibration_error.hidden("one bin", hint="With one bin the error is one gap.")
def _(student: Handle, rng: Rng) -> None:
    expect_error(student, bets(rng, 37, 4), rng.integers(0, 4, 37), 1)


@expected_calibration_error.hidden("float32", hint="Probabilities in float32 must work as well.")
def _(student: Handle, rng: Rng) -> None:
    probabilities = torch.tensor([[0.8125, 0.1875], [0.4375, 0.5625], [0.0625, 0.9375]])
    expect_error(student, probabilities, torch.tensor([0, 0, 1]), 4)


@paired_prompt_bias.hidden("no difference", hint="Where the scores are equal, everything is 0.")
def _(student: Handle, rng: Rng) -> None:
    scores = rng.normal(7).tolist()
    expect_measured(student, Scores(rng, scores, scores), (0.0, 0.0, 0.0))
