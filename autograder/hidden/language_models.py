"""Hidden cases of chapter 01."""

from __future__ import annotations

import torch

from autograder.checks.language_models import ASSIGNMENT, bigram_counts, pairs_by_hand
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@bigram_counts.hidden(
    "a text of one character", hint="A text of a single character has no pair at all."
)
def _(student: Handle, rng: Rng) -> None:
    expect(student(torch.tensor([3]), 5).to(torch.int64)).equals(
        pairs_by_hand(torch.tensor([3]), 5)
    )
