"""Right answers to chapter 14, each written another way."""

from __future__ import annotations

import re
import string
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- build_labels -------------------------------------------------------------------------------


def labels_by_adding(
    prompt_ids: list[int], response_ids: list[int], ignore_index: int = -100
) -> tuple[list[int], list[int]]:
    ids = prompt_ids + response_ids
    labels = len(prompt_ids) * [ignore_index] + response_ids
    return ids, labels


def labels_one_by_one(
    prompt_ids: list[int], response_ids: list[int], ignore_index: int = -100
) -> tuple[list[int], list[int]]:
    ids, labels = [], []
    for token in prompt_ids:
        ids.append(token)
        labels.append(ignore_index)
    for token in response_ids:
        ids.append(token)
        labels.append(token)
    return ids, labels


def labels_written_over(
    prompt_ids: list[int], response_ids: list[int], ignore_index: int = -100
) -> list[list[int]]:
    """A copy of the ids whose first part is written over."""
    ids = list(chain(prompt_ids, response_ids))
    labels = ids.copy()
    labels[: len(prompt_ids)] = [ignore_index for _ in prompt_ids]
    return [ids, labels]


# --- collate ------------------------------------------------------------------------------------


def collate_by_lists(
    examples: list[tuple[list[int], list[int]]], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    n = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [pad_id] * (n - len(row)) for row, _ in examples])
    labels = torch.tensor([row + [-100] * (n - len(row)) for _, row in examples])
    mask = torch.tensor([[i < len(row) for i in range(n)] for row, _ in examples])
    return ids, labels, mask


def collate_by_filling(
    examples: list[tuple[list[int], list[int]]], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    size = (len(examples), max(len(ids) for ids, _ in examples))
    ids = torch.full(size, pad_id, dtype=torch.long)
    labels = torch.full(size, -100, dtype=torch.long)
    mask = torch.zeros(size, dtype=torch.bool)
    for i, (row, targets) in enumerate(examples):
        ids[i, : len(row)] = torch.as_tensor(row)
        labels[i, : len(row)] = torch.as_tensor(targets)
        mask[i, : len(row)] = True
    return ids, labels, mask


def collate_by_scatter(examples: list[tuple[list[int], list[int]]], pad_id: int) -> list[Tensor]:
    """All rows end to end, laid into the places that the lengths leave open."""
    lengths = torch.tensor([len(ids) for ids, _ in examples])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.full(mask.shape, pad_id).masked_scatter(
        mask, torch.tensor(list(chain.from_iterable(ids for ids, _ in examples)))
    )
    labels = torch.full(mask.shape, -100)
    labels[mask] = torch.tensor([label for _, labels in examples for label in labels])
    return [ids, labels, mask]


# --- exact_match --------------------------------------------------------------------------------


def match_by_regex(prediction: str, reference: str) -> bool:
    def normal(text: str) -> str:
        text = re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower())
        text = re.sub(r"\b(?:a|an|the)\b", " ", text)
        return re.sub(r"\s+", " ", text).strip()

    return normal(prediction) == normal(reference)


def match_by_words(prediction: str, reference: str) -> bool:
    """Lists of words without the articles."""
    table = str.maketrans("", "", string.punctuation)

    def kept(text: str) -> list[str]:
        words = text.lower().translate(table).split()
        return [word for word in words if word not in {"a", "an", "the"}]

    return kept(prediction) == kept(reference)


def match_letter_by_letter(prediction: str, reference: str) -> bool:
    forms = []
    for text in (prediction, reference):
        clean = "".join(filter(lambda c: c not in string.punctuation, text))
        words = [word.casefold() for word in clean.split()]
        forms.append(" ".join(w for w in words if w != "a" and w != "an" and w != "the"))
    return bool(forms[0] == forms[1])


# --- dpo_loss -----------------------------------------------------------------------------------


def dpo_by_logsigmoid(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    chosen_reward = beta * (policy_chosen - reference_chosen)
    rejected_reward = beta * (policy_rejected - reference_rejected)
    return -F.logsigmoid(chosen_reward - rejected_reward).mean()


def dpo_by_softplus(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """−ln σ(x) = ln(1 + e⁻ˣ)."""
    lag = (policy_rejected - policy_chosen) - (reference_rejected - reference_chosen)
    return F.softplus(beta * lag).mean()


def dpo_by_logsumexp(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Any:
    """A choice between two answers: the cross-entropy of a softmax over their gains."""
    gains = torch.stack(
        [policy_chosen - reference_chosen, policy_rejected - reference_rejected], dim=-1
    )  # (B, 2)
    losses = torch.logsumexp(beta * gains, dim=-1) - beta * gains[..., 0]
    return losses.sum() / len(losses)


def dpo_by_logaddexp(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    margin = policy_chosen - policy_rejected - reference_chosen + reference_rejected
    return torch.logaddexp(torch.zeros_like(margin), -beta * margin).mean()


ANSWERS = {
    "build_labels": [labels_by_adding, labels_one_by_one, labels_written_over],
    "collate": [collate_by_lists, collate_by_filling, collate_by_scatter],
    "exact_match": [match_by_regex, match_by_words, match_letter_by_letter],
    "dpo_loss": [dpo_by_logsigmoid, dpo_by_softplus, dpo_by_logsumexp, dpo_by_logaddexp],
}
