"""Hidden cases of chapter 17."""

from __future__ import annotations

from autograder.checks.capstone import (
    ASSIGNMENT,
    ENTRY,
    RATE,
    batch,
    expect_packed,
    expect_parity,
    expect_read,
    expect_steps,
    fill,
    from_gpt2,
    hugging_face,
    our_gpt,
    pack_entry,
    parity,
    right_parity,
    some_weights,
    train_steps,
)
from autograder.checks.gpt import SMALL, checkpoint
from autograder.engine.exercise import Rng
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    if exercise.on_files is None:
        exercise.redraw()


@parity.hidden("other sizes", hint="Models of any size must be compared, one token long too.")
def _(student: Handle, rng: Rng) -> None:
    sizes = SMALL | {"n_layers": 3, "d_model": 20, "n_heads": 5}
    weights = some_weights(rng, sizes)
    mine = fill(our_gpt(student, sizes, n_heads=2), some_weights(rng, sizes))
    ids, targets = batch(rng, t=6)
    for data in ((ids, targets), (ids[1:, :1], targets[1:, :1])):
        have = student(mine, fill(our_gpt(student, sizes), weights), *data)
        want = right_parity(sizes, {"n_heads": 2}, weights, *data)
        expect_parity({name: float(have[name]) for name in have}, want)


@from_gpt2.hidden("other sizes", hint="Any number of layers and heads must work.")
def _(student: Handle, rng: Rng) -> None:
    sizes = SMALL | {"n_layers": 3, "n_heads": 4, "d_model": 20}
    weights, theirs = checkpoint(rng, n_layers=3, n_heads=4, d_model=20)
    expect_read(student, hugging_face(sizes), theirs, sizes, weights)


@train_steps.hidden("more steps", hint="Every batch must be used once, in order.")
def _(student: Handle, rng: Rng) -> None:
    expect_steps(student, rng, 6, RATE / 4)


@pack_entry.hidden("other sizes", hint="Any model within the limits of an entry can be packed.")
def _(student: Handle, rng: Rng) -> None:
    expect_packed(student, rng, n_layers=2, n_heads=5, d_model=20, block_size=19)
    expect_packed(student, rng, dropout=0.5, **{"block_size": ENTRY["block_size"]})
