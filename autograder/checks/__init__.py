"""Visible cases and named misconceptions, one module per chapter."""

from __future__ import annotations

import importlib
from types import ModuleType

from autograder.engine.exercise import Assignment

CHAPTERS = (
    "language_models",
    "rnn",
    "lstm",
    "seq2seq",
    "self_attention",
    "multi_head_attention",
    "transformer",
    "tokenization",
    "gpt",
    "pretraining",
    "generation",
    "bert",
    "classification",
    "instruction_tuning",
    "looking_inside",
    "reading_critically",
    "capstone",
)


def load(notebook: str, hidden: bool = False) -> Assignment:
    """The assignment of a notebook, with its hidden cases if asked for."""
    module: ModuleType = importlib.import_module(f"autograder.checks.{notebook}")
    if hidden:
        importlib.import_module(f"autograder.hidden.{notebook}")
    return module.ASSIGNMENT
