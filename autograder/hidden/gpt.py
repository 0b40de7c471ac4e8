"""Hidden cases of chapter 09."""

from __future__ import annotations

from autograder.checks.gpt import (
    ASSIGNMENT,
    GPT,
    SMALL,
    checkpoint,
    count_parameters,
    counted,
    empty_model,
    expect_count,
    expect_flops,
    expect_logits,
    flops_per_token,
    load_gpt2_state_dict,
    loaded,
    random_sizes,
    some_ids,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@GPT.hidden("the future", hint="A change of one token must change no logits before it.")
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng)
    ids = some_ids(rng, 7)
    before, _ = module(ids)
    ids[:, 4] = (ids[:, 4] + 1) % 11
    after, _ = module(ids)
    expect(after[:, :4], "the first 4 logits after token 4 changed").close_to(before[:, :4])
    expect(after, "the logits").holds(
        bool((after[:, 4:] != before[:, 4:]).any(-1).all()), "a change of token 4 does not show."
    )


@GPT.hidden(
    "other sizes", hint="Any number of layers, heads and tokens must work, one of each too."
)
def _(student: Handle, rng: Rng) -> None:
    one = SMALL | {"n_layers": 1, "n_heads": 1, "d_model": 5}
    expect_logits(student, rng, 1, 1, one)
    three = SMALL | {"n_layers": 3, "n_heads": 5, "d_model": 10, "block_size": 13}
    expect_logits(student, rng, 13, 3, three)


@count_parameters.hidden("other sizes", hint="The count must be exact for all sizes.")
def _(student: Handle, rng: Rng) -> None:
    for bias in (True, False):
        for _ in range(3):
            sizes = random_sizes(rng, bias=bias)
            expect_count(student, sizes, counted(sizes))


@flops_per_token.hidden("other sizes", hint="The FLOPs must be exact for all sizes.")
def _(student: Handle, rng: Rng) -> None:
    for bias in (True, False):
        expect_flops(student, random_sizes(rng, bias=bias))


@load_gpt2_state_dict.hidden(
    "a second checkpoint", hint="The same model may be filled again with other weights."
)
def _(student: Handle, rng: Rng) -> None:
    model = empty_model(student)
    for _ in range(2):
        weights, theirs = checkpoint(rng)
        student(model, theirs)
    have = model.method("state_dict")()
    for name, want in weights.items():
        expect(have.get(name), name).close_to(want)
