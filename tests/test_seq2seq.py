"""Chapter 04: what the package ships is what the chapter's checks call right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autograder.checks import load
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from rnn2gpt import seq2seq as package

ASSIGNMENT = load("seq2seq", hidden=True)
EXERCISES = {exercise.name: exercise for exercise in ASSIGNMENT.exercises}


@pytest.mark.parametrize("name", EXERCISES)
def test_package_passes_the_chapters_cases(name):
    namespace = {name: getattr(package, name)}
    result = judge(EXERCISES[name], lambda: Local(namespace), hidden=True, secret=b"package")
    assert result.status == "right", [case for case in result.cases if not case.passed]


@pytest.mark.parametrize("seed", range(3))
def test_a_right_model_is_right_for_any_seed(seed):
    """The cases draw weights for parameters they do not know: none may depend on luck."""

    class Model(package.Seq2Seq):
        pass

    Model.__name__ = "Seq2Seq"
    result = judge(
        EXERCISES["Seq2Seq"], lambda: Local({"Seq2Seq": Model}), hidden=True, secret=bytes([seed])
    )
    assert result.status == "right", [case for case in result.cases if not case.passed]


class StillDrops(package.Seq2Seq):
    """A mistake that is in no catalogue: dropout that stays on when the model is used."""

    def decode_step(self, ids, state, memory, mask):
        logits, state, weights = super().decode_step(ids, state, memory, mask)
        return nn.functional.dropout(logits, 0.5), state, weights


def test_a_mistake_without_a_name_loses_points_too():
    torch.manual_seed(0)
    result = judge(EXERCISES["Seq2Seq"], lambda: Local({"Seq2Seq": StillDrops}))
    assert result.status == "wrong" and result.points < result.max_points
