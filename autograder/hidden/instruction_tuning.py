"""Hidden cases of chapter 14."""

from __future__ import annotations

import torch

from autograder.checks.instruction_tuning import (
    ASSIGNMENT,
    build_labels,
    collate,
    dpo_loss,
    exact_match,
    expect_batch,
    expect_row,
    expect_verdicts,
    right_loss,
    some_ids,
    some_rows,
    some_sums,
    words,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@build_labels.hidden("token 0", hint="Any id may occur, 0 and the prompt's own among them.")
def _(student: Handle, rng: Rng) -> None:
    a, b = some_ids(rng, 2)
    expect_row(student([0, a, 0], [0, b, 0]), [0, a, 0], [0, b, 0])


@build_labels.hidden("an end alone", hint="A response may be nothing but its end.")
def _(student: Handle, rng: Rng) -> None:
    *prompt, end = some_ids(rng, 9)
    expect_row(student(prompt, [end]), prompt, [end])


@collate.hidden("many rows", hint="A batch may have any number of rows, the longest anywhere.")
def _(student: Handle, rng: Rng) -> None:
    lengths = (2 + rng.permutation(19)).tolist()
    expect_batch(student, some_rows(rng, *lengths), pad_id=rng.integer(100, 200))


@collate.hidden(
    "padding that occurs inside", hint="pad_id may be the id of a token in the middle of a row."
)
def _(student: Handle, rng: Rng) -> None:
    rows = some_rows(rng, 6, 9)
    expect_batch(student, rows, pad_id=rows[0][0][4])


@exact_match.hidden("digits and accents", hint="Digits and letters with accents are kept.")
def _(student: Handle, rng: Rng) -> None:
    n = rng.integer(1000, 9999)
    alike = [(f"{n:,}", str(n)), ("Córdoba!", "córdoba")]
    expect_verdicts(student, alike, [(str(n), str(n + 1)), ("córdoba", "crdoba")])


@exact_match.hidden("a longer answer", hint="Everything at once: case, marks, articles, spaces.")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = words(rng, 3)
    alike = [(f" The {a.title()},  a {b} and an {c}!", f"{a} {b} and {c}")]
    expect_verdicts(student, alike, [(f"The {a}, a {b} and an {c}!", f"{a} {c} and {b}")])


@dpo_loss.hidden("any beta", hint="β may be small or large.")
def _(student: Handle, rng: Rng) -> None:
    for beta in (0.01, 5.0):
        sums = some_sums(rng, 11)
        expect(student(*sums, beta), "the loss").close_to(right_loss(sums, beta))


@dpo_loss.hidden("its gradient", hint="The gradient must be that of −ln σ(β · margin).")
def _(student: Handle, rng: Rng) -> None:
    sums, beta = some_sums(rng, 4), 0.6
    cotangent = torch.ones((), dtype=torch.float64)
    pulled = student.vjp(*sums, beta, cotangent=cotangent, wrt=(0, 1))
    margin = (sums[0] - sums[2]) - (sums[1] - sums[3])
    push = -beta * torch.sigmoid(-beta * margin) / 4  # the derivative by the chosen answers' sums
    expect(pulled.inputs[0], "the gradient of the chosen answers").close_to(push)
    expect(pulled.inputs[1], "the gradient of the rejected answers").close_to(-push)
