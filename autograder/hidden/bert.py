"""Hidden cases of chapter 12."""

from __future__ import annotations

import torch

from autograder.checks.bert import (
    SMALL,
    SPECIAL,
    BertForMaskedLM,
    V,
    expect_logits,
    expect_score,
    hide,
    loaded,
    mask_tokens,
    pseudo_log_likelihood,
    some_ids,
    some_mask,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in (mask_tokens, pseudo_log_likelihood):
    exercise.redraw()  # the model's two cases below say what its visible ones would say again


@mask_tokens.hidden("ids of one and of three dimensions", hint="ids may have any shape.")
def _(student: Handle, rng: Rng) -> None:
    for shape in ((300,), (5, 7, 11)):
        _, labels = hide(student, rng, rng.integers(0, V, *shape), 0.5)
        expect(labels, "labels").holds(bool((labels != -100).any()), "nothing is asked for.")


@mask_tokens.hidden(
    "special tokens alone", hint="Where all tokens are special, nothing is hidden or asked for."
)
def _(student: Handle, rng: Rng) -> None:
    ids = torch.tensor(SPECIAL).repeat(4, 5)
    inputs, labels = hide(student, rng, ids, 0.9)
    expect(inputs, "inputs").equals(ids)
    expect(labels, "labels").equals(torch.full_like(ids, -100))


@BertForMaskedLM.hidden(
    "other sizes, all arguments", hint="Sizes come from config, the number of segments too."
)
def _(student: Handle, rng: Rng) -> None:
    sizes = {
        "vocab_size": 23, "block_size": 9, "n_layers": 1, "n_heads": 1, "d_model": 5,
        "n_token_types": 3,
    }  # fmt: skip
    module, weights = loaded(student, rng, sizes)
    ids, more = some_ids(rng, 3, 8, sizes), {"token_types": rng.integers(0, 3, 3, 8)}
    more |= {"attention_mask": some_mask(rng, 3, 8)}
    expect_logits(module(ids, **more), weights, ids, sizes, **more)


@BertForMaskedLM.hidden(
    "padding on the left, and one layer more",
    hint="attention_mask may be False anywhere, and n_layers may be any number.",
)
def _(student: Handle, rng: Rng) -> None:
    sizes = SMALL | {"n_layers": 3, "block_size": 6}
    module, weights = loaded(student, rng, sizes)
    ids, mask = some_ids(rng, 3, 6, sizes), some_mask(rng, 3, 6).flip(1)
    expect_logits(module(ids, mask), weights, ids, sizes, attention_mask=mask)


@pseudo_log_likelihood.hidden("a longer text", hint="ids may have any length.")
def _(student: Handle, rng: Rng) -> None:
    expect_score(student, rng, 13)
