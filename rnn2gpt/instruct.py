"""Instruction tuning: many tasks, each as a text to continue, and answers that are judged (14).

A task becomes a prompt, the template makes it the start of a text, and the model is trained to go
on with the answer and an end. Only the answer counts in the loss (Ouyang et al. 2022 call it
supervised fine-tuning; Wei et al. 2022 instruction tuning). The loop is `training.Trainer`'s.

>>> build_labels([5, 6, 7], [8, 9])
([5, 6, 7, 8, 9], [-100, -100, -100, 8, 9])
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.generation import generate
from rnn2gpt.tasks import Example, Tasks, without_closing
from rnn2gpt.tokenizer import BPETokenizer
from rnn2gpt.training import Trainer, TrainingConfig

IGNORE = -100
TEMPLATE = "{prompt}\nAnswer:"
Row = tuple[list[int], list[int]]  # ids and their labels


# --- from texts to labels -------------------------------------------------------------------------


def build_labels(
    prompt_ids: Sequence[int], response_ids: Sequence[int], ignore_index: int = IGNORE
) -> Row:
    """The ids of prompt and response in a row, and labels that count the response alone.

    Both lists have one length; a label stands at its own token's place, and the loss shifts. The
    response's last id is the end of the answer: without a label there, no model learns to stop.
    """
    unasked = [ignore_index for _ in prompt_ids]
    return [*prompt_ids, *response_ids], [*unasked, *response_ids]


def collate(
    examples: Sequence[Row], pad_id: int
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of ids and labels, padded on the right to the longest; the mask is True at real tokens.

    What is padding follows from the lengths and never from the ids: `pad_id` may be a real token.

    >>> ids, labels, mask = collate([([5, 2], [-100, 2]), ([7], [-100])], pad_id=2)
    >>> ids.tolist(), labels.tolist(), mask.tolist()
    ([[5, 2], [7, 2]], [[-100, 2], [-100, -100]], [[True, True], [True, False]])
    """
    longest = max(len(ids) for ids, _ in examples)
    padded = torch.full((len(examples), longest), pad_id)
    targets = torch.full((len(examples), longest), IGNORE)
    lengths = torch.tensor([len(ids) for ids, _ in examples])
    for i, (ids, labels) in enumerate(examples):
        padded[i, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        targets[i, : len(labels)] = torch.tensor(labels, dtype=torch.int64)
    return padded, targets, torch.arange(longest) < lengths[:, None]


def end_id(tokenizer: BPETokenizer) -> int:
    """The token that ends an answer: GPT-2's `<|endoftext|>`, else ASCII's own "end of text".

    The vocabulary of a byte-level tokenizer holds every byte, so byte 3 has a token even where no
    text ever used it.
    """
    name = "<|endoftext|>"
    return tokenizer.encode(name if name in tokenizer.special_tokens else "\x03")[0]


def encode_prompt(tokenizer: BPETokenizer, prompt: str) -> list[int]:
    """The ids that the model is given: the prompt in its template."""
    return list(tokenizer.encode(TEMPLATE.format(prompt=prompt)))


def encode_example(tokenizer: BPETokenizer, example: Example) -> Row:
    """Ids and labels of one example. The answer begins with a space, as a word in a text does."""
    response = [*tokenizer.encode(f" {example.response}"), end_id(tokenizer)]
    return build_labels(encode_prompt(tokenizer, example.prompt), response)


def encode_text(ids: Int64[Tensor, " N"], length: int, n: int, seed: int = 0) -> list[Row]:
    """n windows of a text as examples without a prompt: every token counts, as in pretraining."""
    chance = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length + 1, (n,), generator=chance).tolist()
    return [build_labels([], ids[at : at + length].tolist()) for at in starts]


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InstructConfig(TrainingConfig):
    """How to tune: `batch_size` counts examples, `block_size` has no meaning here."""

    model: str = "gpt"
    batch_size: int = 20
    learning_rate: float = 2e-3
    min_learning_rate: float = 0.0
    evaluate_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate > 1:
            raise ValueError("Examples have unequal numbers of labels: no accumulate here")


def response_loss(model: nn.Module, ids: Int64[Tensor, "B T"], labels: Tensor) -> Tensor:
    """Mean −ln p of the tokens with a label, each predicted from all that stands before it.

    A causal model needs no mask for padding on the right: nothing real comes after it.
    """
    logits = model(ids)[0][:, :-1]  # (B, T − 1, V)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )


class InstructTrainer(Trainer):
    """A run on rows of ids and labels: everything else is `Trainer`'s, resuming included.

    An epoch is a permutation that the seed and its number give, and the batches go through the
    epochs without a gap, so a batch is a function of (seed, step) alone.
    """

    config: InstructConfig

    def __init__(
        self,
        config: InstructConfig,
        model_config: Any,
        tokenizer: BPETokenizer,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        out: str | Path | None = None,
        **others: Any,
    ) -> None:
        window = model_config.block_size
        self.rows = [row for row in rows if len(row[0]) <= window]
        self.held_out = [row for row in held_out if len(row[0]) <= window]
        if not (self.rows and self.held_out):
            raise ValueError(f"No example fits into the model's window of {window} tokens")
        self.pad_id = end_id(tokenizer)
        self.order = lru_cache(maxsize=2)(self._order)
        self.counts = torch.tensor([_counted(labels) for _, labels in self.rows])
        train = torch.tensor([i for ids, _ in self.rows for i in ids])
        answers = [ids[-_counted(labels) :] for ids, labels in self.held_out]
        validation = torch.tensor([i for ids in answers for i in ids])
        super().__init__(
            config, model_config, tokenizer, train, validation, out,
            template=TEMPLATE, end_id=self.pad_id, **others,
        )  # fmt: skip

    def _order(self, epoch: int) -> Int64[Tensor, " N"]:
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + epoch)
        return torch.randperm(len(self.counts), generator=generator)

    @property
    def tokens(self) -> int:
        """How many tokens with a label the run has trained on."""
        epochs, rest = divmod(self.step * self.config.batch_size, len(self.counts))
        return epochs * int(self.counts.sum()) + int(self.counts[self.order(epochs)[:rest]].sum())

    def picked(self) -> list[int]:
        """Which examples the coming step takes."""
        first, n = self.step * self.config.batch_size, len(self.counts)
        places = range(first, first + self.config.batch_size)
        return [int(self.order(i // n)[i % n]) for i in places]

    def batch(self) -> tuple[Any, Tensor]:
        """ids and labels (B, T) of the coming step."""
        ids, labels, _ = collate([self.rows[i] for i in self.picked()], self.pad_id)
        return ids.to(self.device), labels.to(self.device)

    def loss(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        """Mean −ln p of the answers' tokens."""
        return response_loss(model, inputs, targets)

    def validate(self) -> float:
        return -log_probabilities(self.model, self.held_out, self.pad_id).sum().item() / sum(
            _counted(labels) for _, labels in self.held_out
        )


def _counted(labels: Sequence[int]) -> int:
    """How many labels count: all but −100."""
    return sum(label != IGNORE for label in labels)


def summed_log_probabilities(
    logits: Float[Tensor, "B T V"], labels: Int64[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Σ ln p of each row's labels, where the logits of one place judge the label of the next."""
    nll = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )  # (B, V, T − 1) and (B, T − 1) → (B, T − 1), 0 where nothing counts
    return -nll.sum(dim=1)


@torch.no_grad()
def log_probabilities(
    model: nn.Module, rows: Sequence[Row], pad_id: int, batch_size: int = 64
) -> Float[Tensor, " N"]:
    """Σ ln p of each row's labels, with dropout off."""
    device, was_training, found = next(model.parameters()).device, model.training, []
    model.eval()
    for start in range(0, len(rows), batch_size):
        ids, labels, _ = collate(rows[start : start + batch_size], pad_id)
        ids, labels = ids.to(device), labels.to(device)
        found.append(summed_log_probabilities(model(ids)[0], labels).cpu())
    model.train(was_training)
    return torch.cat(found)


# --- asking ---------------------------------------------------------------------------------------


def answers(
    model: Any,
    tokenizer: BPETokenizer,
    prompts: Sequence[str],
    max_tokens: int = 32,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """The model's answer to each prompt, up to its end token. Put the model in `eval()` first.

    Prompts of one length share a batch, so none needs padding.
    """
    device, end = next(model.parameters()).device, end_id(tokenizer)
    by_length: dict[int, list[int]] = {}
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for i, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(i)
    found = [""] * len(prompts)
    for length, places in by_length.items():
        batch = torch.tensor([encoded[i] for i in places], device=device)  # (n, T)
        text = generate(
            model, batch, max_tokens, temperature, generator=generator, end_id=end
        )  # (n, T + up to max_tokens)
        for i, row in zip(places, text[:, length:].tolist(), strict=True):
            found[i] = tokenizer.decode(row[: row.index(end)] if end in row else row).strip()
    return found


# --- judging --------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces.

    Rajpurkar et al. 2016, in the evaluation script they published with the questions.

    >>> normalize("The  Pound."), normalize("theatre")
    ('pound', 'theatre')
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same after SQuAD's normalization.

    >>> exact_match("The pound.", "pound"), exact_match("two pounds", "pound")
    (True, False)
    """
    return normalize(prediction) == normalize(reference)


def rouge_l(predictions: Iterable[str], references: Iterable[str]) -> float:
    """Mean ROUGE-L, 0 to 100 (Lin 2004), as `rouge-score` computes it: F1 of the longest common
    subsequence of words."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(predictions, references, strict=True)
    scores = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]
    return 100 * sum(scores) / len(scores)


def judge(given: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """n, the share of exact matches, and the measure of the task beside it.

    A polite closing counts neither way. BLEU goes with translations, character by character, and
    ROUGE-L with what is longer than a name.
    """
    from rnn2gpt.translator import bleu

    texts = [without_closing(text) for text in given]
    wanted = [without_closing(example.response) for example in examples]
    hits = sum(exact_match(text, right) for text, right in zip(texts, wanted, strict=True))
    scores = {"n": len(texts), "exact": hits / len(texts)}
    tasks = {example.task for example in examples}
    if tasks <= {"numbers"}:
        scores["bleu"] = bleu(texts, wanted)
    elif tasks <= {"headline", "talk", "own"}:
        scores["rouge_l"] = rouge_l(texts, wanted)
    return scores


def encode_split(tokenizer: BPETokenizer, splits: Tasks, name: str) -> list[Row]:
    """Rows of all examples of a split."""
    return [encode_example(tokenizer, example) for example in splits[name]]
