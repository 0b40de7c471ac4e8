"""Preferences: direct preference optimization (chapter 14; Rafailov et al. 2023).

Two answers to one prompt, the better one named: the policy is trained to raise the first over the
second by more than a frozen reference does. No reward model and no sampling during training: the
loss is that of a classifier, on sums of log-probabilities.

>>> zero = torch.zeros(2)
>>> dpo_loss(zero, zero, zero, zero, beta=0.1)
tensor(0.6931)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rnn2gpt.instruct import (
    InstructConfig,
    InstructTrainer,
    Row,
    answers,
    build_labels,
    collate,
    encode_prompt,
    end_id,
    log_probabilities,
    summed_log_probabilities,
)
from rnn2gpt.tasks import read_lines
from rnn2gpt.tokenizer import BPETokenizer

Preference = tuple[str, str, str]  # a prompt, the chosen answer, the rejected one


def dpo_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    reference_chosen: Float[Tensor, " B"],
    reference_rejected: Float[Tensor, " B"],
    beta: float,
) -> Float[Tensor, ""]:
    """−ln σ(β · margin), averaged over the batch (Rafailov et al. 2023, equation 7).

    The inputs are summed log-probabilities of whole answers. The margin is how much more the policy
    prefers the chosen answer than the reference does.
    """
    policy = policy_chosen - policy_rejected  # (B,)
    reference = reference_chosen - reference_rejected  # (B,)
    return -F.logsigmoid(beta * (policy - reference)).mean()


def sample_preferences(
    model: Any,
    tokenizer: BPETokenizer,
    prompts: Sequence[str],
    preferred: Callable[[str], bool],
    n_samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Preference]:
    """The model's own answers, judged: at most one pair for each prompt, of one that the rule
    prefers and one that it does not. Prompts whose answers are all alike in that give none."""
    chance = torch.Generator().manual_seed(seed)
    asked = [prompt for prompt in prompts for _ in range(n_samples)]
    given = answers(model, tokenizer, asked, temperature=temperature, generator=chance)
    pairs = []
    for i, prompt in enumerate(prompts):
        mine = given[i * n_samples : (i + 1) * n_samples]
        good = [text for text in mine if preferred(text)]
        bad = [text for text in mine if not preferred(text)]
        if good and bad:
            pairs.append((prompt, good[0], bad[0]))
    return pairs


def read_preferences(path: str | Path) -> list[Preference]:
    """A user's own pairs: a JSON object with prompt, chosen and rejected on each line.

    Raises `DataError` when the file cannot be read or a line is something else.
    """
    return [
        (prompt, chosen, rejected)
        for prompt, chosen, rejected in read_lines(Path(path), "prompt", "chosen", "rejected")
    ]


def encode_preference(tokenizer: BPETokenizer, preference: Preference) -> tuple[Row, Row]:
    """Ids and labels of the chosen answer and of the rejected one, both after their prompt."""
    start, end = encode_prompt(tokenizer, preference[0]), end_id(tokenizer)
    chosen, rejected = (
        build_labels(start, [*tokenizer.encode(f" {answer}"), end]) for answer in preference[1:]
    )
    return chosen, rejected


@dataclass(frozen=True, kw_only=True)
class DPOConfig(InstructConfig):
    """How to tune on preferences: `batch_size` counts pairs. The rate is small, the steps few."""

    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup_steps: int = 10
    weight_decay: float = 0.0
    evaluate_every: int = 20
    beta: float = 0.1


class DPOTrainer(InstructTrainer):
    """A run on pairs of answers. The model it starts from is the reference.

    What the reference says of each answer is computed once, before the first step, so that only
    one model has to be kept.
    """

    config: DPOConfig

    def __init__(
        self,
        config: DPOConfig,
        reference: nn.Module,
        tokenizer: BPETokenizer,
        pairs: Sequence[Preference],
        held_out: Sequence[Preference],
        out: str | Path | None = None,
        **others: Any,
    ) -> None:
        sizes: Any = reference.config
        rows, held_out_rows = (
            [row for pair in part for row in encode_preference(tokenizer, pair)]
            for part in (pairs, held_out)
        )
        if any(len(ids) > sizes.block_size for ids, _ in rows + held_out_rows):
            raise ValueError(f"A pair is longer than the model's window of {sizes.block_size}")
        super().__init__(
            config, sizes, tokenizer, rows, held_out_rows, out,
            initialize=lambda model: model.load_state_dict(reference.state_dict()), **others,
        )  # fmt: skip
        self.counts = self.counts.view(-1, 2).sum(dim=1)  # an example is a pair of rows
        self.sums, self.held_out_sums = (
            log_probabilities(self.model, part, self.pad_id).view(-1, 2)
            for part in (rows, held_out_rows)
        )  # (N, 2), chosen and rejected, as the reference has them

    def batch(self) -> tuple[Any, Tensor]:
        """ids, labels (2B, T), chosen and rejected in turn; the reference's sums (B, 2)."""
        some = self.picked()
        ids, labels, _ = collate([self.rows[2 * i + k] for i in some for k in (0, 1)], self.pad_id)
        return (ids.to(self.device), labels.to(self.device)), self.sums[some].to(self.device)

    def loss(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        """`dpo_loss` of the pairs; `targets` are what the reference says of their answers."""
        ids, labels = inputs
        policy = summed_log_probabilities(model(ids)[0], labels).view(-1, 2)  # (B, 2)
        return self._preference(policy, targets)

    def _preference(self, policy: Tensor, reference: Tensor) -> Tensor:
        (chosen, rejected), (old_chosen, old_rejected) = policy.unbind(1), reference.unbind(1)
        return dpo_loss(chosen, rejected, old_chosen, old_rejected, self.config.beta)

    def validate(self) -> float:
        """The loss on the held-out pairs."""
        policy = log_probabilities(self.model, self.held_out, self.pad_id).view(-1, 2)
        return self._preference(policy, self.held_out_sums).item()
