"""Hidden cases of chapter 06."""

from __future__ import annotations

import torch

from autograder.checks.multi_head_attention import (
    ASSIGNMENT,
    MultiHeadAttention,
    apply_rotary,
    expect_like_twin,
    expect_rotated,
    heads_of,
    loaded,
    merge_heads,
    sinusoidal_positions,
    split_heads,
    three_inputs,
    waves,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@split_heads.hidden("many heads", hint="Sizes other than the notebook's must work too.")
def _(student: Handle, rng: Rng) -> None:
    x = rng.normal(3, 11, 26)
    expect(student(x, 13), "the heads").close_to(heads_of(x, 13))


@merge_heads.hidden("a split from memory", hint="What is merged may lie anyhow in memory.")
def _(student: Handle, rng: Rng) -> None:
    whole = rng.strided(2, 11, 26)
    expect(student(heads_of(whole, 2)), "split and merged").close_to(whole)


@MultiHeadAttention.hidden(
    "heads change places",
    hint="Exchanging the heads' blocks in all four maps must exchange the heads' weights and leave"
    " the output as it is.",
)
def _(student: Handle, rng: Rng) -> None:
    d_model, n_heads = 12, 4
    module, weights = loaded(student, rng, d_model, n_heads)
    args = three_inputs(rng, 2, 3, 5, d_model)
    output, attention = module(*args)
    order = rng.permutation(n_heads)
    channels = torch.arange(d_model).view(n_heads, -1)[order].flatten()  # (D,) → (H, D/H) → (D,)
    moved = {name: w if "W_o" in name else w[channels] for name, w in weights.items()}
    moved["W_o.weight"] = weights["W_o.weight"][:, channels]
    again, moved_attention = module.load(moved)(*args)
    expect(moved_attention, "the weights of the exchanged heads").close_to(attention[:, order])
    expect(again, "the output").close_to(output)


@MultiHeadAttention.hidden(
    "the future is out of reach",
    hint="With a causal mask, changing later tokens must change no earlier output.",
)
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng, 10, 2)
    x, causal = rng.normal(2, 7, 10), torch.ones(7, 7, dtype=torch.bool).tril()
    before, _ = module(x, x, x, causal)
    changed = torch.cat([x[:, :4], rng.normal(2, 3, 10)], dim=1)
    after, _ = module(changed, changed, changed, causal)
    expect(after[:, :4], "the outputs before the change").close_to(before[:, :4])


@MultiHeadAttention.hidden(
    "more padding", hint="Padding that is masked must not change what is read from the rest."
)
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng, 9, 3)
    query, key, value = three_inputs(rng, 2, 3, 5, 9)
    bare, _ = module(query, key, value)
    padded = [torch.cat([x, 9 * rng.normal(2, 4, 9)], dim=1) for x in (key, value)]
    real = (torch.arange(9) < 5).expand(2, 1, 1, 9)
    output, _ = module(query, *padded, real)
    expect(output, "the output with padding").close_to(bare)


@MultiHeadAttention.hidden("huge scores", hint="Scores in the thousands must give no NaN.")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 6, 2)
    query, key, value = three_inputs(rng, 2, 3, 5, 6)
    expect_like_twin(module, weights, 2, 80 * query, 80 * key, value)


@sinusoidal_positions.hidden("a long table", hint="Hundreds of positions must be right as well.")
def _(student: Handle, rng: Rng) -> None:
    expect(student(400, 12), "the table").close_to(waves(400, 12), rtol=2e-3, atol=2e-3)


@sinusoidal_positions.hidden("one channel", hint="A width of 1 is odd too: a single sine.")
def _(student: Handle, rng: Rng) -> None:
    expect(student(4, 1), "the table").close_to(waves(4, 1), atol=1e-5)


@apply_rotary.hidden("far positions", hint="Positions in the hundreds must be right as well.")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.normal(2, 3, 10), torch.tensor([611, 7, 402]))


@apply_rotary.hidden("another base and many axes", hint="Any base, any number of axes in front.")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.strided(2, 1, 3, 4, 6), torch.tensor([8, 5, 6, 40]), 500_000.0)
