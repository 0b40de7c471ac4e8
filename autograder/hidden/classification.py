"""Hidden cases of chapter 13."""

from __future__ import annotations

import torch

from autograder.checks.classification import (
    LoRALinear,
    SequenceClassifier,
    base_weight,
    expect_frozen,
    expect_logits,
    expect_pooled,
    freeze,
    left_mask,
    loaded,
    lora,
    peer_gpt,
    pool_last_token,
    right_mask,
    right_output,
    right_weight,
    some_ids,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

pool_last_token.redraw()


@pool_last_token.hidden("other sizes", hint="Any B, T and D, and padding on either side.")
def _(student: Handle, rng: Rng) -> None:
    t = rng.integer(4, 12)
    lengths = (rng.integer(1, t), rng.integer(1, t))
    mask = torch.cat([left_mask(*lengths, t=t), right_mask(*lengths, t=t)])
    expect_pooled(student, rng.normal(4, t, rng.integer(1, 5), dtype=torch.float32), mask)


@SequenceClassifier.hidden(
    "other sizes, both paddings", hint="Sizes come from the GPT; a batch may be padded on any side."
)
def _(student: Handle, rng: Rng) -> None:
    sizes = {"vocab_size": 13, "block_size": 8, "n_layers": 1, "n_heads": 2, "d_model": 6}
    module, weights = loaded(student, rng, 1 + rng.integer(1, 4), sizes)
    mask = torch.cat([left_mask(rng.integer(1, 8), t=8), right_mask(rng.integer(1, 8), t=8)])
    expect_logits(module, weights, some_ids(rng, 2, 8, sizes), mask, sizes)


@freeze.hidden("any names", hint="Any beginning of a name may be given, in any order.")
def _(student: Handle, rng: Rng) -> None:
    names = ("norm.", "blocks.0.norm_2.", "position_embedding.", "blocks.1.attention.W_o.")
    chosen = tuple(names[i] for i in rng.permutation(4)[:3].tolist())
    model = peer_gpt(student)
    expect_frozen(student, model, chosen)
    expect_frozen(student, model, chosen[1:])


@LoRALinear.hidden("other sizes", hint="Any sizes, rank and alpha, before, during and after.")
def _(student: Handle, rng: Rng) -> None:
    rank, alpha = rng.integer(1, 5), 1 + 9 * float(rng.uniform())
    sizes = rng.integer(4, 9), rng.integer(2, 7)
    module, weights = lora(student, rng, rank, alpha, sizes=sizes)
    x = rng.normal(2, sizes[0])
    for call in ("merge", "merge", "unmerge"):
        expect(module(x), "the output").close_to(right_output(weights, x, rank, alpha))
        module.method(call).hold()
    expect(module(x), "the output").close_to(right_output(weights, x, rank, alpha))
    module.method("merge").hold()
    merged = base_weight(module)
    expect(merged, "the base's weight after merge()").close_to(right_weight(weights, rank, alpha))
